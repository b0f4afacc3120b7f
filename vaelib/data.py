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
