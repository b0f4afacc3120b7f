"""What holds for every objective with every likelihood that it takes, on tables and on images."""

import warnings

import numpy as np
import pytest
import torch
from cases import CASES, RUN, Case

from vaelib import fit_seeds, graphs, load, save

pytestmark = pytest.mark.filterwarnings("ignore:the error never came down")


@pytest.fixture(params=CASES)
def case(request):
    return Case(request.param)


def assert_alike(one, other, **tolerance):
    for a, b in zip(one[:2], other[:2], strict=True):
        for name, value in a.state_dict().items():
            torch.testing.assert_close(value, b.state_dict()[name], msg=name, **tolerance)
    for name, values in one[2].terms.items():
        rtol, atol = tolerance["rtol"], tolerance["atol"]
        np.testing.assert_allclose(values, other[2][name], rtol=rtol, atol=atol, err_msg=name)


EXACT = {"rtol": 0, "atol": 0}
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def test_seeds_equal_lone_runs(case):
    """Early stopping and the best weights too, each seed by itself."""
    run = {**RUN, "held_out": case.x[:20]}
    patience = {"patience": 1} if case.objective().comparable else {}
    runs = fit_seeds(case.double, case.objective(), case.x, seeds=[0, 7], **run, **patience)
    ends = []
    for i, seed in enumerate([0, 7]):
        lone = case.fit(seed=seed, make=case.double, **run, **patience)
        ends.append(n := len(lone[2].steps))
        history = runs.history
        cut = type(history)(
            history.steps[:n], {k: v[i, :n] for k, v in history.terms.items()}, False
        )
        assert_alike(lone, (runs.models[i], runs.objectives[i], cut), **CLOSE)
        assert lone[2].best == history.best[i]
        held_out = history.held_out["loss"][i]
        np.testing.assert_allclose(lone[2].held_out["loss"], held_out[:n], rtol=1e-4)
        assert np.isnan(held_out[n:]).all() and np.isnan(history["loss"][i, n:]).all()
    assert len(runs.history.steps) == max(ends)


def test_a_run_resumes_exactly(case, tmp_path):
    path = tmp_path / "run.safetensors"
    run = {"held_out": case.x[:20], "checkpoint": path}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case.fit(**run, steps=6)
        resumed = case.fit(**run)
        whole = case.fit(held_out=case.x[:20])
        assert_alike(case.fit(**run), whole, **EXACT)  # what is finished is read, not run again
    assert_alike(resumed, whole, **EXACT)
    np.testing.assert_array_equal(resumed[2].held_out["loss"], whole[2].held_out["loss"])
    assert resumed[0].steps_trained == whole[0].steps_trained == 12


def test_bytes_doubles_and_arrays_are_the_same_data(case):
    expected = case.fit()
    for x in (case.x.to(torch.uint8), case.x.double(), case.x.numpy(), case.x.bool()):
        assert_alike(case.fit(x), expected, **EXACT)
    model, objective, _ = expected
    torch.manual_seed(0)
    loss = objective(model, case.x)["loss"]
    torch.manual_seed(0)
    assert objective(model, case.x.double().numpy())["loss"] == loss


def test_gaps_and_nothing_are_refused(case):
    holes = case.x.clone()
    holes.view(-1)[70] = torch.nan
    model = case.model()
    for take in (model, model.encode, lambda x: case.fit(x), lambda x: case.fit(held_out=x)):
        with pytest.raises(ValueError, match=r"is nan"):
            take(holes)
        with pytest.raises(ValueError, match=r"has shape \(0, .*pass some rows"):
            take(case.x[:0])


def test_a_captured_step_equals_a_plain_one(case, card, monkeypatch):
    recorded = case.fit(held_out=case.x[:20])
    assert card.replays == RUN["steps"] - graphs.EAGER
    monkeypatch.undo()
    assert_alike(recorded, case.fit(held_out=case.x[:20]), rtol=1e-5, atol=1e-5)


def test_a_saved_model_gives_identical_codes(case, tmp_path):
    model, _, _ = case.fit()
    save(tmp_path / "model.safetensors", model)
    again, _ = load(tmp_path / "model.safetensors")
    assert torch.equal(again.encode(case.x).mu, model.encode(case.x).mu)
    eps = torch.zeros(60, 3)
    assert torch.equal(again(case.x, eps).reconstruction, model(case.x, eps).reconstruction)
