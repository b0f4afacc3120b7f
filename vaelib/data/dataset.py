"""A data set as tensors, with the way back to its own units."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# scikit-learn is imported where it is used: it would double the time of `import vaelib`.


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

    def as_measured(self, x: Tensor) -> Tensor:
        """Like `original`, with whole numbers where all of the data are whole numbers.

        For rows that a model generated. Values stay where they are outside the range that the
        data have, and a warning names the columns.
        """
        seen, rows = self.original(self.x), self.original(x)
        # Scaled and back, a whole number is one up to the seven digits of float32.
        whole = ((seen - seen.round()).abs() <= 1e-5 * seen.abs().clamp(min=1)).all(0)
        rows = torch.where(whole, rows.round(), rows)
        slack = 1e-5 * seen.abs().amax(0)
        outside = (rows < seen.amin(0) - slack) | (rows > seen.amax(0) + slack)
        if outside.any():
            counts = outside.flatten(0, -2).sum(0).tolist()
            columns = [f"{n} ({c})" for n, c in zip(self.feature_names, counts, strict=True) if c]
            warnings.warn(
                "some values lie outside the range that the data have, in columns (with their "
                f"number of rows): {', '.join(columns)}",
                stacklevel=2,
            )
        return rows


def from_bunch(bunch: Any, scaler: Any) -> Dataset:
    """A Dataset from scikit-learn's kind of record and a scaler fitted to it."""
    return Dataset(
        x=torch.as_tensor(scaler.transform(bunch.data), dtype=torch.float32),
        y=torch.as_tensor(bunch.target, dtype=torch.int64),
        feature_names=tuple(str(name) for name in bunch.feature_names),
        target_names=tuple(str(name) for name in bunch.target_names),
        scaler=scaler,
    )


def from_tensors(
    x: Tensor,
    y: Tensor,
    feature_names: tuple[str, ...],
    target_names: tuple[str, ...],
    scaler: Any = None,
    factors: Tensor | None = None,
) -> Dataset:
    """A Dataset from rows that are scaled already; `scaler` is the identity unless given."""
    from sklearn.preprocessing import FunctionTransformer

    return Dataset(
        x=x.float(),
        y=y.long(),
        feature_names=feature_names,
        target_names=target_names,
        scaler=scaler or FunctionTransformer(),  # the latter: identity
        factors=None if factors is None else factors.float(),
    )
