import base64
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "book" / "experiments" / "sprites.py"
# A sixteenth of the pixels; 600 steps in the first phase, 200 in the second.
REHEARSAL = ["--tau", "35", "--size", "16", "--budget", "0.1", "--seeds", "3"]


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
    assert run["steps"] == [*range(100, 900, 100)]
    assert len(run["error"]) == len(run["lam"]) == len(run["p"]) == 8
    assert run["error"][0] > run["error"][-1] > 0
    assert abs(run["held_out"] / run["error"][-1] - 1) < 0.2
    assert f"sprites-16-35, seed 3: {run['open']} open" in stdout
    assert len(run["kl"]) == len(run["mu"][0]) == run["open"] and len(run["mu"]) == 1000
    for name in ("reconstructions", "traversals"):
        assert base64.b64decode(run[name]).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("blow", "phase"),
    [(signal.SIGKILL, 0), (signal.SIGKILL, 1), (signal.SIGINT, 0)],
    ids=["killed", "killed in the second phase", "interrupted"],
)
def test_a_run_that_is_stopped_goes_on_to_the_same_record(undisturbed, tmp_path, blow, phase):
    process = start(tmp_path)
    name = ("phase 0, 600 steps", "phase 1, 200 steps")[phase]
    state = tmp_path / "record.unfinished" / "3" / f"{name}.safetensors"
    while not state.exists():
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.002)
    process.send_signal(blow)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert state.exists() and not (tmp_path / "record.json").exists()
    assert without_time(finish(tmp_path)[1]) == without_time(undisturbed[1])


def test_what_is_recorded_is_not_run_again(undisturbed, tmp_path):
    _, record = undisturbed
    record["results"]["3"]["held_out"] = 12345.0
    (tmp_path / "record.json").write_text(json.dumps(record), "utf-8")
    stdout, again = finish(tmp_path)
    assert again["results"]["3"]["held_out"] == 12345.0
    assert "12345.00" in stdout


def test_the_naive_recipe_is_the_chapter_s(tmp_path):
    """Its push never rests, so that gates close though the error is still far from τ."""
    _, record = finish(tmp_path, "--naive")
    (run,) = record["results"].values()
    assert run["open"] < 10
    assert run["worst"] > 1.2


def test_a_record_of_other_steps_is_not_mixed_with(undisturbed, tmp_path):
    (tmp_path / "record.json").write_text(json.dumps(undisturbed[1]), "utf-8")
    process = start(tmp_path, "--budget", "0.5")
    assert process.wait(timeout=60) == 2
    assert b"holds a run of 800 steps, not 4000; name another --out" in process.stderr.read()
