import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from distributed import Client, LocalCluster

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "book" / "experiments" / "five_datasets.py"
REHEARSAL = ["--data", "breast cancer", "--budget", "0.0833", "--seeds", "0", "4"]
REHEARSAL += ["--jobs", "1"]


def start(out, *more):
    command = [sys.executable, SCRIPT, "--out", out, *REHEARSAL, *more]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,  # which the terminal of a real sweep interrupts as a whole
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
    assert undisturbed["command"].endswith("--budget 0.0833 --seeds 0 4 --jobs 1")
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
        folder = out.with_suffix(".unfinished") / f"breast cancer narrow {n}"
        state = folder / "100 steps, 0.00125.safetensors"
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


def wait_for_a_checkpoint(process, out):
    while not (found := [*out.with_suffix(".unfinished").glob("*/*.safetensors")]):
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.005)
    return found


def test_a_dask_cluster_that_loses_a_worker_makes_the_same_record(undisturbed, tmp_path):
    out = tmp_path / "five.json"
    local = {"dashboard_address": "127.0.0.1:0", "silence_logs": logging.CRITICAL}
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, **local) as cluster,
        Client(cluster) as client,
    ):
        process = start(out, "--backend", "dask", "--scheduler", cluster.scheduler_address)
        wait_for_a_checkpoint(process, out)
        before = client.run(os.getpid)
        busy = next(address for address, runs in client.processing().items() if runs)
        os.kill(before[busy], signal.SIGKILL)
        _, stderr = process.communicate(timeout=280)
        assert process.returncode == 0, stderr.decode()
        after = client.run(os.getpid)
    assert len(set(before.values()) - set(after.values())) == 1
    record = json.loads(out.read_text("utf-8"))
    assert json.dumps(record["results"]) == json.dumps(undisturbed["results"])  # in its order
    assert not out.with_suffix(".unfinished").exists()


def test_an_interrupt_stops_all_processes_and_they_go_on_to_the_same_record(undisturbed, tmp_path):
    out = tmp_path / "five.json"
    process = start(out, "--jobs", "2")
    wait_for_a_checkpoint(process, out)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Stopped; the same command goes on from here." in stderr
    assert not psutil.wait_procs(workers, timeout=60)[1]
    assert wait_for_a_checkpoint(process, out)
    assert json.dumps(finish(out, "--jobs", "2")["results"]) == json.dumps(undisturbed["results"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "1"], b"holds seeds [0, 4], not [1]; name another --out"),
        (["--budget", "2"], b"holds runs of 100 steps, not 2400; name another --out"),
    ],
)
def test_a_record_of_other_runs_is_not_mixed_with(undisturbed, tmp_path, options, message):
    out = tmp_path / "five.json"
    out.write_text(json.dumps(undisturbed), "utf-8")
    process = start(out, *options)
    assert process.wait(timeout=60) == 2
    assert message in process.stderr.read()
