"""What the decoder's output means: the distribution p(x | z) that scores a reconstruction."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, distributions, nn
from torch.nn import functional as F

from vaelib.distributions import HeavyTailed, Joint, LogCoshDistribution, OneHot
from vaelib.door import as_tensor
from vaelib.settings import Remembers


class Likelihood(Remembers, nn.Module):
    """Turns the decoder's output into a distribution over whole samples.

    `likelihood(decoded).log_prob(x)` is (B,): summed over features, in nats per sample. A subclass
    says by `lowest` and `highest` which values it can score.
    """

    lowest = -math.inf
    highest = math.inf
    remedy = "drop or impute such values first"

    def check(self, x: Any) -> None:
        """Refuses data that this likelihood cannot score.

        It waits for the device, so `fit` calls it once. x is (N, …): what `door.as_tensor` takes.

        Raises:
            ValueError: a value is not finite, or lies outside [lowest, highest].
        """
        x = as_tensor(x, bytes_stay=True)
        # One pass without a mask of all values, which may be gigabytes; NaN comes through.
        low, high = torch.stack(x.aminmax()).tolist()
        if math.isfinite(low + high) and self.lowest <= low and high <= self.highest:
            return
        bad = ~(torch.isfinite(x) & (x >= self.lowest) & (x <= self.highest))
        where = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"x{list(where)} is {x[where].item():.4g} (and {int(bad.sum()) - 1} more values), "
            f"outside what {type(self).__name__} can score: "
            f"finite numbers in [{self.lowest:g}, {self.highest:g}]; {self.remedy}"
        )

    def remark(self, x: Tensor) -> str | None:
        """What looks odd about x beside this likelihood as it is now, in words, or None."""
        return None


def _whole_sample(distribution: distributions.Distribution) -> distributions.Independent:
    """Sums `log_prob` over every dimension but the first, the batch."""
    n = len(distribution.batch_shape) - 1
    return distributions.Independent(distribution, n, validate_args=False)


class _Scaled(Likelihood):
    """Noise of a size σ that is set, or learned through its logarithm."""

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
        """The noise's scale, a Gaussian's standard deviation: a scalar, or (D,)."""
        return self.log_sigma.exp()

    def remark(self, x: Tensor) -> str | None:
        """Says where σ is 1, as it comes, and the columns vary by far more or less than that."""
        variance = x[:10_000].to(self.log_sigma.dtype).var(0, correction=0).mean().item()
        if self.log_sigma.any() or 1e-3 < variance < 1e2:
            return None
        return (
            f"σ is 1, while the columns of x have a standard deviation of {variance**0.5:.3g}: at "
            f"that scale the KL counts for {'nothing' if variance > 1 else 'all'}; standardise x, "
            f"or give {type(self).__name__} the sigma that you mean"
        )


class Gaussian(_Scaled):
    """x ~ N(decoded, σ²): a squared error whose weight is stated.

    -log p(x|z) = SSE / 2σ² + D·log σ + (D/2)·log 2π, so σ² is the weight of the KL against half
    the summed squared error (the book's β_eff).

    Args:
        sigma: standard deviation, in the units of x: one number, or (D,) with one per feature.
        learn: train σ (through its logarithm) with the rest of the model.

    Raises:
        ValueError: sigma is not positive.
    """

    def forward(self, decoded: Tensor) -> distributions.Independent:
        """Returns N(decoded, σ²) for decoded (B, …)."""
        return _whole_sample(distributions.Normal(decoded, self.sigma, validate_args=False))


class StudentT(_Scaled):
    """x ~ decoded + σ·t, with t from Student's distribution: like a Gaussian, but for heavy tails.

    A residual far beyond σ costs about (df + 1) times the logarithm of its size, where a Gaussian
    charges half its square. So a few outliers hardly move σ. The variance is σ²·df / (df - 2).

    Args:
        sigma, learn: as with Gaussian; σ is the scale.
        df: degrees of freedom; the fewer, the heavier the tails.

    Raises:
        ValueError: sigma is not positive, or df is not above 2, where there is no variance.
    """

    def __init__(self, sigma: float | Tensor = 1.0, learn: bool = False, df: float = 4.0) -> None:
        super().__init__(sigma, learn)
        if not df > 2:
            raise ValueError(f"df is {df}, but there is a variance only above 2; 4 is customary")
        self.df = df

    def forward(self, decoded: Tensor) -> distributions.Independent:
        """Returns Student's t of scale σ around decoded (B, …)."""
        df = decoded.new_full((), self.df)  # made there: a number would be copied, and waited for
        return _whole_sample(HeavyTailed(df, decoded, self.sigma))


class VaryingSigma(Likelihood):
    """x ~ N(mean, σ²) where the decoder says both: σ differs by feature and with z.

    The decoder needs two outputs a feature, first all means. Replace its last layer:
    `decoder.output = nn.Linear(decoder.output.in_features, 2 * n_features)`.

    Args:
        floor: σ stays above this, in units of x. A σ that falls to 0 around one row would make the
            likelihood infinite (Mattei & Frellsen 2018).

    Raises:
        ValueError: floor is not positive; or, in `forward`, the number of outputs is odd.
    """

    def __init__(self, floor: float = 0.05) -> None:
        super().__init__()
        if not floor > 0:
            raise ValueError(f"floor must be positive, got {floor}; 0.05 suits standardised x")
        self.floor = floor

    def forward(self, decoded: Tensor) -> distributions.Independent:
        """Returns N(mean, σ²) for decoded (B, 2·D): the means, then what σ is made from."""
        if decoded.shape[-1] % 2:
            raise ValueError(
                f"the decoder has {decoded.shape[-1]} outputs, VaryingSigma needs two a feature: "
                "decoder.output = nn.Linear(decoder.output.in_features, 2 * n_features)"
            )
        mean, raw = decoded.chunk(2, -1)
        sigma = self.floor + F.softplus(raw)
        return _whole_sample(distributions.Normal(mean, sigma, validate_args=False))


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
    remedy = (
        "each row needs one of the classes: scikit-learn's OneHotEncoder gives that with drop=None "
        "and handle_unknown='error'"
    )

    def check(self, x: Any) -> None:
        """Refuses what is not one-hot code.

        Raises:
            ValueError: a row of x does not have exactly one 1 and 0 elsewhere.
        """
        x = as_tensor(x, bytes_stay=True)
        super().check(x)
        bad = ((x == 1).sum(-1) != 1) | ((x != 0).sum(-1) != 1)
        if bad.any():
            row = int(bad.nonzero()[0])
            found = str(x[row].tolist())[:60]  # there may be thousands of classes
            raise ValueError(
                f"row {row} of x is {found}, not a single 1 among zeros; {self.remedy}"
            )

    def forward(self, decoded: Tensor) -> distributions.OneHotCategorical:
        """Returns OneHotCategorical(logits=decoded) for decoded (B, K)."""
        return OneHot(decoded)


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

    def check(self, x: Any) -> None:
        """Refuses data that one of the parts cannot score.

        Raises:
            ValueError: as the parts do, or x has another width than all of them together.
        """
        x = as_tensor(x, bytes_stay=True)
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

    def remark(self, x: Tensor) -> str | None:
        """What one of the parts has to say of its columns."""
        blocks = x.split(self.widths, -1)
        found = [part.remark(block) for part, block in zip(self.parts, blocks, strict=True)]  # type: ignore[operator]
        return next(filter(None, found), None)

    def forward(self, decoded: Tensor) -> Joint:
        """Returns the joint distribution for decoded (B, sum of widths)."""
        blocks = decoded.split(self.widths, -1)
        parts = [part(block) for part, block in zip(self.parts, blocks, strict=True)]
        return Joint(parts, self.widths)
