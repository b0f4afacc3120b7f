"""How reconstruction and KL are weighed: each balance a small class that reads like its formula.

An objective is called with a model, a batch x and noise, and returns a dict of what to minimise
(`"loss"`, a scalar) and of what to report beside it. It may own parameters and buffers, but no
other state: training stacks these to run many seeds at once. Like a model it has a training mode,
in which moving averages and schedules go on, and an eval mode, in which they stand.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

from vaelib.divergences import beta_divergence, gaussian_kl, imq, mmd
from vaelib.gates import Gates
from vaelib.geco import Geco
from vaelib.likelihoods import Gaussian
from vaelib.schedules import Schedule
from vaelib.vae import VAE, Posterior


class Objective(nn.Module):
    """Base of all objectives: says which noise a step needs, so that it can be handed in."""

    def begin(self, model: VAE, steps: int) -> None:
        """Called by `fit` at the start of a run of so many steps; refuses a model that won't do."""

    def end(self, model: VAE) -> None:
        """Called by `fit` at the end of a run, to say what did not come about."""

    def noise(
        self, model: VAE, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """The noise for a batch of n samples, as `forward` takes it after x; first eps (n, d)."""
        return (model.noise(n, generator),)


class ELBO(Objective):
    """-ELBO = E[-log p(x|z)] + β·KL(q(z|x) ‖ p(z)), the mean over the batch, in nats per sample.

    β = 1 is the evidence lower bound (Kingma & Welling 2014, eq. 10), any other β the β-VAE
    (Higgins et al. 2017, eq. 4).

    Args:
        beta: weight of the KL.
        schedule: what takes the KL's place as the run goes on, from `vaelib.schedules`.

    Raises:
        ValueError: beta is negative.
    """

    beta: Tensor

    def __init__(self, beta: float = 1.0, schedule: Schedule | None = None) -> None:
        super().__init__()
        if not beta >= 0:
            raise ValueError(f"beta must be 0 or more, got {beta}; 1 gives the ELBO")
        self.register_buffer("beta", torch.tensor(float(beta)))
        self.schedule = Schedule() if schedule is None else schedule

    def begin(self, model: VAE, steps: int) -> None:
        """Starts the schedule."""
        self.schedule.begin(steps)

    def forward(self, model: VAE, x: Tensor, eps: Tensor | None = None) -> dict[str, Tensor]:
        """Returns loss and reconstruction, scalars, and kl, (d,), for x (B, …), eps (B, d)."""
        terms = model(x, eps)
        reconstruction = terms.reconstruction.mean()
        kl = terms.kl.mean(0)
        loss = reconstruction + self.beta * self.schedule(kl)
        return {"loss": loss, "reconstruction": reconstruction, "kl": kl}


class _SetsSigma(Objective):
    """An objective that chooses the σ of the model's Gaussian and writes it there in training."""

    def begin(self, model: VAE, steps: int) -> None:
        """Refuses a model whose σ is not one number that is free to be set.

        Raises:
            ValueError: the likelihood is not a Gaussian with a single σ that is not learned.
        """
        likelihood = model.likelihood
        if not isinstance(likelihood, Gaussian) or likelihood.log_sigma.ndim:
            raise ValueError(
                f"{type(self).__name__} sets the one σ of a Gaussian, the model has "
                f"{likelihood}; build it with likelihoods.Gaussian(), or train it with ELBO"
            )
        if isinstance(likelihood.log_sigma, nn.Parameter):
            raise ValueError(
                f"{type(self).__name__} sets σ, but Gaussian(learn=True) learns it too; "
                "use Gaussian(), or ELBO with the likelihood as it is"
            )


class _DecoderVariance(_SetsSigma):
    """-ELBO with a Gaussian decoder whose σ the objective chooses, from the batch's squared error.

    (D/2)·log 2πσ² + SSE/2σ² + KL is least at σ² = MSE, so β_eff = σ². In training σ is written
    into the model's likelihood, which so is the trained decoder's own afterwards.
    """

    def log_sigma(self, mse: Tensor) -> Tensor:
        """log σ to use for a batch with this mean squared error, both scalars."""
        raise NotImplementedError

    def forward(self, model: VAE, x: Tensor, eps: Tensor | None = None) -> dict[str, Tensor]:
        """Returns loss, reconstruction and sigma, scalars, and kl, (d,), for x (B, …)."""
        terms = model(x, eps)
        likelihood = cast(Gaussian, model.likelihood)
        sigma = likelihood.sigma
        if self.training:
            log_sigma = self.log_sigma((x - terms.p.mean).square().mean())
            likelihood.log_sigma.copy_(log_sigma.detach())
            sigma = log_sigma.exp()
        log_prob = Normal(terms.p.mean, sigma, validate_args=False).log_prob(x)
        reconstruction = -log_prob.flatten(1).sum(1).mean()
        kl = terms.kl.mean(0)
        loss = reconstruction + kl.sum()
        return {"loss": loss, "reconstruction": reconstruction, "kl": kl, "sigma": sigma}


class LearnedGamma(_DecoderVariance):
    """σ learned by gradient descent on its logarithm (Dai & Wipf 2019, sec. 3).

    Their code calls this standard deviation γ, as we do; their paper calls the variance so.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_gamma = nn.Parameter(torch.zeros(()))

    def log_sigma(self, mse: Tensor) -> Tensor:
        """The parameter, whatever the error."""
        return self.log_gamma


class ComputedGamma(_DecoderVariance):
    """σ² = a moving average of the MSE that can only fall (Asperti & Trentin 2020, sec. 4).

    It starts at 1, the variance of standardised data: data of a larger scale keep it there.

    Args:
        momentum: how much of the average stays at each step.

    Raises:
        ValueError: momentum lies outside [0, 1).
    """

    mse: Tensor

    def __init__(self, momentum: float = 0.99) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}, but must lie in [0, 1), such as 0.99")
        self.momentum = momentum
        self.register_buffer("mse", torch.ones(()))

    def log_sigma(self, mse: Tensor) -> Tensor:
        """Half the logarithm of the average, which takes this error in."""
        average = self.momentum * self.mse + (1 - self.momentum) * mse.detach()
        self.mse.copy_(torch.minimum(self.mse, average))
        return 0.5 * self.mse.log()


class OptimalSigma(_DecoderVariance):
    """σ² = the batch's own MSE, the best there is for it (Rybkin et al. 2021, eq. 5).

    Args:
        lowest: log σ is kept above this, softly, lest it falls without end on data without noise.
    """

    def __init__(self, lowest: float = -6.0) -> None:
        super().__init__()
        self.lowest = lowest

    def log_sigma(self, mse: Tensor) -> Tensor:
        """Half the logarithm of this error."""
        # log, not log of sqrt, whose gradient is singular where the error is zero.
        log_sigma = 0.5 * torch.log(mse + 1e-12)
        return self.lowest + F.softplus(log_sigma - self.lowest)


class InfoVAE(Objective):
    """E[-log p(x|z)] + (1-α)·KL(q(z|x) ‖ p(z)) + (α+λ-1)·MMD(q(z), p(z)) (Zhao et al. 2019, eq. 6).

    α = 0, λ = 1 is the ELBO. α = 1 drops the KL, which holds each posterior to the prior, and
    with it the price of information; the MMD holds only all posteriors together.

    Args:
        alpha: weight of the mutual information of x and z, at most 1.
        lam: weight of the mismatch of q(z) and p(z); α+λ-1 must not be negative.
        unbiased: which estimate of the MMD, see `divergences.mmd`.
        kernel: of the MMD, `divergences.imq` or `divergences.rbf`.

    Raises:
        ValueError: one of the two weights is negative.
    """

    alpha: Tensor
    lam: Tensor

    def __init__(
        self,
        alpha: float,
        lam: float,
        unbiased: bool = True,
        kernel: Callable[[Tensor, Tensor], Tensor] = imq,
    ) -> None:
        super().__init__()
        if not alpha <= 1:
            raise ValueError(
                f"alpha is {alpha}, so the KL's weight 1-alpha is {1 - alpha:g}; "
                "give alpha of at most 1, lest posteriors are rewarded for leaving the prior"
            )
        if not alpha + lam - 1 >= 0:
            raise ValueError(
                f"alpha is {alpha} and lam {lam}, so the MMD's weight alpha+lam-1 is "
                f"{alpha + lam - 1:g}, which rewards mismatch; give lam of at least {1 - alpha:g}"
            )
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.register_buffer("lam", torch.tensor(float(lam)))
        self.unbiased, self.kernel = unbiased, kernel

    def noise(
        self, model: VAE, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """eps (n, d), and n draws from the prior to hold q(z) against."""
        return model.noise(n, generator), model.noise(n, generator)

    def forward(
        self, model: VAE, x: Tensor, eps: Tensor | None = None, prior: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns loss, reconstruction and mmd, scalars, and kl, (d,); prior is (B, d)."""
        terms = model(x, eps)
        prior = model.noise(len(x)) if prior is None else prior
        reconstruction = terms.reconstruction.mean()
        kl = terms.kl.mean(0)
        mismatch = mmd(terms.z, prior, self.unbiased, self.kernel)
        loss = reconstruction + (1 - self.alpha) * kl.sum()
        loss = loss + (self.alpha + self.lam - 1) * mismatch
        return {"loss": loss, "reconstruction": reconstruction, "kl": kl, "mmd": mismatch}


class Robust(Objective):
    """β-divergence in place of -log p(x|z), so that outliers lose their pull (Akrami et al. 2022).

    Applied to each column by itself (Akrami et al. 2020), with the term ∫p^(β+1) that their
    Gaussian case leaves out; without it a learned σ would not find the data's.

    Args:
        beta: 0 < β; the larger, the less an outlier counts, and the more noise clean data bring.

    Raises:
        ValueError: beta is not positive.
    """

    beta: Tensor

    def __init__(self, beta: float) -> None:
        super().__init__()
        if not beta > 0:
            raise ValueError(f"beta must be positive, got {beta}; the limit 0 is objectives.ELBO()")
        self.register_buffer("beta", torch.tensor(float(beta)))

    def forward(self, model: VAE, x: Tensor, eps: Tensor | None = None) -> dict[str, Tensor]:
        """Returns loss and reconstruction, scalars, and kl, (d,), for x (B, …), eps (B, d)."""
        terms = model(x, eps)
        reconstruction = beta_divergence(terms.p, x, self.beta).mean()
        kl = terms.kl.mean(0)
        loss = reconstruction + kl.sum()
        return {"loss": loss, "reconstruction": reconstruction, "kl": kl}


class Narrowing(_SetsSigma):
    """KL subject to SSE ≤ τ, with gates that close latents as long as that holds.

        Σ_j b_j·KL_j + λ·(SSE - τ + push·τ·Σ_j p_j), the push only while SSE ≤ τ,

    for gates b, each 1 with probability p (De Boom et al. 2020, after whose algorithm 1). SSE is
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
