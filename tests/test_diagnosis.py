import copy
import math
import re
from pathlib import Path

import pytest
import torch
from sklearn.decomposition import PCA

import vaelib
from vaelib import VAE, data, diagnose, fit
from vaelib.likelihoods import Bernoulli, Categorical, Gaussian, LogCosh, Mixed
from vaelib.networks import conv, mlp
from vaelib.objectives import ELBO

SIGMA = 0.5
WEIGHT = torch.tensor([[1.2, 0.9, -0.7, 0.8, 0.0, 0.3], [0.0, 0.4, 0.9, 0.3, 1.3, -1.0]]).T
WEIGHT[:, 1] -= WEIGHT[:, 0] * (WEIGHT[:, 0] @ WEIGHT[:, 1]) / WEIGHT[:, 0].square().sum()


def rows(z, weight=WEIGHT, sigma=SIGMA, seed=1):
    """Data x = W·z + noise."""
    noise = torch.randn(len(z), len(weight), generator=torch.Generator().manual_seed(seed))
    return z @ weight.T + sigma * noise


def normal(n=500, seed=0):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


def exact(weight=WEIGHT, sigma=SIGMA, beta=1.0):
    """The linear VAE at its optimum for x = W·z + σ·noise with orthogonal columns of W."""
    model = VAE(*mlp(len(weight), hidden=(), batch_norm=False), Gaussian(sigma)).eval()
    variance = beta * sigma**2 / (weight.square().sum(0) + beta * sigma**2)
    gain = weight.T / (weight.square().sum(0) + beta * sigma**2)[:, None]
    with torch.no_grad():
        model.decoder.output.weight.copy_(weight)
        model.decoder.output.bias.zero_()
        model.encoder.mu_logvar.weight.copy_(torch.cat([gain, torch.zeros_like(gain)]))
        model.encoder.mu_logvar.bias.copy_(torch.cat([torch.zeros(2), variance.log()]))
    return model


def names(diagnosis):
    return [row.name for row in diagnosis.amiss]


X, HELD_OUT = rows(normal()), rows(normal(seed=2), seed=3)


# --- the healthy --------------------------------------------------------------------------------


def test_a_healthy_model_has_nothing_amiss():
    diagnosis = diagnose(exact(), X, HELD_OUT)
    assert diagnosis.amiss == ()
    assert all(row.verdict == "fine" for row in diagnosis.rows)
    assert len(diagnosis.rows) == 13


def test_a_trained_model_is_as_healthy():
    torch.manual_seed(0)
    model = VAE(*mlp(6, hidden=(), batch_norm=False), Gaussian(torch.ones(6), learn=True))
    for lr in (0.03, 0.003):
        fit(model, ELBO(), X, steps=400, batch_size=200, lr=lr, progress=False)
    diagnosis = diagnose(model, X, HELD_OUT)
    assert diagnosis.amiss == (), str(diagnosis)
    assert diagnosis["β that"].value == pytest.approx(1, abs=0.1)


def test_its_numbers_are_those_of_the_closed_form():
    diagnosis = diagnose(exact(), X)
    signal = WEIGHT.square().sum(0) / SIGMA**2
    information = 0.5 * torch.log1p(signal).sum().item()
    assert diagnosis["information"].value == pytest.approx(information, abs=0.1)
    assert diagnosis["active"].value == 2
    assert diagnosis["β that"].value == pytest.approx(1, abs=0.05)
    assert diagnosis["squared error"].value == pytest.approx(1, abs=0.05)
    assert diagnosis["IWAE"].value == pytest.approx(0, abs=0.05)
    assert diagnosis["holes"].value == pytest.approx(0.05, abs=0.03)
    assert diagnosis["strays"].value == pytest.approx(0.05, abs=0.03)
    principal = PCA(2).fit(X).explained_variance_ratio_.sum()
    share = diagnosis["share"]
    assert share.low == pytest.approx(0.8 * principal, abs=1e-4)
    with torch.no_grad():
        error = (exact().decode(exact().encode(X).mu).mean - X).square().sum()
    assert share.value == pytest.approx(1 - (error / (X - X.mean(0)).square().sum()).item())
    variance = X.var(0, correction=0)
    assert diagnosis["scale: typical"].value == pytest.approx(variance.mean().sqrt().item())
    largest = diagnosis["scale: largest"].value
    assert largest == pytest.approx((variance.max() / variance.sum()).item())


def test_more_columns_than_rows_have_the_same_principal_components():
    x = X[:40].repeat(1, 9)
    low = diagnose(exact(WEIGHT.repeat(9, 1)), x)["share"].low
    assert low == pytest.approx(0.8 * PCA(2).fit(x).explained_variance_ratio_.sum(), abs=1e-4)


