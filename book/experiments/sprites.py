"""Sprites, narrowed from ten latents: squeezed, then left to settle.

    python book/experiments/sprites.py --tau 20
    python book/experiments/sprites.py --tau 20 --device cuda --together
    python book/experiments/sprites.py --tau 20 --backend dask --scheduler tcp://node1:8786

A run is written as soon as it is done. Stopped or killed, the same command goes on from
the last report; what it needs for that lies in a folder beside the record until then.
A graphics card trains all seeds together in one stack, for little more than one costs.
"""

import argparse
import base64
import io
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import shared
import torch
from torch import Tensor, nn

from vaelib import VAE, data, fit_seeds, records, sprites
from vaelib.gates import Gates, disarm_weight
from vaelib.networks import mlp
from vaelib.objectives import Narrowing

N_IMAGES, N_HELD_OUT = 120_000, 5_000
EVERY = 100  # steps between reports: GECO's average forgets about as fast


class Phase(NamedTuple):
    steps: int
    lr: float
    push: float


class Recipe(NamedTuple):
    """Learn, squeeze, settle: above a push of 1 a code is folded into fewer latents.

    The push grows in steps, lest many gates close at once. At ¼, in the end, a gate
    opens again whose latent spares anything, so that none hovers.
    """

    width: int = 256
    depth: int = 3
    n_latents: int = 10
    he: bool = (
        True  # He et al.'s initialisation: torch's own shrinks a signal by layers
    )
    sigmoid: bool = True  # after the last layer, since pixels are 0 or 1
    bias: float = -3.0  # before it: most pixels are black
    speed: float = 10.0
    weight: Any = disarm_weight
    phases: tuple[Phase, ...] = (
        Phase(1000, 2e-3, 0.5),
        Phase(1000, 2e-3, 1.0),
        Phase(1500, 2e-3, 2.0),
        Phase(1500, 5e-4, 3.0),
        Phase(3500, 5e-4, 4.0),
        Phase(1500, 2e-4, 0.25),
    )


RECIPE = Recipe()


def phases_of(recipe: Recipe, budget: float) -> list[Phase]:
    """With whole reports."""
    return [
        p._replace(steps=max(EVERY, round(p.steps * budget / EVERY) * EVERY))
        for p in recipe.phases
    ]


def images(
    size: int, device: str, n: int = N_IMAGES, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """To train on, (n, size²) bytes, and held out, floats: drawn on the device."""
    index = data.images.subset(n + N_HELD_OUT, sprites.N_IMAGES, seed)
    x = sprites.render(sprites.values(index).to(device), size).flatten(1)
    return x[N_HELD_OUT:], x[:N_HELD_OUT].float()


def network(size: int, recipe: Recipe) -> VAE:
    encoder, decoder = mlp(
        size**2,
        hidden=(recipe.width,) * recipe.depth,
        n_latents=recipe.n_latents,
        activation="silu",
        batch_norm=False,
    )
    if recipe.he:
        for layer in (*encoder.body, *decoder.body):
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
    if recipe.sigmoid:
        nn.init.constant_(decoder.output.bias, recipe.bias)
        decoder.output = nn.Sequential(decoder.output, nn.Sigmoid())
    return VAE(encoder, decoder)


def objective(tau: float, size: int, recipe: Recipe) -> Narrowing:
    """λ starts at that of a decoder whose σ² is τ/D."""
    gates = Gates(recipe.n_latents, speed=recipe.speed, weight=recipe.weight)
    return Narrowing(tau, highest=size**2 / (2 * tau), gates=gates)


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
    recipe: Recipe,
    taus: Sequence[float],
    size: int,
    seeds: Sequence[int],
    device: str,
    budget: float = 1.0,
    checkpoints: Path | None = None,
    x: tuple[Tensor, Tensor] | None = None,
) -> list[dict[str, Any]]:
    """Trains a model for each seed and its τ, all at once, and returns their records.

    τ is that of 64 × 64, and goes with the number of pixels.
    """
    warnings.filterwarnings("ignore", category=UserWarning, module="vaelib")
    start = time.perf_counter()
    taus = [tau * (size / 64) ** 2 for tau in taus]
    x, held_out = x or images(size, device)
    objectives = [objective(tau, size, recipe) for tau in taus]
    parts, make = [], lambda: network(size, recipe).to(device)
    for i, phase in enumerate(phases_of(recipe, budget)):
        for each in objectives:
            each.push.fill_(phase.push)
        name = f"phase {i}, {phase.steps} steps.safetensors"
        runs = fit_seeds(
            make,
            objectives,
            x,
            steps=phase.steps,
            batch_size=128,
            seeds=seeds,
            lr=phase.lr,
            report_every=EVERY,
            checkpoint=checkpoints and checkpoints / name,
        )
        if runs.history.interrupted:
            raise KeyboardInterrupt
        make, objectives = iter(runs.models).__next__, runs.objectives
        parts.append(runs.history)
    # Of this process: less where it took up another's run.
    seconds = round((time.perf_counter() - start) / len(seeds), 1)
    found = []
    for i, (model, tau) in enumerate(zip(runs.models, taus, strict=True)):
        p, error, lam = (
            np.concatenate([part[k][i] for part in parts])
            for k in ("p", "error", "lam")
        )
        closing = next((j for j, row in enumerate(p) if min(row) < 0.5), None)
        average = smoothed(error)
        record = {
            "open": int(model.open.sum()),
            "undecided": sum(0.1 < value < 0.9 for value in p[-1].tolist()),
            "held_out": error_of(model, held_out),
            "tau": tau,
            # After the first closing: of the moving average, and of 100 steps.
            "worst": None if closing is None else max(average[closing:]) / tau,
            "peak": None if closing is None else float(max(error[closing:]) / tau),
            "seconds": seconds,
            "steps": [EVERY * (j + 1) for j in range(len(p))],
            "error": [round(value, 3) for value in error.tolist()],
            "lam": [round(value, 3) for value in lam.tolist()],
            "p": [[round(value, 3) for value in row] for row in p.tolist()],
        }
        if record["open"]:
            record |= pictures(model, held_out, size)
        found.append(record)
    return found


