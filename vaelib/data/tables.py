"""Tables that come with scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vaelib.data.dataset import Dataset, from_bunch

# scikit-learn is imported where it is used: it would double the time of `import vaelib`.


def _table(load: Callable[[], Any], standardize: bool) -> Dataset:
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    bunch = load()
    scaler = StandardScaler() if standardize else FunctionTransformer()  # the latter: identity
    return from_bunch(bunch, scaler.fit(bunch.data))


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
    return from_bunch(bunch, scaler)