# --- the sick, each with its cause first ----------------------------------------------------------


def test_a_collapsed_model():
    sigma = X.std(0, correction=0)
    model = exact(torch.zeros_like(WEIGHT))
    model.likelihood = Gaussian(sigma)
    diagnosis = diagnose(model, X, HELD_OUT)
    assert names(diagnosis) == ["active latents", "information I(x;z), nats"]
    assert all(row.chapter == "foundations/likelihoods" for row in diagnosis.amiss)
    assert diagnosis["active"].detail == "of 2; KL 0.00, 0.00"
    assert diagnosis["β that"].verdict == "skipped: no latent is active"
    assert diagnosis["share"].verdict == "skipped: no latent is active"


def test_one_idle_latent_is_no_disease():
    one = WEIGHT * torch.tensor([1.0, 0.0])
    diagnosis = diagnose(exact(one), rows(normal(), one))
    assert diagnosis.amiss == ()
    assert diagnosis["active"].value == 1


@pytest.mark.parametrize(
    ("factor", "cause"), [(2.0, "more noise assumed"), (0.5, "less noise assumed")]
)
def test_a_wrong_sigma(factor, cause):
    model = exact()
    model.likelihood = Gaussian(SIGMA * factor)
    diagnosis = diagnose(model, X)
    row = diagnosis["squared error"]
    assert row.value == pytest.approx(factor**-2, rel=0.1)
    assert cause in row.cause and row in diagnosis.amiss


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_a_wrong_sigma_of_one_column_is_named(factor):
    model = exact()
    sigma = torch.full((6,), SIGMA)
    sigma[3] *= factor**0.5
    model.likelihood = Gaussian(sigma)
    row = diagnose(model, X)["columns"]
    assert row.value == 1 and "a σ for each" in row.cause
    found = re.fullmatch(r"of 6; column 3 by ([\d.]+)", row.detail)
    assert float(found[1]) == pytest.approx(1 / factor, rel=0.15)


@pytest.mark.parametrize("beta", [0.1, 1.0, 4.0])
def test_the_posteriors_tell_their_beta(beta):
    row = diagnose(exact(beta=beta), X)["β that"]
    # The closed form has the decoder's weight for β = 1, so the posterior alone tells β.
    assert row.value == pytest.approx(beta, rel=0.1)
    assert bool(row.cause) == (beta != 1)
    if beta != 1:
        assert ("sharper" if beta < 1 else "blurrier") in row.cause
        assert row.chapter == "balance/beta"


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_a_wrong_scale(factor):
    model, x = (
        exact(WEIGHT * factor, SIGMA * factor),
        rows(normal(), WEIGHT * factor, SIGMA * factor),
    )
    diagnosis = diagnose(model, x)
    assert names(diagnosis) == ["scale: typical standard deviation of a column"]
    assert ("small" if factor < 1 else "large") in diagnosis.amiss[0].cause


def test_one_column_that_outweighs_the_others():
    x = X * torch.tensor([1.0, 1.0, 5.0, 1.0, 1.0, 1.0])
    diagnosis = diagnose(VAE(*mlp(6)), x)
    assert names(diagnosis)[0] == "scale: largest column's share of the variance"


def test_holes():
    """Codes on a ring have the prior's mean and covariance, but not its shape."""
    angle = 2 * math.pi * torch.rand(500, generator=torch.Generator().manual_seed(5))
    ring = 2**0.5 * torch.stack([angle.cos(), angle.sin()], 1)
    diagnosis = diagnose(exact(3 * WEIGHT), rows(ring, 3 * WEIGHT))
    assert names(diagnosis) == ["holes: share of prior draws far from all codes"]
    assert diagnosis.amiss[0].chapter == "balance/gamma"
    assert diagnosis["information"].detail.endswith("is mismatch of q(z) and p(z)")


def test_strays():
    """Codes three times as wide as the prior."""
    diagnosis = diagnose(exact(), rows(3 * normal()))
    assert names(diagnosis) == ["strays: share of codes far from all prior draws"]
    assert diagnosis.amiss[0].chapter == "balance/info_vae"


def test_blur():
    """A decoder that goes only a third of the way from the mean."""
    model = exact()
    with torch.no_grad():
        model.decoder.output.weight *= 1 / 3
    row = diagnose(model, X)["share"]
    assert "blur" in row.cause and row.value == pytest.approx(1 - (2 / 3) ** 2, abs=0.1)


