"""Encoder and decoder stacks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class Encoder(nn.Module):
    """Maps x (B, n_features) to the posterior's mean and log-variance, each (B, n_latents).

    Args:
        body: the layers that lead to the last one.
        n_features: width of x.
        width: width of the body's output.
        n_latents: width of the bottleneck.

    Raises:
        ValueError: in `forward`, where x has another width than `n_features`.
    """

    def __init__(self, body: nn.Module, n_features: int, width: int, n_latents: int) -> None:
        super().__init__()
        self.n_features = n_features
        self.n_latents = n_latents
        self.body = body
        # No activation on either: a mean may be negative, and so may a logarithm.
        self.mu_logvar = nn.Linear(width, 2 * n_latents)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `(mu, logvar)` for x (B, n_features)."""
        _refuse_width("x", "n_features", self.n_features, x)
        mu, logvar = self.mu_logvar(self.body(x)).chunk(2, dim=-1)
        return mu, logvar


class Decoder(nn.Module):
    """Maps z (B, n_latents) to the parameters of the likelihood, (B, n_features).

    Args:
        body: the layers between.
        n_latents: width of the bottleneck.
        width: width of the body's output.
        n_features: width of the result.

    Raises:
        ValueError: in `forward`, where z has another width than `n_latents`.
    """

    def __init__(self, body: nn.Module, n_latents: int, width: int, n_features: int) -> None:
        super().__init__()
        self.n_latents = n_latents
        self.body = body
        # No activation here: what range the output has is the likelihood's business.
        self.output = nn.Linear(width, n_features)

    def forward(self, z: Tensor) -> Tensor:
        """Returns the likelihood's parameters for z (B, n_latents)."""
        _refuse_width("z", "n_latents", self.n_latents, z)
        return self.output(self.body(z))


def _refuse_width(name: str, argument: str, width: int, values: Tensor) -> None:
    if values.shape[-1] != width:
        raise ValueError(
            f"{name} has {values.shape[-1]} columns, the network was built for {width}; "
            f"build it with {argument}={values.shape[-1]}"
        )


def mlp(
    n_features: int,
    hidden: Sequence[int] = (8, 4),
    n_latents: int = 2,
    activation: str = "relu",
    batch_norm: bool = True,
    linear_bottleneck: bool = False,
) -> tuple[Encoder, Decoder]:
    """A fully connected encoder and its mirror image, n_features – hidden – n_latents and back.

    Each hidden layer is linear, batch norm, activation, in this order.

    Args:
        n_features: width of the data.
        hidden: widths of the encoder's hidden layers; the decoder has them in reverse.
            `()` makes both linear: the VAE whose optimum is known in closed form.
        n_latents: width of the bottleneck.
        activation: one of `ACTIVATIONS`.
        batch_norm: normalise each hidden layer over the batch.
        linear_bottleneck: leave out the activation in the hidden layer on either side of the
            bottleneck.

    Returns:
        The encoder, x (B, n_features) → (mu, logvar), each (B, n_latents), and the decoder,
        z (B, n_latents) → (B, n_features).

    Raises:
        ValueError: a width below 1, an unknown activation, or `linear_bottleneck` where no
            hidden layer has an activation to leave out.
    """
    if min(n_features, n_latents, *hidden) < 1:
        raise ValueError(
            f"every layer needs at least one unit, got n_features={n_features}, "
            f"hidden={tuple(hidden)}, n_latents={n_latents}"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is not one of {sorted(ACTIVATIONS)}")
    if linear_bottleneck and not hidden:
        raise ValueError(
            "linear_bottleneck=True with hidden=() changes nothing: the network is linear already"
        )

    def body(widths: Sequence[int], without_activation: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for i, (n_in, n_out) in enumerate(pairwise(widths)):
            # Batch norm subtracts any constant, so a bias before it would train on rounding noise.
            layers.append(nn.Linear(n_in, n_out, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(n_out))
            if not (linear_bottleneck and i == without_activation):
                layers.append(ACTIVATIONS[activation]())
        return nn.Sequential(*layers)

    down = (n_features, *hidden)
    up = (n_latents, *reversed(hidden))
    return (
        Encoder(body(down, len(hidden) - 1), n_features, down[-1], n_latents),
        Decoder(body(up, 0), n_latents, up[-1], n_features),
    )
