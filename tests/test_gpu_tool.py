"""`make gpu`: its stages, rehearsed small; when it stops, what it names, and what it writes."""

import argparse
import json
import subprocess
import sys
import time

import bench
import card
import gpu
import pytest
import torch

from vaelib import data


def arguments(out, **changes):
    given = {"out": out, "device": "cpu", "budget": 0.01}
    return argparse.Namespace(**(given | changes))


def main(monkeypatch, out, *more, plan=None):
    if plan is not None:
        monkeypatch.setattr(gpu, "stages", lambda given: plan)
    command = ["gpu.py", "--device", "cpu", "--budget", "0.01", "--out", str(out), *more]
    monkeypatch.setattr(sys, "argv", command)
    code = gpu.main()
    return code, json.loads((out / "gpu.json").read_text())["results"]


def test_every_part_is_a_stage_and_the_longest_comes_late(tmp_path):
    names = [*gpu.stages(arguments(tmp_path))]
    assert {part.__name__ for part in card.PARTS} | {"trials"} < {*names}
    assert names[:2] == ["machine", "graphs"]
    assert names.index("trials") > names.index("sprites τ = 35")


def test_a_rehearsal_fills_the_record(tmp_path, monkeypatch):
    only = ("machine", "seeds", "narrowing", "level", "jax", "sprites τ = 35")
    code, report = main(monkeypatch, tmp_path, "--only", *only)
    assert code == 0
    assert {*report} == {*only}
    assert report["machine"]["results"]["device"] == "CPU"
    assert report["seeds"]["results"]["8"] > 0
    (ratio,) = (each["ratio"] for each in report["narrowing"]["results"].values())
    assert ratio > 1
    # Beside the pictures, the form that the chapters read.
    seeds = json.loads((tmp_path / "sprites-16-35.json").read_text())["results"]
    assert [*seeds] == ["0", "1"] and seeds["1"]["tau"] == 35 / 16
    assert (tmp_path / "sprites-16-35.png").read_bytes().startswith(b"\x89PNG")


def test_a_graph_is_compared_for_every_objective(monkeypatch):
    """Here without a graph, which shows that both runs are the same but for it."""
    import cases

    some = {name: cases.CASES[name] for name in ("ELBO StudentT mlp", "Narrowing Gaussian conv")}
    monkeypatch.setattr(cases, "CASES", some)
    found = card.graphs("cpu", 0.01)
    assert [*found] == [*some]
    assert all(each == {"largest difference": 0, "replays": 0} for each in found.values())


def test_the_clock_leaves_out_the_start():
    """All that comes before the first report, and nothing after."""
    case = bench.table(data.wine().x)

    def slow_to_start(steps):
        time.sleep(1)
        bench.ours(case, "cpu")(steps)

    assert 0 < card.steady(slow_to_start, 200) < 4  # with the pause it would be 5 ms a step


def test_out_of_time_and_failures_are_named_and_the_next_begins(tmp_path, monkeypatch, capsys):
    def fails():
        raise RuntimeError("as meant")

    plan = {
        "slow": (0.2, lambda: time.sleep(60)),
        "bad": (9, fails),
        "good": (9, lambda: {"n": 1}),
    }
    code, report = main(monkeypatch, tmp_path, plan=plan)
    assert code == 1
    assert report["slow"]["outcome"] == "stopped: out of time"
    assert report["bad"]["outcome"] == "FAILED: RuntimeError: as meant"
    assert report["good"] == {"outcome": "done", "results": {"n": 1}, "seconds": 0.0}
    assert "bad: FAILED" in capsys.readouterr().out


def test_it_keeps_its_deadline(tmp_path, monkeypatch):
    plan = {"first": (60, lambda: time.sleep(60)), "last": (60, dict)}
    start = time.monotonic()
    code, report = main(monkeypatch, tmp_path, "--deadline", "6", plan=plan)
    assert code == 1 and time.monotonic() - start < 30
    assert report["first"]["outcome"] == "stopped: out of time"
    assert report["last"]["outcome"] == "not begun: out of time"


def test_an_unknown_stage_is_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        main(monkeypatch, tmp_path, "--only", "sprite")
    assert "no stage is named sprite; there are machine, graphs" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_how_to_rehearse():
    command = [sys.executable, "tools/gpu.py"]
    done = subprocess.run(command, cwd=gpu.ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "make gpu DEVICE=cpu" in done.stdout
