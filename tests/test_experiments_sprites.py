import base64
import copy
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import sprites
import sprites_trials
import torch

from vaelib import Geco

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "book" / "experiments" / "sprites.py"
# A sixteenth of the pixels; 100 steps in each phase but the fifth, which has 200.
REHEARSAL = ["--tau", "35", "--size", "16", "--budget", "0.05", "--seeds", "3"]
N_STEPS = 100 + 100 + 100 + 100 + 200 + 100


def start(folder, *more):
    command = [sys.executable, SCRIPT, "--out", folder / "record.json", *REHEARSAL]
    command += more
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        # Tests that run in the background ignore interrupts, and so would the script.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(folder, *more):
    process = start(folder, *more)
    stdout, stderr = process.communicate(timeout=280)
    assert process.returncode == 0, stderr.decode()
    assert [each.name for each in folder.iterdir()] == ["record.json"]  # nothing is left behind
    record = json.loads((folder / "record.json").read_text("utf-8"))
    return stdout.decode(), record


def without_time(record):
    return {
        seed: {key: value for key, value in run.items() if key != "seconds"}
        for seed, run in record["results"].items()
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("record"))


def test_a_rehearsal_records_what_the_chapter_shows(undisturbed):
    stdout, record = undisturbed
    assert "--size 16" in record["command"]
    (run,) = record["results"].values()
    assert run["tau"] == 35 / 16
    assert run["steps"] == [*range(100, N_STEPS + 1, 100)]
    assert len(run["error"]) == len(run["lam"]) == len(run["p"]) == N_STEPS // 100
    assert run["error"][0] > run["error"][-1] > 0
    assert abs(run["held_out"] / run["error"][-1] - 1) < 0.2
    assert f"sprites-16-35, seed 3: {run['open']} open" in stdout
    assert len(run["kl"]) == len(run["mu"][0]) == run["open"] and len(run["mu"]) == 1000
    for name in ("reconstructions", "traversals"):
        assert base64.b64decode(run[name]).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("blow", "phase"),
    [(signal.SIGKILL, 0), (signal.SIGKILL, 4), (signal.SIGINT, 4)],
    ids=["killed", "killed in a later phase", "interrupted"],
)
def test_a_run_that_is_stopped_goes_on_to_the_same_record(undisturbed, tmp_path, blow, phase):
    process = start(tmp_path)
    name = f"phase {phase}, {200 if phase == 4 else 100} steps.safetensors"
    state = tmp_path / "record.unfinished" / "3" / name
    while not state.exists():
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.002)
    process.send_signal(blow)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert state.exists() and not (tmp_path / "record.json").exists()
    assert without_time(finish(tmp_path)[1]) == without_time(undisturbed[1])


def test_what_is_recorded_is_not_run_again(undisturbed, tmp_path):
    record = copy.deepcopy(undisturbed[1])  # which other tests look at too
    record["results"]["3"]["held_out"] = 12345.0
    (tmp_path / "record.json").write_text(json.dumps(record), "utf-8")
    stdout, again = finish(tmp_path)
    assert again["results"]["3"]["held_out"] == 12345.0
    assert "12345.00" in stdout


def test_all_seeds_together_are_the_lone_runs(undisturbed, tmp_path):
    """As on a card; up to rounding, which grows as a run goes on."""
    _, together = finish(tmp_path, "--seeds", "3", "4", "--together")
    assert [*together["results"]] == ["3", "4"]
    lone, same = undisturbed[1]["results"]["3"], together["results"]["3"]
    assert same["error"][0] == pytest.approx(lone["error"][0], rel=1e-3)
    assert same["held_out"] == pytest.approx(lone["held_out"], rel=0.05)


def test_the_error_is_taken_at_a_drawn_z_and_with_hard_gates():
    """At the mean it would be smaller, and with all gates open another."""
    torch.manual_seed(0)
    model = sprites.network(16, sprites.RECIPE._replace(bias=0.0))
    model.open[3:] = 0
    x = sprites.images(16, "cpu", n=10)[1]
    with torch.no_grad():
        model.decoder.output[0].weight.mul_(20)  # so that z counts
        q = model.encode(x)
        means = (x - model.decode(q.mu).mean).square().sum(1).mean().item()
        z = q.mu + (0.5 * q.logvar).exp() * torch.randn(20, *q.mu.shape)
        drawn = (x - model.decode(z * model.open).mean).square().sum(-1).mean().item()
    error = sprites.error_of(model, x)
    assert error == pytest.approx(drawn, rel=0.01)
    assert abs(error - means) > 0.02 * means


def test_each_trial_changes_one_part():
    for name, recipe in sprites_trials.TRIALS.items():
        changed = [a != b for a, b in zip(recipe, sprites.RECIPE, strict=True)]
        assert sum(changed) == (name != "recipe")
    assert len({*sprites_trials.TRIALS.values()}) == len(sprites_trials.TRIALS)


def test_a_trial_keeps_its_numbers_and_no_pictures(monkeypatch):
    monkeypatch.setattr(sprites_trials, "SEEDS", (0, 2))
    found = sprites_trials.trial("width 128", "cpu", 0.01, sprites.images(16, "cpu", n=500), 16)
    assert [*found] == ["20", "35"] and [*found["35"]] == ["0", "2"]
    assert {*found["35"]["2"]} == {*sprites.KEPT, "open over time"}


def test_the_moving_average_is_geco_s():
    """Fed with one error for each hundred steps, both tell the same."""
    errors = np.array([3.0, 1.0, 2.0, 5.0])
    geco = Geco(1.0)
    found = []
    for error in errors:
        for _ in range(sprites.EVERY):
            geco(torch.tensor([error]))
        found.append(geco.error.item())
    np.testing.assert_allclose(sprites.smoothed(errors), found, rtol=1e-4)


def test_a_record_of_other_steps_is_not_mixed_with(undisturbed, tmp_path):
    (tmp_path / "record.json").write_text(json.dumps(undisturbed[1]), "utf-8")
    process = start(tmp_path, "--budget", "0.5")
    assert process.wait(timeout=60) == 2
    assert b"holds a run of 700 steps, not 5200; name another --out" in process.stderr.read()
