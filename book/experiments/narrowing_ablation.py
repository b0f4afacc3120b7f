"""Narrowing with and without each of its clauses, on sprites of 16 × 16.

    python book/experiments/narrowing_ablation.py
    python book/experiments/narrowing_ablation.py --only naive "without DisARM"

By the cells tagged `experiment` of narrowing/narrowing. Three seeds for each of the two
targets, all in one stack. Started again, it goes on with what the record lacks.
"""

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import shared

SEEDS = (0, 1, 2)
EVERY = 50  # steps between reports
Phases = list[tuple[int, float, float]]  # steps, learning rate, push


def phases_of(phases: Phases, all_of_them: bool, budget: float) -> Phases:
    """With whole reports; or one phase of as many steps, at the first one's rate."""
    scaled = [
        (max(EVERY, round(n * budget / EVERY) * EVERY), lr, push)
        for n, lr, push in phases
    ]
    if all_of_them:
        return scaled
    return [(sum(n for n, _, _ in scaled), *scaled[0][1:])]


def run(chapter: dict[str, Any], name: str, budget: float) -> dict[str, Any]:
    """Both targets by one recipe: what the record keeps of each seed."""
    warnings.filterwarnings("ignore", category=UserWarning, module="vaelib")
    start = time.process_time()
    on = chapter["RECIPES"][name]
    taus = [tau for tau in chapter["TAUS"] for _ in SEEDS]
    asked = [chapter["clauses"](chapter["TAUS"][tau], on) for tau in taus]
    phases = phases_of(chapter["PHASES"], "phases" in on, budget)
    seeds = [*SEEDS] * len(chapter["TAUS"])
    models, history = chapter["train"](asked, chapter["sprites"], seeds, phases)
    seconds = round((time.process_time() - start) / len(seeds), 1)  # of the CPU
    found: dict[str, Any] = {str(tau): {} for tau in chapter["TAUS"]}
    for i, (tau, seed, model) in enumerate(zip(taus, seeds, models, strict=True)):
        last = history["p"][i, -1].tolist()
        found[str(tau)][str(seed)] = {
            "open": sum(p > 0.5 for p in last),
            "undecided": sum(0.1 < p < 0.9 for p in last),
            "held_out": chapter["error_of"](model, chapter["held_out"]),
            "tau": chapter["TAUS"][tau],
            "lam": float(history["lam"][i, -1]),
            "seconds": seconds,
            "open over time": (history["p"][i] > 0.5).sum(1).tolist(),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    chapter = shared.chapter("narrowing/narrowing")
    recipes = chapter["RECIPES"]
    parser.add_argument("--only", nargs="+", choices=list(recipes), help="some of them")
    parser.add_argument(
        "--out", type=Path, default=Path("book/results/narrowing-ablation.json")
    )
    arguments = shared.parse(parser)
    tasks = {
        (name,): (run, chapter, name, arguments.budget)
        for name in arguments.only or recipes
    }
    shared.sweep(arguments, [(name,) for name in recipes], tasks)


if __name__ == "__main__":
    main()
