"""The training loop itself: steps, reports, early stopping, checkpoints, and interrupts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vaelib import checkpoints
from vaelib.door import whole
from vaelib.graphs import graphed
from vaelib.history import History, Reports
from vaelib.interrupts import interruptible
from vaelib.sampling import Sampler
from vaelib.settings import differences, settings
from vaelib.watch import Watch

KIND = "a run of vaelib, 2"  # what a checkpoint says that it is, and in which form
STEP = "step of the report"  # among its terms
HELD_OUT = "held out "  # before a term's name, where it is of held-out rows
SAVED_EVERY = 5.0  # seconds, so that checkpoints cost a fast run little


class Plan:
    """How a run is to go: its length, batches and seeds, its reports, and where it is kept.

    Raises:
        TypeError: a number that should be whole is not.
        ValueError: a number lies outside its range.
    """

    def __init__(
        self,
        steps: int,
        batch_size: int,
        lr: float,
        seeds: Sequence[int],
        patience: int | None,
        report_every: int | None,
        on_report: Callable[[int], Any] | None,
        checkpoint: str | Path | None,
        progress: bool,
    ) -> None:
        self.steps, self.batch_size = whole("steps", steps), whole("batch_size", batch_size)
        self.seeds = [whole("seed", seed, least=-math.inf) for seed in seeds]
        given: Any = lr
        self.lr = float(given) if isinstance(given, SupportsFloat) else math.nan
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr is {lr}; pass a positive number, such as 1e-3")
        self.patience = None if patience is None else whole("patience", patience)
        self.report_every = None if report_every is None else whole("report_every", report_every)
        self.on_report, self.progress = on_report, progress
        self.checkpoint = None if checkpoint is None else Path(checkpoint)


class Loop:
    """The run itself: all that it depends on, in reach of a checkpoint.

    One mechanism serves a lone run and many seeds: losses are (), or (S,) with the seeds in front.

    Args:
        plan: of the run.
        forward: batch and noise → terms, "loss" among them.
        held_out: () → the terms of held-out rows, in eval mode; None without such rows.
        first_look: called at the first report, to say what looks odd by then.
        parameters, buffers: all that a step changes, in place.
        sampler: of batches and noise.
        behind: of each seed, the steps that its model had behind it.
        identity: settings by which a checkpoint is known to be this run's.
    """

    def __init__(
        self,
        plan: Plan,
        forward: Callable[..., dict[str, Tensor]],
        held_out: Callable[[], dict[str, Tensor]] | None,
        first_look: Callable[[], None],
        parameters: Mapping[str, Tensor],
        buffers: dict[str, Tensor],
        sampler: Sampler,
        behind: list[int],
        identity: dict[str, Any],
    ) -> None:
        self.plan, self.sampler, self.behind, self.identity = plan, sampler, behind, identity
        self.forward, self.held_out, self.first_look = forward, held_out, first_look
        self.state = {**parameters, **buffers}
        self.buffers = {name: tensor.clone() for name, tensor in buffers.items()}
        device = sampler.x.device.type
        # One fused kernel updates all weights, on the devices that have it since torch 2.6.
        self.optimizer = torch.optim.Adam(
            parameters.values(),
            lr=plan.lr,
            fused=device in ("cpu", "cuda"),
            capturable=device == "cuda",
        )
        self.step = 0
        self.done = False  # before the last step: by patience, or by on_report
        self.pending: list[dict[str, Tensor]] = []  # terms on the device since the last report
        self.reports = Reports()
        self.watch = Watch(plan.seeds, (len(plan.seeds),) if sampler.axis else (), plan.patience)

    def run(self) -> History:
        """Trains to the last step, or to where patience, on_report or an interrupt ends it."""
        plan = self.plan
        every = plan.report_every or max(1, plan.steps // 100)
        if plan.checkpoint and plan.checkpoint.exists():
            spacing = self._resume(plan.checkpoint, plan.steps)
            every = plan.report_every or spacing
        # Unless told off here, the bar heeds TQDM_DISABLE, which keeps it out of stored notebooks.
        off = {} if plan.progress else {"disable": True}
        take, saved = graphed(self._take, self.sampler.x.device), -math.inf
        bar = tqdm(total=plan.steps, initial=self.step, delay=2, leave=False, **off)
        with interruptible() as interrupted, bar:
            for batch in self.sampler.steps(self.step, 0 if self.done else plan.steps):
                self.pending.append(take(*batch))
                self.step += 1
                due = self.step % every == 0 or self.step == plan.steps
                if due:
                    self._report()
                    stop = plan.on_report(self.step) if plan.on_report else None
                    told_to = isinstance(stop, bool | np.bool_) and bool(stop)
                    self.done = told_to or not self.watch.running.any()
                    bar.set_postfix(self._postfix(), refresh=False)
                    bar.update(self.step - bar.n)
                last = self.step == plan.steps or self.done or interrupted.is_set()
                time_to_save = last or (due and time.monotonic() - saved > SAVED_EVERY)
                if plan.checkpoint and time_to_save:
                    self._save(plan.checkpoint, every)
                    saved = time.monotonic()
                if last:
                    break
        self.optimizer.zero_grad()  # gradients are a graph's memory
        stopped = self.step < plan.steps and not self.done
        if stopped:
            print(f"stopped at step {self.step} of {plan.steps}; what was learned so far is kept")
        if not self.reports and self.pending:
            self._report()  # so that an interrupt before the first leaves something
        return self._history(interrupted=stopped)

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
        if not self.reports:
            self.first_look()
        report = {
            name: _numbers(torch.stack([terms[name] for terms in self.pending]).mean(0))
            for name in self.pending[0]
        }
        self.pending.clear()
        ended = ~self.watch.running
        self.watch.look(report["loss"], self.step, self.plan.lr)
        if self.held_out:
            held_out = {name: _numbers(value) for name, value in self.held_out().items()}
            self.watch.judge(held_out["loss"], self.step, self.state)
            report |= {HELD_OUT + name: value for name, value in held_out.items()}
        for values in report.values():
            values[ended] = np.nan  # what a seed does after its end is none of its history
        self.reports.add({**report, STEP: np.array(self.step)})

    def _postfix(self) -> dict[str, str]:
        shown = {"loss": "loss", "held_out": f"{HELD_OUT}loss"}
        last = self.reports.last
        return {k: f"{np.nanmean(last[name]):.4g}" for k, name in shown.items() if name in last}

    def _history(self, interrupted: bool) -> History:
        arrays = dict(self.reports.stacked())
        steps = arrays.pop(STEP, np.zeros(0, int))
        # Of several seeds, those come first.
        terms = {n: np.moveaxis(v, 0, self.sampler.axis) for n, v in arrays.items()}
        held_out = {
            n.removeprefix(HELD_OUT): terms.pop(n) for n in arrays if n.startswith(HELD_OUT)
        }
        return History(
            steps,
            terms,
            interrupted,
            held_out,
            best=self.watch.best[()] if self.held_out else None,
            diverged=self.watch.names_of_diverged(),
        )

    def _constant(self) -> list[str]:
        """Buffers that are settings, such as β: those which the run has left as they were."""
        return [n for n, before in self.buffers.items() if torch.equal(before, self.state[n])]

    def _save(self, path: Path, report_every: int) -> None:
        names = self.pending[0] if self.pending else ()
        tree = {
            "state": self.state,
            "adam": {str(i): s for i, s in self.optimizer.state_dict()["state"].items()},
            "block": self.sampler.save(self.step),
            "pending": {n: torch.stack([terms[n] for terms in self.pending]) for n in names},
            "reports": {n: torch.from_numpy(v) for n, v in self.reports.stacked().items()},
            **self.watch.save(),
        }
        header = {
            "kind": KIND,
            "identity": self.identity,
            "constant": self._constant(),
            "behind": self.behind,
            "step": self.step,
            "report_every": report_every,
            "done": self.done,
        }
        checkpoints.save(path, tree, header)

    def _resume(self, path: Path, steps: int) -> int:
        """Goes on from a checkpoint; returns the steps between its reports."""
        tree, header = checkpoints.load(path)
        self._refuse_another(path, tree, header, steps)
        self.step, self.done = header["step"], header["done"]
        with torch.no_grad():
            for name, tensor in self.state.items():
                tensor.copy_(tree["state"][name])
        groups = self.optimizer.state_dict()["param_groups"]
        moments = {int(i): slots for i, slots in tree["adam"].items()}
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.sampler.load(tree["block"])
        device = self.sampler.x.device
        pending = {name: values.to(device) for name, values in tree.get("pending", {}).items()}
        count = min((len(values) for values in pending.values()), default=0)
        self.pending = [{n: values[i] for n, values in pending.items()} for i in range(count)]
        self.reports = Reports({n: t.numpy() for n, t in tree.get("reports", {}).items()})
        self.watch.load(tree, device)
        self.behind = header["behind"]
        if self.done or self.step == steps:
            why = " by patience or on_report" if self.done else ""
            print(
                f"{path} holds this run, ended at step {self.step}{why}: nothing is left to train"
            )
        return header["report_every"]

    def _refuse_another(
        self, path: Path, tree: dict[str, Any], header: dict[str, Any], steps: int
    ) -> None:
        remedy = "delete it, or name another file"
        if header.get("kind") != KIND:
            raise ValueError(f"{path} holds no run that could go on here; {remedy}")
        different = differences(header["identity"], self.identity)
        for name in header["constant"]:
            if not different and not torch.equal(tree["state"][name], self.buffers[name].cpu()):
                old, new = (settings(each[name]) for each in (tree["state"], self.buffers))
                different += differences(old, new, name)
        # The model is as it was before the run, or as far as the run may have brought it.
        starts = header["behind"]
        ends = [n + max(steps, header["step"]) for n in starts]
        inside = [a <= n <= b for a, n, b in zip(starts, self.behind, ends, strict=True)]
        if not different and not all(inside):
            different = [f"steps that the model was trained before: {starts}, here {self.behind}"]
        if different:
            more = f"; and {len(different) - 5} more" if len(different) > 5 else ""
            raise ValueError(
                f"{path} is the checkpoint of another run: {'; '.join(different[:5])}{more}; "
                f"{remedy}"
            )
        if header["step"] > steps:
            raise ValueError(
                f"{path} is at step {header['step']} already, so a run of {steps} steps can't be "
                f"had from it; ask for more steps, {remedy}"
            )


def _numbers(value: Tensor) -> np.ndarray:
    """On the host, in a precision that numpy knows."""
    return value.to(torch.promote_types(value.dtype, torch.float32)).cpu().numpy().copy()
