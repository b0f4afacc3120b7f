"""What an objective is: a model, a batch and noise in, terms out, of which one is minimised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vaelib.likelihoods import Gaussian
from vaelib.settings import Remembers
from vaelib.vae import VAE


class Objective(Remembers, nn.Module):
    """Base of all objectives: says which noise a step needs, so that it can be handed in.

    One that learns, as `LearnedGamma` does, is for one model.

    Attributes:
        learns: whether it holds what it has learned from its model.
        comparable: whether the losses of two steps can be compared, as early stopping has to. Not
            where a multiplier moves.
    """

    learns = False
    comparable = True
    _used = False  # by `fit`, for a model

    def __call__(self, model: VAE, x: Any, *noise: Tensor, **named: Tensor) -> dict[str, Tensor]:
        """The terms of a batch, "loss" among them; x goes through the model's door."""
        terms = super().__call__(model, self.admit(model, x), *noise, **named)
        if not isinstance(terms, dict) or "loss" not in terms or terms["loss"].ndim:
            raise TypeError(
                f"{type(self).__name__}.forward has to return a dict of terms, with a scalar under "
                "'loss': the mean over the batch"
            )
        return terms

    def admit(self, model: VAE, x: Any, **how: Any) -> Tensor:
        """Data as a tensor for `forward`, by the model's door; `how` is for `VAE.admit`.

        To be overridden where batches are not what the model takes, such as numbers of rows.
        """
        return model.admit(x, **how)

    def begin(self, model: VAE, steps: int) -> None:
        """Called by `fit` at the start of a run of so many steps; refuses a model that won't do."""

    def end(self, model: VAE) -> None:
        """Called by `fit` at the end of a run, to say what did not come about."""

    def noise(
        self, model: VAE, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """The noise for a batch of n samples, as `forward` takes it after x; first eps (n, d)."""
        return (model.noise(n, generator),)


class SetsSigma(Objective):
    """An objective that chooses the σ of the model's Gaussian and writes it there in training."""

    def __call__(self, model: VAE, x: Any, *noise: Tensor, **named: Tensor) -> dict[str, Tensor]:
        """The terms of a batch; in a loop of one's own, refuses a model as `begin` does."""
        if model.validate_args:
            SetsSigma.begin(self, model, 0)
        return super().__call__(model, x, *noise, **named)

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
