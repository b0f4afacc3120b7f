import math

import pytest
import torch
from sklearn.decomposition import PCA

from vaelib import VAE, data, metrics
from vaelib.likelihoods import Bernoulli, Gaussian
from vaelib.networks import mlp
from vaelib.objectives import ELBO, ComputedGamma


@pytest.fixture
def linear_model():
    """x = w·z + noise with p(x) known in closed form, and a posterior that is not the best."""
    torch.manual_seed(0)
    model = VAE(*mlp(3, hidden=(), n_latents=1), Gaussian(0.8)).double().eval()
    model.decoder.output.weight.data = torch.tensor([[1.0], [-0.5], [0.3]], dtype=torch.float64)
    model.encoder.mu_logvar.weight.data *= 0.3
    return model


def log_px(model, x):
    w, b = model.decoder.output.weight, model.decoder.output.bias
    cov = w @ w.T + model.likelihood.sigma**2 * torch.eye(3, dtype=x.dtype)
    return torch.distributions.MultivariateNormal(b, cov).log_prob(x).detach()


def test_iwae_tightens_with_k_towards_log_px(linear_model):
    torch.manual_seed(1)
    x = torch.randn(400, 3, dtype=torch.float64)
    exact = log_px(linear_model, x).mean()
    draws = {
        k: torch.stack([metrics.iwae_bound(linear_model, x, k).mean() for _ in range(30)])
        for k in (1, 4, 16, 64)
    }
    errors = {k: d.std() / math.sqrt(len(d)) for k, d in draws.items()}
    means = [draws[k].mean() for k in draws]
    for (k, low), high in zip(zip(draws, means, strict=True), means[1:], strict=False):
        assert low < high, f"K = {k} is not below the next"
    assert means[-1] < exact + 4 * errors[64]
    assert means[-1] > means[0] + 0.5 * (exact - means[0])


def give_the_exact_posterior(model):
    """N(w·(x - b)·s²/σ², s²) with 1/s² = 1 + ‖w‖²/σ²."""
    w, b = model.decoder.output.weight[:, 0], model.decoder.output.bias
    sigma2 = model.likelihood.sigma**2
    variance = 1 / (1 + w @ w / sigma2)
    head = model.encoder.mu_logvar
    head.weight.data = torch.stack([variance * w / sigma2, torch.zeros_like(w)]).detach()
    head.bias.data = torch.stack([-variance * (w @ b) / sigma2, variance.log()]).detach()


@pytest.mark.parametrize("k", [1, 7])
def test_iwae_is_log_px_for_any_noise_where_q_is_the_exact_posterior(k, linear_model):
    """p(x|z)·p(z)/q(z|x) is p(x) then, at every z."""
    give_the_exact_posterior(linear_model)
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(50, 3, generator=generator, dtype=torch.float64)
    eps = 2 * torch.randn(k, 50, 1, generator=generator, dtype=torch.float64)
    bound = metrics.iwae_bound(linear_model, x, k, eps=eps)
    torch.testing.assert_close(bound, log_px(linear_model, x), rtol=0, atol=1e-9)


def test_iwae_comes_to_log_px_from_below_and_no_further(linear_model):
    """Where q is somewhat wrong, at a K so large that the little it then lacks is no excuse."""
    give_the_exact_posterior(linear_model)
    linear_model.encoder.mu_logvar.bias.data += 0.3
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 3, generator=generator, dtype=torch.float64)
    exact, runs = log_px(linear_model, x), 10

    def gap(k):
        bounds = torch.stack(
            [metrics.iwae_bound(linear_model, x, k, generator=generator) for _ in range(runs)]
        )
        gaps = (exact - bounds).mean(1)
        return gaps.mean(), gaps.std() / math.sqrt(runs)

    (loose, _), (tight, error) = gap(1), gap(400)
    assert loose > 0.03
    assert error < 1e-3
    assert -4 * error < tight < 1e-3 + 4 * error


def test_iwae_at_k_1_is_the_elbo(linear_model):
    torch.manual_seed(1)
    x = torch.randn(400, 3, dtype=torch.float64)
    bounds = torch.stack([metrics.iwae_bound(linear_model, x, 1).mean() for _ in range(200)])
    elbos = torch.stack([-ELBO()(linear_model, x)["loss"] for _ in range(200)]).detach()
    error = (bounds.var() / 200 + elbos.var() / 200).sqrt()
    assert (bounds.mean() - elbos.mean()).abs() < 4 * error


