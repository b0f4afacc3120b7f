import pytest
import torch
from torch.distributions import Normal

from vaelib import VAE
from vaelib.networks import mlp
from vaelib.objectives import ELBO


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VAE(*mlp(13, n_latents=3)).double().eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(32, n, generator=generator, dtype=torch.float64) for n in (13, 3)]


def test_elbo_is_its_formula_in_nats_per_sample(model, batch):
    x, eps = batch
    q = model.encode(x)
    z = q.mean + q.stddev * eps
    log_px = Normal(model.decoder(z), 1.0).log_prob(x).sum(-1)
    kl = torch.distributions.kl_divergence(q, Normal(0.0, 1.0)).sum(-1)
    for beta in (0.0, 1.0, 4.0):
        terms = ELBO(beta)(model, x, eps)
        torch.testing.assert_close(terms["loss"], (-log_px + beta * kl).mean())
        torch.testing.assert_close(terms["reconstruction"], -log_px.mean())
        torch.testing.assert_close(terms["kl"].sum(), kl.mean())
        assert terms["kl"].shape == (3,)


def test_size_and_order_of_the_batch_leave_the_loss_where_it_was(model, batch):
    x, eps = batch
    loss = ELBO()(model, x, eps)["loss"]
    torch.testing.assert_close(ELBO()(model, x.repeat(2, 1), eps.repeat(2, 1))["loss"], loss)
    order = torch.randperm(len(x))
    torch.testing.assert_close(ELBO()(model, x[order], eps[order])["loss"], loss)


def test_doubling_the_features_doubles_the_reconstruction():
    """Terms are sums over features, not means."""
    x = torch.randn(32, 5)
    wide, narrow = (VAE(*mlp(n, hidden=(), n_latents=1)).eval() for n in (10, 5))
    for model in (wide, narrow):
        model.decoder.output.weight.data.zero_()
        model.decoder.output.bias.data.zero_()
    once = ELBO()(narrow, x)["reconstruction"]
    torch.testing.assert_close(ELBO()(wide, x.repeat(1, 2))["reconstruction"], 2 * once)


def test_a_negative_beta_is_refused():
    for beta in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="beta must be 0 or more"):
            ELBO(beta)


def test_noise_is_what_the_forward_pass_takes(model):
    generator = torch.Generator().manual_seed(3)
    (eps,) = ELBO().noise(model, 7, generator)
    assert eps.shape == (7, 3)
    assert torch.equal(eps, model.noise(7, torch.Generator().manual_seed(3)))
