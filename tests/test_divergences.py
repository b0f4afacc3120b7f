import pytest
import torch
from torch.distributions import Laplace, Normal, kl_divergence

from vaelib.divergences import beta_divergence, gaussian_kl, imq, log_power_integral, mmd, rbf
from vaelib.likelihoods import Bernoulli, Categorical, Gaussian, LogCosh, Mixed, StudentT


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


def rbf_by_hand(a, b):
    return torch.exp(-(a - b).square().sum() / (2 * len(a)))


def imq_by_hand(a, b):
    return 1 / (1 + (a - b).square().sum() / (2 * len(a)))


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize(("kernel", "by_hand"), [(rbf, rbf_by_hand), (imq, imq_by_hand)])
def test_mmd_equals_loops_over_pairs(kernel, by_hand, unbiased):
    """With as many points as it takes to tell N from M."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (4, 7))

    def mean_within(z):
        n = len(z)
        pairs = [(i, j) for i in range(n) for j in range(n) if not (unbiased and i == j)]
        return sum(by_hand(z[i], z[j]) for i, j in pairs) / len(pairs)

    between = sum(by_hand(a, b) for a in x for b in y) / 28
    expected = mean_within(x) + mean_within(y) - 2 * between
    torch.testing.assert_close(mmd(x, y, unbiased, kernel), expected)


@pytest.mark.parametrize("kernel", [rbf, imq])
@pytest.mark.parametrize("n_latents", [2, 32])
def test_only_the_unbiased_mmd_averages_0_where_nothing_differs(kernel, n_latents):
    generator = torch.Generator().manual_seed(0)
    # N and M differ, since with N = M a wrong N in one place can make up for a wrong M in another.
    x = torch.randn(2000, 24, n_latents, generator=generator)
    y = torch.randn(2000, 40, n_latents, generator=generator)

    def z_score(x, unbiased):
        draws = torch.func.vmap(lambda a, b: mmd(a, b, unbiased, kernel))(x, y)
        return (draws.mean() / draws.std() * len(draws) ** 0.5).item()

    assert abs(z_score(x, unbiased=True)) < 4
    assert z_score(x, unbiased=False) > 40
    # The same test rejects a q that is shifted, and one that is too narrow.
    assert z_score(x + 0.2, unbiased=True) > 10
    assert z_score(0.8 * x, unbiased=True) > 10


def test_the_biased_mmd_is_never_negative_and_a_single_unbiased_one_may_be():
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(500, 2, 16, 2, generator=generator).unbind(1)
    biased, unbiased = (
        torch.func.vmap(lambda x, y, u=u: mmd(x, y, unbiased=u))(*samples) for u in (False, True)
    )
    assert biased.min() > 0
    assert unbiased.min() < 0 < unbiased.max()


def test_far_codes_feel_the_pull_of_imq_and_not_of_rbf():
    generator = torch.Generator().manual_seed(0)
    prior, codes = torch.randn(2, 64, 2, generator=generator, dtype=torch.float64)
    codes = (codes + 20).requires_grad_()

    def pull(kernel):
        (gradient,) = torch.autograd.grad(mmd(codes, prior, kernel=kernel), codes)
        return gradient.sum(0).min().item()  # on all of them: their pulls on each other cancel

    assert pull(imq) > 1e-4
    assert abs(pull(rbf)) < 1e-12


@pytest.mark.parametrize(
    ("shape", "other"),
    [((8, 2), (8, 3)), ((1, 2), (8, 2)), ((8, 2), (1, 2)), ((8,), (8,)), ((2, 8, 2), (8, 2))],
)
def test_samples_that_mmd_cannot_compare_are_refused_with_their_shapes(shape, other):
    with pytest.raises(ValueError, match="two samples of at least two points") as refusal:
        mmd(torch.zeros(shape), torch.zeros(other))
    assert f"x has shape {shape} and y {other}" in str(refusal.value)


CODES = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0, 1]]
BITS = torch.tensor([[0, 1, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], dtype=torch.float64)
NUMBERS = torch.linspace(-3, 3, 15, dtype=torch.float64).reshape(5, 3)
# Each kind with data of its kind, three columns of them, or all nine side by side.
KINDS = {
    "Gaussian": (Gaussian(0.7), NUMBERS),
    "Gaussian, one σ per column": (Gaussian(torch.tensor([0.3, 1.0, 2.0])), NUMBERS),
    "LogCosh": (LogCosh(2.0), NUMBERS),
    "Student's t": (StudentT(0.7), NUMBERS),
    "Bernoulli": (Bernoulli(), BITS),
    "Categorical": (Categorical(), CODES),
    "Mixed": (
        Mixed((Gaussian(0.7), 3), (Bernoulli(), 3), (Categorical(), 3)),
        torch.hstack([NUMBERS, BITS, CODES]),
    ),
}


def decoded_for(x):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(x.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("likelihood", "x"), KINDS.values(), ids=KINDS)
def test_beta_divergence_becomes_the_negative_log_likelihood(likelihood, x):
    p = likelihood.double()(decoded_for(x))
    nll = -p.log_prob(x)
    betas = torch.tensor([1e-4, 1e-6, 1e-8], dtype=torch.float64)
    distances = [(beta_divergence(p, x, beta) - nll).abs().max().item() for beta in betas]
    # In proportion to β; were it always 0 it would be the negative log-likelihood for any β.
    assert distances[0] > 1e-5
    assert distances[1] == pytest.approx(distances[0] / 100, rel=0.05)
    assert distances[2] < distances[0] / 5000


def test_beta_divergence_is_precise_for_a_tiny_beta_in_float32():
    """Where p^β is within a few roundings of 1."""
    beta = 1e-5
    for likelihood, x in KINDS.values():
        decoded = decoded_for(x)
        exact = beta_divergence(likelihood.double()(decoded), x, torch.tensor(beta).double())
        single = beta_divergence(
            likelihood.float()(decoded.float()), x.float(), torch.tensor(beta)
        ).double()
        torch.testing.assert_close(single, exact, rtol=1e-5, atol=1e-5)


def test_beta_divergence_is_its_formula_in_every_column():
    """-(β+1)/β·(p^β - 1) + ∫p^(β+1) - 1, the columns' added up and not multiplied."""
    beta, sigma, p = 0.7, 0.8, 0.3
    x = torch.tensor([[0.5, -1.2]], dtype=torch.float64)
    density = torch.exp(-x.square() / (2 * sigma**2)) / (2 * torch.pi * sigma**2) ** 0.5
    integral = (2 * torch.pi * sigma**2) ** (-beta / 2) * (1 + beta) ** -0.5
    expected = (-(beta + 1) / beta * (density**beta - 1) + integral - 1).sum(1)
    gaussian = Gaussian(sigma).double()(torch.zeros_like(x))
    torch.testing.assert_close(beta_divergence(gaussian, x, torch.tensor(beta)), expected)

    logit = torch.logit(torch.tensor([[p]], dtype=torch.float64))
    expected = -(beta + 1) / beta * (p**beta - 1) + p ** (beta + 1) + 0.7 ** (beta + 1) - 1
    found = beta_divergence(Bernoulli()(logit), torch.ones_like(logit), torch.tensor(beta))
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("power", [1.0, 1.1, 2.0, 3.5])
def test_log_power_integral_equals_quadrature_and_enumeration(power):
    x = torch.linspace(-60, 60, 240_001, dtype=torch.float64)
    power = torch.tensor(power, dtype=torch.float64)
    for likelihood in (Gaussian(0.7), LogCosh(0.5), LogCosh(3.0), StudentT(0.7, df=30.0)):
        column = likelihood.double()(torch.zeros(len(x), 1, dtype=torch.float64)).base_dist
        density = column.log_prob(x[:, None])[:, 0].exp()
        integral = torch.trapezoid(density**power, x)
        found = log_power_integral(column, power)
        assert found.reshape(-1)[0].exp().item() == pytest.approx(integral.item())

    logits = decoded_for(CODES)
    enumerated = logits.softmax(-1).pow(power).sum(-1).log()
    torch.testing.assert_close(log_power_integral(Categorical()(logits), power), enumerated)
    p = logits.sigmoid()
    enumerated = (p**power + (1 - p) ** power).log()
    torch.testing.assert_close(log_power_integral(Bernoulli()(logits).base_dist, power), enumerated)


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_beta_divergence_is_proper(beta):
    """On average over data from q no p does better than q: there its slope is 0, and it rises."""
    beta = torch.tensor(beta)
    x = torch.linspace(-30, 30, 60_001, dtype=torch.float64)[:, None]
    outcomes = torch.eye(3, dtype=torch.float64)

    def under_gaussian(parameters):
        q = Normal(torch.zeros_like(x), 0.8).log_prob(x).exp() * 1e-3
        p = Gaussian().double()
        p.log_sigma = parameters[1]
        return (q[:, 0] * beta_divergence(p(parameters[0].expand_as(x)), x, beta)).sum()

    def under_categorical(logits):
        q = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
        return (q * beta_divergence(Categorical()(logits.expand(3, 3)), outcomes, beta)).sum()

    def under_bernoulli(logits):
        q = torch.tensor([0.3, 0.7], dtype=torch.float64)
        both = outcomes[:2, 1:2]
        return (q * beta_divergence(Bernoulli()(logits.expand(2, 1)), both, beta)).sum()

    for average, at_q in [
        (under_gaussian, torch.tensor([1.0, 0.8]).double().log()),
        (under_categorical, torch.tensor([0.2, 0.5, 0.3]).double().log()),
        (under_bernoulli, torch.tensor([0.7]).double().logit()),
    ]:
        at_q.requires_grad_()
        best = average(at_q)
        (slope,) = torch.autograd.grad(best, at_q)
        assert slope.abs().max() < 1e-6
        for step in decoded_for(torch.zeros(10, len(at_q))):
            assert average(at_q + 0.3 * step) > best or (step - step.mean()).abs().max() < 1e-3


