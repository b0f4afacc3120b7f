"""CUDA graphs without a card, on the tape of `conftest.py`; `test_gpu.py` asks a real card.

That each objective can be recorded is part of the contract in `test_contract.py`.
"""

import gc
import warnings
import weakref

import numpy as np
import pytest
import torch

from vaelib import VAE, data, fit, fit_seeds, graphs, loop
from vaelib.gates import Gates
from vaelib.likelihoods import Bernoulli, Gaussian
from vaelib.networks import conv, mlp
from vaelib.objectives import (
    ELBO,
    Narrowing,
)
from vaelib.schedules import Capacity, Cyclical, FreeBits, Warmup

X = data.wine().x


RUN = {"steps": 60, "batch_size": 32, "report_every": 7, "lr": 3e-3, "progress": False}


def trained(make, objective, x=X, **changes):
    torch.manual_seed(0)
    model = make()
    history = fit(model, objective, x, **{**RUN, **changes})
    return history, {**model.state_dict(), **objective.state_dict(prefix="objective.")}


def assert_same(one, other):
    (history, state), (history_, state_) = one, other
    for name in history.terms:
        np.testing.assert_allclose(history[name], history_[name], rtol=1e-5, atol=1e-5)
    for name in state:
        torch.testing.assert_close(state[name], state_[name], rtol=1e-5, atol=1e-5, msg=name)


def table(likelihood=Gaussian, batch_norm=True):
    return lambda: VAE(*mlp(13, batch_norm=batch_norm), likelihood())


CASES = {
    "warm-up": (table(), lambda: ELBO(schedule=Warmup(fraction=0.5))),
    "cycles": (table(), lambda: ELBO(schedule=Cyclical(cycles=3, fraction=0.9))),
    "capacity": (table(), lambda: ELBO(10, Capacity(4.0, fraction=0.5))),
    "free bits": (table(), lambda: ELBO(schedule=FreeBits(0.25))),
    "narrowing": (
        table(batch_norm=False),
        lambda: Narrowing(9.0, gates=Gates(2, bounds=(-1, 1), speed=100)),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_recorded_step_is_the_same_as_the_plain_one(card, monkeypatch, case):
    """Each schedule, moving average and λ goes on, though Python runs no more."""
    make, objective = CASES[case]
    recorded = trained(make, objective())
    assert len(card.tapes) == 1
    assert card.replays == RUN["steps"] - graphs.EAGER
    assert card.mode == 0
    monkeypatch.undo()
    assert_same(recorded, trained(make, objective()))
    if case == "narrowing":
        assert len(np.unique(recorded[0]["lam"])) > 3  # λ moved


def test_convolutions_on_uint8_and_a_look_on_the_way(card, monkeypatch):
    sprites = data.sprites(64, size=16).x.to(torch.uint8)

    def make():
        return VAE(*conv(16, n_latents=3), Bernoulli())

    looks = []
    run = {"x": sprites, "on_report": looks.append, "steps": 12}
    recorded = trained(make, ELBO(), **run)
    monkeypatch.undo()
    assert_same(recorded, trained(make, ELBO(), **run))
    assert looks == [7, 12, 7, 12]


def test_many_seeds_are_recorded_as_one_step(card, monkeypatch):
    def runs():
        return fit_seeds(table(), [ELBO(0.1), ELBO(4.0)], X, seeds=[3, 5], **RUN)

    recorded = runs()
    assert card.replays == RUN["steps"] - graphs.EAGER
    monkeypatch.undo()
    plain = runs()
    np.testing.assert_allclose(recorded.history["loss"], plain.history["loss"], rtol=1e-5)
    for one, other in zip(recorded.models, plain.models, strict=True):
        for name, value in one.state_dict().items():
            torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-5, atol=1e-5)


def test_a_graph_does_not_outlive_its_run(card, monkeypatch):
    """Left to the garbage collector, it could be destroyed while another is recorded."""
    made = []

    def remembered(step, device):
        made.append(weakref.ref(recorded := graphs.Graphed(step, device)))
        return recorded

    monkeypatch.setattr(loop, "graphed", remembered)
    gc.collect()
    gc.disable()
    try:
        torch.manual_seed(0)
        model = table()()
        fit(model, ELBO(), X, **RUN)
        assert made[0]() is None
        assert all(p.grad is None for p in model.parameters())
    finally:
        gc.enable()


def test_runs_share_a_stream(card, monkeypatch):
    """For each that it has seen, cuBLAS keeps tens of megabytes."""
    made = []
    stream = torch.cuda.Stream
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(s := stream()) or s)
    for _ in range(3):
        trained(table(), ELBO())
    assert len(made) == 1


def test_a_recorded_run_resumes(card, tmp_path):
    whole = trained(table(), ELBO())
    path = tmp_path / "run.safetensors"
    trained(table(), ELBO(), steps=28, checkpoint=path)
    assert_same(trained(table(), ELBO(), checkpoint=path), whole)


class Branches(ELBO):
    """Asks Python which way to go, which a graph can't."""

    def forward(self, model, x, eps=None):
        terms = super().forward(model, x, eps)
        return terms if terms["loss"] > 0 else {**terms, "loss": 0 * terms["loss"]}


def test_what_cannot_be_recorded_runs_as_it_is(card, monkeypatch):
    with pytest.warns(UserWarning, match="could not be recorded.*not permitted when stream is cap"):
        fallen_back = trained(table(), Branches())
    assert card.tapes == [] and card.replays == 0
    assert card.mended == 1
    assert card.streams[-1] is card.streams[0]  # not the one that recording left behind
    monkeypatch.undo()
    assert_same(fallen_back, trained(table(), ELBO()))


def test_a_step_that_waits_is_not_recorded_and_other_warnings_come_through(card, monkeypatch):
    class Waits(ELBO):
        def forward(self, model, x, eps=None):
            if card.mode == "warn":
                warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
                warnings.warn("made with capturable=True", stacklevel=1)
                warnings.warn("something else", stacklevel=1)
            return super().forward(model, x, eps)

    with pytest.warns(UserWarning) as caught:
        trained(table(), Waits(), steps=10)
    messages = {str(each.message) for each in caught}
    assert any("waits for the device" in m and "test_graphs.py, line" in m for m in messages)
    assert "something else" in messages
    assert len(messages) == 2
    assert card.tapes == []


def test_a_python_number_would_go_stale_and_the_tape_shows_it(card, monkeypatch):
    """The test of the tests: what must be a tensor, and isn't, fails."""

    class Counts(ELBO):
        count = 0

        def forward(self, model, x, eps=None):
            self.count += 1
            terms = super().forward(model, x, eps)
            return {**terms, "loss": terms["loss"] * self.count}

    recorded, _ = trained(table(), Counts())
    monkeypatch.undo()
    plain, _ = trained(table(), Counts())
    assert plain["loss"][-1] > 3 * recorded["loss"][-1]
