"""Encoder and decoder stacks."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from vaelib.settings import amend, remembered

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class Encoder(nn.Module):
    """Maps x (B, *shape) to the posterior's mean and log-variance, each (B, n_latents).

    Args:
        body: the layers that lead to the last one.
        shape: of one sample: (n_features,) of a table, (C, H, W) of an image.
        width: width of the body's output.
        n_latents: width of the bottleneck.

    Raises:
        ValueError: in `forward`, where x has samples of another shape.
    """

    def __init__(self, body: nn.Module, shape: tuple[int, ...], width: int, n_latents: int) -> None:
        super().__init__()
        self.shape = shape
        self.n_latents = n_latents
        self.body = body
        # No activation on either: a mean may be negative, and so may a logarithm.
        self.mu_logvar = nn.Linear(width, 2 * n_latents)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `(mu, logvar)` for x (B, *shape)."""
        refuse_shape(x, self.shape)
        mu, logvar = self.mu_logvar(self.body(x)).chunk(2, dim=-1)
        return mu, logvar

    def narrowed(self, keep: Tensor) -> Encoder:
        """A copy that returns only those latents for which keep, booleans (n_latents,), says so."""
        narrow = copy.deepcopy(self)
        narrow.n_latents = int(keep.sum())
        amend(narrow, n_latents=narrow.n_latents)
        last, rows = narrow.mu_logvar, keep.repeat(2)
        last.weight = nn.Parameter(last.weight.detach()[rows])
        last.bias = nn.Parameter(last.bias.detach()[rows])
        last.out_features = len(last.weight)
        return narrow


class Decoder(nn.Module):
    """Maps z (B, n_latents) to the parameters of the likelihood, in the shape of x.

    Args:
        body: the layers between.
        n_latents: width of the bottleneck.
        output: the last layer. No activation follows: what range the output has is the
            likelihood's business.

    Raises:
        ValueError: in `forward`, where z has another width than `n_latents`.
    """

    def __init__(self, body: nn.Module, n_latents: int, output: nn.Module) -> None:
        super().__init__()
        self.n_latents = n_latents
        self.body = body
        self.output = output

    def forward(self, z: Tensor) -> Tensor:
        """Returns the likelihood's parameters for z (B, n_latents)."""
        _refuse_width(z, self.n_latents)
        return self.output(self.body(z))

    def narrowed(self, keep: Tensor) -> Decoder:
        """A copy for the latents that keep, booleans (n_latents,), says; 0 for all the others."""
        narrow = copy.deepcopy(self)
        narrow.n_latents = int(keep.sum())
        amend(narrow, n_latents=narrow.n_latents)
        first = next(layer for layer in narrow.modules() if isinstance(layer, nn.Linear))
        first.weight = nn.Parameter(first.weight.detach()[:, keep])
        first.in_features = narrow.n_latents
        return narrow


def _refuse_width(z: Tensor, width: int) -> None:
    if z.shape[-1] != width:
        raise ValueError(
            f"z has {z.shape[-1]} columns, the network was built for {width}; "
            f"build it with n_latents={z.shape[-1]}"
        )


def refuse_shape(x: Tensor, shape: tuple[int, ...], name: str = "x") -> None:
    """Refuses a batch whose samples have not the shape that a network was built for.

    Args:
        x: the batch, (B, *shape).
        shape: (n_features,) of a table, (C, H, W) of an image.

    Raises:
        ValueError: x has another shape; says how to reshape it where that would do.
    """
    if x.shape[1:] == shape:
        return
    if len(shape) == 1 and x.ndim == 2:
        raise ValueError(
            f"{name} has {x.shape[1]} columns, the network was built for {shape[0]}; "
            f"build it with n_features={x.shape[1]}"
        )
    given, size = tuple(x.shape), math.prod(shape)
    wanted = f"(B, {', '.join(map(str, shape))})"
    alike = len(given) > 1 and math.prod(given[1:]) == size
    if given == shape:
        remedy = "this is one sample; pass a batch of it, x[None]"
    elif len(shape) == 1 and len(given) > 2:
        build = "" if alike else f", and build it with n_features={math.prod(given[1:])}"
        remedy = f"pass x.flatten(1){build}"
    elif len(shape) == 1:
        remedy = "pass a table with a row for each sample"
    elif given[1:] == (*shape[1:], shape[0]):
        remedy = (
            "channels come first; pass x.permute(0, 3, 1, 2), of an array x.transpose(0, 3, 1, 2)"
        )
    elif alike and len(given) < 4:
        remedy = f"pass x.reshape(-1, {wanted[4:]}"
    else:
        remedy = "reshape x, or build it with image_size and channels that fit"
    raise ValueError(f"{name} has shape {given}, the network was built for {wanted}; {remedy}")


@remembered
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
        Encoder(body(down, len(hidden) - 1), (n_features,), down[-1], n_latents),
        Decoder(body(up, 0), n_latents, nn.Linear(up[-1], n_features)),
    )


@remembered
def conv(
    image_size: int | tuple[int, int], channels: int = 1, n_latents: int = 10
) -> tuple[Encoder, Decoder]:
    """A convolutional encoder and its mirror image, after Burgess et al. (2018).

    Each convolution, 4 × 4 with 32 channels, halves the image: four of them, or as many as leave
    its shorter side at least 4 pixels. Two layers of 256 units follow. ReLU is between all layers.

    Args:
        image_size: height and width in pixels, or one number for both.
        channels: 1 for grey, 3 for colour.
        n_latents: width of the bottleneck.

    Returns:
        The encoder, x (B, channels, H, W) → (mu, logvar), each (B, n_latents), and the decoder,
        z (B, n_latents) → (B, channels, H, W).

    Raises:
        ValueError: an image too small to be halved once, or a number below 1.
    """
    pair = image_size if isinstance(image_size, Sequence) else (image_size, image_size)
    sizes, channels = [tuple(map(operator.index, pair))], operator.index(channels)
    if len(sizes[0]) != 2 or min(sizes[0]) < 8:
        raise ValueError(
            f"image_size is {image_size}, but takes height and width of at least 8 pixels each; "
            "flatten smaller images for networks.mlp"
        )
    if min(channels, n_latents) < 1:
        raise ValueError(
            f"every layer needs at least one unit, got channels={channels}, n_latents={n_latents}"
        )
    while len(sizes) <= 4 and min(sizes[-1]) >= 8:
        height, width = sizes[-1]
        sizes.append((height // 2, width // 2))

    smallest = (32, *sizes[-1])
    n_units = 32 * smallest[1] * smallest[2]
    down: list[nn.Module] = []
    up: list[nn.Module] = []
    for depth, (height, width) in enumerate(sizes[:-1]):
        n_in = channels if depth == 0 else 32
        down += [nn.Conv2d(n_in, 32, 4, stride=2, padding=1), nn.ReLU()]
        # Halving drops the last row or column of an odd number; here it comes back.
        odd = (height % 2, width % 2)
        up = [nn.ReLU(), nn.ConvTranspose2d(32, n_in, 4, 2, padding=1, output_padding=odd), *up]
    down += [nn.Flatten(), nn.Linear(n_units, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
    between = [nn.Linear(n_latents, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
    between += [nn.Linear(256, n_units), nn.Unflatten(1, smallest)]
    *up, output = up
    return (
        Encoder(nn.Sequential(*down), (channels, *sizes[0]), 256, n_latents),
        Decoder(nn.Sequential(*between, *up), n_latents, output),
    )