def fitted_sigma(residuals, loss):
    """σ of the Gaussian that a loss finds best, its mean free too, from where the bulk is."""
    mean = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    gaussian = Gaussian(learn=True).double()
    optimizer = torch.optim.LBFGS(
        [mean, gaussian.log_sigma], max_iter=200, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = loss(gaussian(mean.expand_as(residuals)), residuals).mean()
        value.backward()
        return value

    optimizer.step(closure)
    return gaussian.sigma.item()


def test_outliers_do_not_widen_the_gaussian_as_they_do_under_the_nll():
    generator = torch.Generator().manual_seed(0)
    residuals = 0.5 * torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    clean = residuals.std().item()
    contaminated = residuals.clone()
    contaminated[:400] += 5.0

    def robust(p, x):
        return beta_divergence(p, x, torch.tensor(0.5))

    def nll(p, x):
        return -p.log_prob(x)

    assert fitted_sigma(residuals, robust) == pytest.approx(clean, rel=0.03)
    assert fitted_sigma(contaminated, robust) == pytest.approx(clean, rel=0.1)
    assert fitted_sigma(residuals, nll) == pytest.approx(clean, rel=1e-3)
    assert fitted_sigma(contaminated, nll) > 3 * clean


def test_one_far_value_counts_for_a_bounded_amount_and_has_no_pull():
    x = torch.tensor([[3.0], [30.0], [1e6]], dtype=torch.float64)
    decoded = torch.zeros_like(x).requires_grad_()
    beta = torch.tensor(0.5)
    loss = beta_divergence(Gaussian().double()(decoded), x, beta)
    assert loss.max() < (1 + beta) / beta
    (pull,) = torch.autograd.grad(loss.sum(), decoded)
    assert pull[0].abs() > 0.1
    assert pull[1:].abs().max() < 1e-30


def test_a_density_without_a_closed_form_is_named():
    p = Laplace(torch.zeros(4, 2), 1.0)
    with pytest.raises(NotImplementedError, match=r"for Laplace; use a Gaussian"):
        beta_divergence(p, torch.zeros(4, 2), torch.tensor(0.1))
