"""A linear VAE is probabilistic PCA, so its optimum is known (Lucas et al. 2019)."""

import pytest
import torch
from torch.nn import functional as F

from vaelib import VAE, data, fit_seeds, metrics
from vaelib.divergences import gaussian_kl
from vaelib.likelihoods import Gaussian, LogCosh
from vaelib.networks import mlp
from vaelib.objectives import (
    ELBO,
    ComputedGamma,
    InfoVAE,
    LearnedGamma,
    Objective,
    OptimalSigma,
    Robust,
)
from vaelib.schedules import Capacity, Cyclical, FreeBits, Warmup

X = data.wine().x
D, d = 13, 2
EIGENVALUES = torch.linalg.eigvalsh(X.double().T @ X.double() / len(X)).flip(0)[:d]


def closed_form(beta_eff):
    """KL, MSE at μ and MSE at a sampled z, of the best linear VAE with d latents."""
    active = EIGENVALUES[beta_eff < EIGENVALUES]
    lost = D - active.sum()
    kl = 0.5 * (active / beta_eff).log().sum()
    at_mu = (lost + (beta_eff**2 / active).sum()) / D
    at_z = (lost + beta_eff * len(active)) / D
    return torch.stack([kl, at_mu, at_z]).float()


def measured(model):
    with torch.no_grad():
        q = model.encode(X)
        kl = gaussian_kl(q.mu, q.logvar).sum(-1).mean()
        at_mu = (model.decode(q.mu).mean - X).square().mean()
        # E‖W·σ·eps‖² without sampling, for a linear decoder with weights W
        spread = (model.decoder.output.weight.square().sum(0) * q.variance).sum(-1).mean() / D
    return torch.stack([kl, at_mu, at_mu + spread])


class AsOftenWritten(Objective):
    """The default F.mse_loss, a mean over all features, plus a KL summed over the latents."""

    def forward(self, model, x, eps=None):
        terms = model(x, eps)
        return {"loss": F.mse_loss(terms.p.mean, x) + terms.kl.sum(-1).mean()}


def train(objective, likelihood=Gaussian):
    # The data 16 times over: the same optimum, with a quarter of the noise around it.
    runs = fit_seeds(
        lambda: VAE(*mlp(D, hidden=(), n_latents=d, batch_norm=False), likelihood()),
        objective,
        X.repeat(16, 1),
        steps=2000,
        batch_size=16 * len(X),
        seeds=range(5),
        lr=5e-3,
        progress=False,
    )
    return runs.models


@pytest.mark.parametrize(
    ("objective", "likelihood", "beta_eff"),
    [
        (ELBO(beta=0.5), Gaussian, 0.5),
        (ELBO(), lambda: Gaussian(0.5**0.5), 0.5),
        (ELBO(), Gaussian, 1.0),
        (AsOftenWritten(), Gaussian, 6.5),
    ],
    ids=["½·SSE + ½·KL", "σ² = ½", "½·SSE + KL", "mean-MSE + KL"],
)
def test_a_linear_vae_reaches_the_closed_form_optimum(objective, likelihood, beta_eff):
    for model in train(objective, likelihood):
        torch.testing.assert_close(measured(model), closed_form(beta_eff), rtol=0, atol=0.02)


def test_the_closed_form_is_the_published_table():
    expected = {0.5: (1.93, 0.458, 0.523), 1.0: (1.23, 0.493, 0.600), 6.5: (0.0, 1.0, 1.0)}
    for beta_eff, row in expected.items():
        torch.testing.assert_close(closed_form(beta_eff), torch.tensor(row), rtol=0, atol=0.006)


def test_a_learned_sigma_finds_the_mean_squared_error():
    for model in train(ELBO(), lambda: Gaussian(1.0, learn=True)):
        sigma2 = model.likelihood.sigma.item() ** 2
        assert sigma2 == pytest.approx(0.527, abs=0.005)
        torch.testing.assert_close(measured(model), closed_form(sigma2), rtol=0, atol=0.02)


@pytest.mark.parametrize("objective", [LearnedGamma(), ComputedGamma(), OptimalSigma()])
def test_three_ways_to_sigma_meet_at_the_mean_squared_error(objective):
    for model in train(objective):
        sigma2 = model.likelihood.sigma.item() ** 2
        assert sigma2 == pytest.approx(0.527, rel=0.02)
        at_z = measured(model)[2].item()
        assert sigma2 == pytest.approx(at_z, rel=0.02)
        assert metrics.beta_eff(model, objective, X) == pytest.approx(sigma2, rel=1e-3)
        torch.testing.assert_close(measured(model), closed_form(sigma2), rtol=0, atol=0.02)


def residuals(model):
    with torch.no_grad():
        return X - model.decode(model.encode(X).mu).mean


def robust_beta_eff(model, beta=0.2, sigma2=0.6):
    """From the derivative of the β-divergence in the reconstruction, r·weight."""
    r2 = residuals(model).square()
    weight = (1 + beta) / sigma2 * (2 * torch.pi * sigma2) ** (-beta / 2)
    weight = weight * torch.exp(-beta * r2 / (2 * sigma2))
    return (r2.sum() / (weight * r2).sum()).item()


def log_cosh_beta_eff(model, a=2.0):
    r = residuals(model)
    return (r.square().sum() / (r * torch.tanh(a * r)).sum()).item()


@pytest.mark.parametrize(
    ("objective", "likelihood", "theory"),
    [
        (ELBO(2.0), Gaussian(), 2.0),
        (ELBO(2.0), Gaussian(0.5), 0.5),
        (ELBO(1.0, Warmup(fraction=0.5)), Gaussian(), 1.0),
        (ELBO(1.0, Cyclical(fraction=1.0)), Gaussian(), 1.0),
        (ELBO(0.7, FreeBits(0.0)), Gaussian(), 0.7),
        (ELBO(3.0, Capacity(100.0, fraction=0.5)), Gaussian(), -3.0),  # rewards KL up to there
        (InfoVAE(alpha=0.0, lam=1.0), Gaussian(0.5), 0.25),
        (InfoVAE(alpha=0.4, lam=10.0), Gaussian(), 0.6),
        (InfoVAE(alpha=1.0, lam=10.0), Gaussian(), 0.0),
        (AsOftenWritten(), Gaussian(), 6.5),
        (ELBO(), LogCosh(2.0), log_cosh_beta_eff),
        (ELBO(), LogCosh(1e-3), 1000.0),  # close to 0 it is a Gaussian with σ² = 1/a
        (Robust(0.2), Gaussian(0.6**0.5), robust_beta_eff),
        (Robust(1e-5), Gaussian(0.6**0.5), 0.6),
    ],
)
def test_beta_eff_is_what_theory_says(objective, likelihood, theory):
    torch.manual_seed(0)
    model = VAE(*mlp(D, hidden=(), n_latents=d), likelihood)
    expected = theory(model) if callable(theory) else theory
    assert metrics.beta_eff(model, objective, X) == pytest.approx(expected, rel=0.02, abs=1e-6)
