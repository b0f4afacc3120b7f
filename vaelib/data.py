"""Data sets that ship with scikit-learn, as tensors, with the way back to their own units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# scikit-learn is imported where it is used: it would double the time of `import vaelib`.


@dataclass(frozen=True)
class Dataset:
    """A data set and what is needed to read it.

    Attributes:
        x: float32 (N, D), one sample a row, scaled as the loader says.
        y: int64 (N,), the class of each sample. No VAE here is trained on it.
        feature_names: D names.
        target_names: a name for each class.
        scaler: the fitted scikit-learn transformer from original units to `x`.
    """

    x: Tensor
    y: Tensor
    feature_names: tuple[str, ...]
    target_names: tuple[str, ...]
    scaler: Any

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
