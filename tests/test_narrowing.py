import math
import warnings

import numpy as np
import pytest
import torch

from vaelib import VAE, data, fit, fit_seeds, metrics
from vaelib.divergences import gaussian_kl
from vaelib.gates import Gates, arm_weight, disarm
from vaelib.likelihoods import Bernoulli, Gaussian
from vaelib.networks import conv, mlp
from vaelib.objectives import ELBO, Narrowing

X = data.wine().x
KEPT = [0, 3]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VAE(*mlp(13, n_latents=4)).double().eval()


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(1)
    return [
        torch.randn(32, 13, generator=g, dtype=torch.float64),
        torch.randn(32, 4, generator=g, dtype=torch.float64),
        torch.rand(32, 4, generator=g, dtype=torch.float64),
    ]


def begun(model, *args, logits=(2.0, -1.0, 0.0, 4.0), **kwargs):
    """An objective for this model whose gates are as undecided as these logits say."""
    objective = Narrowing(*args, **kwargs).double()
    objective.begin(model, 10)
    objective.gates.phi.data = torch.tensor(logits, dtype=torch.float64) / objective.gates.speed
    return objective


def by_hand(model, objective, x, eps, u):
    """SSE and KL of each sample as a function of its gates, and the gates drawn."""
    mu, logvar = model.encoder(x)
    z = mu + (0.5 * logvar).exp() * eps

    def sse(b):
        return (model.decoder(z * b) - x).square().sum(-1)

    def kl(b):
        return (gaussian_kl(mu, logvar) * b).sum(-1)

    return sse, kl, (u < objective.gates.probabilities).double()


@pytest.mark.parametrize("met", [True, False])
def test_narrowing_is_its_formula_in_nats_per_sample(met, model, batch):
    objective = begun(model, 1e6 if met else 5.0, push=0.25)
    geco, gates = objective.geco, objective.gates
    geco.log_lam.fill_(0.5)
    lam, tau = geco.lam.item(), geco.tau.item()
    sse, kl, b = by_hand(model, objective, *batch)
    terms = objective(model, *batch)
    expected = kl(b).mean() + lam * (sse(b).mean() - tau)
    if met:
        expected = expected + lam * 0.25 * tau * gates.probabilities.sum()
    torch.testing.assert_close(terms["loss"], expected)
    torch.testing.assert_close(terms["error"], sse(b).mean())
    torch.testing.assert_close(terms["kl"].sum(), kl(b).mean())
    assert terms["kl"].shape == terms["p"].shape == (4,)
    torch.testing.assert_close(terms["p"], gates.probabilities)
    assert terms["lam"] == lam
    assert geco.met == met


@pytest.mark.parametrize("of_average", [0.3, 0.8, 1.25, 3.0])
@pytest.mark.parametrize("of_batch", [0.5, 2.0])
@pytest.mark.parametrize("of_best", [0.1, 1.5])
def test_the_push_goes_by_the_moving_average_alone(of_average, of_batch, of_best, model, batch):
    """Not by this batch's error, nor by what it was at its best. All three in parts of τ."""
    sse, kl, b = by_hand(model, begun(model, 1.0), *batch)
    objective = begun(model, sse(b).mean().item() / of_batch, push=0.25)
    geco = objective.geco
    geco.log_lam.fill_(0.5)
    geco.weight.fill_(1.0)
    geco.total.copy_(of_average * geco.tau)
    geco.best.copy_(of_best * geco.tau)
    lam, tau = geco.lam.item(), geco.tau.item()
    plain = kl(b).mean() + lam * (sse(b).mean() - tau)
    push = objective(model, *batch)["loss"] - plain
    expected = lam * 0.25 * tau * objective.gates.probabilities.sum() * (of_average < 1)
    torch.testing.assert_close(push, expected)


@pytest.mark.parametrize("met", [True, False])
def test_the_gates_learn_by_disarm_from_each_sample_s_own_f(met, model, batch):
    """F = λ·SSE + masked KL, at the very λ that the loss uses; the push has its gradient beside."""
    objective = begun(model, 1e6 if met else 5.0, push=0.25)
    objective.geco.log_lam.fill_(0.5)
    lam, gates = objective.geco.lam.item(), objective.gates
    sse, kl, _ = by_hand(model, objective, *batch)
    expected = disarm(lambda b: lam * sse(b) + kl(b), gates.logits.detach(), batch[2]).mean(0)
    if met:
        p = gates.probabilities.detach()
        expected += lam * 0.25 * 1e6 * p * (1 - p)
    objective(model, *batch)["loss"].backward()
    torch.testing.assert_close(gates.phi.grad / gates.speed, expected)


