"""One training loop for every chapter: a lone model, or many seeds at once.

Nothing in a step waits for the device. Reports are read off it every so many steps. On an NVIDIA
GPU the step runs as a CUDA graph.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from vaelib.loop import History, Loop
from vaelib.objective import Objective
from vaelib.sampling import Sampler
from vaelib.vae import VAE


class Runs(NamedTuple):
    """What `fit_seeds` returns: a trained model and objective for each seed, and their history."""

    models: list[VAE]
    objectives: list[Objective]
    history: History


def fit(
    model: VAE,
    objective: Objective,
    x: Tensor,
    *,
    steps: int,
    batch_size: int,
    lr: float = 1e-3,
    seed: int = 0,
    report_every: int | None = None,
    on_report: Callable[[int], None] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> History:
    """Trains a model in place with Adam and leaves it in eval mode.

    Every epoch runs through a new random order of the data in batches of one size; samples that
    do not fill a last batch wait for the next epoch. An interrupt (Ctrl-C, a notebook's stop
    button) ends the run after the step at hand and keeps what was learned.

    Args:
        model: the VAE, on the device on which to train; x follows it there.
        objective: `objective(model, batch, *noise)` returns the terms, with "loss" among them.
        x: the data, (N, …). Of uint8, such as black and white images, it stays so on the device,
            and its batches become floats of the same values.
        steps: length of the run, in batches.
        batch_size: samples a step, at most N.
        lr: Adam's learning rate.
        seed: of the data's order and the noise. Not of the weights, which the model has already.
        report_every: steps between two reports; a hundredth of the run where not given.
        on_report: called with the step at each report, the model in eval mode, gradients off.
        checkpoint: a .safetensors file, written at the first report, at others once some seconds
            have passed, at the end, and on an interrupt. Where it exists already the run goes on
            from there, bit for bit on the CPU.
        progress: show a progress bar once a run takes more than two seconds.

    Raises:
        ValueError: data or arguments that the run cannot take, or another run's checkpoint.
        FloatingPointError: at a report, the loss is no longer finite.
    """
    pair = _Pair(model, objective.to(next(model.parameters()).device))
    with _prepared([pair], x, steps) as x:
        loop = Loop(
            forward=functools.partial(objective, model),
            parameters=dict(pair.named_parameters()),
            buffers=dict(pair.named_buffers()),
            sampler=Sampler(model, objective, x, batch_size, [seed], stack=False),
            lr=lr,
        )

        def look(step: int) -> None:
            pair.eval()
            with torch.no_grad():
                on_report(step)  # type: ignore[misc]
            pair.train()

        return loop.run(steps, report_every, on_report and look, checkpoint, progress)


def fit_seeds(
    make_model: Callable[[], VAE],
    objective: Objective | Sequence[Objective],
    x: Tensor,
    *,
    steps: int,
    batch_size: int,
    seeds: Sequence[int] = range(20),
    lr: float = 1e-3,
    report_every: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Runs:
    """Trains one model per seed, all at once, by stacking their weights (`torch.func`).

    Each run is the lone run `torch.manual_seed(seed); model = make_model(); fit(model, …,
    seed=seed)`, up to rounding. On a CPU, twenty small networks cost about as much as three.

    Args:
        make_model: builds a fresh model; called once for each seed.
        objective: copied for each seed, so that each learns its own state; or one for each, of
            one kind with different numbers, such as the values of β along a path.
        seeds: one run each. They may repeat, to tell what the objectives do from what seeds do.

    The other arguments, the errors and the interrupt are those of `fit`.
    """
    if len(seeds) == 0:
        raise ValueError("seeds is empty; pass at least one, e.g. seeds=range(20)")
    models = []
    with torch.random.fork_rng():
        for seed in seeds:
            torch.manual_seed(seed)
            models.append(make_model())
    device = next(models[0].parameters()).device
    objectives = [objective] * len(models) if isinstance(objective, Objective) else [*objective]
    _refuse_different(objectives, len(models))
    pairs = [
        _Pair(model, copy.deepcopy(each).to(device))
        for model, each in zip(models, objectives, strict=True)
    ]
    with _prepared(pairs, x, steps) as x:
        parameters, buffers = stack_module_state(pairs)
        template = copy.deepcopy(pairs[0]).to("meta")  # lends its code; the state is handed in

        @vmap
        def replicas(state: tuple[dict[str, Tensor], ...], *batch: Tensor) -> dict[str, Tensor]:
            return functional_call(template, state, batch)

        loop = Loop(
            forward=functools.partial(replicas, (parameters, buffers)),
            parameters=parameters,
            buffers=buffers,
            sampler=Sampler(models[0], objectives[0], x, batch_size, seeds, stack=True),
            lr=lr,
        )
        history = loop.run(steps, report_every, None, checkpoint, progress)
        for i, pair in enumerate(pairs):
            pair.load_state_dict({name: t[i].detach() for name, t in loop.state.items()})
    terms = {name: np.moveaxis(values, 1, 0) for name, values in history.terms.items()}
    return Runs(
        models,
        [pair.objective for pair in pairs],
        History(history.steps, terms, history.interrupted),
    )


class _Pair(nn.Module):
    """A model and its objective as one module, so that all that a run learns has one owner."""

    def __init__(self, model: VAE, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, x: Tensor, *noise: Tensor) -> dict[str, Tensor]:
        return self.objective(self.model, x, *noise)


def _refuse_different(objectives: list[Objective], n: int) -> None:
    """One vmapped forward serves all, so only tensors may tell objectives apart."""
    if len(objectives) != n:
        raise ValueError(f"{len(objectives)} objectives for {n} seeds; pass one, or one for each")

    def traits(objective: Objective) -> list[tuple[object, ...]]:
        return [
            (type(m), *sorted((k, v) for k, v in vars(m).items() if not k.startswith("_")))
            for m in objective.modules()
        ]

    for i, each in enumerate(objectives):
        if traits(each) != traits(objectives[0]):
            raise ValueError(
                f"objectives 0 and {i} are of different kinds: {traits(objectives[0])} and "
                f"{traits(each)}; train each kind by a call of its own"
            )


@contextlib.contextmanager
def _prepared(pairs: list[_Pair], x: Tensor, steps: int) -> Iterator[Tensor]:
    """Checks the whole data once, so that no step has to; puts all in training mode."""
    model = pairs[0].model
    like = next(model.parameters())
    x = torch.as_tensor(x, device=like.device)
    x = x if x.dtype == torch.uint8 else x.to(like.dtype)
    model.likelihood.check(x)
    if steps < 1:
        raise ValueError(f"steps is {steps}, but a run needs at least one")
    before = [pair.model.validate_args for pair in pairs]
    try:
        for pair in pairs:
            pair.objective.begin(pair.model, steps)
            pair.model.validate_args = False
            pair.train()
        yield x
        for pair in pairs:
            pair.objective.end(pair.model)
    finally:
        for pair, validate_args in zip(pairs, before, strict=True):
            pair.model.validate_args = validate_args
            pair.eval()
