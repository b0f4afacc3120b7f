"""What holds for every objective with every likelihood that it takes, on tables and on images."""

import warnings

import numpy as np
import pytest
import torch

from vaelib import VAE, fit, fit_seeds, graphs, load, save
from vaelib.gates import Gates
from vaelib.likelihoods import Bernoulli, Categorical, Gaussian, LogCosh, Mixed, StudentT
from vaelib.networks import conv, mlp
from vaelib.objectives import (
    ELBO,
    ComputedGamma,
    InfoVAE,
    LearnedGamma,
    Narrowing,
    OptimalSigma,
    Robust,
)
from vaelib.schedules import Warmup

D = 64  # an image of 8 x 8, or a row of as many columns
# Bits suit every likelihood; the last four columns are the one-hot code of four classes.
X = (torch.rand(60, D, generator=torch.Generator().manual_seed(0)) < 0.4).float()
X[:, -4:] = torch.eye(4)[torch.arange(60) % 4]

ANY = {
    "ELBO": lambda: ELBO(0.5, Warmup(steps=5)),
    "InfoVAE": lambda: InfoVAE(alpha=0.5, lam=5.0),
    "Robust": lambda: Robust(0.02),
}
SETS_SIGMA = {
    "LearnedGamma": LearnedGamma,
    "ComputedGamma": lambda: ComputedGamma(0.9),
    "OptimalSigma": OptimalSigma,
    "Narrowing": lambda: Narrowing(8.0, highest=5, gates=Gates(3, bounds=(-1, 1), speed=50)),
}
LIKELIHOODS = {
    "Gaussian": Gaussian,
    "learned sigma": lambda: Gaussian(torch.full((D,), 0.5), learn=True),
    "Bernoulli": Bernoulli,
    "LogCosh": lambda: LogCosh(4.0),
    "StudentT": lambda: StudentT(0.5, learn=True),
    "Mixed": lambda: Mixed((Gaussian(), 50), (Bernoulli(), 10), (Categorical(), 4)),
}
NETWORKS = {
    "mlp": lambda: mlp(D, (8,), 3, batch_norm=False),
    "conv": lambda: conv(8, n_latents=3),
}
CASES = {
    f"{objective} {likelihood} {network}": (makes[objective], LIKELIHOODS[likelihood], network)
    for makes, likelihoods in ((ANY, LIKELIHOODS), (SETS_SIGMA, ["Gaussian"]))
    for objective in makes
    for likelihood in likelihoods
    for network in NETWORKS
    # A sigma or a kind for each column is for tables.
    if network == "mlp" or likelihood not in ("learned sigma", "Mixed")
}
RUN = {"steps": 12, "batch_size": 16, "lr": 3e-3, "report_every": 3, "progress": False}

pytestmark = pytest.mark.filterwarnings("ignore:the error never came down")


class Case:
    def __init__(self, name):
        self.objective, self.likelihood, self.network = CASES[name]
        self.x = X.reshape(-1, 1, 8, 8) if self.network == "conv" else X

    def model(self):
        return VAE(*NETWORKS[self.network](), self.likelihood())

    def double(self):
        """In double precision, where Adam does not turn rounding into steps."""
        return self.model().double()

    def fit(self, x=None, seed=0, make=None, **changes):
        torch.manual_seed(seed)
        model, objective = (make or self.model)(), self.objective()
        x = self.x if x is None else x
        history = fit(model, objective, x, seed=seed, **{**RUN, **changes})
        return model, objective, history


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
