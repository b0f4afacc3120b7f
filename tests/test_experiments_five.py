import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "book" / "experiments" / "five_datasets.py"
REHEARSAL = ["--data", "breast cancer", "--steps", "100", "--seeds", "0", "4"]


def start(out, *more):
    command = [sys.executable, SCRIPT, "--out", out, *REHEARSAL, *more]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Where the tests themselves run in the background, a shell makes children ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(out, *more):
    process = start(out, *more)
    _, stderr = process.communicate(timeout=280)
    assert process.returncode == 0, stderr.decode()
    assert not out.with_suffix(".unfinished").exists()
    return json.loads(out.read_text("utf-8"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("record") / "five.json")


def test_a_rehearsal_holds_every_width_method_and_seed(undisturbed):
    assert undisturbed["command"].endswith("--steps 100 --seeds 0 4")
    results = undisturbed["results"]["breast cancer"]
    assert [*results["plain"]] == ["2", "3", "4", "5", "6", "8", "10"]
    assert [*results["narrow"]] == [*results["held"]] == ["5", "10"]
    for method, steps in {"plain": 100, "narrow": 200, "held": 100}.items():
        for n, rows in results[method].items():
            assert [(row["seed"], row["steps"]) for row in rows] == [(0, steps), (4, steps)]
            most = int(n) if method == "plain" else 2 * int(n)
            for row in rows:
                assert 0 <= row["active"] <= row["open"] <= most
                assert 0 <= row["undecided"] <= most
                assert 0 < row["error"] < 1.5 * 30
                assert row["held_out"] != row["error"]


def test_a_run_that_is_stopped_twice_goes_on_to_the_same_results(undisturbed, tmp_path):
    """Each time in the second half of a narrowing, which needs the states of both halves."""
    out = tmp_path / "five.json"
    for blow, n in ((signal.SIGKILL, "5"), (signal.SIGINT, "10")):
        process = start(out)
        state = out.with_suffix(".unfinished") / f"breast cancer narrow {n}, 0.00125.safetensors"
        while not state.exists():
            assert process.poll() is None, process.communicate()[1].decode()
            time.sleep(0.005)
        process.send_signal(blow)
        process.communicate(timeout=60)
        assert process.returncode != 0
        assert state.exists()
        rows = json.loads(out.read_text("utf-8"))["results"]["breast cancer"]
        assert n not in rows.get("narrow", {})
    assert finish(out)["results"] == undisturbed["results"]


def test_a_record_of_other_seeds_is_not_mixed_with(undisturbed, tmp_path):
    out = tmp_path / "five.json"
    out.write_text(json.dumps(undisturbed), "utf-8")
    process = start(out, "--seeds", "1")
    assert process.wait(timeout=60) == 2
    assert b"holds seeds [0, 4], not [1]; name another --out" in process.stderr.read()