@pytest.mark.parametrize(("shift", "gap"), [(1.0, 0.5), (2.0, 2.0)])
def test_an_encoder_that_is_not_the_decoders(shift, gap):
    """q's mean off by so many standard deviations: KL(q ‖ p(z|x)) is half their square."""
    model = exact()
    with torch.no_grad():
        spread = (0.5 * model.encoder.mu_logvar.bias[2]).exp()
        model.encoder.mu_logvar.bias[0] += shift * spread
    diagnosis = diagnose(model, X, n_samples=200)
    row = diagnosis["IWAE bound, K = 200"]
    assert row.value == pytest.approx(gap, rel=0.1)
    assert (row in diagnosis.amiss) == (gap > 1)


def test_overfitting():
    torch.manual_seed(0)
    few = X[:40]
    model = VAE(*mlp(6, hidden=(64, 64)), Gaussian(0.1))
    fit(model, ELBO(), few, steps=300, batch_size=40, lr=1e-2, progress=False)
    row = diagnose(model, few, HELD_OUT)["ELBO"]
    assert "overfitting" in row.cause and row.value > 20
    assert diagnose(model, few)["ELBO"].verdict == "skipped: hand in held-out rows"


def test_a_gap_within_the_noise_of_few_rows_is_no_overfitting():
    row = diagnose(exact(), X[:20], HELD_OUT[:20])["ELBO"]
    assert row.high > 1 and not row.cause