def test_the_weights_learn_from_the_drawn_gates_alone(model, batch):
    objective = begun(model, 5.0)
    objective.geco.log_lam.fill_(0.5)
    sse, kl, b = by_hand(model, objective, *batch)
    expected = torch.autograd.grad(
        (kl(b) + objective.geco.lam.item() * sse(b)).mean(), [*model.parameters()]
    )
    objective(model, *batch)["loss"].backward()
    for (name, weight), grad in zip(model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, grad, msg=name)


def test_a_latent_that_the_model_has_closed_goes_on_learning(model, batch):
    """Else no gate would ever open again: what the objective sees is all latents."""
    losses, gradients = [], []
    for opened in (1.0, 0.0):
        model.open.fill_(opened)
        losses.append(begun(model, 5.0)(model, *batch)["loss"])
        gradients.append(torch.autograd.grad(losses[-1], [*model.encoder.parameters()]))
    assert losses[0] == losses[1]
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_only_the_first_of_the_two_decoder_passes_keeps_a_graph(model, batch):
    graphs = []
    model.decoder.register_forward_hook(lambda *args: graphs.append(args[-1].requires_grad))
    begun(model, 5.0)(model, *batch)
    assert graphs == [True, False]


def test_in_training_the_model_gets_the_gates_and_sigma_once_the_target_was_met(model, batch):
    objective = begun(model, 1e-6)
    mean_squares = [objective(model, *batch)["error"].item() / 13 for _ in range(2)]
    assert model.open.tolist() == [1, 1, 1, 1]  # never met, so nothing is closed
    objective.geco.tau.fill_(1e6)
    objective(model, *batch)
    assert model.open.tolist() == [1, 0, 0, 1]
    objective.geco.tau.fill_(mean_squares[0] * 13 * 0.99)  # met before, and not any more
    objective.geco.best.zero_()
    objective.gates.phi.data[1] = 0.1
    objective(model, *batch)
    assert model.open.tolist() == [1, 1, 0, 1]
    assert model.likelihood.sigma.item() ** 2 == pytest.approx(objective.geco.error.item() / 13)


def test_in_eval_mode_nothing_moves(model, batch):
    objective = begun(model, 1e6)
    before = {k: v.clone() for k, v in {**model.state_dict(), **objective.state_dict()}.items()}
    objective.eval()(model, *batch)
    for name, value in {**model.state_dict(), **objective.state_dict()}.items():
        assert torch.equal(value, before[name]), name


def test_lambda_is_the_decoder_s_precision(model, batch):
    """β_eff = 1/2λ, whatever σ the model has."""
    objective = begun(model, 5.0, logits=(40.0,) * 4)
    objective.geco.log_lam.fill_(math.log(3))
    assert metrics.beta_eff(model, objective, batch[0]) == pytest.approx(1 / 6, rel=1e-3)


