"""Held-out rows, early stopping, and seeds that diverge."""

import numpy as np
import pytest
import torch

from vaelib import VAE, data, fit, fit_seeds
from vaelib.likelihoods import Gaussian
from vaelib.networks import mlp
from vaelib.objectives import ELBO, Narrowing
from vaelib.schedules import Warmup

X = data.wine().x
RUN = {"steps": 20, "batch_size": 32, "progress": False}

pytestmark = pytest.mark.filterwarnings("ignore:the error never came down")


def make(likelihood=None, **changes):
    torch.manual_seed(0)
    return VAE(*mlp(13, **changes), likelihood)


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
