import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import distributions, nn
from torch.nn import functional as F

from vaelib import VAE, data, fit, fit_seeds
from vaelib.likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    LogCosh,
    LogCoshDistribution,
    Mixed,
    StudentT,
    VaryingSigma,
)
from vaelib.networks import mlp
from vaelib.objectives import ELBO, LearnedGamma


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
    for learn in (False, True):  # and starts, or stays, where it is put
        assert Gaussian(0.5, learn).sigma.item() == pytest.approx(0.5)


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
    for likelihood in (Gaussian(), Bernoulli(), LogCosh()):
        assert likelihood(torch.zeros(4, 1, 8, 8)).log_prob(x).shape == (4,)


# --- LogCosh -----------------------------------------------------------------------------------


def log_cosh_density(a, x):
    """The density around 0, in double precision, of each element of x."""
    zero = torch.zeros((), dtype=torch.float64)
    return LogCoshDistribution(zero, torch.tensor(a, dtype=torch.float64)).log_prob(x).exp()


@pytest.mark.parametrize("a", [0.1, 1.0, 10.0])
def test_log_cosh_is_its_formula_up_to_a_constant_per_feature(a):
    x, decoded = torch.randn(2, 6, 13, dtype=torch.float64)
    likelihood = LogCosh(a).double()
    formula = (a * (x - decoded)).cosh().log().sum(-1) / a
    at_zero = -likelihood(decoded).log_prob(decoded)
    torch.testing.assert_close(-likelihood(decoded).log_prob(x) - at_zero, formula)
    torch.testing.assert_close(likelihood(decoded).mean, decoded)


@pytest.mark.parametrize("a", [0.1, 1.0, 10.0, 100.0])
def test_log_cosh_is_finite_far_out_and_pulls_by_tanh(a):
    """In float32, where cosh overflows at 89 and exp(-2at) does too."""
    far = torch.tensor([-1e4, -500.0, -5.0, -0.3, 0.0, 1e-3, 2.0, 5.0, 500.0, 1e4])
    decoded = torch.zeros(10, 1, requires_grad=True)
    loss = -LogCosh(a)(decoded).log_prob(far[:, None])
    assert loss.isfinite().all()
    loss.sum().backward()
    pull = -decoded.grad[:, 0]
    assert pull.abs().max() <= 1
    torch.testing.assert_close(pull, torch.tanh(a * far))
    inside = (a * far).abs() < 5  # beyond, the float32 next to tanh(at) is 1
    assert pull[inside].abs().max() < 1


@pytest.mark.parametrize("a", [0.05, 0.5, 1.0, 3.0, 10.0, 200.0])
def test_log_cosh_integrates_to_1(a):
    x = torch.linspace(-80, 80, 1_600_001, dtype=torch.float64)
    assert torch.trapezoid(log_cosh_density(a, x), x).item() == pytest.approx(1, abs=1e-6)


def test_log_cosh_lies_between_a_gaussian_and_a_laplace():
    x = torch.linspace(-3, 3, 101, dtype=torch.float64)
    for small in (1e-3, 1e-2):
        sigma = small**-0.5
        gaussian = distributions.Normal(0, sigma).log_prob(x * sigma).exp()
        ratio = log_cosh_density(small, x * sigma) / gaussian
        assert (ratio - 1).abs().max() < 7 * small
    laplace = distributions.Laplace(0, 1).log_prob(x).exp()
    for large in (1e3, 1e4):
        assert (log_cosh_density(large, x) / laplace - 1).abs().max() < 1 / large


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("a", [0.1, 1.0, 10.0, 1000.0])
def test_samples_of_log_cosh_follow_its_density(a, dtype):
    torch.manual_seed(0)
    n = 40_000
    loc = torch.tensor([-1.0, 2.0], dtype=dtype)
    samples = LogCoshDistribution(loc, torch.tensor(a, dtype=dtype)).sample((n,))
    assert samples.shape == (n, 2)
    assert samples.dtype == dtype
    assert samples.isfinite().all()
    residuals = (samples - loc).double()
    half = torch.tensor(1 / (2 * a), dtype=torch.float64)
    variance = torch.polygamma(1, half).item() / (2 * a**2)
    assert residuals.mean(0).abs().max() < 4 * (variance / n) ** 0.5
    torch.testing.assert_close(
        residuals.var(0), torch.full((2,), variance).double(), rtol=0.05, atol=0
    )

    grid = torch.linspace(-80, 80, 800_001, dtype=torch.float64)
    cdf = torch.cumulative_trapezoid(log_cosh_density(a, grid), grid)
    for column in residuals.T:
        test = stats.kstest(column.numpy(), lambda x: np.interp(x, grid[1:], cdf))
        assert test.pvalue > 1e-3


