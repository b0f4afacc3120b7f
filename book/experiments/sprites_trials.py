"""What each part of the recipe for sprites does: one changed at a time, at 32 × 32.

    python book/experiments/sprites_trials.py --device cuda
    python book/experiments/sprites_trials.py --only "push 1" "depth 2"

Three seeds for each of the two targets, all in one stack.
"""

import argparse
from pathlib import Path
from typing import Any

import shared
from sprites import KEPT, RECIPE, Recipe, run

from vaelib.gates import arm_weight

SIZE, SEEDS = 32, (0, 1, 2)


def pushed(*pushes: float) -> Recipe:
    """The recipe with other pushes."""
    pairs = zip(RECIPE.phases, pushes, strict=True)
    return RECIPE._replace(phases=tuple(p._replace(push=push) for p, push in pairs))


def squeezed(steps: int) -> Recipe:
    """The recipe with another length of its squeeze, the phase before the last."""
    *before, squeeze, settle = RECIPE.phases
    return RECIPE._replace(phases=(*before, squeeze._replace(steps=steps), settle))


N = len(RECIPE.phases)
PUSHES = [phase.push for phase in RECIPE.phases]
TRIALS = {
    "recipe": RECIPE,
    "default initialisation": RECIPE._replace(he=False),
    "no sigmoid": RECIPE._replace(sigmoid=False),
    "bias 0": RECIPE._replace(bias=0.0),
    "no settling": pushed(*PUSHES[:-1], PUSHES[-2]),
    "no squeeze": pushed(*(min(push, 2) for push in PUSHES)),
    "push 1": pushed(*[1] * N),
    "squeezed at once": pushed(*[4] * (N - 1), PUSHES[-1]),
    "width 128": RECIPE._replace(width=128),
    "width 512": RECIPE._replace(width=512),
    "depth 2": RECIPE._replace(depth=2),
    "64 latents": RECIPE._replace(n_latents=64),
    "ARM": RECIPE._replace(weight=arm_weight),
    "speed 5": RECIPE._replace(speed=5.0),
    "speed 20": RECIPE._replace(speed=20.0),
    "ten times the squeeze": squeezed(10 * RECIPE.phases[-2].steps),
}


def trial(
    name: str, device: str, budget: float, x: Any = None, size: int = SIZE
) -> dict[str, Any]:
    """Both targets with one part of the recipe changed: what the record keeps of it."""
    seeds = SEEDS[:2] if name.startswith("ten times") else SEEDS
    taus = [tau for tau in (20, 35) for _ in seeds]
    runs = run(TRIALS[name], taus, size, [*seeds, *seeds], device, budget, x=x)
    results: dict[str, Any] = {"20": {}, "35": {}}
    for tau, seed, each in zip(taus, [*seeds, *seeds], runs, strict=True):
        kept = {k: each[k] for k in KEPT} | {"open over time": opened(each)}
        results[str(tau)][str(seed)] = kept
    return results


def opened(record: dict[str, Any], points: int = 40) -> list[int]:
    """Open gates at so many equal times of a run."""
    counts = [sum(value > 0.5 for value in row) for row in record["p"]]
    return [counts[(len(counts) - 1) * i // (points - 1)] for i in range(points)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(TRIALS), help="some of them")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument(
        "--out", type=Path, default=Path("book/results/sprites-trials.json")
    )
    arguments = shared.parse(parser)
    plan = [(name,) for name in TRIALS]
    how = (arguments.device, arguments.budget)
    tasks = {
        key: (trial, *key, *how) for key in plan if key[0] in (arguments.only or TRIALS)
    }
    shared.sweep(arguments, plan, tasks)


if __name__ == "__main__":
    main()
