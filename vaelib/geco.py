"""GECO: a multiplier that turns itself up and down until an error is what it is asked to be."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vaelib.settings import Remembers


class Geco(Remembers, nn.Module):
    """Holds an error at τ or below: adds λ·(error - τ) to a loss and learns λ on the way.

    With Ĉ = error - τ of the batch and its moving average C, λ changes in each step of training by

        log λ ← log λ + clip(speed·C/τ + damping·ΔC/τ, ±limit),

    between lowest and highest. The published step is speed·C alone (Rezende & Viola 2018, alg. 1).
    Four things are added. Dividing by τ makes speed mean the same for an error of any size. C is
    divided by the sum of its weights, so that the first batch counts no more than the next. Limit
    and bounds hold λ while the error is many times τ. Damping, the P of a PI controller (Stooke et
    al. 2020, Sohrabi et al. 2024), makes up for the average's lag, lest λ overshoots and swings.

    Args:
        tau: what the error may be, in the error's unit: for a summed squared error, per sample.
        alpha: how much of the average stays at each step.
        speed: how fast λ follows: by this in log λ a step when the error is 2τ.
        damping: how much the error's change counts. speed / (1 - alpha) cancels the average's lag.
        limit: most that log λ changes in a step. An error may start at many times τ, but never
            falls below 0, so that without limit λ is fast up and slow down.
        start: the first λ, in nats per unit of error.
        lowest: of λ.
        highest: of λ. For a summed squared error, 50 is a decoder with σ = 0.1.

    Attributes:
        lam: λ.
        error: moving average of the error, not a number before the first step.
        met: whether that is at τ or below.
        best: the lowest it ever was. Above τ, the constraint has never been met.

    Raises:
        ValueError: a number lies outside its range.
    """

    tau: Tensor
    log_lam: Tensor
    bounds: Tensor
    total: Tensor
    weight: Tensor
    best: Tensor

    def __init__(
        self,
        tau: float,
        alpha: float = 0.99,
        speed: float = 0.01,
        damping: float = 1.0,
        limit: float = 0.01,
        start: float = 1.0,
        lowest: float = 1e-4,
        highest: float = 50.0,
    ) -> None:
        super().__init__()
        if not 0 < tau < math.inf:
            raise ValueError(
                f"tau must be positive and finite, got {tau}; measure the error that a plain VAE "
                "reaches on this data, and allow a little more"
            )
        if not 0 <= alpha < 1:
            raise ValueError(f"alpha is {alpha}, but must lie in [0, 1), such as 0.99")
        if not (speed > 0 and damping >= 0 and limit > 0):
            raise ValueError(
                f"speed is {speed}, damping {damping} and limit {limit}; speed and limit must be "
                "positive, damping 0 or more"
            )
        if not 0 < lowest <= start <= highest:
            raise ValueError(
                f"lowest is {lowest}, start {start} and highest {highest}; λ must start between "
                "the two others, and stay positive"
            )
        self.alpha, self.speed, self.damping, self.limit = alpha, speed, damping, limit
        self.register_buffer("tau", torch.tensor(float(tau)))
        self.register_buffer("log_lam", torch.tensor(math.log(start)))
        self.register_buffer("bounds", torch.tensor([math.log(lowest), math.log(highest)]))
        # Sums with the same weights, so that their ratio is an average from the first step on.
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))
        self.register_buffer("best", torch.tensor(math.inf))

    @property
    def lam(self) -> Tensor:
        """λ, a scalar."""
        return self.log_lam.exp()

    @property
    def error(self) -> Tensor:
        """The moving average of the error, a scalar."""
        return self.total / self.weight

    @property
    def met(self) -> Tensor:
        """Whether the moving average is at τ or below, a boolean."""
        return self.error <= self.tau

    def forward(self, error: Tensor) -> Tensor:
        """Returns λ·(mean error - τ), a scalar, for errors (B,); then, in training mode, learns λ.

        The λ that it uses is the one `lam` gives before the call.
        """
        mean = error.mean()
        penalty = self.lam * (mean - self.tau)
        if self.training:
            self._advance(mean.detach())
        return penalty

    def _advance(self, mean: Tensor) -> None:
        before = torch.where(self.weight > 0, self.error, mean)
        self.total.copy_(self.alpha * self.total + (1 - self.alpha) * mean)
        self.weight.copy_(self.alpha * self.weight + (1 - self.alpha))
        error = self.error
        step = (self.speed * (error - self.tau) + self.damping * (error - before)) / self.tau
        log_lam = self.log_lam + step.clamp(-self.limit, self.limit)
        self.log_lam.copy_(log_lam.clamp(*self.bounds))
        self.best.copy_(torch.minimum(self.best, error))