def smoothed(error: np.ndarray) -> list[float]:
    """The average that GECO holds at τ, as near as means of 100 steps tell it."""
    kept, total, weight, found = 0.99**EVERY, 0.0, 0.0, []
    for value in error.tolist():
        total = kept * total + (1 - kept) * value
        weight = kept * weight + 1 - kept
        found.append(total / weight)
    return found


KEPT = (
    "open",
    "undecided",
    "held_out",
    "tau",
    "worst",
    "peak",
    "seconds",
)  # of the numbers


def one(arguments: argparse.Namespace, seed: int, checkpoints: Path | None) -> Any:
    size, device = arguments.size, arguments.device
    how = ([arguments.tau], size, [seed], device, arguments.budget, checkpoints)
    return run(RECIPE, *how)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tau", type=int, required=True, help="at 64 × 64")
    parser.add_argument("--size", type=int, default=64, help="τ goes with its square")
    parser.add_argument("--seeds", type=int, nargs="+", default=[*range(10)])
    parser.add_argument("--together", action="store_true", help="all seeds in a stack")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument(
        "--out", type=Path, help="book/results/sprites-<size>-<tau>.json"
    )
    arguments = shared.parse(parser)
    name = f"sprites-{arguments.size}-{arguments.tau}"
    arguments.out = arguments.out or Path(f"book/results/{name}.json")

    recorded = shared.done(arguments.out, depth=1)
    steps = sum(phase.steps for phase in phases_of(RECIPE, arguments.budget))
    for (seed,), record in recorded.items():
        if int(seed) in arguments.seeds and record["steps"][-1] != steps:
            parser.error(
                f"{arguments.out} holds a run of {record['steps'][-1]} steps, not "
                f"{steps}; name another --out"
            )
    if arguments.together:
        taus = [arguments.tau] * len(arguments.seeds)
        how = (arguments.size, arguments.seeds, arguments.device, arguments.budget)
        runs = run(RECIPE, taus, *how)
        results = {str(s): r for s, r in zip(arguments.seeds, runs, strict=True)}
        records.write(arguments.out, results, arguments.device)
    else:
        tasks = {}
        for seed in arguments.seeds:
            checkpoints = shared.unfinished(arguments.out, (str(seed),))
            tasks[str(seed),] = (one, arguments, seed, checkpoints)
        plan = sorted({*recorded, *tasks}, key=lambda key: int(key[0]))
        results = {key[0]: r for key, r in shared.sweep(arguments, plan, tasks).items()}
    for seed in map(str, arguments.seeds):
        print(
            f"{name}, seed {seed}: {results[seed]['open']} open,",
            f"{results[seed]['undecided']} undecided,",
            f"held-out error {results[seed]['held_out']:.2f}",
            f"for tau = {results[seed]['tau']:g}",
        )


if __name__ == "__main__":
    main()
