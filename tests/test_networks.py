from itertools import pairwise

import pytest
import torch
from torch import nn

from vaelib import VAE, fit_seeds
from vaelib.networks import ACTIVATIONS, conv, mlp
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


def test_conv_is_the_network_of_the_literature_at_64():
    encoder, decoder = conv(64)
    for convolutions in (kinds(encoder, nn.Conv2d), kinds(decoder, nn.ConvTranspose2d)[::-1]):
        assert [layer.weight.shape for layer in convolutions] == [
            (32, 1, 4, 4),
            *[(32, 32, 4, 4)] * 3,
        ]
    widths = [(layer.in_features, layer.out_features) for layer in kinds(encoder, nn.Linear)]
    assert widths == [(512, 256), (256, 256), (256, 20)]
    widths = [(layer.in_features, layer.out_features) for layer in kinds(decoder, nn.Linear)]
    assert widths == [(10, 256), (256, 256), (256, 512)]
    # Between any two layers with weights there is one ReLU, and none after the last.
    for net in (encoder, decoder):
        layers = [layer for layer in net.modules() if not list(layer.children())]
        weighted = [i for i, layer in enumerate(layers) if list(layer.parameters())]
        assert all(
            len(kinds(nn.Sequential(*layers[a:b]), nn.ReLU)) == 1 for a, b in pairwise(weighted)
        )
        assert weighted[-1] == len(layers) - 1


@pytest.mark.parametrize(
    ("image_size", "channels", "n_latents", "halvings"),
    [
        (64, 1, 10, 4),
        (32, 3, 2, 3),
        (28, 1, 7, 2),
        (8, 1, 1, 1),
        ((64, 33), 3, 5, 3),
        (131, 1, 2, 4),
    ],
)
def test_conv_gives_back_the_shape_it_got(image_size, channels, n_latents, halvings):
    encoder, decoder = conv(image_size, channels, n_latents)
    height, width = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    x = torch.randn(2, channels, height, width, requires_grad=True)
    mu, logvar = encoder(x)
    assert mu.shape == logvar.shape == (2, n_latents)
    assert len(kinds(encoder, nn.Conv2d)) == halvings
    x_hat = decoder(mu)
    assert x_hat.shape == x.shape
    x_hat.square().sum().backward()
    weights = [*encoder.named_parameters(), *decoder.named_parameters()]
    # The log-variance's half of the last layer is out of play here.
    assert all(weight.grad.abs().max() > 0 for _, weight in weights)
    # Every pixel is seen, but for the last row and column of odd sizes that halving drops.
    assert (x.grad[..., : height - 16, : width - 16] != 0).all()


def test_many_seeds_of_conv_train_at_once():
    torch.manual_seed(0)
    x = (torch.rand(32, 1, 12, 9) > 0.5).float()
    runs = fit_seeds(
        lambda: VAE(*conv((12, 9), n_latents=2)),
        ELBO(),
        x,
        steps=30,
        batch_size=16,
        seeds=[0, 1],
        progress=False,
    )
    loss = runs.history["loss"]
    assert (loss[:, -1] < loss[:, 0]).all()
    assert runs.models[1].decode(torch.zeros(3, 2)).mean.shape == (3, 1, 12, 9)


def test_sizes_that_cannot_work_are_refused():
    for bad in (7, (64, 4)):
        with pytest.raises(ValueError, match=r"image_size is .*at least 8 pixels each.*mlp"):
            conv(bad)
    with pytest.raises(TypeError, match=r"image_size of conv is \(28, 28, 28\); pass a whole"):
        conv((28, 28, 28))
    with pytest.raises(ValueError, match="channels=0"):
        conv(28, channels=0)
    with pytest.raises(ValueError, match="n_latents=0"):
        conv(28, n_latents=0)


def test_images_of_another_shape_are_refused_with_the_remedy():
    encoder, decoder = conv((28, 32))
    remedies = {
        (5, 1, 32, 28): "reshape x, or build it with image_size",
        (5, 3, 28, 32): "reshape x, or build it with image_size",
        (5, 28, 32): r"pass x\.reshape\(-1, 1, 28, 32\)",
        (5, 896): r"pass x\.reshape\(-1, 1, 28, 32\)",
    }
    for shape, remedy in remedies.items():
        with pytest.raises(ValueError, match=rf"was built for \(B, 1, 28, 32\); {remedy}"):
            encoder(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"z has 3 columns.*10.*n_latents=3"):
        decoder(torch.zeros(5, 3))
