import json
import subprocess
import sys
from pathlib import Path

import pytest
import shared
import torch

from vaelib.divergences import gaussian_kl
from vaelib.gates import Gates
from vaelib.objectives import Narrowing

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "book" / "experiments" / "narrowing_ablation.py"
CHAPTER = shared.chapter("narrowing/narrowing")
TAU = CHAPTER["TAUS"][35]


def step(objective, model, met):
    """A training step's terms, and the gradients of the gates and of the weights."""
    g = torch.Generator().manual_seed(1)
    x, eps, u = CHAPTER["sprites"][:32], *(torch.rand(32, 10, generator=g) for _ in range(2))
    objective.begin(model, 10)
    objective.push.fill_(2.0)
    objective.gates.phi.data.copy_(torch.linspace(-0.3, 0.5, 10))
    objective.geco.log_lam.fill_(1.0)
    objective.geco.weight.fill_(1.0)  # an average so far below τ, or above, that it stays there
    objective.geco.total.fill_(TAU * (0.01 if met else 100.0))
    model.zero_grad()
    terms = objective(model, x, eps, u)
    terms["loss"].backward()
    first = next(model.encoder.parameters()).grad
    return terms, objective.gates.phi.grad, first, (x, eps, u)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CHAPTER["sprite_vae"]()


@pytest.mark.parametrize("met", [True, False])
def test_all_clauses_together_are_the_library_s_narrowing(met, model):
    full = CHAPTER["clauses"](TAU, CHAPTER["CLAUSES"])
    library = Narrowing(TAU, highest=256 / (2 * TAU), gates=Gates(10, speed=10.0))
    for name in ("lam", "alpha", "speed", "damping", "limit", "bounds"):
        assert repr(getattr(full.geco, name)) == repr(getattr(library.geco, name))
    ours, theirs = step(full, model, met), step(library, model, met)
    for name in ("loss", "error", "lam", "p"):
        torch.testing.assert_close(ours[0][name], theirs[0][name])
    for i in (1, 2):
        torch.testing.assert_close(ours[i], theirs[i])


@pytest.mark.parametrize("met", [True, False])
def test_without_any_it_is_the_naive_recipe(met, model):
    objective = CHAPTER["clauses"](TAU)
    assert objective.geco.lam == 1 and objective.geco.damping == 0
    terms, gates, _, (x, eps, u) = step(objective, model, met)
    p = objective.gates.probabilities.detach()
    with torch.no_grad():
        mu, logvar = model.encoder(x)
        z = mu + (0.5 * logvar).exp() * eps
        sse, other = (
            (x - model.decoder(z * b.float())).square().sum(1) for b in (u < p, u > 1 - p)
        )
        lam = torch.tensor(1.0).exp()
        expected = gaussian_kl(mu, logvar).sum(1).mean() + lam * (sse.mean() - TAU)
    torch.testing.assert_close(terms["loss"].detach(), expected + 2.0 * 30.0 * p.sum())
    arm = ((lam * (other - sse))[:, None] * (u - 0.5)).mean(0)
    torch.testing.assert_close(gates / objective.gates.speed, arm + 60.0 * p * (1 - p))


def test_each_recipe_has_clauses_that_exist_and_no_two_are_the_same():
    recipes, known = CHAPTER["RECIPES"], CHAPTER["CLAUSES"]
    assert all({*on} <= {*known} for on in recipes.values())
    assert len({*recipes.values()}) == len(recipes) == 2 * len(known)


@pytest.mark.parametrize("clause", CHAPTER["CLAUSES"][:-1])
def test_each_clause_changes_the_objective(clause, model):
    """Where a name were misspelt in the chapter, its row would be another's twin."""
    plain, more = CHAPTER["clauses"](TAU), CHAPTER["clauses"](TAU, (clause,))
    geco = {(each.geco.lam.item(), each.geco.damping, each.geco.limit) for each in (plain, more)}
    first, second = step(plain, model, met=False), step(more, model, met=False)
    same = torch.equal(first[0]["loss"], second[0]["loss"]) and torch.equal(first[1], second[1])
    assert len(geco) == 2 or not same


def test_the_error_is_taken_at_a_drawn_z_and_with_hard_gates(model):
    model.open[3:] = 0
    next(model.decoder.parameters()).data *= 10  # as one that has learned: z makes a difference
    x = CHAPTER["held_out"][:10]
    with torch.no_grad():
        q = model.encode(x)
        means = (x - model.decode(q.mu).mean).square().sum(1).mean().item()
        z = q.mu + (0.5 * q.logvar).exp() * torch.randn(2000, *q.mu.shape)
        drawn = (x - model.decode(z * model.open).mean).square().sum(-1).mean().item()
    tiled = x.repeat(2000, 1)  # one error for each draw of its own
    error = CHAPTER["error_of"](model, tiled)
    assert error == pytest.approx(drawn, rel=0.01)
    assert error > 1.1 * means


def test_a_rehearsal_records_what_the_page_shows(tmp_path):
    out = tmp_path / "record.json"
    command = [sys.executable, SCRIPT, "--out", out, "--budget", "0.01", "--jobs", "1"]
    names = ["naive", "all but masked KL"]
    subprocess.run([*command, "--only", *names], check=True, cwd=ROOT, timeout=280)
    results = json.loads(out.read_text("utf-8"))["results"]
    assert [*results] == names
    for both in results.values():
        assert [*both] == ["35", "20"]
        for tau, runs in both.items():
            assert [*runs] == ["0", "1", "2"]
            for run in runs.values():
                assert run["tau"] == int(tau) / 16 and run["held_out"] > 0
                assert len(run["open over time"]) == 4  # as many steps with phases as without
                assert run["open"] == run["open over time"][-1]
