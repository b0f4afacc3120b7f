"""Checkpoints that cannot lie, early stopping, weights of rows, and seeds that diverge."""

import os
import signal
import time

import numpy as np
import pytest
import torch
from torch import nn

from vaelib import VAE, checkpoints, data, fit, fit_seeds, loop
from vaelib.history import Reports
from vaelib.likelihoods import Gaussian, LogCosh
from vaelib.networks import Decoder, Encoder, mlp
from vaelib.objectives import ELBO, ComputedGamma, Narrowing, Robust
from vaelib.schedules import Warmup

X = data.wine().x
RUN = {"steps": 20, "batch_size": 32, "progress": False}

pytestmark = pytest.mark.filterwarnings("ignore:the error never came down")


def make(likelihood=None, **changes):
    torch.manual_seed(0)
    return VAE(*mlp(13, **changes), likelihood)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.safetensors"


# --- Checkpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        (
            {"objective": ELBO(0.1)},
            {"objective": ELBO(10)},
            r"objective\.beta: 0\.1 in .*, 10 here",
        ),
        ({"objective": ELBO()}, {"objective": Robust(0.1)}, r"made by: .*ELBO in .*Robust here"),
        ({"model": Gaussian(1.0)}, {"model": Gaussian(2.0)}, r"sigma: 1\.0 in .*, 2\.0 here"),
        ({"model": LogCosh(1.0)}, {"model": LogCosh(3.0)}, r"likelihood\.a: 1\.0 in .*, 3\.0"),
        ({"model": Gaussian()}, {"model": Gaussian(learn=True)}, r"learn: False in .*, True here"),
        ({"objective": Narrowing(9)}, {"objective": Narrowing(8)}, r"tau: 9 in the file, 8 here"),
        (
            {"network": {}},
            {"network": {"activation": "silu"}},
            r"activation: relu in .*, silu here",
        ),
        ({"network": {}}, {"network": {"hidden": (8, 5)}}, r"hidden\.1: 4 in the file, 5 here"),
        ({}, {"lr": 0.01}, r"lr: 0\.001 in the file, 0\.01 here"),
        ({}, {"batch_size": 16}, "batch_size: 32 in the file, 16 here"),
        ({}, {"seed": 1}, r"seeds\.0: 0 in the file, 1 here"),
        ({}, {"x": X + 1}, r"x\.checksum: \d+ in the file, \d+ here"),
        ({}, {"weights": torch.ones(178)}, "weights: None in the file"),
        ({}, {"held_out": X[:9]}, "held_out: None in the file"),
        ({"held_out": X[:9]}, {"held_out": X[:9], "patience": 2}, "patience: None in the file, 2"),
        (
            {"objective": ELBO(1, Warmup(steps=5))},
            {"objective": ELBO(1, Warmup(steps=6))},
            r"schedule\.steps: 5 in the file, 6 here",
        ),
        (  # whose length in steps would change under way
            {"objective": ELBO(1, Warmup(fraction=0.5))},
            {"objective": ELBO(1, Warmup(fraction=0.5)), "steps": 40},
            r"schedule\.length: 10 in the file, 20 here",
        ),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_by_name(path, before, after, named):
    def run(objective=None, model=None, network=None, x=X, seed=None, **changes):
        model = make(model, **(network or {}))
        objective = objective or ELBO()
        run = {**RUN, "checkpoint": path, "seed": seed or 0, **changes}
        return fit(model, objective, x, **run)

    run(**before)
    with pytest.raises(
        ValueError, match=rf"is the checkpoint of another run: .*{named}.*delete it"
    ):
        run(**after)
    run(**before)


def test_each_beta_of_a_loop_is_its_own_run(path):
    for i, beta in enumerate((0.1, 1.0)):
        objective = ELBO(beta)
        if i:
            with pytest.raises(ValueError, match=r"objective\.beta: 0\.1 in"):
                fit_seeds(make, objective, X, seeds=[0, 1], checkpoint=path, **RUN)
        else:
            fit_seeds(make, objective, X, seeds=[0, 1], checkpoint=path, **RUN)
        assert objective.beta == torch.tensor(beta)


def test_a_setting_that_was_changed_in_place_is_seen(path):
    """As a push that is set before each phase."""
    objective = Narrowing(9.0, highest=1)
    fit(make(), objective, X, checkpoint=path, **RUN)
    objective = Narrowing(9.0, highest=1)
    objective.push.fill_(4)
    with pytest.raises(ValueError, match=r"objective\.push: 1\.0 in the file, 4\.0 here"):
        fit(make(), objective, X, checkpoint=path, **RUN)