def test_an_a_that_is_not_positive_is_refused():
    for a in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="a must be positive, got"):
            LogCosh(a)


def test_log_cosh_models_of_different_a_train_at_once():
    values = [0.3, 10.0]
    x = data.wine().x
    run = {"steps": 30, "batch_size": 32, "lr": 1e-2, "progress": False}
    likelihoods = iter([LogCosh(a) for a in values])
    runs = fit_seeds(lambda: VAE(*mlp(13), next(likelihoods)), ELBO(), x, seeds=[4, 4], **run)
    for a, together in zip(values, runs.models, strict=True):
        torch.manual_seed(4)
        alone = VAE(*mlp(13), LogCosh(a))
        fit(alone, ELBO(), x, seed=4, **run)
        assert together.likelihood.a.item() == pytest.approx(a)
        for name, weight in alone.state_dict().items():
            torch.testing.assert_close(weight, together.state_dict()[name], rtol=0, atol=1e-4)
    bias, other = (model.decoder.output.bias for model in runs.models)
    assert (bias - other).abs().max() > 1e-3


# --- Categorical -------------------------------------------------------------------------------


def one_hot(classes, n=3):
    return F.one_hot(torch.as_tensor(classes), n).float()


def test_categorical_is_cross_entropy():
    classes = torch.tensor([0, 2, 1, 1, 0])
    logits = 3 * torch.randn(5, 3)
    expected = F.cross_entropy(logits, classes, reduction="none")
    p = Categorical()(logits)
    torch.testing.assert_close(-p.log_prob(one_hot(classes)), expected)
    torch.testing.assert_close(p.mean, logits.softmax(-1))


@pytest.mark.parametrize(
    "row", [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1.0, 0.2, 0.0], [0.5, 0.0, 0.0]]
)
def test_categorical_refuses_what_is_not_one_hot(row):
    x = one_hot([0, 2, 1])
    Categorical().check(x)
    x[1] = torch.tensor(row)
    with pytest.raises(ValueError, match=r"row 1 of x is .*single 1 among zeros.*OneHotEncoder"):
        Categorical().check(x)


@pytest.mark.parametrize("bad", [2.0, -1.0, math.nan])
def test_categorical_refuses_what_is_no_probability(bad):
    x = one_hot([0, 2, 1])
    x[2, 0] = bad
    with pytest.raises(ValueError, match=r"x\[2, 0\] is .*Categorical can score.*OneHotEncoder"):
        Categorical().check(x)


# --- Mixed -------------------------------------------------------------------------------------


def table(n=6):
    """Two numbers, two bits and a class of three, in seven columns."""
    torch.manual_seed(0)
    return torch.cat([torch.randn(n, 2), torch.rand(n, 2).round(), one_hot([0, 2, 1] * 2)[:n]], 1)


def mixed(sigma=0.5):
    return Mixed((Gaussian(sigma), 2), (Bernoulli(), 2), (Categorical(), 3))


def test_mixed_is_the_sum_of_its_parts():
    x, decoded = table(), torch.randn(6, 7)
    expected = (
        Gaussian(0.5)(decoded[:, :2]).log_prob(x[:, :2])
        + Bernoulli()(decoded[:, 2:4]).log_prob(x[:, 2:4])
        + Categorical()(decoded[:, 4:]).log_prob(x[:, 4:])
    )
    assert expected.shape == (6,)
    torch.testing.assert_close(mixed()(decoded).log_prob(x), expected)


def test_the_mean_and_samples_of_mixed_are_rows_of_the_table():
    decoded = torch.randn(6, 7)
    p = mixed()(decoded)
    expected = [decoded[:, :2], decoded[:, 2:4].sigmoid(), decoded[:, 4:].softmax(-1)]
    torch.testing.assert_close(p.mean, torch.cat(expected, 1))
    torch.manual_seed(0)
    samples = p.sample((4000,))
    assert samples.shape == (4000, 6, 7)
    assert p.sample().shape == (6, 7)
    mixed().check(samples.flatten(0, 1))  # bits are bits and classes one-hot
    torch.testing.assert_close(samples.mean(0), p.mean, rtol=0, atol=0.05)
    torch.testing.assert_close(samples[..., :2].std(0), torch.full((6, 2), 0.5), rtol=0.1, atol=0)


