"""Checkpoints that cannot lie, and runs that go on or end."""

import copy
import time

import numpy as np
import pytest
import torch

from vaelib import VAE, checkpoints, data, fit, fit_seeds, loop
from vaelib.history import Reports
from vaelib.likelihoods import Gaussian, LogCosh
from vaelib.networks import mlp
from vaelib.objectives import ELBO, Narrowing, Robust
from vaelib.schedules import Warmup

X = data.wine().x
RUN = {"steps": 20, "batch_size": 32, "progress": False}

pytestmark = pytest.mark.filterwarnings("ignore:the error never came down")


def make(likelihood=None, **changes):
    torch.manual_seed(0)
    return VAE(*mlp(13, **changes), likelihood)


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
        objective = copy.deepcopy(objective) if objective else ELBO()
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
