"""Sprites, narrowed from ten latents under a target for the error, or two.

    python book/experiments/sprites.py --tau 20 --seeds 0 1 2 3 4
    python book/experiments/sprites.py --tau 20 --seeds 0 1 2 3 4 --device cuda
    python book/experiments/sprites.py --tau 20 --backend dask --scheduler tcp://node1:8786

A run is written as soon as it is done. Stopped or killed, the same command goes on from
the last report; what it needs for that lies in a folder beside the record until then.
At 64 × 64 each process holds more than a gigabyte of images.
"""

import argparse
import base64
import io
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import shared
import torch
from torch import Tensor

from vaelib import VAE, data, fit
from vaelib.gates import Gates
from vaelib.networks import mlp
from vaelib.objectives import Narrowing

N_LATENTS, N_IMAGES, N_HELD_OUT = 10, 60_000, 5_000
EVERY = 100  # steps between reports: GECO's average forgets about as fast


class Recipe(NamedTuple):
    """Three layers, the gates' speed, and (steps, learning rate) of each phase.

    In the first phase a logit moves by 0.01 or 0.02 a step, from open to shut in 1000
    or 500: slowly enough for λ to follow. At τ = 35, 0.02 took the error to 1.15 τ.
    """

    width: int
    speed: float
    phases: tuple[tuple[int, float], ...]


RECIPES = {
    35: Recipe(256, 5.0, ((6000, 2e-3), (2000, 4e-4))),
    20: Recipe(512, 20.0, ((16000, 1e-3), (6000, 2e-4))),
}


def steps_of(recipe: Recipe, budget: float) -> list[int]:
    """Of each phase: whole reports."""
    return [
        max(EVERY, round(steps * budget / EVERY) * EVERY) for steps, _ in recipe.phases
    ]


def objective_for(tau: float, n_pixels: int, recipe: Recipe) -> Narrowing:
    highest = n_pixels / (2 * tau)
    return Narrowing(
        tau, push=2.0, highest=highest, gates=Gates(N_LATENTS, speed=recipe.speed)
    )


@torch.no_grad()
def error_of(model: VAE, x: Tensor, seed: int = 0) -> float:
    """Squared error summed over an image, at a sampled z and with hard gates."""
    generator = torch.Generator(x.device).manual_seed(seed)
    total = 0.0
    for batch in x.split(1000):
        p = model(batch, model.noise(len(batch), generator)).p
        total += (batch - p.mean).square().sum().item()
    return total / len(x)


def png(images: Tensor) -> str:
    """Rows of images (R, C, side, side) as one PNG in base64."""
    sheet = images.clamp(0, 1).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    file = io.BytesIO()
    plt.imsave(file, sheet.cpu().numpy(), cmap="gray", vmin=0, vmax=1, format="png")
    return base64.b64encode(file.getvalue()).decode()


@torch.no_grad()
def pictures(model: VAE, x: Tensor, side: int) -> dict[str, Any]:
    """What the chapter shows of a model with its closed latents cut out.

    Of held-out images: ten reconstructions at μ; the first with each latent, a row
    each, moved from -2 to 2; and μ of a thousand, to hold against the true factors.
    """
    model = model.narrowed()
    mu = model.encode(x[:1000]).mu
    kl = model(x[:1000]).kl.mean(0)
    moved = mu[:1].repeat(model.n_latents, 9, 1)
    for j in range(model.n_latents):
        moved[j, :, j] = torch.linspace(-2, 2, 9)
    shape = (-1, side, side)
    return {
        "reconstructions": png(model.decode(mu[:10]).mean.view(1, *shape)),
        "traversals": png(
            model.decode(moved.flatten(0, 1)).mean.view(len(moved), *shape)
        ),
        "mu": [[round(value, 3) for value in row] for row in mu.tolist()],
        "kl": kl.tolist(),
    }