@pytest.mark.parametrize("width", [6, 8])
def test_mixed_refuses_another_width(width):
    with pytest.raises(ValueError, match=rf"x has {width} columns.*\[2, 2, 3\], together 7"):
        mixed().check(torch.zeros(5, width))


@pytest.mark.parametrize(
    ("column", "bad", "message"),
    [
        (1, math.nan, r"in columns 0 to 1 of x: .*Gaussian.*impute"),
        (3, 1.5, r"in columns 2 to 3 of x: .*Bernoulli.*use Gaussian"),
        (5, 1.0, r"in columns 4 to 6 of x: row 0 of x .*single 1"),
    ],
)
def test_mixed_names_the_columns_of_a_bad_part(column, bad, message):
    x = table()
    mixed().check(x)
    x[0, column] = bad
    with pytest.raises(ValueError, match=message):
        mixed().check(x)


def test_mixed_without_parts_or_columns_is_refused():
    for parts in ([], [(Gaussian(), 2), (Bernoulli(), 0)]):
        with pytest.raises(ValueError, match="give each part at least one column"):
            Mixed(*parts)


def test_mixed_learns_the_sigma_of_its_part():
    likelihood = Mixed((Gaussian(learn=True), 2), (Categorical(), 3))
    assert [name for name, _ in likelihood.named_parameters()] == ["parts.0.log_sigma"]


RUN = {"steps": 20, "batch_size": 32, "lr": 1e-2, "progress": False}


def varying():
    encoder, decoder = mlp(13)
    decoder.output = nn.Linear(decoder.output.in_features, 26)
    return VAE(encoder, decoder, VaryingSigma())


# --- StudentT ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.7, torch.linspace(0.2, 3, 13, dtype=torch.float64)])
@pytest.mark.parametrize("df", [2.5, 4.0, 30.0])
def test_student_t_is_scipys(df, sigma):
    x, decoded = 5 * torch.randn(2, 6, 13, dtype=torch.float64)
    likelihood = StudentT(sigma, df=df).double()
    scale = torch.as_tensor(sigma).expand(13)
    expected = stats.t.logpdf(x, df, loc=decoded, scale=scale).sum(-1)
    torch.testing.assert_close(
        likelihood(decoded).log_prob(x), torch.as_tensor(expected), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(likelihood(decoded).mean, decoded)


def test_samples_of_student_t_follow_its_density():
    torch.manual_seed(0)
    decoded = torch.tensor([[-1.0, 2.0]], dtype=torch.float64)
    samples = StudentT(0.5, df=4.0).double()(decoded).sample((20_000,))[:, 0]
    for column, loc in zip(samples.T, decoded[0], strict=True):
        assert stats.kstest(column.numpy(), stats.t(4, loc.item(), 0.5).cdf).pvalue > 1e-3


def test_student_t_is_a_gaussian_where_df_is_large():
    x, decoded = torch.randn(2, 6, 13, dtype=torch.float64)
    nearly = StudentT(0.7, df=1e6).double()(decoded).log_prob(x)
    torch.testing.assert_close(
        nearly, Gaussian(0.7).double()(decoded).log_prob(x), rtol=1e-4, atol=1e-4
    )


def test_outliers_hardly_move_the_sigma_of_a_student_t():
    torch.manual_seed(0)
    residuals = 0.5 * distributions.StudentT(4.0).sample((2000, 1))
    residuals[:20] = 100.0
    found = {}
    for likelihood in (StudentT(learn=True), Gaussian(learn=True)):
        optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.05)
        for _ in range(400):
            optimizer.zero_grad()
            (-likelihood(torch.zeros(2000, 1)).log_prob(residuals)).mean().backward()
            optimizer.step()
        found[type(likelihood)] = likelihood.sigma.item()
    assert found[StudentT] == pytest.approx(0.5, abs=0.06)
    assert found[Gaussian] > 5


def test_the_sigma_of_student_t_is_only_learned_on_request():
    assert list(StudentT(0.5).parameters()) == []
    assert [p.shape for p in StudentT(torch.ones(13), learn=True).parameters()] == [(13,)]
    assert StudentT(0.5).sigma.item() == pytest.approx(0.5)


