import pytest
import torch
from torch.distributions import Normal
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from vaelib import VAE, fit, fit_seeds
from vaelib.divergences import beta_divergence, mmd, rbf
from vaelib.likelihoods import Bernoulli, Gaussian
from vaelib.networks import mlp
from vaelib.objectives import ELBO, ComputedGamma, InfoVAE, LearnedGamma, OptimalSigma, Robust
from vaelib.schedules import FreeBits


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VAE(*mlp(13, n_latents=3)).double().eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(32, n, generator=generator, dtype=torch.float64) for n in (13, 3)]


@pytest.fixture
def prior():
    """The codes that InfoVAE compares with."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(32, 3, generator=generator, dtype=torch.float64)


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


SMOOTH = {
    "ELBO": lambda: ELBO(2.0),
    "ELBO with free bits": lambda: ELBO(2.0, FreeBits(0.1)),
    "learned γ": LearnedGamma,
    "optimal σ": OptimalSigma,
    "optimal σ near its floor": lambda: OptimalSigma(lowest=0.0),
    "InfoVAE": lambda: InfoVAE(0.3, 10.0),
    "InfoVAE without KL": lambda: InfoVAE(1.0, 100.0),
    "robust": lambda: Robust(0.3),
}


@pytest.mark.parametrize("part", ["encoder", "decoder", "objective"])
@pytest.mark.parametrize("kind", SMOOTH)
def test_the_gradient_is_the_slope_of_the_loss(kind, part, batch, prior):
    """In all weights there are: a term that is cut off from some of them shows."""
    torch.manual_seed(0)
    model, objective = VAE(*mlp(13, n_latents=3, activation="silu")).double().eval(), SMOOTH[kind]()
    noise = [batch[1], prior] if isinstance(objective, InfoVAE) else batch[1:]
    whole = {"encoder": model.encoder, "decoder": model.decoder, "objective": objective.double()}
    weights = [*whole[part].parameters()]
    if not weights:
        return  # most objectives have none
    start = parameters_to_vector(weights).detach()
    way = torch.randn(len(start), dtype=torch.float64)

    def loss_at(step):
        vector_to_parameters(start + step * way, weights)
        return objective(model, batch[0], *noise)["loss"]

    slope = (loss_at(1e-6) - loss_at(-1e-6)).item() / 2e-6
    gradient = parameters_to_vector(torch.autograd.grad(loss_at(0.0), weights))
    assert abs(slope) > 1e-2
    assert (gradient @ way).item() == pytest.approx(slope, rel=1e-5)


def test_a_mismatch_with_the_prior_pulls_at_the_encoder_and_not_at_the_decoder(model, batch, prior):
    mismatch = InfoVAE(1.0, 10.0).double()(model, *batch, prior + 1)["mmd"]
    mismatch.backward()
    for row in model.encoder.mu_logvar.weight.grad:  # each mean and each log-variance
        assert row.abs().max() > 1e-6
    assert all(weight.grad is None for weight in model.decoder.parameters())


def test_noise_is_what_the_forward_pass_takes(model):
    generator = torch.Generator().manual_seed(3)
    (eps,) = ELBO().noise(model, 7, generator)
    assert eps.shape == (7, 3)
    assert torch.equal(eps, model.noise(7, torch.Generator().manual_seed(3)))


VARIANCES = [LearnedGamma, ComputedGamma, OptimalSigma]


@pytest.mark.parametrize("kind", VARIANCES)
def test_a_chosen_sigma_gives_the_elbo_with_that_sigma(kind, model, batch):
    """In training it is written into the likelihood; in eval mode it stays what it is."""
    x, eps = 0.5 * batch[0], batch[1]
    objective = kind().double()
    terms = objective(model, x, eps)
    assert model.likelihood.sigma.item() != 1 or kind is LearnedGamma
    torch.testing.assert_close(terms["sigma"], model.likelihood.sigma)
    torch.testing.assert_close(terms["loss"], ELBO()(model, x, eps)["loss"])
    before = model.likelihood.sigma
    elsewhere = objective.eval()(model, 5 * x, eps)
    assert torch.equal(model.likelihood.sigma, before)
    torch.testing.assert_close(elsewhere["loss"], ELBO()(model, 5 * x, eps)["loss"])


def test_optimal_sigma_is_the_batch_s_root_mean_squared_error(model, batch):
    x, eps = batch
    mse = (x - model(x, eps).p.mean).square().mean()
    sigma = OptimalSigma(lowest=-20)(model, x, eps)["sigma"]
    torch.testing.assert_close(sigma**2, mse)
    for other in (0.8, 1.25):
        model.likelihood.log_sigma.copy_((sigma * other).detach().log())
        worse = ELBO()(model, x, eps)["loss"]
        assert worse > OptimalSigma(lowest=-20)(model, x, eps)["loss"]


def test_optimal_sigma_has_a_floor_and_a_gradient_at_no_error_at_all(model):
    z = torch.zeros(4, 3, dtype=torch.float64)
    x = model.decoder(z).detach()
    model.encoder.mu_logvar.weight.data.zero_()
    model.encoder.mu_logvar.bias.data.zero_()
    terms = OptimalSigma()(model, x, z)
    terms["loss"].backward()
    assert terms["sigma"].log().item() == pytest.approx(-6, abs=0.01)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_the_floor_of_optimal_sigma_is_soft():
    """Below it, too, a smaller error gives a smaller σ: only so has the error a pull left there."""
    above = torch.linspace(-5, 5, 101, dtype=torch.float64).requires_grad_()
    log_sigma = OptimalSigma(lowest=-2.0).log_sigma((2 * (above - 2)).exp())
    assert (log_sigma > -2).all()
    assert (log_sigma.diff() > 0).all()
    (slope,) = torch.autograd.grad(log_sigma.sum(), above)
    assert slope.min() > 0 and slope.max() < 1
    assert slope[50].item() == pytest.approx(0.5, abs=1e-6)  # at the floor itself, on either side
    torch.testing.assert_close(log_sigma[-1] + 2, above[-1], rtol=0, atol=0.01)


@pytest.mark.parametrize("kind", [ComputedGamma, lambda: OptimalSigma(lowest=-20)])
def test_the_weights_learn_as_if_sigma_were_fixed(kind, model, batch):
    """A computed σ has no gradient, and that of the optimal one comes to nothing at its optimum."""
    x, eps = 0.5 * batch[0], batch[1]
    objective = kind().double()
    for _ in range(2):  # nor does the average hold on to the first step's graph
        model.zero_grad()
        terms = objective(model, x, eps)
        terms["loss"].backward()
        through = [weight.grad.clone() for weight in model.parameters()]
        model.zero_grad()
        ELBO()(model, x, eps)["loss"].backward()  # σ is the likelihood's by now
        for weight, grad in zip(model.parameters(), through, strict=True):
            torch.testing.assert_close(weight.grad, grad)
    if isinstance(objective, ComputedGamma):
        assert not terms["sigma"].requires_grad and not objective.mse.requires_grad


def test_computed_gamma_is_a_moving_average_that_only_falls(model, batch):
    x, eps = batch
    objective = ComputedGamma(momentum=0.9).double()
    mse = (x - model(x, eps).p.mean).square().mean().item()
    expected = 1.0
    for scale in (0.5, 3.0, 0.5):
        error = (scale * x - model(scale * x, eps).p.mean).square().mean().item()
        expected = min(expected, 0.9 * expected + 0.1 * error)
        objective(model, scale * x, eps)
        assert objective.mse.item() == pytest.approx(expected)
        assert model.likelihood.sigma.item() ** 2 == pytest.approx(expected)
    assert mse > 0 and expected < 1


@pytest.mark.parametrize("kind", VARIANCES)
def test_a_sigma_that_is_not_free_is_refused(kind):
    x = torch.randn(8, 13)
    for likelihood, message in [
        (Bernoulli(), "has Bernoulli"),
        (Gaussian(torch.ones(13)), "one σ of a Gaussian"),
        (Gaussian(learn=True), "learns it too"),
    ]:
        model = VAE(*mlp(13), likelihood)
        with pytest.raises(ValueError, match=message):
            fit(model, kind(), x.sigmoid(), steps=1, batch_size=8)


def test_info_vae_is_its_formula(model, batch, prior):
    x, eps = batch
    elbo = ELBO()(model, x, eps)
    for unbiased, kernel in ((True, rbf), (False, rbf)):
        mismatch = mmd(model(x, eps).z, prior, unbiased, kernel)
        terms = InfoVAE(0.3, 10.0, unbiased, kernel).double()(model, x, eps, prior)
        expected = elbo["reconstruction"] + 0.7 * elbo["kl"].sum() + 9.3 * mismatch
        torch.testing.assert_close(terms["loss"], expected)
        torch.testing.assert_close(terms["mmd"], mismatch)
        torch.testing.assert_close(terms["kl"], elbo["kl"])


def test_info_vae_goes_from_the_elbo_to_no_kl_at_all(model, batch, prior):
    """α = 0, λ = 1 is the ELBO, whatever the prior's draws; α = 1 holds no posterior by itself."""
    elbo = ELBO()(model, *batch)
    for draws in (prior, prior + 5):
        terms = InfoVAE(alpha=0, lam=1)(model, *batch, draws)
        torch.testing.assert_close(terms["loss"], elbo["loss"])
    beta_vae = InfoVAE(alpha=0.75, lam=0.25).double()(model, *batch, prior)
    torch.testing.assert_close(beta_vae["loss"], ELBO(0.25)(model, *batch)["loss"])

    free = InfoVAE(alpha=1, lam=7).double()(model, *batch, prior)
    torch.testing.assert_close(free["loss"], free["reconstruction"] + 7 * free["mmd"])
    assert free["kl"].sum() > 0.01


