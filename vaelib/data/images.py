"""Images: patches of two photographs, and sprites drawn from their factors."""

from __future__ import annotations

from operator import index
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vaelib.data.dataset import Dataset, from_tensors
from vaelib.sprites import N_IMAGES, SHAPES, classes, render, values


def patches(n: int = 10_000, size: int = 8, seed: int = 0) -> Dataset:
    """Grey patches cut at random from scikit-learn's two photographs, a temple and a flower.

    Each row is one patch with grey in [0, 1]; half of them, y = 0, are the temple's. Patches of
    one photograph may overlap, so to hold data out, hold out a photograph.

    Args:
        n: number of patches, an even one.
        size: height and width in pixels, at most 427.
        seed: of the places.

    Raises:
        ValueError: a size that does not fit, an odd number of patches, or more than there are.
    """
    from sklearn.datasets import load_sample_images
    from sklearn.feature_extraction.image import extract_patches_2d

    photographs = load_sample_images()
    height, width, _ = photographs.images[0].shape  # both are of one size
    if not 1 <= size <= height:
        raise ValueError(f"size is {size}; pass 1 … {height}, the photographs' height")
    places = (height - size + 1) * (width - size + 1)
    if not 2 <= n <= 2 * places or n % 2:
        raise ValueError(
            f"n is {n}; pass an even number, half for each photograph, of at most {2 * places}"
        )
    x = [
        extract_patches_2d(
            image.mean(-1) / 255, (size, size), max_patches=n // 2, random_state=seed
        )
        for image in photographs.images
    ]
    return from_tensors(
        x=torch.as_tensor(np.concatenate(x)).flatten(1),
        y=torch.arange(2).repeat_interleave(n // 2),
        feature_names=pixels(size),
        target_names=tuple(Path(name).stem for name in photographs.filenames),
    )


def sprites(n: int = 10_000, size: int = 64, seed: int = 0) -> Dataset:
    """A random subset of dSprites, drawn by `vaelib.sprites` without a download.

    x is (n, 1, size, size) of 0 and 1, y the shape, and `factors` (n, 5) the original's
    `latents_values`: shape, scale, orientation, x, y. For an `mlp`, take `x.flatten(1)`.

    Args:
        n: number of images, no two of the same factors; 737,280 at most.
        size: height and width in pixels; the original has 64.
        seed: of the choice.

    Raises:
        ValueError: more images than there are, or a size below 1.
    """
    chosen = subset(n, N_IMAGES, seed)
    return from_images(render(values(chosen), size), classes(chosen)[:, 0], values(chosen))


def subset(n: int, total: int, seed: int) -> Tensor:
    """Which n of so many images: a random choice, (n,)."""
    if not 1 <= n <= total:
        raise ValueError(f"n is {n}; pass 1 … {total}, the images there are")
    return torch.randperm(total, generator=torch.Generator().manual_seed(index(seed)))[:n]


def from_images(images: Tensor, shapes: Tensor, factors: Tensor) -> Dataset:
    """Sprites (n, H, W) with their shapes (n,) and factors (n, 5) as a Dataset."""
    return from_tensors(
        x=images.unsqueeze(1),
        y=shapes,
        feature_names=pixels(images.shape[-1]),
        target_names=SHAPES,
        factors=factors,
    )


def pixels(size: int) -> tuple[str, ...]:
    """The names of an image's pixels, row by row."""
    return tuple(f"pixel_{row}_{column}" for row in range(size) for column in range(size))
