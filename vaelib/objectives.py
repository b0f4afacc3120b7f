"""How reconstruction and KL are weighed: each balance a small class that reads like its formula.

An objective is called with a model, a batch x and noise, and returns a dict of what to minimise
(`"loss"`, a scalar) and of what to report beside it. It may own parameters and buffers, but no
other state: training stacks these to run many seeds at once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vaelib.vae import VAE


class Objective(nn.Module):
    """Base of all objectives: says which noise a step needs, so that it can be handed in."""

    def noise(
        self, model: VAE, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """The noise for a batch of n samples, as `forward` takes it after x."""
        return (model.noise(n, generator),)


class ELBO(Objective):
    """-ELBO = E[-log p(x|z)] + β·KL(q(z|x) ‖ p(z)), the mean over the batch, in nats per sample.

    β = 1 is the evidence lower bound (Kingma & Welling 2014, eq. 10), any other β the β-VAE
    (Higgins et al. 2017, eq. 4).

    Args:
        beta: weight of the KL.

    Raises:
        ValueError: beta is negative.
    """

    beta: Tensor

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        if not beta >= 0:
            raise ValueError(f"beta must be 0 or more, got {beta}; 1 gives the ELBO")
        self.register_buffer("beta", torch.tensor(float(beta)))

    def forward(self, model: VAE, x: Tensor, eps: Tensor | None = None) -> dict[str, Tensor]:
        """Returns loss and reconstruction, scalars, and kl, (d,), for x (B, …), eps (B, d)."""
        terms = model(x, eps)
        reconstruction = terms.reconstruction.mean()
        kl = terms.kl.mean(0)
        loss = reconstruction + self.beta * kl.sum()
        return {"loss": loss, "reconstruction": reconstruction, "kl": kl}
