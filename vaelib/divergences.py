"""How far a distribution is from another."""

from __future__ import annotations

import torch
from torch import Tensor


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
