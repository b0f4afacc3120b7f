"""`make gpu`: what it calls, when it stops, how it goes on, and what it draws."""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import gpu
import pytest
import torch

RESULTS = gpu.ROOT / "book" / "results"


def arguments(out, **changes):
    given = {"out": out, "device": "cpu", "budget": 0.01, "rounds": 1, "seeds": ["0"]}
    return argparse.Namespace(**(given | changes))


def test_every_command_is_one_that_its_script_takes(tmp_path):
    commands = gpu.jobs(arguments(tmp_path))
    assert [*commands] == [
        "tests",
        "benchmarks",
        "sprites-64-20",
        "sprites-64-35",
        "five_datasets",
    ]
    for name, command in commands.items():
        script = command[:2] if name != "tests" else command[:3]
        help_text = subprocess.run(
            [*script, "--help"], cwd=gpu.ROOT, capture_output=True, text=True, check=True
        ).stdout
        for option in command[len(script) :]:
            if str(option).startswith("--"):
                assert option in help_text, name


def main(monkeypatch, out, commands, minutes="1"):
    monkeypatch.setattr(gpu, "jobs", lambda given: commands)
    monkeypatch.setattr(
        sys, "argv", ["gpu.py", "--device", "cpu", "--minutes", minutes, "--out", str(out)]
    )
    code = gpu.main()
    return code, json.loads((out / "summary.json").read_text())


def python(code):
    return [sys.executable, "-c", code]


def test_it_stops_in_time_and_goes_on_with_what_is_missing(tmp_path, monkeypatch):
    """A run is told to stop as by Ctrl-C, and has time to keep its state."""
    kept = tmp_path / "kept"
    slow = python(
        "import signal, time, pathlib\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"kept = pathlib.Path({str(kept)!r})\n"
        "try:\n    time.sleep(0 if kept.exists() else 60)\n"
        "except KeyboardInterrupt:\n    kept.touch(); raise"
    )
    log = tmp_path / "out" / "count.log"
    commands = {"count": python("print('once')"), "slow": slow, "last": python("print()")}
    code, report = main(monkeypatch, tmp_path / "out", commands, minutes="0.05")
    assert code == 1
    assert report["count"]["outcome"] == "done"
    assert report["slow"]["outcome"] == "stopped: out of time"
    assert report["last"]["outcome"] == "not begun: out of time"
    assert kept.exists()

    code, report = main(monkeypatch, tmp_path / "out", commands)
    assert code == 0
    assert {each["outcome"] for each in report.values()} == {"done"}
    assert log.read_text() == "once\n"  # what was done is not done again


def test_a_failure_is_named_and_does_not_end_the_rest(tmp_path, monkeypatch, capsys):
    commands = {"bad": python("import sys; sys.exit(3)"), "good": python("")}
    code, report = main(monkeypatch, tmp_path, commands)
    assert code == 1
    assert report["bad"]["outcome"] == "FAILED with exit status 3, see bad.log"
    assert report["good"]["outcome"] == "done"
    assert "bad: FAILED" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["benchmarks", "sprites-64-35", "five_datasets"])
def test_each_record_gets_a_picture(tmp_path, monkeypatch, name):
    shutil.copy(RESULTS / f"{name}.json", tmp_path)
    main(monkeypatch, tmp_path, {name: python("")})
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_how_to_rehearse():
    done = subprocess.run(
        [sys.executable, Path("tools") / "gpu.py"], cwd=gpu.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "make gpu DEVICE=cpu" in done.stdout
