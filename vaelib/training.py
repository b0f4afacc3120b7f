"""One training loop for every chapter: a lone model, or many seeds at once.

Nothing in a step waits for the device. Reports are read off it every so many steps. On an NVIDIA
GPU the step runs as a CUDA graph.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from tqdm import tqdm

from vaelib import checkpoints
from vaelib.graphs import graphed
from vaelib.objectives import Objective
from vaelib.sampling import Sampler
from vaelib.vae import VAE

SAVED_EVERY = 5.0  # seconds, so that checkpoints cost a fast run little


@dataclass(frozen=True)
class History:
    """What a run reported: each term, averaged over the steps since the report before.

    Attributes:
        steps: (R,), the step each report was made at.
        terms: name → (R,), or (R, d) for a term per latent such as "kl". From `fit_seeds` with
            the seeds in front: (S, R) and (S, R, d). `history["kl"]` looks one up.
        interrupted: whether the run was stopped before its last step.
    """

    steps: np.ndarray
    terms: dict[str, np.ndarray]
    interrupted: bool

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.terms:
            raise KeyError(f"no term {name!r} was reported, only {sorted(self.terms)}")
        return self.terms[name]


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
        loop = _Loop(
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

        loop = _Loop(
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


class _Loop:
    """The run itself: all that it depends on, in reach of a checkpoint."""

    def __init__(
        self,
        forward: Callable[..., dict[str, Tensor]],
        parameters: dict[str, Tensor],
        buffers: dict[str, Tensor],
        sampler: Sampler,
        lr: float,
    ) -> None:
        self.forward, self.sampler, self.lr = forward, sampler, lr
        self.state = {**parameters, **buffers}
        device = sampler.x.device.type
        # One fused kernel updates all weights, on the devices that have it since torch 2.6.
        self.optimizer = torch.optim.Adam(
            parameters.values(), lr=lr, fused=device in ("cpu", "cuda"), capturable=device == "cuda"
        )
        self.step = 0
        self.pending: list[dict[str, Tensor]] = []  # terms on the device since the last report
        self.reports: list[dict[str, np.ndarray]] = []

    def run(
        self,
        steps: int,
        report_every: int | None,
        on_report: Callable[[int], None] | None,
        checkpoint: str | Path | None,
        progress: bool,
    ) -> History:
        every = report_every or max(1, steps // 100)
        path = None if checkpoint is None else Path(checkpoint)
        header = self._header(every) if path else {}
        if path and path.exists():
            self._resume(path, header)
        # Unless told off here, the bar heeds TQDM_DISABLE, which keeps it out of stored notebooks.
        off = {} if progress else {"disable": True}
        take, saved = graphed(self._take, self.sampler.x.device), -math.inf
        bar = tqdm(total=steps, initial=self.step, delay=2, leave=False, **off)
        with _interruptible() as interrupted, bar:
            for batch in self.sampler.steps(self.step, steps):
                self.pending.append(take(*batch))
                self.step += 1
                due = self.step % every == 0 or self.step == steps
                if due:
                    self._report()
                    if on_report:
                        on_report(self.step)
                    bar.set_postfix(loss=f"{self.reports[-1]['loss'].mean():.4g}", refresh=False)
                    bar.update(self.step - bar.n)
                if path and (due or interrupted.is_set()):
                    last = self.step == steps or interrupted.is_set()
                    if last or time.monotonic() - saved > SAVED_EVERY:
                        self._save(path, header)
                        saved = time.monotonic()
                if interrupted.is_set():
                    break
        self.optimizer.zero_grad()  # gradients are a graph's memory
        if self.step < steps:
            print(f"stopped at step {self.step} of {steps}; what was learned so far is kept")
        return self._history(interrupted=self.step < steps)

    def _take(self, *batch: Tensor) -> dict[str, Tensor]:
        """One step; all that it changes are tensors, in place."""
        self.optimizer.zero_grad()
        terms = self.forward(*batch)
        # One loss, or one for each seed, whose weights see only their own.
        terms["loss"].backward(torch.ones_like(terms["loss"]))
        self.optimizer.step()
        return {name: value.detach() for name, value in terms.items()}

    def _report(self) -> None:
        """Averages the terms since the last report: the one place that waits for the device."""
        report = {
            name: torch.stack([terms[name] for terms in self.pending]).mean(0).cpu().numpy()
            for name in self.pending[0]
        }
        losses = np.atleast_1d(report["loss"])
        bad = [
            s for s, loss in zip(self.sampler.seeds, losses, strict=True) if not np.isfinite(loss)
        ]
        if bad:
            raise FloatingPointError(
                f"the loss is {losses[~np.isfinite(losses)][0]} at step {self.step} for seed(s) "
                f"{bad}; standardise x, or lower lr (now {self.lr:g})"
            )
        self.reports.append({"step": np.array(self.step), **report})
        self.pending.clear()

    def _history(self, interrupted: bool) -> History:
        names = self.reports[0] if self.reports else ("step",)
        terms = {name: np.array([report[name] for report in self.reports]) for name in names}
        return History(terms.pop("step"), terms, interrupted)

    def _header(self, report_every: int) -> dict[str, Any]:
        """What a checkpoint must agree on to be this run's."""
        x = self.sampler.x
        return {
            "x": [*x.shape, zlib.crc32(x.cpu().contiguous().numpy().tobytes())],
            "weights": {name: list(tensor.shape) for name, tensor in self.state.items()},
            "batch_size": self.sampler.batch_size,
            "seeds": self.sampler.seeds,
            "lr": self.lr,
            "report_every": report_every,
        }

    def _save(self, path: Path, header: dict[str, Any]) -> None:
        reports = {str(i): report for i, report in enumerate(self.reports)}
        tree = {
            "state": self.state,
            "adam": {str(i): s for i, s in self.optimizer.state_dict()["state"].items()},
            "block": self.sampler.save(self.step),
            "pending": {str(i): terms for i, terms in enumerate(self.pending)},
            "reports": {
                i: {name: torch.from_numpy(np.asarray(value)) for name, value in report.items()}
                for i, report in reports.items()
            },
        }
        checkpoints.save(path, tree, {**header, "step": self.step})

    def _resume(self, path: Path, header: dict[str, Any]) -> None:
        tree, saved = checkpoints.load(path)
        self.step = saved.pop("step")
        different = [key for key in header if saved.get(key) != header[key]]
        if different:
            raise ValueError(
                f"{path} is the checkpoint of another run: it has other values for "
                f"{', '.join(different)}; delete it, or name another file"
            )
        with torch.no_grad():
            for name, tensor in self.state.items():
                tensor.copy_(tree["state"][name])
        groups = self.optimizer.state_dict()["param_groups"]
        moments = {int(i): slots for i, slots in tree["adam"].items()}
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.sampler.load(tree["block"])
        device = self.sampler.x.device
        self.pending = [
            {name: value.to(device) for name, value in terms.items()}
            for _, terms in sorted(tree.get("pending", {}).items(), key=lambda item: int(item[0]))
        ]
        self.reports = [
            {name: value.numpy() for name, value in report.items()}
            for _, report in sorted(tree.get("reports", {}).items(), key=lambda item: int(item[0]))
        ]


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turns the first interrupt into an event, so that no step is left half done."""
    interrupted = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    # Only the main thread gets signals, and a background job may be meant to ignore this one.
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield interrupted
        return

    def handle(signum: int, frame: Any) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)  # a second interrupt acts at once

    signal.signal(signal.SIGINT, handle)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