def run(
    arguments: argparse.Namespace,
    naive: Callable[[float], Narrowing] | None,
    seed: int,
    checkpoints: Path | None,
) -> dict[str, Any]:
    """Trains one model and returns its record."""
    warnings.filterwarnings("ignore", category=UserWarning, module="vaelib")
    side, recipe = arguments.size, RECIPES[arguments.tau]
    tau = arguments.tau * (side / 64) ** 2
    x = data.sprites(N_IMAGES + N_HELD_OUT, size=side, seed=seed).x.flatten(1)
    x = x.float().to(arguments.device)
    held_out, x = x[:N_HELD_OUT], x[N_HELD_OUT:]
    torch.manual_seed(seed)
    hidden = (recipe.width,) * 3
    model = VAE(
        *mlp(
            side**2,
            hidden=hidden,
            n_latents=N_LATENTS,
            activation="silu",
            batch_norm=False,
        )
    ).to(arguments.device)
    objective = naive(tau) if naive else objective_for(tau, side**2, recipe)
    parts, start = [], time.perf_counter()
    lengths = steps_of(recipe, arguments.budget)
    for i, (steps, (_, lr)) in enumerate(zip(lengths, recipe.phases, strict=True)):
        parts.append(
            fit(
                model,
                objective,
                x,
                steps=steps,
                batch_size=128,
                lr=lr,
                seed=seed,
                report_every=EVERY,
                checkpoint=checkpoints
                and checkpoints / f"phase {i}, {steps} steps.safetensors",
            )
        )
        if parts[-1].interrupted:
            raise KeyboardInterrupt
    # Of this process: less where it took up another's run.
    seconds = round(time.perf_counter() - start)
    p = [row for part in parts for row in part["p"].tolist()]
    error = [value for part in parts for value in part["error"].tolist()]
    closing = next((i for i, row in enumerate(p) if min(row) < 0.5), None)
    record = {
        "open": int(model.open.sum()),
        "undecided": sum(0.1 < value < 0.9 for value in p[-1]),
        "held_out": error_of(model, held_out),
        "tau": tau,
        "worst": None if closing is None else max(error[closing:]) / tau,
        "seconds": seconds,
        "steps": [EVERY * (i + 1) for i in range(len(p))],
        "error": [round(value, 3) for value in error],
        "lam": [round(value, 3) for part in parts for value in part["lam"].tolist()],
        "p": [[round(value, 3) for value in row] for row in p],
    }
    if record["open"]:
        record |= pictures(model, held_out, side)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--tau", type=int, choices=list(RECIPES), required=True, help="at 64 × 64"
    )
    parser.add_argument("--size", type=int, default=64, help="τ goes with its square")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--naive", action="store_true", help="the chapter's, which it shows to fail"
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument(
        "--out", type=Path, help="book/results/sprites-<size>-<tau>.json"
    )
    arguments = shared.parse(parser)
    name = (
        f"sprites-{arguments.size}-{arguments.tau}{'-naive' if arguments.naive else ''}"
    )
    arguments.out = arguments.out or Path("book/results") / f"{name}.json"
    chapter = shared.chapter("narrowing/narrowing") if arguments.naive else {}

    recorded = shared.done(arguments.out, depth=1)
    steps = sum(steps_of(RECIPES[arguments.tau], arguments.budget))
    for (seed,), record in recorded.items():
        if int(seed) in arguments.seeds and record["steps"][-1] != steps:
            parser.error(
                f"{arguments.out} holds a run of {record['steps'][-1]} steps, not "
                f"{steps}; name another --out"
            )

    tasks = {}
    for seed in arguments.seeds:
        key = (str(seed),)
        checkpoints = shared.unfinished(arguments.out, key)
        tasks[key] = (run, arguments, chapter.get("naive"), seed, checkpoints)
    plan = sorted({*recorded, *tasks}, key=lambda key: int(key[0]))
    results = shared.sweep(arguments, plan, tasks)
    for key in tasks:
        record = results[key]
        print(
            f"{name}, seed {key[0]}: {record['open']} open,",
            f"{record['undecided']} undecided,",
            f"held-out error {record['held_out']:.2f} for tau = {record['tau']:g}",
        )


if __name__ == "__main__":
    main()
