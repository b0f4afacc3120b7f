"""What a likelihood is: the decoder's output in, a distribution over whole samples out."""

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


def whole_sample(distribution: distributions.Distribution) -> distributions.Independent:
    """Sums `log_prob` over every dimension but the first, the batch."""
    n = len(distribution.batch_shape) - 1
    return distributions.Independent(distribution, n, validate_args=False)
