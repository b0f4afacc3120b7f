"""One model on several devices, each of which takes its share of every batch.

    python book/experiments/several_gpus.py --accelerator cuda --devices 2
    python book/experiments/several_gpus.py --accelerator cpu --devices 2

Fabric starts one process a device; the first writes the record and the weights.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from vaelib import VAE, checkpoints, data, objectives, records
from vaelib.networks import mlp
from vaelib.sampling import Sampler

OBJECTIVES = {
    "ELBO": objectives.ELBO,
    "LearnedGamma": objectives.LearnedGamma,
    "ComputedGamma": objectives.ComputedGamma,
    "Narrowing": lambda: objectives.Narrowing(tau=8.0),
}


class Pair(nn.Module):
    """Model and objective as one module, which holds all that learns."""

    def __init__(self, model: VAE, objective: objectives.Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x: Tensor, *noise: Tensor) -> dict[str, Tensor]:
        return self.objective(self.model, x, *noise)


def share(batch_size: int, devices: int, rank: int) -> slice:
    """The rows of a batch that this process takes, as many as each other one."""
    if batch_size % devices:
        raise ValueError(
            f"batch_size is {batch_size}, which {devices} devices cannot share "
            f"equally; pass a multiple of {devices}"
        )
    rows = batch_size // devices
    return slice(rank * rows, (rank + 1) * rows)


def train(
    fabric: Fabric, pair: Pair, x: Tensor, steps: int, batch_size: int, every: int
) -> list[dict[str, Any]]:
    """The run of `vaelib.fit` with seed 0, up to rounding; returns its reports."""
    model, objective = pair.model, pair.objective
    model.likelihood.check(x)  # the whole data once: in a step it would wait
    model.validate_args = False
    objective.begin(model, steps)
    optimizer = torch.optim.Adam(pair.parameters(), lr=1e-3, fused=True)
    module, optimizer = fabric.setup(pair.train(), optimizer)

    # With one seed, all processes draw the same batches and the same noise.
    x = fabric.to_device(x)
    sampler = Sampler(model, objective, x, batch_size, [0], stack=False)
    mine = share(batch_size, fabric.world_size, fabric.global_rank)
    pending, reports, start = [], [], time.perf_counter()
    for step, batch in enumerate(sampler.steps(0, steps), 1):
        optimizer.zero_grad()
        terms = module(*[each[mine] for each in batch])
        fabric.backward(terms["loss"])  # and the mean of all processes' gradients
        optimizer.step()
        pending.append({name: value.detach() for name, value in terms.items()})
        if step % every == 0 or step == steps:
            report = {k: torch.stack([t[k] for t in pending]).mean(0) for k in terms}
            report = fabric.all_reduce(report, reduce_op="mean")
            report = {name: value.tolist() for name, value in report.items()}
            seconds = time.perf_counter() - start
            reports.append({"step": step, "seconds": seconds, **report})
            pending.clear()
    objective.end(model)
    return reports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--accelerator", default="auto", help="cuda, cpu, …")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--objective", choices=OBJECTIVES, default="LearnedGamma")
    parser.add_argument("--width", type=int, default=64, help="of the hidden layers")
    parser.add_argument("--batch-norm", action="store_true")
    parser.add_argument("--batch-size", type=int, default=128, help="of all devices")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=10, help="steps between reports")
    parser.add_argument("--out", type=Path, default=Path("_build/several_gpus.json"))
    arguments = parser.parse_args()

    fabric = Fabric(
        accelerator=arguments.accelerator, devices=arguments.devices, strategy="ddp"
    )
    fabric.launch()  # from here on there is a process for each device
    torch.manual_seed(0)
    hidden = (arguments.width, arguments.width)
    model = VAE(*mlp(256, hidden, 16, "silu", arguments.batch_norm))
    pair = Pair(model, OBJECTIVES[arguments.objective]())
    run = {name: getattr(arguments, name) for name in ("steps", "batch_size", "every")}
    reports = train(fabric, pair, data.patches(size=16).x, **run)
    if fabric.global_rank == 0:
        records.write(arguments.out, reports, str(fabric.device))
        weights = arguments.out.with_suffix(".safetensors")
        checkpoints.save(weights, pair.state_dict(), {})


if __name__ == "__main__":
    main()
