import pytest
import torch
from torch import nn

from vaelib import VAE
from vaelib.networks import ACTIVATIONS, mlp
from vaelib.objectives import ELBO


def kinds(module, kind):
    return [layer for layer in module.modules() if isinstance(layer, kind)]


def test_the_article_s_network_is_13_8_4_2_and_back():
    encoder, decoder = mlp(13)
    widths = [(layer.in_features, layer.out_features) for layer in kinds(encoder, nn.Linear)]
    assert widths == [(13, 8), (8, 4), (4, 4)]  # the last one: two means and two log-variances
    widths = [(layer.in_features, layer.out_features) for layer in kinds(decoder, nn.Linear)]
    assert widths == [(2, 4), (4, 8), (8, 13)]
    mu, logvar = encoder(torch.zeros(5, 13))
    assert mu.shape == logvar.shape == (5, 2)
    assert decoder(mu).shape == (5, 13)


def test_no_hidden_layer_means_linear():
    encoder, decoder = mlp(13, hidden=())
    a, b = torch.randn(2, 7, 13)
    for i in (0, 1):
        torch.testing.assert_close(
            encoder(a + b)[i], encoder(a)[i] + encoder(b)[i] - encoder(torch.zeros(7, 13))[i]
        )
    assert len(kinds(decoder, nn.Linear)) == 1


def test_each_option_changes_the_network():
    plain = [str(net) for net in mlp(13)]
    for option in (
        {"n_latents": 3},
        {"hidden": (16,)},
        {"activation": "tanh"},
        {"batch_norm": False},
        {"linear_bottleneck": True},
    ):
        assert all(str(net) != was for net, was in zip(mlp(13, **option), plain, strict=True))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_asked_for(name):
    encoder, decoder = mlp(13, activation=name)
    assert len(kinds(encoder, ACTIVATIONS[name])) == len(kinds(decoder, ACTIVATIONS[name])) == 2


def test_linear_bottleneck_leaves_out_the_layers_next_to_it():
    encoder, decoder = mlp(13, hidden=(8, 4), linear_bottleneck=True)
    assert [type(layer) for layer in encoder.body] == [
        *(nn.Linear, nn.BatchNorm1d, nn.ReLU),
        *(nn.Linear, nn.BatchNorm1d),
    ]
    assert [type(layer) for layer in decoder.body] == [
        *(nn.Linear, nn.BatchNorm1d),
        *(nn.Linear, nn.BatchNorm1d, nn.ReLU),
    ]


def test_no_weight_is_without_effect():
    """A bias before batch norm is cancelled by it, and would train on rounding noise."""
    model = VAE(*mlp(13)).double()
    ELBO()(model, torch.randn(16, 13, dtype=torch.float64))["loss"].backward()
    for name, weight in model.named_parameters():
        assert weight.grad.abs().max() > 1e-6, name


def test_bad_arguments_are_refused_with_the_value():
    with pytest.raises(ValueError, match="'swish' is not one of"):
        mlp(13, activation="swish")
    with pytest.raises(ValueError, match="n_latents=0"):
        mlp(13, n_latents=0)
    with pytest.raises(ValueError, match=r"hidden=\(8, 0\)"):
        mlp(13, hidden=(8, 0))
    with pytest.raises(ValueError, match="linear already"):
        mlp(13, hidden=(), linear_bottleneck=True)


def test_a_wrong_width_is_refused_with_the_remedy():
    encoder, decoder = mlp(13)
    with pytest.raises(ValueError, match=r"x has 12 columns.*13.*n_features=12"):
        encoder(torch.zeros(5, 12))
    with pytest.raises(ValueError, match=r"z has 3 columns.*2.*n_latents=3"):
        decoder(torch.zeros(5, 3))