def test_an_objective_of_ones_own_is_known_by_its_arguments(path):
    class Weighted(ELBO):
        def __init__(self, weight):
            super().__init__()
            self._weight = weight

        def forward(self, model, x, eps=None):
            terms = super().forward(model, x, eps)
            return {**terms, "loss": self._weight * terms["loss"]}

    fit(make(), Weighted(2.0), X, checkpoint=path, **RUN)
    with pytest.raises(ValueError, match=r"objective\.weight: 2\.0 in the file, 3\.0 here"):
        fit(make(), Weighted(3.0), X, checkpoint=path, **RUN)


def test_a_longer_run_goes_on_and_a_shorter_one_is_refused(path, capsys):
    """Whatever the spacing of the reports, which follows the length where it is not given."""
    fit(make(), ELBO(), X, checkpoint=path, **{**RUN, "steps": 100})
    model = make()
    history = fit(model, ELBO(), X, checkpoint=path, **{**RUN, "steps": 200})
    assert history.steps.tolist() == list(range(1, 201))
    whole = make()
    fit(whole, ELBO(), X, **{**RUN, "steps": 200})
    for value, other in zip(model.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(value, other)
    with pytest.raises(ValueError, match="is at step 200 already, so a run of 50 steps can't be"):
        fit(make(), ELBO(), X, checkpoint=path, **{**RUN, "steps": 50})
    capsys.readouterr()
    again = fit(make(), ELBO(), X, checkpoint=path, **{**RUN, "steps": 200})
    assert "ended at step 200: nothing is left to train" in capsys.readouterr().out
    np.testing.assert_array_equal(again["loss"], history["loss"])
    spaced = fit(make(), ELBO(), X, checkpoint=path, report_every=50, **{**RUN, "steps": 300})
    assert spaced.steps.tolist() == [*range(1, 201), 250, 300]


@pytest.mark.parametrize("content", [b"", b"cut", b"PK\x03\x04 a zip, perhaps", None, "model"])
def test_files_that_are_no_checkpoint_are_named_with_the_remedy(path, content):
    if content is None:
        fit(make(), ELBO(), X, checkpoint=path, **RUN)
        path.write_bytes(path.read_bytes()[:-100])
    elif content == "model":
        checkpoints.save(path, {"a": torch.zeros(1)}, {"kind": "something else"})
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"run\.safetensors .*delete it, or name another"):
        fit(make(), ELBO(), X, checkpoint=path, **RUN)


def test_saving_costs_the_same_after_many_reports(path, monkeypatch):
    """A tensor for each term, however many reports there are."""
    counts = []

    def save(path, tree, header):
        counts.append(sum(len(branch) for branch in tree.values()))

    monkeypatch.setattr(checkpoints, "save", save)
    monkeypatch.setattr(loop, "SAVED_EVERY", 0.0)
    fit(make(), ELBO(), X, checkpoint=path, report_every=1, **{**RUN, "steps": 300})
    assert len(counts) == 300 and len(set(counts)) == 1
    reports = Reports()
    start = time.process_time()
    for step in range(5000):
        reports.add({"step": np.array(step), "kl": np.zeros(10)})
        reports.stacked()
    assert reports.stacked()["kl"].shape == (5000, 10)
    assert time.process_time() - start < 5  # it was 5 s a save


# --- Training further ---------------------------------------------------------------------------


def test_a_loop_of_short_fits_is_training_and_no_replay():
    """One call an epoch: the loss reported is the model's, not that of noise learned by heart."""

    def true_loss(model):
        with torch.no_grad():
            return np.mean([ELBO()(model, X)["loss"].item() for _ in range(20)])

    model = make()
    for _ in range(400):
        history = fit(model, ELBO(), X, lr=1e-2, **{**RUN, "steps": 5})
    assert model.steps_trained == 2000
    assert history["loss"].mean() == pytest.approx(true_loss(model), abs=1.5)
    whole = make()
    fit(whole, ELBO(), X, lr=1e-2, **{**RUN, "steps": 2000})
    assert true_loss(model) == pytest.approx(true_loss(whole), abs=1.0)


