"""An error to be met, and gates that close latents as long as it is."""

from __future__ import annotations

import warnings
from typing import cast

import torch
from torch import Tensor

from vaelib.divergences import gaussian_kl
from vaelib.gates import Gates
from vaelib.geco import Geco
from vaelib.likelihoods import Gaussian
from vaelib.objective import SetsSigma
from vaelib.vae import VAE, Posterior


class Narrowing(SetsSigma):
    """KL subject to SSE ≤ τ, with gates that close latents as long as that holds.

        Σ_j b_j·KL_j + λ·(SSE - τ + push·τ·Σ_j p_j), the push only while SSE ≤ τ,

    for gates b, each 1 with probability p (after De Boom et al. 2020). SSE is
    the squared error summed over a sample, at a drawn z times the drawn b; λ is learned by `Geco`,
    p by DisARM from F = Σ_j b_j·KL_j + λ·SSE of each sample. Theirs is ARM from λ·SSE alone.

    In training, the gates with p > ½ are written into the model as `model.open`, once the error
    has been at τ, and σ² = SSE/D into its likelihood, in whose place λ = 1/2σ² stands meanwhile.
    Then `model.narrowed()` is a VAE without the closed latents. Batch norm would let samples feel
    each other's gates: better build the networks without.

    Args:
        tau: what the squared error may be, summed over a sample. Measure it at a drawn z too.
        push: the price of an open gate, in parts of τ: a gate that spares less error is closed.
            Above 1 it squeezes hard enough that a network spreads its code over fewer latents.
        highest: where λ starts, and what it never exceeds: reconstruct first, pay for it later.
            A λ that starts low lets the KL kill latents before they have learned anything. D/2τ
            is that of a decoder whose σ² is τ/D.
        gates: with bounds, speed or estimator of one's own, one a latent.

    Attributes:
        gates: made for the model at the start of the first run, where not given.
        geco: holds λ, the error's moving average, and the best that ever was.

    Raises:
        ValueError: tau, push or highest is not positive.
    """

    learns, comparable = True, False
    push: Tensor
    gates: Gates | None

    def __init__(
        self, tau: float, push: float = 1.0, highest: float = 50.0, gates: Gates | None = None
    ) -> None:
        super().__init__()
        if not push > 0:
            raise ValueError(f"push must be positive, got {push}; without it no gate closes")
        self.register_buffer("push", torch.tensor(float(push)))
        self.geco = Geco(tau, start=highest, highest=highest)
        self.gates = gates

    def begin(self, model: VAE, steps: int) -> None:
        """Refuses a model that won't do, and makes a gate for each of its latents.

        Raises:
            ValueError: the likelihood is not a Gaussian with a single σ that is not learned, or
                there are gates already, for another number of latents.
        """
        super().begin(model, steps)
        if self.gates is None:
            self.gates = Gates(model.n_latents).to(next(model.parameters()))
        if len(self.gates.phi) != model.n_latents:
            raise ValueError(
                f"Narrowing has {len(self.gates.phi)} gates, the model {model.n_latents} latents; "
                "make a Narrowing for each model"
            )

    def noise(
        self, model: VAE, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """eps (n, d), and uniform u (n, d) for the gates."""
        eps = model.noise(n, generator)
        u = torch.rand(eps.shape, generator=generator, dtype=eps.dtype, device=eps.device)
        return eps, u

    def forward(
        self, model: VAE, x: Tensor, eps: Tensor | None = None, u: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns loss, error (SSE) and lam, scalars, kl and p, (d,), for x (B, …), u (B, d)."""
        if self.gates is None:
            raise RuntimeError("no gates yet; call begin(model, steps) first, as fit does")
        gates, lam = self.gates, self.geco.lam
        q = Posterior(*model.encoder(x))  # of all latents; model.encode knows the open ones alone
        z = model.reparameterize(q, eps)
        kl = gaussian_kl(q.mu, q.logvar)

        def terms(b: Tensor) -> tuple[Tensor, Tensor]:
            x_hat = model.likelihood(model.decoder(z * b)).mean
            return (x - x_hat).square().flatten(1).sum(1), (kl * b).sum(-1)

        u = self.noise(model, len(x))[1] if u is None else u
        drawn, antithetic = gates.draw(u)
        sse, masked_kl = terms(drawn)
        with torch.no_grad():
            other_sse, other_kl = terms(antithetic)
        loss = masked_kl.mean() + self.geco(sse)
        loss = loss + gates.surrogate(lam * sse + masked_kl, lam * other_sse + other_kl, u)
        p, price = gates.probabilities, lam * self.geco.tau * self.push
        loss = loss + self.geco.met * price * p.sum()
        if self.training:
            self._write(model, gates.open, x[0].numel())
        return {
            "loss": loss,
            "error": sse.mean(),
            "kl": (kl * drawn).mean(0),
            "lam": lam,
            "p": p,
        }

    def _write(self, model: VAE, opened: Tensor, n_features: int) -> None:
        """Hands the model the gates, all open until the error was at τ once, and σ² = SSE/D."""
        model.open.copy_(opened | (self.geco.best > self.geco.tau))
        sigma2 = self.geco.error / n_features
        cast(Gaussian, model.likelihood).log_sigma.copy_(0.5 * sigma2.log())

    def end(self, model: VAE) -> None:
        """Warns where the error was never at τ, or all gates are closed."""
        geco = self.geco
        if geco.best > geco.tau:
            warnings.warn(
                f"the error never came down to tau = {geco.tau:.4g}, its lowest average was "
                f"{geco.best:.4g}, so nothing was closed; allow more, train longer, or take a "
                "larger network",
                stacklevel=2,
            )
        elif not model.open.any():
            warnings.warn(
                f"all gates are closed: tau = {geco.tau:.4g} is met by the data's mean alone; "
                "allow less",
                stacklevel=2,
            )
