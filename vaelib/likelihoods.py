"""What the decoder's output means: the distribution p(x | z) that scores a reconstruction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, distributions, nn
from torch.nn import functional as F


class Likelihood(nn.Module):
    """Turns the decoder's output into a distribution over whole samples.

    `likelihood(decoded).log_prob(x)` is (B,): summed over features, in nats per sample.
    A subclass says by `lowest` and `highest` which values it can score.
    """

    lowest = -math.inf
    highest = math.inf
    remedy = "drop or impute such values first"

    def check(self, x: Tensor) -> None:
        """Refuses data that this likelihood cannot score.

        It waits for the device, so `fit` calls it once, at the door, and not in every step.

        Raises:
            ValueError: a value is not finite, or lies outside [lowest, highest].
        """
        # One pass without a mask of all values, which may be gigabytes; NaN comes through.
        low, high = torch.stack(x.aminmax()).tolist() if x.numel() else (0.0, 0.0)
        if math.isfinite(low + high) and self.lowest <= low and high <= self.highest:
            return
        bad = ~(torch.isfinite(x) & (x >= self.lowest) & (x <= self.highest))
        where = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"x{list(where)} is {x[where].item():.4g} (and {int(bad.sum()) - 1} more values), "
            f"outside what {type(self).__name__} can score: "
            f"finite numbers in [{self.lowest:g}, {self.highest:g}]; {self.remedy}"
        )


def _whole_sample(distribution: distributions.Distribution) -> distributions.Independent:
    """Sums `log_prob` over every dimension but the first, the batch."""
    n = len(distribution.batch_shape) - 1
    return distributions.Independent(distribution, n, validate_args=False)


class Gaussian(Likelihood):
    """x ~ N(decoded, σ²): a squared error whose weight is stated.

    -log p(x|z) = SSE / 2σ² + D·log σ + (D/2)·log 2π, so σ² is the weight of the KL against half
    the summed squared error (the book's β_eff).

    Args:
        sigma: standard deviation, in the units of x: a number for one σ, or a tensor (D,) for
            one σ per feature.
        learn: train σ (through its logarithm) with the rest of the model.

    Raises:
        ValueError: sigma is not positive.
    """

    log_sigma: Tensor

    def __init__(self, sigma: float | Tensor = 1.0, learn: bool = False) -> None:
        super().__init__()
        sigma = torch.as_tensor(sigma, dtype=torch.get_default_dtype()).clone()
        if not (sigma > 0).all():
            raise ValueError(f"sigma must be positive, got {sigma.tolist()}")
        if learn:
            self.log_sigma = nn.Parameter(sigma.log())
        else:
            self.register_buffer("log_sigma", sigma.log())

    @property
    def sigma(self) -> Tensor:
        """The standard deviation: a scalar, or (D,)."""
        return self.log_sigma.exp()

    def forward(self, decoded: Tensor) -> distributions.Independent:
        """Returns N(decoded, σ²) for decoded (B, …)."""
        return _whole_sample(distributions.Normal(decoded, self.sigma, validate_args=False))


class Bernoulli(Likelihood):
    """x ~ Bernoulli(sigmoid(decoded)): binary cross-entropy, for values that are 0 or 1.

    Grey values strictly between are let in, as is customary for images, but then this is no
    longer a normalised density (Loaiza-Ganem & Cunningham 2019). Anything else is refused.
    """

    lowest = 0.0
    highest = 1.0
    remedy = "use Gaussian for real-valued data, or rescale grey values"

    def forward(self, decoded: Tensor) -> distributions.Independent:
        """Returns Bernoulli(logits=decoded) for decoded (B, …)."""
        return _whole_sample(distributions.Bernoulli(logits=decoded, validate_args=False))


class Categorical(Likelihood):
    """x ~ OneHotCategorical(softmax(decoded)): one column of a table, in one-hot code.

    The decoder has an output for each class; x (B, K) has a 1 at the class and 0 elsewhere.
    """

    lowest = 0.0
    highest = 1.0
    remedy = "pass one-hot code, as sklearn's OneHotEncoder makes it"

    def check(self, x: Tensor) -> None:
        """Refuses what is not one-hot code.

        Raises:
            ValueError: a row of x does not have exactly one 1 and 0 elsewhere.
        """
        super().check(x)
        bad = ((x == 1).sum(-1) != 1) | ((x != 0).sum(-1) != 1)
        if bad.any():
            row = int(bad.nonzero()[0])
            raise ValueError(
                f"row {row} of x is {x[row].tolist()}, not a single 1 among zeros; {self.remedy}"
            )

    def forward(self, decoded: Tensor) -> distributions.OneHotCategorical:
        """Returns OneHotCategorical(logits=decoded) for decoded (B, K)."""
        return distributions.OneHotCategorical(logits=decoded, validate_args=False)


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


class LogCosh(Likelihood):
    """A squared error for small residuals, an absolute one for large (Chen et al. 2018).

    -log p(x|z) = Σ log cosh(a·(x - decoded)) / a + D·log of the normaliser, which makes it a
    density. Near 0 it is a Gaussian with σ² = 1/a, far out a Laplace with scale 1.

    Args:
        a: where the one turns into the other: at residuals of about 1/a, in the units of x.

    Raises:
        ValueError: a is not positive.
    """

    a: Tensor

    def __init__(self, a: float = 1.0) -> None:
        super().__init__()
        if not a > 0:
            raise ValueError(f"a must be positive, got {a}; 1 is customary")
        self.register_buffer("a", torch.tensor(float(a)))

    def forward(self, decoded: Tensor) -> distributions.Independent:
        """Returns the log-cosh density around decoded (B, …)."""
        return _whole_sample(LogCoshDistribution(decoded, self.a))


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


class Mixed(Likelihood):
    """A table with columns of different kinds: each kind with a likelihood of its own.

    `Mixed((Gaussian(), 5), (Bernoulli(), 2), (Categorical(), 3))` is for rows of five numbers, two
    bits and the one-hot code of three classes, in this order.

    Args:
        parts: a likelihood and its number of columns, from left to right.

    Raises:
        ValueError: there are no parts, or one has no columns.
    """

    def __init__(self, *parts: tuple[Likelihood, int]) -> None:
        super().__init__()
        if not parts or min(width for _, width in parts) < 1:
            raise ValueError(
                f"widths are {[width for _, width in parts]}; give each part at least one column, "
                "as in Mixed((Gaussian(), 5), (Bernoulli(), 2))"
            )
        self.parts = nn.ModuleList(likelihood for likelihood, _ in parts)
        self.widths = [width for _, width in parts]

    def check(self, x: Tensor) -> None:
        """Refuses data that one of the parts cannot score.

        Raises:
            ValueError: as the parts do, or x has another width than all of them together.
        """
        if x.shape[-1] != sum(self.widths):
            raise ValueError(
                f"x has {x.shape[-1]} columns, the parts of Mixed have {self.widths}, together "
                f"{sum(self.widths)}; change the parts' widths"
            )
        start = 0
        for part, width in zip(self.parts, self.widths, strict=True):
            try:
                part.check(x[..., start : start + width])  # type: ignore[operator]
            except ValueError as error:
                raise ValueError(
                    f"in columns {start} to {start + width - 1} of x: {error}"
                ) from error
            start += width

    def forward(self, decoded: Tensor) -> Joint:
        """Returns the joint distribution for decoded (B, sum of widths)."""
        blocks = decoded.split(self.widths, -1)
        parts = [part(block) for part, block in zip(self.parts, blocks, strict=True)]
        return Joint(parts, self.widths)