def test_info_vae_refuses_to_reward_mismatch_and_names_the_weight():
    for alpha, lam, message in [
        (0.0, 0.001, r"weight alpha\+lam-1 is -0.999, .* lam of at least 1$"),
        (0.5, 0.03, r"weight alpha\+lam-1 is -0.47, .* lam of at least 0.5$"),
        (0.0, float("nan"), "lam nan"),
        (1.5, 1.0, "weight 1-alpha is -0.5; give alpha of at most 1"),
        (float("nan"), 1.0, "alpha is nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            InfoVAE(alpha, lam)
    InfoVAE(-9.0, 10.0)  # weights 10 and 0: odd, and allowed


def test_info_vae_s_noise_is_two_draws_and_its_own_prior_draws_differ(model, batch):
    eps, prior = InfoVAE(1, 1).noise(model, 32, torch.Generator().manual_seed(0))
    assert eps.shape == prior.shape == (32, 3)
    assert not torch.equal(eps, prior)
    objective = InfoVAE(1, 1).double()
    torch.manual_seed(0)
    first, second = (objective(model, *batch)["mmd"] for _ in range(2))
    assert first != second


def test_bad_knobs_are_refused():
    for momentum in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=f"momentum is {momentum}"):
            ComputedGamma(momentum)
    for beta in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"must be positive, got {beta}; .*ELBO"):
            Robust(beta)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ELBO(1.0), ELBO(2.0)),
        (ComputedGamma(0.9), ComputedGamma(0.5)),
        (OptimalSigma(-6), OptimalSigma(0)),
        (InfoVAE(0.5, 10), InfoVAE(0.9, 10)),
        (InfoVAE(0.5, 10), InfoVAE(0.5, 20)),
        (InfoVAE(0.5, 10), InfoVAE(0.5, 10, unbiased=False)),
        (InfoVAE(0.5, 10), InfoVAE(0.5, 10, kernel=rbf)),
        (Robust(0.1), Robust(0.5)),
    ],
)
def test_every_knob_changes_the_loss(one, other, model, batch, prior):
    losses = []
    for objective in (one, other):
        noise = [batch[1], prior] if isinstance(objective, InfoVAE) else batch[1:]
        losses.append(objective.double()(model, 0.5 * batch[0], *noise)["loss"])
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize("kind", VARIANCES)
def test_sigma_goes_the_way_of_the_lone_run_under_seeds(kind):
    x = torch.randn(64, 13, generator=torch.Generator().manual_seed(0))

    def make():
        return VAE(*mlp(13))

    options = {"steps": 30, "batch_size": 32, "lr": 1e-2, "progress": False}
    runs = fit_seeds(make, kind(), x, seeds=[3, 4], **options)
    for seed, model in zip([3, 4], runs.models, strict=True):
        torch.manual_seed(seed)
        lone = make()
        history = fit(lone, kind(), x, seed=seed, **options)
        assert lone.likelihood.sigma.item() == pytest.approx(
            model.likelihood.sigma.item(), rel=1e-4
        )
        assert lone.likelihood.sigma.item() == pytest.approx(history["sigma"][-1], rel=1e-4)
        assert lone.likelihood.sigma.item() != 1


