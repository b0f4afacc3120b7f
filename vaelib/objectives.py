"""How reconstruction and KL are weighed: each balance a small class that reads like its formula.

An objective is called with a model, a batch x and noise, and returns a dict of what to minimise
(`"loss"`, a scalar) and of what to report beside it. It may own parameters and buffers, but no
other state: training stacks these to run many seeds at once. Like a model it has a training mode,
in which moving averages and schedules go on, and an eval mode: averages stand, schedules are at
their end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

from vaelib.divergences import beta_divergence, imq, mmd
from vaelib.likelihoods import Gaussian
from vaelib.narrowing import Narrowing
from vaelib.objective import Objective, SetsSigma
from vaelib.schedules import Schedule
from vaelib.vae import VAE

__all__ = [
    "ELBO",
    "ComputedGamma",
    "InfoVAE",
    "LearnedGamma",
    "Narrowing",
    "Objective",
    "OptimalSigma",
    "Robust",
]


class ELBO(Objective):
    """-ELBO = E[-log p(x|z)] + β·KL(q(z|x) ‖ p(z)), the mean over the batch, in nats per sample.

    β = 1 is the evidence lower bound (Kingma & Welling 2014, eq. 10), any other β the β-VAE
    (Higgins et al. 2017).

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


class _DecoderVariance(SetsSigma):
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
    """σ learned by gradient descent on its logarithm (Dai & Wipf 2019).

    Their code calls this standard deviation γ, as we do; their paper calls the variance so.
    """

    learns = True

    def __init__(self) -> None:
        super().__init__()
        self.log_gamma = nn.Parameter(torch.zeros(()))

    def log_sigma(self, mse: Tensor) -> Tensor:
        """The parameter, whatever the error."""
        return self.log_gamma


class ComputedGamma(_DecoderVariance):
    """σ² = a moving average of the MSE that can only fall (Asperti & Trentin 2020).

    It starts at 1, the variance of standardised data: data of a larger scale keep it there.

    Args:
        momentum: how much of the average stays at each step.

    Raises:
        ValueError: momentum lies outside [0, 1).
    """

    learns = True
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
    """E[-log p(x|z)] + (1-α)·KL(q(z|x) ‖ p(z)) + (α+λ-1)·MMD(q(z), p(z)) (Zhao et al. 2017).

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
