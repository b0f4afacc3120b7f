"""How far a distribution is from another."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Distribution,
    Independent,
    Normal,
    OneHotCategorical,
    StudentT,
)
from torch.nn import functional as F

from vaelib.distributions import Joint, LogCoshDistribution


def gaussian_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) ‖ N(0, 1)), in nats, in closed form (Kingma & Welling 2014, app. B).

    Args:
        mu: means, any shape, usually (B, d).
        logvar: log-variances, the same shape.

    Returns:
        The divergence of each element, the same shape. Sum over the latents for a sample's KL.
    """
    # expm1(v) - v rather than exp(v) - 1 - v, which near 0 rounds to anything, even below 0.
    return 0.5 * (mu.square() + torch.expm1(logvar) - logvar)


def rbf(x: Tensor, y: Tensor) -> Tensor:
    """The Gaussian kernel exp(-‖x - y‖² / 2d), as wide as N(0, I) in d dimensions: (N, M)."""
    return torch.exp(-_squared_distances(x, y) / (2 * x.shape[1]))


def imq(x: Tensor, y: Tensor) -> Tensor:
    """The inverse multiquadric 2d / (2d + ‖x - y‖²) (Tolstikhin et al. 2018, sec. 4): (N, M).

    It falls off slowly, so that codes far from the prior still feel where it lies.
    """
    return 2 * x.shape[1] / (2 * x.shape[1] + _squared_distances(x, y))


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    # By a matrix product: (N, M, d) differences would cost several times the time and memory.
    squares = x.square().sum(1)[:, None] + y.square().sum(1)
    return (squares - 2 * x @ y.T).clamp(min=0)


def mmd(
    x: Tensor,
    y: Tensor,
    unbiased: bool = True,
    kernel: Callable[[Tensor, Tensor], Tensor] = imq,
) -> Tensor:
    """Squared maximum mean discrepancy of two samples (Gretton et al. 2012).

    E k(x, x') + E k(y, y') - 2 E k(x, y): 0 where both come from one distribution.

    Args:
        x: sample of the one, (N, d).
        y: sample of the other, (M, d).
        unbiased: leave out each point's pairing with itself. Then the mean over many draws is
            exact, and a single draw may be negative. The biased estimate is never negative, but
            too large by about 1/N + 1/M times (1 - E k(x, x')).
        kernel: (N, d), (M, d) → (N, M), with k(x, x) = 1.

    Returns:
        A scalar, without unit.

    Raises:
        ValueError: the samples' widths differ, or one has fewer than two points.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}: pass two samples of at least "
            "two points each, (N, d) and (M, d)"
        )

    def mean_within(z: Tensor) -> Tensor:
        n, k = len(z), kernel(z, z)
        return (k.sum() - k.diagonal().sum()) / (n * (n - 1)) if unbiased else k.mean()

    return mean_within(x) + mean_within(y) - 2 * kernel(x, y).mean()


@functools.singledispatch
def log_power_integral(p: Distribution, power: Tensor) -> Tensor:
    """log ∫ p(x)^power dx of each column, for the densities where it has a closed form."""
    raise NotImplementedError(
        f"∫ p^(β+1) has no closed form here for {type(p).__name__}; use a Gaussian, StudentT, "
        "Bernoulli, LogCosh, Categorical or Mixed likelihood"
    )


@log_power_integral.register
def _(p: Normal, power: Tensor) -> Tensor:
    log_2pi_variance = math.log(2 * math.pi) + 2 * p.scale.log()
    return ((1 - power) * log_2pi_variance - power.log()) / 2


@log_power_integral.register
def _(p: LogCoshDistribution, power: Tensor) -> Tensor:
    return p.log_integral(power) - power * p.log_integral(torch.ones_like(power))


@log_power_integral.register
def _(p: StudentT, power: Tensor) -> Tensor:
    half = ((p.df + 1) * power - 1) / 2
    log_beta = math.lgamma(0.5) + torch.lgamma(half) - torch.lgamma(half + 0.5)
    return power * p.log_prob(p.loc) + p.scale.log() + 0.5 * p.df.log() + log_beta


@log_power_integral.register
def _(p: Bernoulli, power: Tensor) -> Tensor:
    return torch.logaddexp(power * F.logsigmoid(p.logits), power * F.logsigmoid(-p.logits))


@log_power_integral.register
def _(p: OneHotCategorical, power: Tensor) -> Tensor:
    return (power * p.logits).logsumexp(-1)


def beta_divergence(p: Distribution, x: Tensor, beta: Tensor) -> Tensor:
    """The β-cross-entropy of each sample under p, summed over its columns (Basu et al. 1998).

    For each column -(β+1)/β · (p(x)^β - 1) + ∫ p^(β+1) - 1. As β → 0 it becomes -log p(x); for
    β > 0 a sample that p finds very unlikely counts for no more than a bounded amount.

    Args:
        p: distribution over whole samples, as a likelihood returns it.
        x: (B, …).
        beta: a scalar above 0.

    Returns:
        (B,); in nats in the limit β → 0.
    """
    if isinstance(p, Joint):
        blocks = zip(p.parts, x.split(p.widths, -1), strict=True)
        return torch.stack([beta_divergence(part, block, beta) for part, block in blocks]).sum(0)
    column = p.base_dist if isinstance(p, Independent) else p
    # expm1 keeps the digits that p^β - 1 loses where β is small.
    surprise = -(beta + 1) / beta * torch.expm1(beta * column.log_prob(x))
    volume = torch.expm1(log_power_integral(column, beta + 1))
    return (surprise + volume).reshape(len(x), -1).sum(1)