@pytest.mark.parametrize("kind", ["mlp", "linear", "no batch norm", "conv"])
def test_the_narrowed_model_equals_the_gated_one(kind):
    torch.manual_seed(0)
    networks, shape = {
        "mlp": (mlp(13, n_latents=4), (13,)),
        "linear": (mlp(13, hidden=(), n_latents=4), (13,)),
        "no batch norm": (mlp(13, n_latents=4, batch_norm=False), (13,)),
        "conv": (conv((12, 9), n_latents=4), (1, 12, 9)),
    }[kind]
    model = VAE(*networks).double()
    x = torch.randn(64, *shape, dtype=torch.float64)
    eps = torch.randn(64, 4, dtype=torch.float64)
    model(x)  # moves batch norm's averages
    model.eval()
    all_open = model(x, eps)
    model.open[[1, 2]] = 0
    gated, narrow = model(x, eps), model.narrowed()
    cut = narrow(x, eps[:, KEPT])
    assert narrow.n_latents == 2 and narrow.open.tolist() == [1, 1]
    for one, other in [
        (gated.q.mu[:, KEPT], cut.q.mu),
        (gated.q.logvar[:, KEPT], cut.q.logvar),
        (gated.kl[:, KEPT], cut.kl),
        (gated.p.mean, cut.p.mean),
        (gated.reconstruction, cut.reconstruction),
        (
            metrics.iwae_bound(model, x, 3, eps.expand(3, -1, -1)),
            metrics.iwae_bound(narrow, x, 3, eps[:, KEPT].expand(3, -1, -1)),
        ),
    ]:
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert gated.kl[:, [1, 2]].abs().max() == 0
    assert not metrics.active_units(model, x, threshold=0)[[1, 2]].any()
    assert (all_open.p.mean - gated.p.mean).abs().max() > 1e-3
    narrow.train()
    ELBO()(narrow, x)["loss"].backward()
    assert all(p.grad is not None for p in narrow.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_there_is_nothing_to_narrow_to_where_all_is_closed(model):
    model.open.zero_()
    with pytest.raises(ValueError, match=r"all 4 latents are closed.*lower tau"):
        model.narrowed()


def linear(n_latents):
    return VAE(*mlp(16, hidden=(), n_latents=n_latents, batch_norm=False))


def table(rank, n=2000):
    """Data of known rank with a little noise, and what PCA loses with 0, 1, … components."""
    g = torch.Generator().manual_seed(rank)
    axes = torch.linalg.qr(torch.randn(16, 16, generator=g)).Q
    x = torch.randn(n, rank, generator=g) * torch.linspace(2, 1, rank) @ axes[:rank]
    x = x + 0.1 * torch.randn(n, 16, generator=g)
    x = x - x.mean(0)
    eigenvalues = torch.linalg.eigvalsh(x.T @ x / n).flip(0)
    return x, eigenvalues.sum() - torch.cat([torch.zeros(1), eigenvalues.cumsum(0)])


@pytest.mark.parametrize("rank", range(1, 9))
def test_data_of_known_rank_keep_as_many_gates_for_every_seed(rank):
    x, lost = table(rank)
    tau = (lost[rank - 1] + lost[rank]).item() / 2
    runs = fit_seeds(
        lambda: linear(10),
        Narrowing(tau),
        x,
        steps=3000,
        batch_size=128,
        seeds=range(3),
        lr=1e-2,
        progress=False,
    )
    for model, objective in zip(runs.models, runs.objectives, strict=True):
        p = objective.gates.probabilities
        assert model.open.sum() == rank
        assert not ((p > 0.1) & (p < 0.9)).any()
        narrow = model.narrowed()
        assert narrow.n_latents == rank
        with torch.no_grad():
            error = (x - narrow(x).p.mean).square().sum(-1).mean()
        assert lost[rank] < error < 1.1 * tau


def test_a_closed_gate_reopens_when_the_data_come_to_need_it():
    x, lost = table(2)
    first = torch.linalg.eigh(x.T @ x).eigenvectors[:, -1:]
    flat = x @ first @ first.T  # the same data with one component, which one gate can hold
    torch.manual_seed(0)
    model, objective = linear(3), Narrowing((lost[1] + lost[2]).item() / 2)
    counts = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a run that is well says nothing
        for rows in (flat, x):
            fit(model, objective, rows, steps=700, batch_size=128, lr=1e-2, progress=False)
            counts.append(int(model.open.sum()))
    assert counts == [1, 2]


RUN = {"steps": 40, "batch_size": 32, "lr": 1e-2, "report_every": 10, "progress": False}


def wine_model():
    return VAE(*mlp(13, n_latents=3))


def test_fit_seeds_equals_the_lone_runs():
    taus = [13.5, 18.0]
    runs = fit_seeds(wine_model, [Narrowing(t) for t in taus], X, seeds=[3, 4], **RUN)
    assert runs.history["p"].shape == runs.history["kl"].shape == (2, 4, 3)
    for i, (tau, seed) in enumerate(zip(taus, [3, 4], strict=True)):
        torch.manual_seed(seed)
        model, objective = wine_model(), Narrowing(tau)
        history = fit(model, objective, X, seed=seed, **RUN)
        for mine, theirs in ((model, runs.models[i]), (objective, runs.objectives[i])):
            for name, value in mine.state_dict().items():
                other = theirs.state_dict()[name]
                torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-4, msg=name)
        for name in history.terms:
            np.testing.assert_allclose(history[name], runs.history[name][i], rtol=1e-4, atol=1e-4)
        assert model.likelihood.sigma != 1 and objective.geco.lam != 1
        assert objective.gates.probabilities.max() < 0.98


def test_lambda_starts_at_its_ceiling():
    """So that the model learns to reconstruct before the KL can shut a latent."""
    geco = Narrowing(5.0, highest=20.0).geco
    assert geco.lam.item() == pytest.approx(20.0)
    geco(torch.full((4,), 50.0))
    assert geco.lam.item() == pytest.approx(20.0)
    with pytest.raises(ValueError, match="highest 0"):
        Narrowing(5.0, highest=0.0)