def test_training_further_equals_its_lone_runs_in_a_stack():
    first = fit_seeds(lambda: make().double(), ELBO(), X, seeds=[3, 4], **RUN)
    further = fit_seeds(iter(first.models).__next__, ELBO(), X, seeds=[3, 4], **RUN)
    for i, seed in enumerate([3, 4]):
        model = make().double()
        for _ in range(2):
            history = fit(model, ELBO(), X, seed=seed, **RUN)
        np.testing.assert_allclose(further.history["loss"][i], history["loss"], rtol=1e-6)
        assert further.models[i].steps_trained == 40
    assert not np.allclose(first.history["loss"], further.history["loss"])


def test_a_second_run_with_the_first_one_s_checkpoint_is_told(path, capsys):
    model = make()
    fit(model, ELBO(), X, checkpoint=path, **RUN)
    fit(model, ELBO(), X, checkpoint=path, **RUN)
    assert "nothing is left to train" in capsys.readouterr().out
    fit(model, ELBO(), X, **RUN)
    with pytest.raises(ValueError, match=r"the model was trained before: \[0\], here \[40\]"):
        fit(model, ELBO(), X, checkpoint=path, **RUN)


def test_on_report_may_end_a_run(path):
    def enough(step):
        return step >= 6

    history = fit(make(), ELBO(), X, on_report=enough, report_every=3, checkpoint=path, **RUN)
    assert history.steps.tolist() == [3, 6] and not history.interrupted
    for answer in (None, "yes", torch.ones(())):  # what lambdas return by the way ends nothing
        assert len(fit(make(), ELBO(), X, on_report=lambda _, a=answer: a, **RUN).steps) == 20
    again = fit(make(), ELBO(), X, on_report=enough, report_every=3, checkpoint=path, **RUN)
    assert again.steps.tolist() == [3, 6]


# --- Held-out rows and early stopping -----------------------------------------------------------


def test_held_out_rows_are_watched_in_eval_mode_and_change_nothing():
    plain, watched = make(), make()
    fit(plain, ELBO(), X, **RUN)
    history = fit(watched, ELBO(), X, held_out=X[:50] + 1, report_every=5, **RUN)
    for value, other in zip(
        plain.state_dict().values(), watched.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other)
    assert set(history.held_out) == set(history.terms)
    assert history.held_out["kl"].shape == (4, 2)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        now = ELBO()(watched, X[:50] + 1, torch.randn(50, 2, generator=g))["loss"].item()
    assert history.held_out["loss"][-1] == pytest.approx(now, rel=1e-5)


def overfits(**changes):
    """A large network on few rows: the held-out loss falls, then rises."""
    torch.manual_seed(0)
    model = VAE(*mlp(13, (64,), 8, batch_norm=False), Gaussian(0.3))
    run = {**RUN, "steps": 600, "batch_size": 20, "report_every": 10, "lr": 1e-2}
    return model, fit(model, ELBO(), X[:20], held_out=X[20:], **{**run, **changes})