@pytest.mark.parametrize("where", ["encoder.mu_logvar.bias", "decoder.output.weight"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite(where, bad):
    model = exact()
    with torch.no_grad():
        model.get_parameter(where).view(-1)[0] = bad
    diagnosis = diagnose(model, X)
    assert [row.name for row in diagnosis.rows] == ["values not finite"]
    assert diagnosis.amiss[0].chapter == "foundations/log_variance"
    assert diagnosis.amiss[0].value >= 1


def test_an_overflow_that_weights_do_not_show():
    model = exact()
    with torch.no_grad():
        model.encoder.mu_logvar.bias[3] = 200.0  # exp overflows in float32
    assert diagnose(model, X).amiss[0].name == "values not finite"


def test_classes_are_no_obstacle_to_finding_it():
    """Torch's distribution of classes refuses such logits."""
    model = VAE(*mlp(3), Categorical())
    torch.nn.init.constant_(model.decoder.output.bias, math.nan)
    classes = torch.eye(3)[torch.arange(60) % 3]
    assert diagnose(model, classes).amiss[0].name == "values not finite"


# --- any likelihood, any shape --------------------------------------------------------------------


def test_needles_tell_their_row_and_no_more():
    model = exact()
    with torch.no_grad():
        model.encoder.mu_logvar.bias[2:] = -25.0
    row = diagnose(model, X[:200])["information"]
    assert row.value == pytest.approx(math.log(200), abs=1e-3)
    assert row.high == pytest.approx(math.log(200)) and not row.cause


def bits(n=600):
    """Bits whose log-odds follow one latent, and the model that made them."""
    model = VAE(*mlp(8, hidden=(), n_latents=1, batch_norm=False), Bernoulli()).eval()
    with torch.no_grad():
        model.decoder.output.weight.fill_(1.5)
        model.decoder.output.bias.zero_()
        torch.manual_seed(0)
        return model, model.decode(torch.randn(n, 1)).sample()


def test_bits_have_no_scale_but_a_likelihood_that_fits():
    torch.manual_seed(0)
    model, x = bits()
    fit(model, ELBO(), x, steps=400, batch_size=100, lr=0.02, progress=False)
    diagnosis = diagnose(model, x)
    assert diagnosis["scale: typical"].verdict == "skipped: bits and classes have no unit"
    assert diagnosis["scale: largest"].verdict.startswith("skipped: fewer than three columns")
    assert diagnosis.amiss == (), str(diagnosis)


def test_grey_values_are_not_bits():
    """Uniform on [0, 1]: a third of the variance that bits of the same mean have."""
    model = VAE(*mlp(8), Bernoulli())
    torch.nn.init.zeros_(model.decoder.output.weight)
    torch.nn.init.zeros_(model.decoder.output.bias)
    row = diagnose(model, torch.rand(600, 8))["squared error"]
    assert row.value == pytest.approx(1 / 3, rel=0.1) and "grey for bits" in row.cause


@pytest.mark.parametrize(
    ("likelihood", "x"),
    [
        (LogCosh(2.0), X),
        (Gaussian(torch.ones(6), learn=True), X.double()),
        (
            Mixed((Gaussian(), 3), (Categorical(), 3)),
            torch.cat([X[:, :3], torch.eye(3)[torch.arange(500) % 3]], 1),
        ),
    ],
)
def test_every_likelihood_gets_all_rows(likelihood, x):
    diagnosis = diagnose(VAE(*mlp(6), likelihood), x, x)
    assert len(diagnosis.rows) == 13
    assert all(row.verdict for row in diagnosis.rows)
    assert not math.isnan(diagnosis["squared error"].value)


def test_only_numbers_with_a_unit_have_a_scale():
    classes = torch.eye(3)[torch.arange(500) % 3]
    model = VAE(*mlp(6), Mixed((Gaussian(), 3), (Categorical(), 3)))
    row = diagnose(model, torch.cat([X[:, :3], classes], 1))["scale: typical"]
    assert row.value == pytest.approx(X[:, :3].var(0, correction=0).mean().sqrt().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_images(dtype):
    torch.manual_seed(0)
    x = (torch.rand(60, 1, 8, 8) > 0.5).to(dtype)
    diagnosis = diagnose(VAE(*conv(8), Bernoulli()), x, batch_size=25)
    assert "of 64" in diagnosis["columns"].detail
    assert all(math.isfinite(row.value) for row in diagnosis.rows if "skipped" not in row.verdict)


def test_columns_that_never_vary_are_left_out():
    x = torch.cat([X, torch.full((500, 1), 0.1)], 1)
    diagnosis = diagnose(VAE(*mlp(7)), x)
    assert diagnosis["columns"].detail.startswith("of 6;")


def test_logcosh_noise_is_measured_against_its_own():
    """Noise of the likelihood's own density fits; twice as much does not."""
    model = exact(torch.zeros_like(WEIGHT))
    model.likelihood = LogCosh(1.0)
    torch.manual_seed(0)
    noise = model.likelihood(torch.zeros(500, 6)).sample()
    fits, too_wide = (diagnose(model, scale * noise)["squared error"] for scale in (1, 2))
    assert fits.value == pytest.approx(1, abs=0.1) and not fits.cause
    assert too_wide.value == pytest.approx(4, abs=0.4) and "less noise" in too_wide.cause


# --- manners --------------------------------------------------------------------------------------


def test_it_leaves_the_model_and_the_random_state_as_they_were():
    model = VAE(*mlp(6)).train()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(3)
    state = torch.get_rng_state()
    diagnose(model, X, HELD_OUT)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="n_samples"):
        diagnose(model, X, n_samples=0)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_it_repeats_itself_unless_told_to_draw_anew():
    first, again, other = (diagnose(exact(), X, seed=seed) for seed in (0, 0, 1))
    assert first["holes"] == again["holes"]
    assert first["information"].value == again["information"].value
    assert first["information"].value != other["information"].value


def test_many_rows_are_represented_by_some():
    x = rows(normal(30_000))
    diagnosis = diagnose(exact(), x, max_rows=300)
    assert diagnosis["information"].high == pytest.approx(math.log(300))
    assert diagnosis["scale: typical"].value == pytest.approx(x.var(0).mean().sqrt().item(), 0.1)


def test_batches_do_not_matter():
    small, large = (diagnose(exact(), X, HELD_OUT, batch_size=size) for size in (70, 500))
    for one, other in zip(small.rows, large.rows, strict=True):
        assert one.value == pytest.approx(other.value, abs=0.06), one.name


def test_what_it_refuses():
    with pytest.raises(ValueError, match="got 19 rows; a diagnosis needs at least 20"):
        diagnose(exact(), X[:19])
    with pytest.raises(ValueError, match="got 5 rows"):
        diagnose(exact(), X, X[:5])
    with pytest.raises(ValueError, match="all rows of x are equal"):
        diagnose(exact(), torch.ones(50, 6))
    bad = X.clone()
    bad[3, 2] = math.nan
    for tables in ((bad,), (X, bad)):
        with pytest.raises(ValueError, match="impute"):
            diagnose(exact(), *tables)


# --- what it points to ----------------------------------------------------------------------------


def test_the_chapters_exist():
    source = Path(vaelib.__file__).parent / "diagnosis.py"
    chapters = set(re.findall(r'"((?:foundations|balance|practice)/\w+)"', source.read_text()))
    assert len(chapters) > 5
    toc = (source.parent.parent / "_toc.yml").read_text()
    assert all(f"file: book/{chapter}\n" in toc for chapter in chapters)


def test_wine_in_its_own_units_is_told_to_standardise():
    raw = data.wine(standardize=False).x
    torch.manual_seed(0)
    model = VAE(*mlp(13))
    fit(model, ELBO(), raw, steps=50, batch_size=60, progress=False)
    first, second = diagnose(model, raw).amiss[:2]
    assert "standardise" in first.cause and "standardise" in second.cause
