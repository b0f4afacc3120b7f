"""All that needs an NVIDIA GPU, by one command: tests, benchmarks, and the book's long runs.

    make gpu MINUTES=60

It needs torch, numpy, scikit-learn, matplotlib and tqdm, no network, and no .venv. What it finds
goes to one folder, as JSON and PNG. Called again, it goes on with what time did not allow for.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

ROOT = Path(__file__).resolve().parent.parent


def jobs(arguments: argparse.Namespace) -> dict[str, list[str | Path]]:
    """Name → command: first what is short, then the runs that no CPU has done, longest last."""
    out, device, budget = arguments.out, arguments.device, f"{arguments.budget:g}"
    tests = [sys.executable, "tests/test_gpu.py", "-v"]
    benchmarks = [sys.executable, "benchmarks/bench.py", "--device", device]
    benchmarks += ["--out", out / "benchmarks.json", "--rounds", str(arguments.rounds)]
    benchmarks += ["--budget", budget]
    commands: dict[str, list[str | Path]] = {"tests": tests, "benchmarks": benchmarks}

    def experiment(script: str, name: str, *more: str) -> None:
        path = out / f"{name}.json"
        command = [sys.executable, f"book/experiments/{script}.py", "--device", device]
        commands[name] = [*command, "--budget", budget, "--out", path, *more]

    for tau in ("20", "35"):
        experiment("sprites", f"sprites-64-{tau}", "--tau", tau, "--seeds", *arguments.seeds)
    experiment("five_datasets", "five_datasets", "--seeds", *arguments.seeds)
    return commands


def run(command: list[str | Path], log: Path, seconds: float) -> str:
    """Runs a command for so long at most; says how it went. Its words go to the log."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
    with log.open("a") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # a run keeps its state
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            return "stopped: out of time"
        except KeyboardInterrupt:
            process.wait(timeout=60)
            raise
    return "done" if code == 0 else f"FAILED with exit status {code}, see {log.name}"


def picture(path: Path) -> None:
    """Draws what a record holds beside it, as PNG."""
    results = json.loads(path.read_text("utf-8"))["results"]
    if "goals" in results:
        rows = results["goals"]
        figure, axes = plt.subplots(figsize=(9, 0.4 * len(rows) + 1.2), layout="constrained")
        for place, row in enumerate(rows):
            axes.plot(row["value"], place, "o", color="black")
            axes.annotate(f"  {row['value']:.3g}", (row["value"], place), va="center")
        axes.set_yticks(range(len(rows)), [f"{row['what']} ({row['goal']})" for row in rows])
        axes.set(xscale="log", xlabel="ratio")
        axes.margins(x=0.2)
        axes.invert_yaxis()
    elif path.stem.startswith("sprites"):
        figure, pair = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
        for seed, each in results.items():
            pair[0].plot(each["steps"], each["error"], label=f"seed {seed}")
            pair[1].plot(each["steps"], [sum(p > 0.5 for p in row) for row in each["p"]])
            pair[0].axhline(each["tau"], color="black", linewidth=0.8)
        pair[0].set(xlabel="step", ylabel="squared error", yscale="log")
        pair[0].legend()
        pair[1].set(xlabel="step", ylabel="open gates")
    else:
        figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
        for i, (name, methods) in enumerate(results.items()):
            rows = methods.get("narrow", {})
            opened = [row["open"] for each in rows.values() for row in each]
            # Side by side, since data sets may agree.
            places = [int(n) + 0.4 * i for n, each in rows.items() for _ in each]
            axes.plot(places, opened, "o", label=name)
        axes.set(xlabel="latents that set τ: 5, 10, 30", ylabel="open gates")
        axes.legend()
    figure.savefig(path.with_suffix(".png"), dpi=120)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=60, help="after which to stop")
    parser.add_argument("--out", type=Path, help="folder for all results: gpu, or gpu-rehearsal")
    parser.add_argument("--device", default="cuda", help="cpu to rehearse")
    parser.add_argument("--budget", type=float, default=1.0, help="share of the steps, to rehearse")
    parser.add_argument("--rounds", type=int, default=7, help="of the benchmarks")
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2", "3", "4"])
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no NVIDIA GPU; to rehearse without one:")
        print("make gpu DEVICE=cpu BUDGET=0.01 MINUTES=10")
        return 1
    if not importlib.util.find_spec("safetensors"):
        print("without safetensors no run keeps a state: one that is stopped starts anew")

    end = time.monotonic() + 60 * arguments.minutes
    default = Path("gpu" if arguments.device == "cuda" else "gpu-rehearsal")
    arguments.out = (arguments.out or default).resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    summary = arguments.out / "summary.json"
    report = json.loads(summary.read_text("utf-8")) if summary.exists() else {}
    for name, command in jobs(arguments).items():
        before = report.get(name, {})
        if before.get("command") != [*map(str, command)]:
            before = {}
        if before.get("outcome") == "done":
            continue
        start = time.monotonic()
        outcome = "not begun: out of time"
        if start < end:
            outcome = run(command, arguments.out / f"{name}.log", end - start)
        seconds = before.get("seconds", 0) + round(time.monotonic() - start)
        report[name] = {"outcome": outcome, "seconds": seconds, "command": [*map(str, command)]}
        summary.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        if (record := arguments.out / f"{name}.json").exists():
            picture(record)
        print(f"{name}: {outcome}, {seconds} s", flush=True)
    return 0 if all(each["outcome"] == "done" for each in report.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
