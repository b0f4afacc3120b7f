import torch
from torch.distributions import Normal, kl_divergence

from vaelib.divergences import gaussian_kl


def test_closed_form_equals_torch():
    mu = torch.randn(50, 7, dtype=torch.float64) * 3
    logvar = torch.randn(50, 7, dtype=torch.float64) * 3
    expected = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(gaussian_kl(mu, logvar), expected)


def test_closed_form_equals_a_monte_carlo_average():
    torch.manual_seed(0)
    mu, logvar = torch.tensor(1.3), torch.tensor(-0.8)
    q = Normal(mu, (0.5 * logvar).exp())
    z = q.sample((200_000,))
    draws = q.log_prob(z) - Normal(0.0, 1.0).log_prob(z)
    standard_error = draws.std() / len(draws) ** 0.5
    assert (gaussian_kl(mu, logvar) - draws.mean()).abs() < 4 * standard_error


def test_it_is_zero_at_the_prior_and_accurate_near_it():
    assert gaussian_kl(torch.zeros(1), torch.zeros(1)) == 0
    logvar = torch.tensor([1e-3, -1e-3, 1e-2])
    exact = gaussian_kl(torch.zeros(3, dtype=torch.float64), logvar.double())
    # exp(v) - 1 - v in float32 is off by 10 % here.
    torch.testing.assert_close(
        gaussian_kl(torch.zeros(3), logvar).double(), exact, rtol=1e-3, atol=0
    )


def test_it_is_never_negative():
    logvar = torch.linspace(-1e-2, 1e-2, 10_001)
    assert (gaussian_kl(torch.zeros(10_001), logvar) >= 0).all()
