"""All that needs an NVIDIA GPU, by one command: benchmarks, tests, and the book's long runs.

    make gpu
    python tools/gpu.py --out DIR --deadline 500

It needs torch, numpy, scikit-learn, matplotlib and tqdm, no network, and no .venv. The most
valuable comes first. The record, gpu.json, is written after each stage, and so are the runs of
sprites, in the form of book/results. A stage that fails is named there, and the next begins.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "book" / "experiments")]

import card  # noqa: E402
import sprites  # noqa: E402
import sprites_trials  # noqa: E402

from vaelib import records  # noqa: E402

Stage = Callable[[], Any]


class OutOfTime(Exception):
    """A stage's time, or the command's, is over."""


def stages(arguments: argparse.Namespace) -> dict[str, tuple[int, Stage]]:
    """Name → the seconds that it may take, and what it does; most valuable first."""
    device, budget, out = arguments.device, arguments.budget, arguments.out
    size = 64 if budget == 1 else 16
    drawn: dict[int, Any] = {}  # images, once for all runs of a size

    def images(side: int) -> Any:
        if side not in drawn:
            drawn.clear()
            drawn[side] = sprites.images(side, device)
        return drawn[side]

    def headline(tau: int) -> Any:
        seeds = [*range(10)] if budget == 1 else [0, 1]
        runs = sprites.run(
            sprites.RECIPE, [tau] * len(seeds), size, seeds, device, budget, x=images(size)
        )
        results = {str(seed): run for seed, run in zip(seeds, runs, strict=True)}
        records.write(out / f"sprites-{size}-{tau}.json", results, device)
        return {s: {k: r[k] for k in sprites.KEPT} for s, r in results.items()}

    def trials() -> Any:
        found: dict[str, Any] = {}
        side = sprites_trials.SIZE if budget == 1 else 16
        for name in [*sprites_trials.TRIALS][: None if budget == 1 else 2]:
            found[name] = sprites_trials.trial(name, device, budget, images(side), side)
            records.write(out / "sprites-trials.json", found, device)
        return f"{len(found)} trials, see sprites-trials.json"

    part = {each.__name__: (lambda each=each: each(device, budget)) for each in card.PARTS}
    return {
        "machine": (20, part["machine"]),
        "graphs": (60, part["graphs"]),
        "sprites τ = 20": (100, lambda: headline(20)),
        "sprites τ = 35": (100, lambda: headline(35)),
        "step": (90, part["step"]),
        "seeds": (40, part["seeds"]),
        "narrowing": (30, part["narrowing"]),
        "level": (30, part["level"]),
        "tests": (60, part["tests"]),
        "trials": (3600, trials),
        "jax": (60, part["jax"]),
        "compiled": (60, part["compiled"]),
    }


def timed(stage: Stage, seconds: float) -> dict[str, Any]:
    """Runs a stage for so long at most; says how it went."""

    def over(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    start = time.monotonic()
    try:
        found: dict[str, Any] = {"outcome": "done", "results": stage()}
    except OutOfTime:
        found = {"outcome": "stopped: out of time"}
    except Exception as error:
        traceback.print_exc()
        found = {"outcome": f"FAILED: {type(error).__name__}: {error}"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return found | {"seconds": round(time.monotonic() - start, 1)}


def picture(path: Path) -> None:
    """Draws a record of sprites beside it, as PNG: errors and open gates of each seed."""
    results = json.loads(path.read_text("utf-8"))["results"]
    figure, pair = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for seed, each in results.items():
        pair[0].plot(each["steps"], each["error"], label=f"seed {seed}", linewidth=0.8)
        pair[1].plot(each["steps"], [sum(p > 0.5 for p in row) for row in each["p"]])
        pair[0].axhline(each["tau"], color="black", linewidth=0.8)
    pair[0].set(xlabel="step", ylabel="squared error", yscale="log")
    pair[1].set(xlabel="step", ylabel="open gates")
    figure.savefig(path.with_suffix(".png"), dpi=80)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--deadline", type=float, default=3600, help="seconds, after which to stop")
    parser.add_argument("--out", type=Path, help="folder for all results: gpu, or gpu-rehearsal")
    parser.add_argument("--only", nargs="+", help="some of the stages")
    parser.add_argument("--device", default="cuda", help="cpu to rehearse")
    parser.add_argument("--budget", type=float, default=1.0, help="share of the steps, to rehearse")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no NVIDIA GPU; to rehearse without one:")
        print("make gpu DEVICE=cpu BUDGET=0.01")
        return 1

    end = time.monotonic() + arguments.deadline
    default = Path("gpu" if arguments.device == "cuda" else "gpu-rehearsal")
    arguments.out = (arguments.out or default).resolve()
    report: dict[str, Any] = {}
    plan = stages(arguments)
    if unknown := {*(arguments.only or ())} - {*plan}:
        parser.error(f"no stage is named {', '.join(unknown)}; there are {', '.join(plan)}")
    for name, (seconds, stage) in plan.items():
        if arguments.only and name not in arguments.only:
            continue
        left = end - time.monotonic()
        report[name] = (
            timed(stage, min(seconds, left))
            if left > 5
            else {"outcome": "not begun: out of time", "seconds": 0}
        )
        records.write(arguments.out / "gpu.json", report, arguments.device)
        print(f"{name}: {report[name]['outcome']}, {report[name]['seconds']} s", flush=True)
    for path in arguments.out.glob("sprites-[0-9]*.json"):
        picture(path)
    return 0 if all(each["outcome"] == "done" for each in report.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
