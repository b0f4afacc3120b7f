"""How close training is to its limit: the bare forward, backward and optimiser step.

Run it from the repository's root on a quiet machine: `.venv/bin/python benchmarks/training.py`.
Each figure is the median over alternations of both sides in this one run, so that a machine whose
speed drifts slows both alike.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch and tqdm are imported
os.environ["TQDM_DISABLE"] = "1"

import torch

import vaelib
from vaelib.networks import mlp
from vaelib.objectives import ELBO

STEPS, ALTERNATIONS, BATCH_SIZE, SEEDS = 2000, 7, 32, 20
X = vaelib.data.wine().x


def make_model() -> vaelib.VAE:
    return vaelib.VAE(*mlp(13))


def bare() -> None:
    """The same modules and optimiser on one fixed batch, and nothing else."""
    model, objective = make_model(), ELBO()
    model.validate_args = False
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    x, eps = X[:BATCH_SIZE].clone(), torch.randn(BATCH_SIZE, 2)
    for _ in range(STEPS):
        adam.zero_grad()
        objective(model, x, eps)["loss"].backward()
        adam.step()


def lone() -> None:
    vaelib.fit(make_model(), ELBO(), X, steps=STEPS, batch_size=BATCH_SIZE)


def seeds() -> None:
    vaelib.fit_seeds(make_model, ELBO(), X, steps=STEPS, batch_size=BATCH_SIZE, seeds=range(SEEDS))


def milliseconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) / STEPS * 1e3


def main() -> None:
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, one thread")
    for run in (bare, lone, seeds):
        run()  # warm-up
    rounds = [[milliseconds(run) for run in (bare, lone, seeds)] for _ in range(ALTERNATIONS)]
    step, fit, stacked = (statistics.median(column) for column in zip(*rounds, strict=True))
    share = statistics.median(b / f for b, f, _ in rounds)
    cost = statistics.median(s / f for _, f, s in rounds)
    print(f"bare step {step:.2f} ms, fit {fit:.2f} ms, fit_seeds of {SEEDS} {stacked:.2f} ms")
    print(f"fit reaches {share:.3f} of the bare step; {SEEDS} seeds cost {cost:.1f} lone runs")


if __name__ == "__main__":
    main()