def test_iwae_follows_the_noise_handed_in(linear_model):
    x, eps = torch.randn(5, 3, dtype=torch.float64), torch.randn(8, 5, 1, dtype=torch.float64)
    first, again = (metrics.iwae_bound(linear_model, x, 8, eps=eps) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (5,)
    a, b = (
        metrics.iwae_bound(linear_model, x, 8, generator=torch.Generator().manual_seed(s))
        for s in (1, 2)
    )
    assert not torch.equal(a, b)
    with pytest.raises(ValueError, match=r"\(8, 5, 2\), needed is .*\(8, 5, 1\)"):
        metrics.iwae_bound(linear_model, x, 8, eps=torch.zeros(8, 5, 2))
    with pytest.raises(ValueError, match="n_samples is 0"):
        metrics.iwae_bound(linear_model, x, 0)


def test_active_units_are_those_whose_mean_moves():
    model = VAE(*mlp(3, hidden=(), n_latents=2))
    head = model.encoder.mu_logvar
    head.weight.data.zero_()
    head.weight.data[0, 0] = 1.0  # latent 0 copies the first feature, latent 1 stays put
    head.weight.data[1, 1] = 0.05  # …nearly: variance 0.0025
    x = torch.randn(500, 3)
    assert metrics.active_units(model, x).tolist() == [True, False]
    assert metrics.active_units(model, x, threshold=0.001).tolist() == [True, True]


def test_where_a_mean_lies_makes_no_unit_active():
    model = VAE(*mlp(3, hidden=(), n_latents=2)).double()
    torch.nn.init.zeros_(model.encoder.mu_logvar.weight)
    model.encoder.mu_logvar.bias.data = torch.tensor([3.0, 0.0, 0.0, -4.0], dtype=torch.float64)
    x = torch.randn(50, 3, dtype=torch.float64)
    assert not metrics.active_units(model, x).any()
    model.encoder.mu_logvar.weight.data[3, 0] = 1.0  # nor does a log-variance that moves
    assert not metrics.active_units(model, x).any()


def test_metrics_leave_the_model_as_it_was():
    x = data.wine().x
    model = VAE(*mlp(13)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    metrics.iwae_bound(model, x, 2)
    metrics.active_units(model, x)
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(("k", "raw", "scaled"), [(1, 0.770, 0.955), (5, 0.697, 0.972)])
def test_knn_accuracy_on_wine_is_what_it_is_known_to_be(k, raw, scaled):
    assert metrics.knn_accuracy(data.wine(standardize=False).x, data.wine().y, k) == pytest.approx(
        raw, abs=1e-3
    )
    assert metrics.knn_accuracy(data.wine().x, data.wine().y, k) == pytest.approx(scaled, abs=1e-3)


def test_trustworthiness_of_pca_on_wine_is_what_it_is_known_to_be():
    wine = data.wine()
    z = PCA(2).fit_transform(wine.x)
    assert metrics.trustworthiness(wine.x, torch.tensor(z)) == pytest.approx(0.871, abs=2e-3)
    assert metrics.trustworthiness(wine.x, wine.x) == 1
    assert metrics.trustworthiness(wine.x, torch.tensor(z), k=30) != pytest.approx(0.871, abs=2e-3)


def test_beta_eff_leaves_model_and_objective_as_they_were():
    torch.manual_seed(0)
    x = torch.randn(40, 13)
    model, objective = VAE(*mlp(13)), ComputedGamma()
    before = {**model.state_dict(), **objective.state_dict()}
    before = {name: tensor.clone() for name, tensor in before.items()}
    metrics.beta_eff(model, objective, x)
    after = {**model.state_dict(), **objective.state_dict()}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.training and objective.training
    assert all(p.grad is None for p in model.parameters())
    assert not model.encoder._forward_hooks and not model.decoder._forward_hooks


def test_beta_eff_cleans_up_after_an_error():
    model = VAE(*mlp(13)).eval()
    with pytest.raises(ValueError, match="columns"):
        metrics.beta_eff(model, ELBO(), torch.randn(4, 12))
    assert not model.training and not model.decoder._forward_hooks


def test_beta_eff_of_bits_is_the_variance_the_bernoulli_assumes():
    """Near the mean, cross-entropy is a Gaussian of variance m·(1 - m)."""
    torch.manual_seed(0)
    m = 0.3
    model = VAE(*mlp(6, hidden=()), Bernoulli())
    torch.nn.init.zeros_(model.decoder.output.weight)
    torch.nn.init.constant_(model.decoder.output.bias, torch.tensor(m).logit().item())
    x = (torch.rand(2000, 6) < m).float()
    assert metrics.beta_eff(model, ELBO(), x) == pytest.approx(m * (1 - m), rel=0.02)