def test_what_student_t_refuses():
    for sigma in (0.0, torch.tensor([1.0, -1.0])):
        with pytest.raises(ValueError, match="sigma must be positive"):
            StudentT(sigma)
    with pytest.raises(ValueError, match=r"df is 2\.0, but there is a variance only above 2"):
        StudentT(df=2.0)


def test_an_objective_that_sets_a_gaussians_sigma_refuses_a_student_t():
    with pytest.raises(ValueError, match="sets the one σ of a Gaussian"):
        fit(VAE(*mlp(13), StudentT()), LearnedGamma(), data.wine().x, **RUN)


# --- VaryingSigma ------------------------------------------------------------------------------


def test_varying_sigma_is_a_gaussian_with_the_decoders_own_sigma():
    x, mean, raw = torch.randn(3, 6, 13)
    sigma = 0.1 + torch.log1p(raw.exp())
    expected = distributions.Normal(mean, sigma).log_prob(x).sum(-1)
    p = VaryingSigma(floor=0.1)(torch.cat([mean, raw], -1))
    torch.testing.assert_close(p.log_prob(x), expected)
    torch.testing.assert_close(p.mean, mean)
    assert p.sample().shape == x.shape


def test_the_floor_of_varying_sigma_counts():
    x, decoded = torch.randn(6, 7), torch.randn(6, 14)
    gap = VaryingSigma(0.05)(decoded).log_prob(x) - VaryingSigma(0.2)(decoded).log_prob(x)
    assert gap.abs().max() > 1e-3


def test_varying_sigma_keeps_its_floor():
    decoded = torch.cat([torch.zeros(4, 3), torch.full((4, 3), -1e4)], 1)
    x = torch.zeros(4, 3)
    ceiling = Gaussian(0.05)(x).log_prob(x)
    torch.testing.assert_close(VaryingSigma()(decoded).log_prob(x), ceiling)


def test_varying_sigma_finds_noise_that_depends_on_z():
    """Noise of 0.2 where z < 0, and of 1 where z > 0."""
    torch.manual_seed(0)
    z = torch.randn(4000, 1)
    x = torch.where(z < 0, 0.2, 1.0) * torch.randn(4000, 1)
    decoder = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        (-VaryingSigma()(decoder(z)).log_prob(x)).mean().backward()
        optimizer.step()
    sigma = VaryingSigma()(decoder(torch.tensor([[-1.0], [1.0]]))).stddev
    torch.testing.assert_close(sigma, torch.tensor([[0.2], [1.0]]), rtol=0.15, atol=0)


def test_what_varying_sigma_refuses():
    with pytest.raises(ValueError, match="floor must be positive, got 0"):
        VaryingSigma(floor=0)
    with pytest.raises(ValueError, match="has 13 outputs, VaryingSigma needs two a feature"):
        VaryingSigma()(torch.zeros(4, 13))


@pytest.mark.parametrize(
    "make_model", [varying, lambda: VAE(*mlp(13), StudentT(torch.ones(13), learn=True))]
)
def test_many_seeds_train_as_one_does(make_model):
    x = data.wine().x
    together = fit_seeds(make_model, ELBO(), x, seeds=[4, 7], **RUN).models[0]
    torch.manual_seed(4)
    alone = make_model()
    fit(alone, ELBO(), x, seed=4, **RUN)
    for name, weight in alone.state_dict().items():
        torch.testing.assert_close(weight, together.state_dict()[name], rtol=0, atol=1e-4)


# --- all ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Gaussian(1.0), Gaussian(0.5)),
        (Gaussian(1.0), Gaussian(torch.linspace(0.5, 1.5, 7))),
        (StudentT(1.0), StudentT(0.5)),
        (StudentT(df=4.0), StudentT(df=5.0)),
        (LogCosh(1.0), LogCosh(2.0)),
        (LogCosh(10.0), LogCosh(11.0)),
        (mixed(1.0), mixed(0.5)),
        (Mixed((Gaussian(), 7)), Mixed((Gaussian(), 6), (LogCosh(), 1))),
        (Mixed((Gaussian(), 4), (Bernoulli(), 3)), Mixed((Gaussian(), 3), (Bernoulli(), 4))),
        (Mixed((Gaussian(), 4), (Bernoulli(), 3)), Mixed((Bernoulli(), 3), (Gaussian(), 4))),
    ],
)
def test_every_knob_changes_the_loss(one, other):
    x, decoded = table(), torch.randn(6, 7)
    gap = one(decoded).log_prob(x) - other(decoded).log_prob(x)
    assert gap.abs().max() > 1e-3
