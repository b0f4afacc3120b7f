"""The variational autoencoder: encode to a normal, reparameterize, decode to a likelihood."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal

from vaelib.divergences import gaussian_kl
from vaelib.door import as_tensor
from vaelib.likelihoods import Gaussian, Likelihood
from vaelib.networks import refuse_shape
from vaelib.settings import short


class Posterior(Normal):
    """q(z|x) = N(mu, exp(logvar)), independent for each latent; mu and logvar are (B, d)."""

    def __init__(self, mu: Tensor, logvar: Tensor) -> None:
        super().__init__(mu, torch.exp(0.5 * logvar), validate_args=False)
        self.mu = mu
        self.logvar = logvar


@dataclass(frozen=True)
class Terms:
    """What one pass of a VAE over a batch yields, per sample, for an objective to reduce.

    Attributes:
        reconstruction: -log p(x|z), (B,), in nats, constants included.
        kl: KL(q(z|x) ‖ p(z)) of each latent, (B, d), in nats.
        q: the posterior q(z|x).
        z: the sample drawn from it, (B, d).
        p: the likelihood p(x|z) at that sample.
    """

    reconstruction: Tensor
    kl: Tensor
    q: Posterior
    z: Tensor
    p: Distribution


class VAE(nn.Module):
    """A variational autoencoder with a standard normal prior (Kingma & Welling 2014).

    Args:
        encoder: x → (mu, logvar), each (B, d); has an attribute `n_latents`.
        decoder: z (B, d) → the likelihood's parameters.
        likelihood: what these parameters mean. Gaussian with σ = 1 unless said otherwise.

    Attributes:
        open: 1 for each latent in use, 0 for each that `objectives.Narrowing` closed, (d,). The
            posterior of a closed latent is the prior, so that its KL is 0, and the decoder is
            handed 0 in its place.
        steps_trained: how many steps `fit` took so far. Another run draws other batches and noise.
        validate_args: check every batch that comes in. `fit` checks the whole data once and
            switches this off while it trains, since a check waits for the device.
    """

    open: Tensor

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, likelihood: Likelihood | None = None
    ) -> None:
        super().__init__()
        if likelihood is not None and not isinstance(likelihood, Likelihood):
            raise TypeError(
                f"the likelihood is {likelihood!r}; pass an instance, as likelihoods.Gaussian() is"
            )
        if not isinstance(getattr(encoder, "n_latents", None), SupportsIndex):
            raise TypeError(
                f"the encoder, a {type(encoder).__name__}, has no n_latents, the number of means "
                "that it returns; set encoder.n_latents, or build it by networks.mlp"
            )
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = Gaussian() if likelihood is None else likelihood
        self.n_latents: int = encoder.n_latents  # type: ignore[assignment]
        self.register_buffer("open", torch.ones(self.n_latents))
        self.validate_args = True
        self._steps_trained = 0

    @property
    def steps_trained(self) -> int:
        """How many steps `fit` took so far; a second run draws other batches and noise."""
        return self._steps_trained

    def __repr__(self) -> str:
        opened, n = int(self.open.sum()), self.n_latents
        latents = f"{n} latents" if opened == n else f"{opened} of {n} latents open"
        return f"VAE({short(self.encoder)}, {self.likelihood!r}, {latents})"

    def admit(self, x: Any, bytes_stay: bool = False, name: str = "x") -> Tensor:
        """Data as a tensor that this model can take, on its device and in its precision.

        Args:
            x: (N, …): a tensor, an array, nested lists, or a frame of numbers.
            bytes_stay: leave uint8 as it is.
            name: what to call x in errors.

        Returns:
            x itself where there is nothing to change, and while `validate_args` is off.

        Raises:
            TypeError: x holds no numbers.
            ValueError: a shape or a value that the model cannot take.
        """
        if not self.validate_args:
            return x
        x = as_tensor(x, next(self.parameters()), name, bytes_stay)
        if shape := getattr(self.encoder, "shape", None):
            refuse_shape(x, shape, name)
        self.likelihood.check(x)
        return x

    def encode(self, x: Any) -> Posterior:
        """q(z|x) for x (B, …): a normal distribution with attributes `mu` and `logvar`.

        Raises:
            TypeError, ValueError: x has a shape or a value that the model cannot take.
        """
        mu, logvar = self.encoder(self.admit(x))
        if mu.shape[-1] != self.n_latents:
            raise ValueError(
                f"the encoder returns {mu.shape[-1]} means a sample, but its n_latents is "
                f"{self.n_latents}; make the two equal"
            )
        return Posterior(mu * self.open, logvar * self.open)

    def noise(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal eps (n, d), on the model's device and in its precision."""
        like = next(self.parameters())
        return torch.randn(
            n, self.n_latents, generator=generator, dtype=like.dtype, device=like.device
        )

    def reparameterize(self, q: Posterior, eps: Tensor | None = None) -> Tensor:
        """A sample z = mu + σ·eps of q, (B, d), through which gradients reach mu and logvar.

        Args:
            q: the posterior.
            eps: standard normal noise (B, d); drawn where not given.
        """
        eps = self.noise(len(q.mu)) if eps is None else eps
        return q.mu + q.stddev * eps

    def decode(self, z: Any) -> Distribution:
        """p(x|z) for z (B, d): its `mean` is the reconstruction, its `log_prob(x)` is (B,).

        Raises:
            TypeError, ValueError: z is no table of codes with a column for each latent.
        """
        if self.validate_args:
            z = as_tensor(z, next(self.parameters()), name="z")
        if z.shape[-1] != self.n_latents:
            raise ValueError(
                f"z has {z.shape[-1]} columns, the model {self.n_latents} latents; pass a code for "
                f"each sample, (N, {self.n_latents})"
            )
        return self.likelihood(self.decoder(z * self.open))

    def forward(self, x: Any, eps: Tensor | None = None) -> Terms:
        """One pass over a batch x (B, …) with noise eps (B, d), drawn where not given.

        Raises:
            TypeError, ValueError: x has a shape or a value that the model cannot take.
        """
        x = self.admit(x)
        q = self.encode(x)
        z = self.reparameterize(q, eps)
        p = self.decode(z)
        log_prob = p.log_prob(x)
        if p.batch_shape + p.event_shape != x.shape or log_prob.shape != x.shape[:1]:
            raise ValueError(
                f"p(x|z) is over {tuple(p.batch_shape + p.event_shape)} and its log_prob has shape "
                f"{tuple(log_prob.shape)}, while x has shape {tuple(x.shape)}; the decoder has to "
                "give a parameter for each number of x, and the likelihood one value a sample"
            )
        return Terms(reconstruction=-log_prob, kl=gaussian_kl(q.mu, q.logvar), q=q, z=z, p=p)

    def narrowed(self) -> VAE:
        """A plain VAE without the closed latents, in whose stead nothing is computed any more.

        Its codes are the columns of this model's for the latents that are open, and what it
        decodes from them is the same. Both networks must have a method `narrowed`, as those of
        `networks` do.

        Raises:
            ValueError: no latent is open.
        """
        keep = self.open > 0
        if not keep.any():
            raise ValueError(
                f"all {self.n_latents} latents are closed, so there is nothing left to encode: "
                "the data's mean alone meets tau; narrow with a lower tau"
            )
        narrow = VAE(
            self.encoder.narrowed(keep),  # type: ignore[operator]
            self.decoder.narrowed(keep),  # type: ignore[operator]
            copy.deepcopy(self.likelihood),
        )
        narrow.open, narrow._steps_trained = self.open[keep], self.steps_trained
        return narrow.train(self.training)
