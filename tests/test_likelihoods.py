import math

import pytest
import torch
from torch import distributions
from torch.nn import functional as F

from vaelib.likelihoods import Bernoulli, Gaussian


def test_gaussian_is_a_weighted_squared_error_with_its_constants():
    x, decoded = torch.randn(2, 6, 13)
    sigma = 0.7
    sse = (x - decoded).square().sum(-1)
    expected = sse / (2 * sigma**2) + 13 * math.log(sigma) + 13 / 2 * math.log(2 * math.pi)
    torch.testing.assert_close(-Gaussian(sigma)(decoded).log_prob(x), expected)


def test_gaussian_equals_torch_for_one_sigma_per_feature():
    x, decoded = torch.randn(2, 6, 13)
    sigma = torch.rand(13) + 0.1
    expected = distributions.Normal(decoded, sigma).log_prob(x).sum(-1)
    torch.testing.assert_close(Gaussian(sigma)(decoded).log_prob(x), expected)


@pytest.mark.parametrize("sigma", [0.5, torch.full((13,), 0.5)])
def test_a_learned_sigma_finds_the_residuals_own(sigma):
    torch.manual_seed(0)
    scale = torch.linspace(0.2, 2.0, 13)
    residuals = torch.randn(2000, 13) * scale
    likelihood = Gaussian(sigma, learn=True)
    optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        (-likelihood(torch.zeros(2000, 13)).log_prob(residuals)).mean().backward()
        optimizer.step()
    per_feature = residuals.square().mean(0)
    expected = per_feature if likelihood.sigma.ndim else per_feature.mean()
    torch.testing.assert_close(likelihood.sigma.square(), expected, rtol=1e-2, atol=0)


def test_sigma_is_only_learned_on_request():
    assert list(Gaussian(0.5).parameters()) == []
    assert [p.shape for p in Gaussian(torch.ones(13), learn=True).parameters()] == [(13,)]
    assert Gaussian(0.5).sigma.item() == pytest.approx(0.5)


def test_a_sigma_that_is_not_positive_is_refused():
    for sigma in (0.0, -1.0, torch.tensor([1.0, 0.0])):
        with pytest.raises(ValueError, match="sigma must be positive"):
            Gaussian(sigma)


def test_bernoulli_is_binary_cross_entropy_summed_over_features():
    logits, x = torch.randn(6, 13), torch.rand(6, 13)
    expected = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
    torch.testing.assert_close(-Bernoulli()(logits).log_prob(x), expected)
    torch.testing.assert_close(Bernoulli()(logits).mean, torch.sigmoid(logits))


@pytest.mark.parametrize("bad", [-0.01, 1.01, math.nan, math.inf])
def test_bernoulli_refuses_what_lies_outside_the_unit_interval(bad):
    x = torch.rand(6, 13)
    Bernoulli().check(x)
    x[2, 3] = bad
    with pytest.raises(ValueError, match=r"x\[2, 3\] is .*Bernoulli can score.*use Gaussian"):
        Bernoulli().check(x)


def test_gaussian_refuses_only_what_is_not_finite():
    x = torch.randn(6, 13) * 1e6
    Gaussian().check(x)
    x[5, 0] = math.nan
    with pytest.raises(ValueError, match=r"x\[5, 0\] is nan.*impute"):
        Gaussian().check(x)


def test_images_are_summed_over_all_their_dimensions():
    x = torch.rand(4, 1, 8, 8)
    for likelihood in (Gaussian(), Bernoulli()):
        assert likelihood(torch.zeros(4, 1, 8, 8)).log_prob(x).shape == (4,)