def test_patience_ends_a_run_and_brings_back_the_best_weights(path):
    _, whole = overfits()
    model, history = overfits(patience=5)
    losses = history.held_out["loss"]
    best = losses.argmin()
    assert history.best == history.steps[best] < history.steps[-1] < 600
    assert len(losses) == best + 6 and not history.interrupted
    assert whole.held_out["loss"][-1] > losses[best] + 1
    np.testing.assert_array_equal(losses, whole.held_out["loss"][: len(losses)])
    at_best, _ = overfits(steps=int(history.best))
    for value, other in zip(
        model.state_dict().values(), at_best.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other)
    assert model.steps_trained == history.steps[-1]

    # Exactly so where the run was cut in two, before or after its best step.
    for cut in (int(history.best) - 20, int(history.best) + 20):
        overfits(patience=5, checkpoint=path, steps=cut)
        resumed, again = overfits(patience=5, checkpoint=path)
        assert again.best == history.best
        assert again.steps[-1] == history.steps[-1]
        for value, other in zip(model.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(value, other)
        path.unlink()


def test_a_warm_up_is_not_taken_for_the_best():
    """Held-out rows are judged by the loss that the run is to end with."""
    history = fit(
        make(),
        ELBO(1, Warmup(fraction=1.0)),
        X[::2],
        held_out=X[1::2],
        lr=1e-2,
        patience=50,
        report_every=10,
        **{**RUN, "steps": 500},
    )
    total = history.held_out["reconstruction"] + history.held_out["kl"].sum(-1)
    np.testing.assert_allclose(history.held_out["loss"], total, rtol=1e-5)
    assert history.best > 100


def test_each_seed_of_a_stack_has_its_own_end():
    def small():
        return VAE(*mlp(13, (64,), 8, batch_norm=False), Gaussian(0.3)).double()

    run = {"steps": 600, "batch_size": 20, "report_every": 10, "lr": 1e-2, "progress": False}
    runs = fit_seeds(small, ELBO(), X[:20], seeds=range(4), held_out=X[20:], patience=3, **run)
    ends = (~np.isnan(runs.history["loss"])).sum(1)
    assert len(set(ends.tolist())) > 1
    for seed in range(4):
        torch.manual_seed(seed)
        model = small()
        lone = fit(model, ELBO(), X[:20], seed=seed, held_out=X[20:], patience=3, **run)
        assert len(lone.steps) == ends[seed] and lone.best == runs.history.best[seed]
        for a, b in zip(model.parameters(), runs.models[seed].parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_patience_needs_losses_that_can_be_compared():
    with pytest.raises(ValueError, match=r"multiplier of Narrowing moves.*on_report"):
        fit(make(), Narrowing(9.0), X, held_out=X, patience=3, **RUN)
    history = fit(make(), Narrowing(9.0), X, held_out=X, **RUN)
    assert history.held_out["error"].shape == (20,)


# --- Weights of rows ----------------------------------------------------------------------------


def test_whole_weights_are_repeated_rows():
    """In each epoch, to the row; and fractions on average."""
    seen = []

    class Count(ELBO):
        def forward(self, model, x, eps=None):
            seen.append(x[:, 0])
            return super().forward(model, x, eps)

    x = torch.arange(8.0)[:, None].expand(8, 13)
    weights = torch.tensor([1.0, 3, 0, 1, 1, 0, 1, 1])
    run = {**RUN, "batch_size": 4}
    fit(make(), Count(), x, weights=weights, **run)
    for epoch in torch.cat(seen).reshape(10, 8):
        assert torch.equal(epoch.long().bincount(minlength=8), weights.long())
    seen.clear()
    weights = torch.rand(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fit(make(), Count(), x, weights=weights.numpy() * 1e6, **{**run, "steps": 4000})
    shares = torch.cat(seen).long().bincount(minlength=8) / 16000
    torch.testing.assert_close(shares.double(), weights / weights.sum(), atol=3e-3, rtol=0)


@pytest.mark.parametrize("objective", [ELBO, ComputedGamma, lambda: Robust(0.1)])
def test_weighted_rows_teach_what_repeated_rows_teach(objective):
    x = torch.cat([X[:40], X[40:80].repeat(5, 1)])
    weights = torch.cat([torch.ones(40), torch.full((40,), 5.0)])
    run = {"seeds": range(8), "lr": 1e-2, **RUN, "steps": 400}
    losses = []
    for rows, share in ((x, None), (X[:80], weights), (X[:80], None)):
        history = fit_seeds(lambda: VAE(*mlp(13)), objective(), rows, weights=share, **run).history
        losses.append(history["reconstruction"][:, -30:].mean(1))
    repeated, weighted, plain = losses
    spread = repeated.std() + weighted.std()
    assert abs(repeated.mean() - weighted.mean()) < spread
    assert abs(repeated.mean() - plain.mean()) > abs(repeated.mean() - weighted.mean())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(10), r"weights has shape \(10,\); pass one number for each of 178 rows"),
        (np.ones((178, 1)), r"weights has shape \(178, 1\)"),
        (-np.ones(178), r"weights are -1\.0; pass finite numbers, none below 0"),
        (np.full(178, np.nan), "weights are nan"),
        (np.zeros(178), "weights are 0 for all rows"),
    ],
)
def test_weights_that_weigh_nothing_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        fit(make(), ELBO(), X, weights=weights, **RUN)


# --- Many seeds ---------------------------------------------------------------------------------


class Bursts(ELBO):
    """Its loss leaves the numbers for models with a negative first weight."""

    def forward(self, model, x, eps=None):
        terms = super().forward(model, x, eps)
        bad = next(model.parameters())[0, 0] < 0
        return {**terms, "loss": torch.where(bad, torch.nan, 1.0) * terms["loss"]}