def test_a_run_resumes_bit_for_bit(tmp_path):
    states = []
    for stops in ((40,), (20, 40)):
        path = tmp_path / f"{len(stops)}.safetensors"
        for stop in stops:
            torch.manual_seed(0)
            model, objective = wine_model(), Narrowing(20.0)
            fit(model, objective, X, checkpoint=path, **{**RUN, "steps": stop})
        states.append({**model.state_dict(), **objective.state_dict()})
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Narrowing(1e5), Narrowing(2e5)),
        (Narrowing(1e5), Narrowing(1e5, push=0.1)),
        (Narrowing(1e5), Narrowing(1e5, gates=Gates(4, bounds=(-4.0, 2.0)))),
    ],
    ids=["tau", "push", "gates"],
)
def test_every_knob_changes_the_loss(one, other, model, batch):
    losses = []
    for objective in (one, other):
        objective.double().begin(model, 10)
        losses.append(objective(model, *batch)["loss"])
    assert abs(losses[0] - losses[1]) > 1


def test_gates_of_one_s_own_are_used(model, batch):
    gates = Gates(4, weight=arm_weight)
    objective = Narrowing(5.0, gates=gates)
    objective.begin(model, 10)
    assert objective.gates is gates
    with pytest.raises(ValueError, match="has 4 gates, the model 2 latents; make a Narrowing"):
        fit(VAE(*mlp(13)), objective, X, **RUN)


def test_noise_is_what_the_forward_pass_takes(model):
    g = torch.Generator().manual_seed(0)
    eps, u = Narrowing(5.0).noise(model, 500, g)
    assert eps.shape == u.shape == (500, 4)
    assert eps.dtype == u.dtype == torch.float64
    assert u.min() >= 0 and u.max() <= 1 and abs(u.mean() - 0.5) < 0.05
    again = Narrowing(5.0).noise(model, 500, torch.Generator().manual_seed(0))
    assert torch.equal(eps, again[0]) and torch.equal(u, again[1])
    objective = begun(model, 5.0)
    first, second = (
        objective(model, X.double())["loss"] for _ in range(2)
    )  # drawn where not given
    assert first != second


def test_a_target_that_is_never_reached_is_reported_and_nothing_is_closed():
    model = wine_model()
    objective = Narrowing(1e-3)
    objective.begin(model, 10)
    objective.gates.phi.data.fill_(-0.1)
    with pytest.warns(UserWarning, match=r"tau = 0.001, .* lowest average was (\d+\.?\d*), so"):
        fit(model, objective, X, **RUN)
    assert model.open.tolist() == [1, 1, 1]
    assert not objective.gates.open.any()


def test_all_gates_closed_is_reported():
    x, lost = table(1)
    model = linear(2)
    with pytest.warns(UserWarning, match="all gates are closed: tau = .* the data's mean alone"):
        fit(
            model,
            Narrowing(2 * lost[0].item()),
            x,
            steps=200,
            batch_size=128,
            lr=1e-2,
            progress=False,
        )
    assert model.open.sum() == 0


def test_bad_input_is_refused(model, batch):
    for tau in (0.0, -3.0, float("nan")):
        with pytest.raises(ValueError, match=f"tau must be positive and finite, got {tau}"):
            Narrowing(tau)
    for push in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"push must be positive, got {push}"):
            Narrowing(5.0, push=push)
    for likelihood, message in [
        (Bernoulli(), "Narrowing sets the one σ of a Gaussian, the model has Bernoulli"),
        (Gaussian(torch.ones(13)), "one σ of a Gaussian"),
        (Gaussian(learn=True), "learns it too"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit(VAE(*mlp(13), likelihood), Narrowing(5.0), X.sigmoid(), **RUN)
    with pytest.raises(RuntimeError, match=r"call begin\(model, steps\) first"):
        Narrowing(5.0)(model, *batch)
    x = X.clone()
    x[3, 4] = torch.nan
    with pytest.raises(ValueError, match=r"x\[3, 4\] is nan"):
        fit(wine_model(), Narrowing(5.0), x, **RUN)


def test_nothing_in_a_step_waits_for_the_device():
    """A tensor on the meta device has no values: to read one, or to branch on it, raises."""
    model, objective = wine_model().to("meta"), Narrowing(5.0).to("meta")
    objective.begin(model, 10)
    model.validate_args = False  # as in fit, which looks at the whole data before
    terms = objective(model, torch.ones(8, 13, device="meta"))
    assert all(value.is_meta for value in terms.values())
