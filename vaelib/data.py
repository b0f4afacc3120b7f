"""Data sets as tensors, with the way back to their own units; only `dsprites` downloads one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaelib.sprites import N_IMAGES, SHAPES, classes, render, values

# scikit-learn is imported where it is used: it would double the time of `import vaelib`.

DSPRITES_URL = (
    "https://github.com/google-deepmind/dsprites-dataset/raw/master/"
    "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
)
DSPRITES_SHA256 = "857dc001287e8efa226e0025fac6b29e5745c621b380b0d3363e4e33f4e28fa2"


@dataclass(frozen=True)
class Dataset:
    """A data set and what is needed to read it.

    Attributes:
        x: float32 (N, D), one sample a row, or (N, 1, H, W), one image each; scaled as the
            loader says.
        y: int64 (N,), the class of each sample. No VAE here is trained on it.
        feature_names: D names, row by row for the pixels of images.
        target_names: a name for each class.
        scaler: the fitted scikit-learn transformer from original units to `x`.
        factors: float32 (N, K), what each sample was generated from, where that is known.
    """

    x: Tensor
    y: Tensor
    feature_names: tuple[str, ...]
    target_names: tuple[str, ...]
    scaler: Any
    factors: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def original(self, x: Tensor) -> Tensor:
        """Takes samples scaled like `self.x`, (…, D), back to the units they were measured in."""
        rows = self.scaler.inverse_transform(x.detach().cpu().numpy().reshape(-1, x.shape[-1]))
        return torch.as_tensor(rows, dtype=x.dtype).reshape(x.shape)


def _dataset(bunch: Any, scaler: Any) -> Dataset:
    return Dataset(
        x=torch.as_tensor(scaler.transform(bunch.data), dtype=torch.float32),
        y=torch.as_tensor(bunch.target, dtype=torch.int64),
        feature_names=tuple(str(name) for name in bunch.feature_names),
        target_names=tuple(str(name) for name in bunch.target_names),
        scaler=scaler,
    )


def _table(load: Callable[[], Any], standardize: bool) -> Dataset:
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    bunch = load()
    scaler = StandardScaler() if standardize else FunctionTransformer()  # the latter: identity
    return _dataset(bunch, scaler.fit(bunch.data))


def wine(standardize: bool = True) -> Dataset:
    """178 Italian wines from three growers, 13 chemical measurements each (UCI).

    Args:
        standardize: mean 0 and variance 1 in each column; False leaves the original units.
    """
    from sklearn.datasets import load_wine

    return _table(load_wine, standardize)


def breast_cancer(standardize: bool = True) -> Dataset:
    """569 breast masses, benign or malignant, 30 measurements of their cell nuclei each (UCI).

    Args:
        standardize: mean 0 and variance 1 in each column; False leaves the original units.
    """
    from sklearn.datasets import load_breast_cancer

    return _table(load_breast_cancer, standardize)


def digits() -> Dataset:
    """1,797 handwritten digits of 8 × 8 pixels (UCI), each row one image with grey in [0, 1]."""
    from sklearn.datasets import load_digits
    from sklearn.preprocessing import MinMaxScaler

    bunch = load_digits()
    # Grey levels run from 0 to 16 by definition; the darkest and lightest seen at a pixel do not.
    scaler = MinMaxScaler().fit(np.array([[0.0], [16.0]]) * np.ones(bunch.data.shape[1]))
    return _dataset(bunch, scaler)


def mixed(n: int = 1000, seed: int = 0) -> Dataset:
    """A made-up table with numbers, bits and a category, all of them driven by two latents.

    A row is of one of three classes, each as likely. Its latent point z scatters with standard
    deviation 0.6 around the class's centre; the centres lie 120° apart, as far out as gives either
    latent variance 1. Each column looks along a direction u of this plane:

    - `x[:, 0:6]`, "number 0" to "number 5": 0.9·u·z + noise with standard deviation √0.19, hence
      with variance 1, along directions 30° apart, and then in six units from 0.1 to 1000.
      Standardised.
    - `x[:, 6:9]`, "bit 0" to "bit 2": 1 with probability sigmoid(3·u·z), otherwise 0, along
      directions 60° apart.
    - `x[:, 9:13]`, "kind a" to "kind d": the one-hot code of one of four kinds, whose
      probabilities are softmax(3·u·z), along directions 90° apart.

    Args:
        n: number of rows.
        seed: of the draws; the population they come from is always the same.
    """
    from sklearn.preprocessing import StandardScaler
    from sklearn.utils import Bunch

    draw = np.random.default_rng(seed)

    def along(first: float, gap: float, count: int) -> np.ndarray:
        angles = np.radians(first + gap * np.arange(count))
        return np.stack([np.cos(angles), np.sin(angles)])

    y = draw.integers(3, size=n)
    centres = np.sqrt(2 * (1 - 0.6**2)) * along(90, 120, 3).T
    z = centres[y] + 0.6 * draw.standard_normal((n, 2))
    numbers = 0.9 * z @ along(0, 30, 6) + np.sqrt(0.19) * draw.standard_normal((n, 6))
    numbers = np.geomspace(0.1, 1000, 6) * (10 + numbers)
    bits = draw.random((n, 3)) < 1 / (1 + np.exp(-3 * z @ along(0, 60, 3)))
    # The largest of logits with Gumbel noise is a draw from their softmax.
    kind = (3 * z @ along(45, 90, 4) + draw.gumbel(size=(n, 4))).argmax(1)
    table = np.hstack([numbers, bits, np.eye(4)[kind]])

    scaler = StandardScaler().fit(table)
    scaler.mean_[6:], scaler.scale_[6:] = 0, 1  # 0 and 1 stay what they are
    return _dataset(
        Bunch(
            data=table,
            target=y,
            feature_names=[f"number {i}" for i in range(6)]
            + [f"bit {i}" for i in range(3)]
            + [f"kind {letter}" for letter in "abcd"],
            target_names=["class 0", "class 1", "class 2"],
        ),
        scaler,
    )


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
    return _generated(
        x=torch.as_tensor(np.concatenate(x)).flatten(1),
        y=torch.arange(2).repeat_interleave(n // 2),
        feature_names=_pixels(size),
        target_names=tuple(Path(name).stem for name in photographs.filenames),
    )


def manifold(
    n_dimensions: int = 3,
    n_features: int = 20,
    n: int = 2_000,
    noise: float = 0.05,
    seed: int = 0,
) -> Dataset:
    """A made-up table that lies on a curved surface of known dimension, up to some noise.

    A row is (t, sin(t·W + b)), turned at random in D dimensions and standardised, with t standard
    normal in `factors`. Turned back, its first entries are t: no two t share a row, and the
    surface has exactly their dimension. The sines bend it into all D dimensions, where a linear
    method has to follow with more than that.

    Args:
        n_dimensions: the true dimension d, of t.
        n_features: the columns D, more than d.
        n: number of rows.
        noise: standard deviation of what is added to each column, which has 1 without it.
        seed: of t and the noise; the surface of a given d and D is always the same.

    Raises:
        ValueError: no dimension, no more columns than dimensions, or a negative noise.
    """
    from sklearn.preprocessing import StandardScaler

    if not 1 <= n_dimensions < n_features:
        raise ValueError(
            f"n_dimensions is {n_dimensions} and n_features {n_features}; pass at least one "
            "dimension and more features than dimensions"
        )
    if not noise >= 0:
        raise ValueError(f"noise is {noise}; pass a standard deviation, 0 for none")
    surface = np.random.default_rng([n_dimensions, n_features])
    n_bends = n_features - n_dimensions
    weights = surface.standard_normal((n_dimensions, n_bends)) * np.sqrt(2 / n_dimensions)
    phases = surface.uniform(0, 2 * np.pi, n_bends)
    turn, _ = np.linalg.qr(surface.standard_normal((n_features, n_features)))

    draw = np.random.default_rng(seed)
    t = draw.standard_normal((n, n_dimensions))
    clean = np.hstack([t, np.sin(t @ weights + phases)]) @ turn.T
    scaler = StandardScaler().fit(clean)
    return _generated(
        x=torch.as_tensor(scaler.transform(clean) + noise * draw.standard_normal(clean.shape)),
        y=torch.zeros(n, dtype=torch.int64),
        feature_names=tuple(f"column {i}" for i in range(n_features)),
        target_names=("surface",),
        scaler=scaler,
        factors=torch.as_tensor(t),
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
    index = _subset(n, N_IMAGES, seed)
    return _sprites(render(values(index), size), classes(index)[:, 0], values(index))


def dsprites(n: int = 10_000, seed: int = 0, folder: str | Path | None = None) -> Dataset:
    """The same random subset as `sprites` chooses, from the original archive (Matthey et al. 2017).

    The first call downloads it, 26 MB; an interrupted download goes on where it stopped. Its
    SHA-256 is checked each time. Unpacked it takes 3 GB of memory until the subset is chosen.

    Args:
        n: number of images, 737,280 at most.
        seed: of the choice.
        folder: where the archive is kept; the user's cache folder unless given.

    Raises:
        ValueError: more images than there are, or an archive with another SHA-256.
        requests.RequestException: the download failed; call again to go on with it.
    """
    import pooch

    path = pooch.retrieve(
        DSPRITES_URL,
        known_hash=f"sha256:{DSPRITES_SHA256}",
        fname="dsprites.npz",
        path=folder or pooch.os_cache("vaelib"),
        downloader=_resume,
    )
    with np.load(path) as archive:  # its metadata is a pickle, which stays closed
        factors = torch.as_tensor(archive["latents_values"][:, 1:])  # all of one colour
        index = _subset(n, len(factors), seed)
        shapes = torch.as_tensor(archive["latents_classes"][index, 1])
        images = torch.as_tensor(archive["imgs"][index])
    return _sprites(images, shapes, factors[index])


def _resume(url: str, output_file: str, _: Any) -> None:
    """Downloads for pooch, which starts from scratch: goes on with what the last call left."""
    import requests
    from tqdm import tqdm

    part = Path(output_file).with_name("dsprites.npz.part")
    with part.open("ab") as file:
        # Only a file that comes as it is can be gone on with, so no compression on the way.
        headers = {"Range": f"bytes={file.tell()}-", "Accept-Encoding": "identity"}
        with requests.get(url, headers=headers, stream=True, timeout=30) as response:
            if response.status_code == requests.codes.ok:
                file.truncate(0)  # this server sends the whole, whatever was asked for
            # Where the part is whole already, the range asked for does not exist.
            if response.status_code != requests.codes.requested_range_not_satisfiable:
                response.raise_for_status()
                length = int(response.headers.get("Content-Length", 0)) or None
                with tqdm(total=length, unit="B", unit_scale=True, desc="dSprites") as bar:
                    for block in response.iter_content(2**16):
                        bar.update(file.write(block))
    part.replace(output_file)


def _subset(n: int, total: int, seed: int) -> Tensor:
    if not 1 <= n <= total:
        raise ValueError(f"n is {n}; pass 1 … {total}, the images there are")
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:n]


def _sprites(images: Tensor, shapes: Tensor, factors: Tensor) -> Dataset:
    return _generated(
        x=images.unsqueeze(1),
        y=shapes,
        feature_names=_pixels(images.shape[-1]),
        target_names=SHAPES,
        factors=factors,
    )


def _pixels(size: int) -> tuple[str, ...]:
    return tuple(f"pixel_{row}_{column}" for row in range(size) for column in range(size))


def _generated(
    x: Tensor,
    y: Tensor,
    feature_names: tuple[str, ...],
    target_names: tuple[str, ...],
    scaler: Any = None,
    factors: Tensor | None = None,
) -> Dataset:
    from sklearn.preprocessing import FunctionTransformer

    return Dataset(
        x=x.float(),
        y=y.long(),
        feature_names=feature_names,
        target_names=target_names,
        scaler=scaler or FunctionTransformer(),  # the latter: identity
        factors=None if factors is None else factors.float(),
    )
