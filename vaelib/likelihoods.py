"""What the decoder's output means: the distribution p(x | z) that scores a reconstruction."""

from __future__ import annotations

import math

import torch
from torch import Tensor, distributions, nn


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

        It reads x on the host, so `fit` calls it once, at the door, and not in every step.

        Raises:
            ValueError: a value is not finite, or lies outside [lowest, highest].
        """
        bad = ~(torch.isfinite(x) & (x >= self.lowest) & (x <= self.highest))
        if bad.any():
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
