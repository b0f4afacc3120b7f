"""The training loop itself: steps, reports, checkpoints, and an interrupt that loses nothing."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vaelib import checkpoints
from vaelib.graphs import graphed
from vaelib.sampling import Sampler

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


class Loop:
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
