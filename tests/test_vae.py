import pytest
import torch
from torch.distributions import Normal

from vaelib import VAE
from vaelib.likelihoods import Bernoulli, Gaussian
from vaelib.networks import mlp


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VAE(*mlp(13)).eval()


def test_encode_returns_the_normal_that_the_encoder_means(model):
    x = torch.randn(5, 13)
    mu, logvar = model.encoder(x)
    q = model.encode(x)
    assert isinstance(q, Normal)
    torch.testing.assert_close(q.mean, mu)
    torch.testing.assert_close(q.variance.log(), logvar)
    assert torch.equal(q.mu, mu)
    assert torch.equal(q.logvar, logvar)


def test_reparameterize_follows_the_noise_and_lets_gradients_through(model):
    q = model.encode(torch.randn(5, 13))
    eps = torch.randn(5, 2)
    z = model.reparameterize(q, eps)
    torch.testing.assert_close((z - q.mu) / q.stddev, eps)
    (grad_mu,) = torch.autograd.grad(z.sum(), q.mu, retain_graph=True)
    (grad_logvar,) = torch.autograd.grad(z.sum(), q.logvar)
    torch.testing.assert_close(grad_mu, torch.ones(5, 2))
    torch.testing.assert_close(grad_logvar, 0.5 * q.stddev * eps)


def test_reparameterize_draws_from_q(model):
    torch.manual_seed(0)
    q = model.encode(torch.randn(1, 13).expand(100_000, 13))
    z = model.reparameterize(q)
    assert torch.allclose(z.mean(0), q.mean[0], atol=0.02)
    assert torch.allclose(z.std(0), q.stddev[0], rtol=0.02)


def test_noise_can_be_repeated(model):
    draws = [model.noise(4, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert draws[0].shape == (4, 2)
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], model.noise(4))


def test_terms_are_per_sample_and_in_the_formula_s_words(model):
    x, eps = torch.randn(5, 13), torch.randn(5, 2)
    terms = model(x, eps)
    assert terms.reconstruction.shape == (5,)
    assert terms.kl.shape == (5, 2)
    torch.testing.assert_close(terms.reconstruction, -terms.p.log_prob(x))
    torch.testing.assert_close(terms.p.mean, model.decode(terms.z).mean)
    assert not torch.equal(model(x).z, model(x).z)  # noise is drawn where not given


def test_a_likelihood_can_be_chosen(model):
    assert isinstance(model.likelihood, Gaussian)
    assert model.likelihood.sigma == 1
    assert VAE(*mlp(13), Gaussian(0.5)).likelihood.sigma == pytest.approx(0.5)


def test_a_batch_that_cannot_be_scored_is_refused_unless_it_was_checked(model):
    picky = VAE(*mlp(13), Bernoulli()).eval()
    with pytest.raises(ValueError, match="Bernoulli can score"):
        picky(torch.full((5, 13), 2.0))
    picky.validate_args = False
    assert picky(torch.full((5, 13), 2.0)).reconstruction.shape == (5,)
    with pytest.raises(ValueError, match="nan"):
        model(torch.full((5, 13), torch.nan))
    with pytest.raises(ValueError, match="12 columns"):
        model(torch.zeros(5, 12))
