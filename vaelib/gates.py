"""Gates: latents that are open or closed, and gradients for the probability that they are.

A gate b, 0 or 1, is open with probability p = sigmoid(γ). A step has no slope to follow, so the
gradient of E[F(b)] for the logit γ is estimated from values of F, at gates drawn from uniform
noise u. All estimators are called alike:

    f: gates (B, n) → F, one value a sample, (B,).
    logits: γ, (n,).
    u: uniform noise, (B, n). Or (1, n), shared by the batch: f is then handed gates (1, n).
    returns: an estimate from each sample of dE[F]/dγ, (B, n).

They raise a ValueError where u or F has another shape. F must be each sample's own: averaged over
the batch first, the gradient comes out B times too small, under the noise of all other samples.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vaelib.settings import Remembers

Values = Callable[[Tensor], Tensor]


def draw(logits: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """A pair of gates from the same u, each open with probability p: 1[u < p] and 1[u > 1 - p].

    They are antithetic: they differ as often as two such gates can. Shapes as u's.
    """
    if u.ndim != 2 or u.shape[1:] != logits.shape:
        raise ValueError(
            f"u has shape {tuple(u.shape)} for logits of shape {tuple(logits.shape)}; "
            "needed is a row for each sample, or one for all, and a column for each logit"
        )
    return (u < torch.sigmoid(logits)).to(u), (u > torch.sigmoid(-logits)).to(u)


def _column(values: Tensor, gates: Tensor) -> Tensor:
    """F as a column (B, 1), to multiply gates with; refuses what is not one value a sample."""
    if values.ndim != 1 or len(gates) not in (1, len(values)):
        raise ValueError(
            f"f returned shape {tuple(values.shape)} for gates {tuple(gates.shape)}; it must "
            "return one value a sample, (B,): sum over features, do not average over the batch"
        )
    return values.unsqueeze(-1)


@torch.no_grad()
def _evaluate(f: Values, gates: Tensor) -> Tensor:
    return _column(f(gates), gates)


def arm_weight(logits: Tensor, u: Tensor) -> Tensor:
    """What ARM multiplies F(1[u > 1 - p]) - F(1[u < p]) with: u - ½."""
    return u - 0.5


def disarm_weight(logits: Tensor, u: Tensor) -> Tensor:
    """ARM's weight, averaged over all u that draw the same two gates (Dong et al. 2020).

    Where they agree it is 0: such a gate has nothing to do with the difference in F.
    """
    drawn, antithetic = draw(logits, u)
    return 0.5 * (antithetic - drawn) * torch.sigmoid(logits.abs())


def _difference(f: Values, logits: Tensor, u: Tensor) -> Tensor:
    drawn, antithetic = draw(logits, u)
    return _evaluate(f, antithetic) - _evaluate(f, drawn)


def arm(f: Values, logits: Tensor, u: Tensor) -> Tensor:
    """(F(1[u > 1 - p]) - F(1[u < p]))·(u - ½), unbiased (Yin & Zhou 2019)."""
    return _difference(f, logits, u) * arm_weight(logits, u)


def disarm(f: Values, logits: Tensor, u: Tensor) -> Tensor:
    """ARM without the noise of u that F does not see: unbiased, never of more variance.

    DisARM (Dong et al. 2020), found at the same time as U2G (Yin et al. 2020).
    """
    return _difference(f, logits, u) * disarm_weight(logits, u)


def ar(f: Values, logits: Tensor, u: Tensor) -> Tensor:
    """F(1[u < p])·(1 - 2u), unbiased: half of ARM, without its mirror image (Yin & Zhou 2019)."""
    drawn, _ = draw(logits, u)
    return _evaluate(f, drawn) * (1 - 2 * u)


def reinforce(f: Values, logits: Tensor, u: Tensor, other: Tensor | None = None) -> Tensor:
    """F(b)·(b - p), unbiased (Williams 1992); the score function of a gate is b - p.

    Args:
        other: noise like u, independent of it. Each draw is then the other's baseline, which
            makes ½(F(b) - F(b'))·(b - b'): leave-one-out, with two draws.
    """
    drawn, _ = draw(logits, u)
    if other is None:
        return _evaluate(f, drawn) * (drawn - torch.sigmoid(logits))
    another, _ = draw(logits, other)
    return 0.5 * (_evaluate(f, drawn) - _evaluate(f, another)) * (drawn - another)


def _pathwise(f: Values, relax: Values, logits: Tensor, u: Tensor) -> Tensor:
    """The gradient of F(relax(γ)) for each sample's own copy of the logits."""

    def total(gamma: Tensor) -> tuple[Tensor, Tensor]:
        values = f(relax(gamma))
        return values.sum(), values

    estimate, values = torch.func.grad(total, has_aux=True)(logits.expand_as(u))
    if len(_column(values, u)) != len(u):
        raise ValueError(
            f"u has one row for {len(values)} samples, but a path leads to each sample through "
            "gates of its own; pass u.expand(B, -1)"
        )
    return estimate


def straight_through(f: Values, logits: Tensor, u: Tensor) -> Tensor:
    """F'(b)·p(1 - p): the step is taken forth, the slope of p back.

    After Bengio et al. (2013), who pass F'(b) on without the slope. Biased where F is not linear.
    f must be differentiable in the gates.
    """
    drawn, _ = draw(logits, u)

    def relax(gamma: Tensor) -> Tensor:
        p = torch.sigmoid(gamma)
        return drawn + p - p.detach()

    return _pathwise(f, relax, logits, u)


def hard_concrete(f: Values, logits: Tensor, u: Tensor) -> Tensor:
    """The gradient through gates that are 0, 1 or between (Louizos et al. 2018).

    s = sigmoid((logit(u) + γ) / ⅔), stretched to (-0.1, 1.1), clipped to [0, 1]. Biased for gates
    of 0 and 1, which it replaces. f must be differentiable in the gates.
    """
    draw(logits, u)  # for its check of the shapes

    def relax(gamma: Tensor) -> Tensor:
        s = torch.sigmoid((torch.logit(u) + gamma) / (2 / 3))
        return (1.2 * s - 0.1).clamp(0, 1)

    return _pathwise(f, relax, logits, u)


class Gates(Remembers, nn.Module):
    """n gates, one a latent, whose logits are trained with the network that they are part of.

    In a step, draw a pair of gates, decode with each, and add `surrogate` to the loss.

    Args:
        n: number of gates, all open at the start.
        bounds: the logits stay between these two. A closed gate is still drawn open now and then
            (one time in 56 at -4), without which nothing would tell that it is needed again. An
            open one is drawn closed in vain, which costs error: the less, the higher its bound.
        speed: how much faster than a weight of the network a logit moves. Adam moves each by
            about its learning rate a step, which is made for weights.
        weight: `disarm_weight` or `arm_weight`.

    Raises:
        ValueError: n or speed is not positive, or 0 does not lie between the bounds.
    """

    def __init__(
        self,
        n: int,
        bounds: tuple[float, float] = (-4.0, 6.0),
        speed: float = 20.0,
        weight: Callable[[Tensor, Tensor], Tensor] = disarm_weight,
    ) -> None:
        super().__init__()
        for name, value in {"n": n, "speed": speed}.items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if not bounds[0] < 0 < bounds[1]:
            raise ValueError(
                f"bounds are {bounds}, but 0 must lie between them, where a gate opens or closes"
            )
        self.bounds, self.speed, self.weight = bounds, speed, weight
        self.phi = nn.Parameter(torch.full((n,), bounds[1] / speed))

    @property
    def logits(self) -> Tensor:
        """γ, (n,)."""
        return self.speed * self.phi

    @property
    def probabilities(self) -> Tensor:
        """p = sigmoid(γ), (n,). Their sum, with a gradient, is the expected number of open gates.

        Between 0.1 and 0.9 a gate has not decided yet.
        """
        return torch.sigmoid(self.logits)

    @property
    def open(self) -> Tensor:
        """Which gates are open for good, p > ½: booleans, (n,)."""
        return self.phi > 0

    def noise(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Uniform u for a batch of n samples, (n, number of gates)."""
        like = self.phi
        return torch.rand(n, len(like), generator=generator, dtype=like.dtype, device=like.device)

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The pair of gates for u (B, n): use the first in the loss, and both in `surrogate`.

        In training mode it first brings logits back that the last step took beyond a bound.
        """
        if self.training:
            # In place: clamped on the way, a logit beyond a bound would get no gradient and stay.
            with torch.no_grad():
                lowest, highest = self.bounds
                self.phi.copy_(self.phi.clamp(lowest / self.speed, highest / self.speed))
        return draw(self.logits.detach(), u)

    def surrogate(self, drawn: Tensor, antithetic: Tensor, u: Tensor) -> Tensor:
        """A term whose gradient is the estimate, averaged over the batch, and whose value is 0.

        Args:
            drawn: F at the first gates of the pair, one value a sample, (B,).
            antithetic: F at the second, (B,). Neither needs a gradient.
            u: the noise that both came from.
        """
        difference = _column(antithetic - drawn, u)
        estimate = (difference * self.weight(self.logits, u)).detach()
        return (estimate * (self.logits - self.logits.detach())).sum(-1).mean()
