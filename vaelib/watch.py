"""Which seeds of a run go on, by their losses: early stopping, and divergence."""

from __future__ import annotations

import math
import warnings
from itertools import compress

import numpy as np
import torch
from torch import Tensor


class Watch:
    """Looks at the losses of each report. Losses are (), or (S,) with a value for each seed.

    Args:
        seeds: as the caller named them.
        shape: of a loss.
        patience: reports without a lower held-out loss after which a seed has ended.

    Attributes:
        running: which seeds go on: neither out of patience nor diverged.
        diverged: which left the numbers.
        lowest, best, age: of the held-out loss the lowest, its step, and how many reports ago.
        state: with a patience, all that the run had learned at that step, the seeds in front.
    """

    def __init__(self, seeds: list[int], shape: tuple[int, ...], patience: int | None) -> None:
        self.seeds, self.patience = seeds, patience
        self.running, self.diverged = np.ones(shape, bool), np.zeros(shape, bool)
        self.lowest = np.full(shape, math.inf)
        self.best, self.age = np.zeros(shape, int), np.zeros(shape, int)
        self.state: dict[str, Tensor] = {}

    def look(self, loss: np.ndarray, step: int, lr: float) -> None:
        """Says which seeds left the numbers; the others go on.

        Raises:
            FloatingPointError: none is left.
        """
        new = ~np.isfinite(loss) & self.running
        if not new.any():
            return
        self.diverged, self.running = self.diverged | new, self.running & ~new
        text = (
            f"the loss is {loss[new].flat[0]} at step {step} for seed(s) {self._named(new)}; "
            f"standardise x, or lower lr (now {lr:g})"
        )
        if self.diverged.all():
            raise FloatingPointError(text)
        warnings.warn(f"{text}; the other seeds go on", stacklevel=2)

    def judge(self, loss: np.ndarray, step: int, state: dict[str, Tensor]) -> None:
        """Copies the state of each seed whose held-out loss is the lowest ever."""
        if (lost := self.running & ~np.isfinite(loss)).any():
            warnings.warn(
                f"the held-out loss is {loss[lost].flat[0]} at step {step} for seed(s) "
                f"{self._named(lost)}; scale held_out as x was",
                stacklevel=2,
            )
        better = self.running & (loss < self.lowest)
        self.lowest = np.where(better, loss, self.lowest)
        self.best = np.where(better, step, self.best)
        self.age = np.where(better, 0, self.age + 1)
        if self.patience is None:
            return
        for name, now in state.items():
            mask = torch.as_tensor(better, device=now.device)
            mask = mask.reshape(mask.shape + (1,) * (now.ndim - mask.ndim))
            before = self.state.get(name, now)
            self.state[name] = torch.where(mask, now, before).detach()
        self.running = self.running & (self.age < self.patience)

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Brings back the best that was kept, in place."""
        for name, best in self.state.items():
            state[name].copy_(best)

    def names_of_diverged(self) -> tuple[int, ...]:
        """The seeds that left the numbers."""
        return tuple(self._named(self.diverged))

    def _named(self, which: np.ndarray) -> list[int]:
        return [*compress(self.seeds, np.atleast_1d(which))]

    def save(self) -> dict[str, dict[str, Tensor]]:
        """Its own state, as a checkpoint can hold it."""
        names = "running", "diverged", "lowest", "best", "age"
        own = {name: torch.from_numpy(np.asarray(getattr(self, name))) for name in names}
        return {"watch": own, "best": self.state}

    def load(self, tree: dict[str, dict[str, Tensor]], device: torch.device) -> None:
        """Goes back to what was saved."""
        for name, value in tree["watch"].items():
            setattr(self, name, value.numpy())
        self.state = {name: value.to(device) for name, value in tree.get("best", {}).items()}
