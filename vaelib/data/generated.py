"""Tables drawn from a population that is known exactly."""

from __future__ import annotations

import numpy as np
import torch

from vaelib.data.dataset import Dataset, from_bunch, from_tensors


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
    return from_bunch(
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
    return from_tensors(
        x=torch.as_tensor(scaler.transform(clean) + noise * draw.standard_normal(clean.shape)),
        y=torch.zeros(n, dtype=torch.int64),
        feature_names=tuple(f"column {i}" for i in range(n_features)),
        target_names=("surface",),
        scaler=scaler,
        factors=torch.as_tensor(t),
    )
