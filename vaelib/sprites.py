"""dSprites (Matthey et al. 2017), drawn from its factors: all 737,280 images without a download.

The geometry was fitted to frames of the animation published with the data set. One unit is one
pixel of the original's 64; x runs right, y runs down, and a sprite turns counter-clockwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Factor → number of values, slowest first: the order of the original's images and columns.
FACTORS = {"shape": 3, "scale": 6, "orientation": 40, "x": 32, "y": 32}
N_IMAGES = 737_280
SHAPES = ("square", "ellipse", "heart")

# At scale 1. The original drew half sides of 0.15 and half axes of 0.2 and 0.113 of the canvas;
# a hair less than 9.6 decides for the original the pixels that lie just on an edge.
HALF_SIDE = 9.598  # of the square, and half the heart's width
HALF_AXES = 12.77, 7.21
HEART_TOP, HEART_UNIT = -1.44, 0.662  # the height where t = 90°, and the heart curve's unit
CHUNK = 64  # images drawn at once: few enough for a CPU's cache


def classes(index: Tensor | Sequence[int] | int) -> Tensor:
    """Which value each factor has, as in the original's `latents_classes` without colour.

    Args:
        index: place in the original, 0 … 737,279: integers of shape (B,), or a single one.

    Returns:
        int64 (B, 5), each counted from 0, in the order of `FACTORS`.

    Raises:
        IndexError: an index outside the data set.
        TypeError: an index that is not an integer.
    """
    place = torch.atleast_1d(torch.as_tensor(index))
    if place.is_floating_point() or place.dtype == torch.bool:
        raise TypeError(f"index is of {place.dtype}; pass integers, e.g. torch.arange(10)")
    outside = place[(place < 0) | (place >= N_IMAGES)]
    if len(outside):
        raise IndexError(f"index is {outside[0]}; pass 0 … {N_IMAGES - 1}")
    columns = []
    for size in reversed(FACTORS.values()):
        columns.append(place % size)
        place = place // size
    return torch.stack(columns[::-1], dim=-1).long()


def values(index: Tensor | Sequence[int] | int) -> Tensor:
    """The factors' values, as in the original's `latents_values` without colour.

    Args:
        index: place in the original, 0 … 737,279: integers of shape (B,), or a single one.

    Returns:
        float64 (B, 5): shape 1 square, 2 ellipse, 3 heart; scale 0.5 … 1; orientation 0 … 2π in
        radians, both ends included; x and y 0 … 1.

    Raises:
        IndexError, TypeError: as `classes` does.
    """
    low = torch.tensor([1, 0.5, 0, 0, 0], dtype=torch.float64)
    high = torch.tensor([3, 1, 2 * torch.pi, 1, 1], dtype=torch.float64)
    steps = torch.tensor(list(FACTORS.values())) - 1
    found = classes(index)
    low, high, steps = (each.to(found.device) for each in (low, high, steps))
    return low + (high - low) * found / steps


def render(values: Tensor, size: int = 64) -> Tensor:
    """Draws sprites. A pixel is on where its centre lies inside the shape, as in the original.

    It calculates in float64, where no pixel's centre is so near to an edge that CPU and GPU
    could differ. That leaves out devices without float64: there, draw on the CPU.

    Args:
        values: (B, 5): shape, scale, orientation, x, y, as from `values`, or any between.
        size: side of the images. The picture stays the same, on a coarser or finer grid.

    Returns:
        uint8 (B, size, size) of 0 and 1, on the device of `values`.

    Raises:
        ValueError: a value that is not a sprite's, or a size below 1.
    """
    if values.ndim != 2 or values.shape[1] != 5:
        raise ValueError(
            f"values has shape {tuple(values.shape)}; pass (B, 5): {', '.join(FACTORS)}"
        )
    if size < 1:
        raise ValueError(f"size is {size}; pass at least 1, e.g. the original's 64")
    kind, scale, orientation, *position = values.unbind(1)
    for name, good, remedy in (
        ("shape", (kind == 1) | (kind == 2) | (kind == 3), "1 square, 2 ellipse or 3 heart"),
        ("scale", (scale > 0) & (scale <= 1), "a number above 0 and at most 1"),
        ("orientation", orientation.isfinite(), "an angle in radians"),
        ("x", (position[0] >= 0) & (position[0] <= 1), "a number from 0, left, to 1, right"),
        ("y", (position[1] >= 0) & (position[1] <= 1), "a number from 0, top, to 1, bottom"),
    ):
        if not good.all():
            value = values[~good, list(FACTORS).index(name)][0].item()
            raise ValueError(f"{name} is {value:g}; pass {remedy}")
    images = values.new_empty((len(values), size, size), dtype=torch.uint8)
    for number, inside in enumerate((_square, _ellipse, _heart), start=1):
        for rows in (kind == number).nonzero()[:, 0].split(CHUNK):
            images[rows] = inside(*_turned(values[rows].double(), size)).to(torch.uint8)
    return images


def _turned(values: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The pixels' centres as a sprite of scale 1 at the origin sees them, each (B, size, size)."""
    _, scale, orientation, x, y = values[:, :, None, None].unbind(1)
    centre = (torch.arange(size, device=values.device, dtype=torch.float64) + 0.5) * (64 / size)
    right = (centre - (16 + 32 * x)) / scale  # (B, 1, size)
    down = (centre[:, None] - (16 + 32 * y)) / scale  # (B, size, 1)
    cos, sin = orientation.cos(), orientation.sin()
    return cos * right - sin * down, sin * right + cos * down


def _square(u: Tensor, v: Tensor) -> Tensor:
    return (u.abs() < HALF_SIDE) & (v.abs() < HALF_SIDE)


def _ellipse(u: Tensor, v: Tensor) -> Tensor:
    return (u / HALF_AXES[0]) ** 2 + (v / HALF_AXES[1]) ** 2 < 1


def _heart(u: Tensor, v: Tensor) -> Tensor:
    """The heart curve x = 16 sin³ t, y = 13 cos t − 5 cos 2t − 2 cos 3t − cos 4t, stretched.

    Each x has two t, which differ in the sign of cos t; between their heights lies the inside.
    """
    cos = (1 - (u.abs() / HALF_SIDE).clamp(max=1) ** (2 / 3)).sqrt()
    # cos 2t and cos 4t are even in cos t, cos t and cos 3t are odd.
    even = -5 * (2 * cos**2 - 1) - (8 * cos**4 - 8 * cos**2 + 1)
    odd = 13 * cos - 2 * (4 * cos**3 - 3 * cos)
    return (u.abs() < HALF_SIDE) & ((HEART_TOP - HEART_UNIT * even - v).abs() < HEART_UNIT * odd)
