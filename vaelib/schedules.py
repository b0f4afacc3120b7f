"""How much of the KL a loss sees at each step of a run.

A schedule is called with the KL of each latent and returns what stands in the loss for their sum.
`fit` tells it the length of the run. In eval mode, and outside a run, it stands at its end.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vaelib.settings import Remembers


class Schedule(Remembers, nn.Module):
    """The plain KL, at every step. Base of the schedules that change it."""

    def begin(self, steps: int) -> None:
        """Called at the start of a run of so many steps."""

    def forward(self, kl: Tensor) -> Tensor:
        """Returns the sum of kl (d,), a scalar in nats per sample."""
        return kl.sum()


class _Ramp(Schedule):
    """A stretch of the run, given in steps or as a fraction of it, and where in it we are.

    Args:
        steps: length of the stretch in steps.
        fraction: or as a fraction of the run, in (0, 1].

    Raises:
        ValueError: both or neither are given, or one lies outside its range.
    """

    step: Tensor
    length: Tensor

    def __init__(self, steps: int | None = None, fraction: float | None = None) -> None:
        super().__init__()
        if (steps is None) == (fraction is None):
            raise ValueError(
                f"got steps={steps} and fraction={fraction}; give one of them, such as fraction=0.5"
            )
        if steps is not None and steps < 1:
            raise ValueError(f"steps is {steps}, but a schedule takes at least one")
        if fraction is not None and not 0 < fraction <= 1:
            raise ValueError(f"fraction of the run is {fraction}, but must lie in (0, 1]")
        self.steps, self.fraction = steps, fraction
        # Buffers, since they belong to the run's state; whole numbers, so that the end is exact.
        self.register_buffer("step", torch.tensor(1))
        self.register_buffer("length", torch.tensor(1))

    def begin(self, steps: int) -> None:
        """Called at the start of a run of so many steps.

        Raises:
            ValueError: the schedule would not have ended by then.
        """
        length = self.steps or math.ceil(self.fraction * steps)  # type: ignore[operator]
        if length > steps:
            raise ValueError(
                f"{type(self).__name__} takes {length} steps, but the run has only {steps}, so it "
                "would never end; give it fewer steps, or a fraction of the run"
            )
        self.step.zero_()
        self.length.fill_(length)

    def advance(self) -> Tensor:
        """Takes a step and returns how many are done, at most `length`: all in eval mode."""
        if not self.training:
            return self.length
        self.step.add_(1)
        return self.step.clamp(max=self.length)


class Warmup(_Ramp):
    """The KL's weight rises linearly, then stays at 1 (Sønderby et al. 2016)."""

    def forward(self, kl: Tensor) -> Tensor:
        """Returns the weighted sum of kl (d,)."""
        return self.advance() / self.length * kl.sum()


class Cyclical(_Ramp):
    """The weight rises and restarts several times (Fu et al. 2019).

    Args:
        cycles: how often it starts from near 0.
        ramp: the share of a cycle in which it rises; it holds at 1 for the rest.
        steps: length of all cycles together. From then on the weight is 1.
        fraction: or as a fraction of the run.

    Raises:
        ValueError: an argument lies outside its range.
    """

    def __init__(
        self,
        cycles: int = 4,
        ramp: float = 0.5,
        steps: int | None = None,
        fraction: float | None = None,
    ) -> None:
        super().__init__(steps, fraction)
        if cycles < 1:
            raise ValueError(f"cycles is {cycles}, but there must be at least one")
        if not 0 < ramp <= 1:
            raise ValueError(f"ramp is {ramp}, but as a share of a cycle it must lie in (0, 1]")
        self.cycles, self.ramp = cycles, ramp

    def forward(self, kl: Tensor) -> Tensor:
        """Returns the weighted sum of kl (d,)."""
        step = self.advance()
        # In whole numbers, since a cycle's end that rounds into the next would weigh 0 and not 1.
        in_cycle = ((step * self.cycles - 1) % self.length + 1) / self.length
        return (in_cycle / self.ramp).clamp(max=1) * kl.sum()


class Capacity(_Ramp):
    """|KL - C|, whose target C rises from 0 (Burgess et al. 2018).

    Use it with a large β, which then is the price of a nat beside the target.

    Args:
        nats: the target at the end, in nats per sample, over all latents.
        steps: how long it rises.
        fraction: or as a fraction of the run.

    Raises:
        ValueError: an argument lies outside its range.
    """

    nats: Tensor

    def __init__(
        self, nats: float, steps: int | None = None, fraction: float | None = None
    ) -> None:
        super().__init__(steps, fraction)
        self.register_buffer("nats", _allowance(nats))

    def forward(self, kl: Tensor) -> Tensor:
        """Returns the distance of the sum of kl (d,) from the target."""
        return (kl.sum() - self.advance() / self.length * self.nats).abs()


class FreeBits(Schedule):
    """Σ_j max(nats, KL_j): no latent gains from a KL below its allowance (Kingma et al. 2016, C.8).

    Args:
        nats: the allowance of each latent. The maximum is taken of the batch's mean, not of each
            sample's KL.

    Raises:
        ValueError: nats is negative.
    """

    nats: Tensor

    def __init__(self, nats: float) -> None:
        super().__init__()
        self.register_buffer("nats", _allowance(nats))

    def forward(self, kl: Tensor) -> Tensor:
        """Returns the sum over max(nats, kl), kl (d,)."""
        return kl.clamp(min=self.nats).sum()


def _allowance(nats: float) -> Tensor:
    if not nats >= 0:
        raise ValueError(f"nats is {nats}, but a KL is never negative: give 0 or more")
    return torch.tensor(float(nats))
