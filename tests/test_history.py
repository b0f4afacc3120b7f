"""What is left of a run."""

import os
import signal

import numpy as np
import torch

from vaelib import VAE, data, fit, fit_seeds
from vaelib.networks import mlp
from vaelib.objectives import ELBO

X = data.wine().x
RUN = {"steps": 20, "batch_size": 32, "progress": False}


def make(likelihood=None, **changes):
    torch.manual_seed(0)
    return VAE(*mlp(13, **changes), likelihood)


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
