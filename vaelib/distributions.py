"""Distributions that torch has not: log-cosh, several side by side, others without a wait."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, distributions
from torch.distributions.utils import broadcast_all
from torch.nn import functional as F


class LogCoshDistribution(distributions.Distribution):
    """Density proportional to exp(-log cosh(a·(x - loc)) / a), elementwise.

    It is 2a·(x - loc) = logit(u) for u ~ Beta(1/2a, 1/2a), which gives the normaliser and samples.

    Args:
        loc: mean, mode and median, any shape.
        a: a scalar above 0.
    """

    arg_constraints: ClassVar = {}

    def __init__(self, loc: Tensor, a: Tensor) -> None:
        super().__init__(loc.shape, validate_args=False)
        self.loc, self.a = loc, a

    @property
    def mean(self) -> Tensor:
        """The mean, which is loc."""
        return self.loc

    @property
    def mode(self) -> Tensor:
        """The mode, which is loc."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The variance: (1/2a²)·ψ'(1/2a), since 2a·(x - loc) is the logit of a Beta(1/2a, 1/2a)."""
        a = self.a.expand(self.loc.shape)
        return torch.polygamma(1, 1 / (2 * a)) / (2 * a.square())

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats, of each element."""
        t = (self.a * (value - self.loc)).abs()
        # log cosh without cosh, which overflows.
        log_cosh = t + F.softplus(-2 * t) - math.log(2)
        return -log_cosh / self.a - self.log_integral(torch.ones_like(self.a))

    def log_integral(self, power: Tensor) -> Tensor:
        """log ∫ exp(-power·log cosh(a·t) / a) dt, a scalar: with power 1 the normaliser."""
        half = power / (2 * self.a)
        log_beta = math.lgamma(0.5) + torch.lgamma(half) - torch.lgamma(half + 0.5)
        return log_beta - self.a.log()

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws (*sample_shape, *loc.shape)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        # logit(u) is the log-ratio of two Gamma(1/2a), which underflow where a is large. Writing
        # each as Gamma(1/2a + 1)·U^2a leaves a Laplace with scale 1, and finite draws, for any a.
        gamma = distributions.Gamma(1 + 1 / (2 * self.a), torch.ones_like(self.a))
        log_gammas = gamma.sample(torch.Size((2, *shape))).log()
        laplace = distributions.Laplace(self.loc.new_zeros(shape), 1.0).sample()
        return self.loc + laplace + (log_gammas[0] - log_gammas[1]) / (2 * self.a)


class OneHot(distributions.OneHotCategorical):
    """One class of K for each sample, in one-hot code.

    torch's own checks its numbers in every step, whatever `validate_args` says, and so waits for
    the device each time.

    Args:
        logits: of the classes, (B, K).
    """

    def __init__(self, logits: Tensor) -> None:
        self._categorical = distributions.Categorical(logits=logits, validate_args=False)
        shapes = self._categorical.batch_shape, logits.shape[-1:]
        distributions.Distribution.__init__(self, *shapes, validate_args=False)


class HeavyTailed(distributions.StudentT):
    """Student's t, elementwise; torch's own waits for the device in every step.

    It checks df, and makes the distribution that it needs to draw samples, whose ½ is a number.

    Args:
        df: degrees of freedom, a scalar.
        loc: mean, mode and median, any shape.
        scale: of that shape, or one that fits it.
    """

    def __init__(self, df: Tensor, loc: Tensor, scale: Tensor) -> None:
        self.df, self.loc, self.scale = broadcast_all(df, loc, scale)
        distributions.Distribution.__init__(self, self.df.shape, validate_args=False)

    @property
    def _chi2(self) -> distributions.Chi2:  # type: ignore[override]
        return distributions.Chi2(self.df, validate_args=False)


class Joint(distributions.Distribution):
    """Independent distributions over neighbouring columns of one table.

    Args:
        parts: distributions over whole samples, each of its own columns.
        widths: how many columns each takes.
    """

    arg_constraints: ClassVar = {}

    def __init__(self, parts: Sequence[distributions.Distribution], widths: Sequence[int]) -> None:
        super().__init__(parts[0].batch_shape, torch.Size([sum(widths)]), validate_args=False)
        self.parts, self.widths = parts, widths

    @property
    def mean(self) -> Tensor:
        """The parts' means side by side, (B, sum of widths); of a class its probability."""
        return torch.cat([part.mean for part in self.parts], -1)

    @property
    def mode(self) -> Tensor:
        """The parts' modes side by side: of a class its one-hot code."""
        return torch.cat([part.mode for part in self.parts], -1)

    @property
    def variance(self) -> Tensor:
        """The parts' variances side by side, (B, sum of widths)."""
        return torch.cat([part.variance for part in self.parts], -1)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether gradients reach the parameters through a sample."""
        return all(part.has_rsample for part in self.parts)

    def log_prob(self, value: Tensor) -> Tensor:
        """The sum over the parts, (B,), in nats."""
        log_probs = [
            part.log_prob(columns)
            for part, columns in zip(self.parts, value.split(self.widths, -1), strict=True)
        ]
        return torch.stack(log_probs).sum(0)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws (*sample_shape, B, sum of widths)."""
        return torch.cat([part.sample(torch.Size(sample_shape)) for part in self.parts], -1)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Like `sample`, with gradients.

        Raises:
            NotImplementedError: one of the parts is discrete, and so has none.
        """
        for part in self.parts:
            if not part.has_rsample:
                kind = type(getattr(part, "base_dist", part)).__name__
                raise NotImplementedError(
                    f"no gradient leads through a sample of {kind}; use sample(), or the mean"
                )
        return torch.cat([part.rsample(torch.Size(sample_shape)) for part in self.parts], -1)