def test_robust_replaces_the_reconstruction_alone_and_ends_at_the_elbo(model, batch):
    elbo = ELBO()(model, *batch)
    terms = Robust(0.3).double()(model, *batch)
    torch.testing.assert_close(terms["kl"], elbo["kl"])
    torch.testing.assert_close(terms["loss"], terms["reconstruction"] + elbo["kl"].sum())
    expected = beta_divergence(model(*batch).p, batch[0], torch.tensor(0.3)).mean()
    torch.testing.assert_close(terms["reconstruction"], expected)
    limit = Robust(1e-8).double()(model, *batch)
    torch.testing.assert_close(limit["loss"], elbo["loss"])


def test_robust_learns_the_sigma_of_the_clean_rows_and_the_elbo_does_not():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 6, generator=generator) * torch.linspace(0.3, 1, 6)
    clean = x.std(0)
    x[:100] += 8.0 * (torch.randint(2, (100, 6), generator=generator) * 2 - 1)

    def train(objective):
        torch.manual_seed(0)
        model = VAE(*mlp(6, hidden=()), Gaussian(torch.ones(6), learn=True))
        fit(model, objective, x, steps=600, batch_size=250, lr=0.02, progress=False)
        return model.likelihood.sigma

    torch.testing.assert_close(train(Robust(0.5)), clean, rtol=0.15, atol=0)
    assert (train(ELBO()) > 2 * clean).all()


@pytest.mark.parametrize(
    "terms", [torch.tensor(1.0), {"elbo": torch.tensor(1.0)}, {"loss": torch.ones(8)}]
)
def test_an_objective_of_ones_own_that_returns_something_else_is_told(terms):
    class Own(ELBO):
        def forward(self, model, x, eps=None):
            return terms

    with pytest.raises(TypeError, match=r"Own.forward has to return a dict.*scalar under 'loss'"):
        Own()(VAE(*mlp(13)), torch.zeros(8, 13))