def test_a_seed_that_diverges_is_reported_and_the_others_go_on():
    signs = []
    for seed in range(6):
        torch.manual_seed(seed)
        signs.append(next(VAE(*mlp(13)).parameters())[0, 0].item() < 0)
    bad = [seed for seed, negative in enumerate(signs) if negative]
    with pytest.warns(UserWarning, match=r"for seed\(s\) .*; the other seeds go on"):
        runs = fit_seeds(lambda: VAE(*mlp(13)), Bursts(), X, seeds=range(6), **RUN)
    assert runs.history.diverged == tuple(bad)
    assert 0 < len(bad) < 6
    plain = fit_seeds(lambda: VAE(*mlp(13)), ELBO(), X, seeds=range(6), **RUN)
    good = [seed for seed in range(6) if seed not in bad]
    np.testing.assert_allclose(runs.history["loss"][good], plain.history["loss"][good], rtol=1e-5)
    assert np.isnan(runs.history["loss"][bad]).all()
    assert f"diverged: seeds {bad}" in repr(runs.history)
    with pytest.raises(FloatingPointError, match=rf"seed\(s\) \[{bad[0]}\]"):
        fit_seeds(lambda: VAE(*mlp(13)), Bursts(), X, seeds=bad[:1], **RUN)


def test_a_model_that_is_handed_out_twice_is_refused():
    model = make()
    with pytest.raises(ValueError, match="gave models 0 and 1 the same weights"):
        fit_seeds(lambda: model, ELBO(), X, seeds=[0, 1], **RUN)
    with pytest.raises(ValueError, match="the same weights"):
        fit_seeds(lambda: VAE(model.encoder, mlp(13)[1]), ELBO(), X, seeds=[0, 1], **RUN)
    with pytest.raises(TypeError, match="make_model is a VAE; pass a function"):
        fit_seeds(model, ELBO(), X, **RUN)
    with pytest.raises(TypeError, match="is the class ELBO"):
        fit_seeds(make, ELBO, X, **RUN)


class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(13, 4, batch_first=True)

    def forward(self, x):
        return self.lstm(x[:, None])[0][:, 0]


@pytest.mark.parametrize("body", [lambda: nn.Sequential(nn.Linear(13, 4), nn.Dropout(0.2)), Lstm])
def test_networks_that_cannot_be_stacked_are_refused_in_words(body):
    def own():
        return VAE(Encoder(body(), (13,), 4, 2), Decoder(nn.Identity(), 2, nn.Linear(2, 13)))

    with pytest.raises(
        ValueError, match=r"cannot be stacked: dropout .* one after another, by fit"
    ):
        fit_seeds(own, ELBO(), X, seeds=[0, 1], **RUN)
    assert np.isfinite(fit(own(), ELBO(), X, **RUN)["loss"]).all()


# --- What is left of a run ----------------------------------------------------------------------


def test_an_interrupt_before_the_first_report_leaves_a_history(monkeypatch):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    model, calls = make(), []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGINT)

    model.register_forward_hook(interrupt)
    history = fit(model, ELBO(), X, report_every=20, **RUN)
    assert history.interrupted and history.steps.tolist() == [7]
    assert np.isfinite(history["loss"]).all()
    assert "interrupted" in repr(history)


def test_what_a_cell_shows_is_short():
    history = fit(make(), ELBO(0.3), X, held_out=X, **RUN)
    shown = repr(history)
    assert len(shown) < 200
    assert f"{history['loss'][-1]:.4g}" in shown and "20 reports to step 20" in shown
    runs = fit_seeds(make, ELBO(0.3), X, seeds=range(3), **RUN)
    assert len(repr(runs)) < 1200
    assert repr(make()) == "VAE(mlp(n_features=13, n_latents=2), Gaussian(sigma=1), 2 latents)"
    model = make(Gaussian(torch.ones(13), learn=True))
    assert "Gaussian(sigma=[1, 1, 1, …], learn=True)" in repr(model)
    assert repr(ELBO(0.3, Warmup(fraction=0.5))) == "ELBO(beta=0.3, schedule=Warmup(fraction=0.5))"
    narrowing = Narrowing(20, push=2.0)
    assert repr(narrowing) == "Narrowing(tau=20, push=2, highest=50)"
    model = make()
    model.open[0] = 0
    assert "1 of 2 latents open" in repr(model)
    objective = ComputedGamma()
    fit(model, objective, X, **RUN)
    assert f"Gaussian(sigma={model.likelihood.sigma:.4g})" in repr(model)


def test_a_history_draws_itself():
    import matplotlib

    matplotlib.use("Agg")
    for history in (
        fit(make(), ELBO(), X, held_out=X, **RUN),
        fit_seeds(make, ELBO(), X, seeds=range(3), **RUN).history,
    ):
        figure = history.plot()
        assert [ax.get_title() for ax in figure.axes] == [*history.terms]
        drawn = [line.get_ydata() for line in figure.axes[0].lines]
        expected = history["loss"] if history.held_out else np.median(history["loss"], 0)
        assert any(np.allclose(each, expected) for each in drawn)
