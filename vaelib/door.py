"""The one door through which data come in: whatever is a table of numbers becomes a tensor.

Anything else is refused, in words that say what to pass instead. No library of frames is imported:
arrays, and the columns of frames, are read by numpy's protocol.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

BATCH = 2**22  # numbers: what measures a whole data set looks at so many at a time
ENCODE = (
    "turn numbers in quotes into numbers by astype(float), and encode what stands for a kind, as "
    "scikit-learn's OneHotEncoder or pandas.get_dummies do"
)


def whole(name: str, value: Any, least: float = 1) -> int:
    """A whole number, numpy's included, of at least so many.

    Raises:
        TypeError: value is no whole number.
        ValueError: it is too small.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; pass a whole number") from None
    if number < least:
        raise ValueError(f"{name} is {number}; pass a whole number of at least {least}")
    return number


def slices(x: Tensor, at_least: int = 1) -> Iterator[slice]:
    """Rows of x, (N, …), in batches of up to four million numbers, or up to so many rows."""
    n, size = len(x), max(at_least, BATCH // max(1, x[:1].numel()))
    count = -(-n // size)  # of batches as equal as can be, so that none is a single row
    return (slice(i * n // count, (i + 1) * n // count) for i in range(count))


def as_tensor(
    x: Any, like: Tensor | None = None, name: str = "x", bytes_stay: bool = False
) -> Tensor:
    """Data as a tensor of the precision, and on the device, of another.

    Args:
        x: a tensor, an array, nested lists of numbers, or a frame whose columns are numbers.
        like: the tensor to follow, a model's weight. Where not given, a tensor stays on its
            device, floats as they are, and all else has torch's default precision.
        name: what to call x in errors.
        bytes_stay: leave uint8 as it is.

    Returns:
        x itself where there is nothing to change. NaN stands for what is missing.

    Raises:
        TypeError: x holds no numbers.
        ValueError: x has no rows, is a single row or column, or is on another device.
    """
    if like is None:
        is_tensor = isinstance(x, Tensor)
        floats = is_tensor and x.is_floating_point()
        like = x if floats else torch.empty(0, device=x.device if is_tensor else None)
    if not isinstance(x, Tensor):
        rows = numbers(x, name)
        _warn_where_merged(rows, like.dtype, name)
        stays = rows.dtype == np.uint8
        # A copy: torch can't share what is read-only, and what is shared could change later.
        x = torch.from_numpy(np.array(rows, dtype=None if stays else np.float64))
    elif x.layout != torch.strided or x.is_complex():
        kind = "sparse" if x.layout != torch.strided else "complex"
        remedy = "x.to_dense()" if kind == "sparse" else "real numbers, such as x.abs()"
        raise TypeError(f"{name} is a {kind} tensor; pass {remedy}")
    elif x.device != like.device and (x.device.type != "cpu" or like.device.type == "meta"):
        raise ValueError(
            f"{name} is on {x.device}, the model on {like.device}; move one of them, as by "
            f"{name}.to({str(like.device)!r}) or model.to({str(x.device)!r})"
        )
    elif x.dtype in (torch.float64, torch.int64, torch.int32) and x.dtype != like.dtype:
        _warn_where_merged(x.detach().cpu().numpy(), like.dtype, name)
    if x.ndim < 2:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}: pass a table with a row for each sample, (N, D); "
            f"{name}.reshape(1, -1) is one sample, {name}.reshape(-1, 1) a single column"
        )
    if x.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, and so no numbers; pass some rows")
    keep = bytes_stay and x.dtype == torch.uint8
    return x.to(like.device, torch.uint8 if keep else like.dtype)


def numbers(x: Any, name: str) -> np.ndarray:
    """What people hand in as an array of bytes, whole numbers or floats; NaN where it is missing.

    Raises:
        TypeError, ValueError: as `as_tensor` does.
    """
    if isinstance(x, Tensor):
        return x.detach().cpu().numpy()
    if hasattr(x, "columns") and (hasattr(x, "items") or hasattr(x, "iter_columns")):
        # One by one: as a whole, a frame of several types is an array of objects.
        columns = (
            x.items() if hasattr(x, "items") else zip(x.columns, x.iter_columns(), strict=True)
        )
        arrays = [_array(np.asarray(each), f"column {key!r} of {name}") for key, each in columns]
        return np.stack(arrays, 1) if arrays else np.empty((len(x), 0))
    if hasattr(x, "toarray"):
        raise TypeError(f"{name} is a sparse {type(x).__name__}; pass {name}.toarray()")
    if hasattr(x, "feature_names") or (hasattr(x, "target") and hasattr(x, "data")):
        rows = "x" if hasattr(x, "x") else "data"
        raise TypeError(f"{name} is a whole {type(x).__name__}; pass its rows, {name}.{rows}")
    if isinstance(x, str | bytes | dict | set) or not (
        hasattr(x, "__array__") or isinstance(x, list | tuple)
    ):
        raise TypeError(
            f"{name} is a {type(x).__name__}; pass the data themselves: a tensor, a numpy array, a "
            "frame of numbers, or a list of rows"
        )
    if isinstance(x, list | tuple) and x and isinstance(x[0], Tensor):
        if x[0].ndim > 1:
            raise TypeError(f"{name} is a list of tensors; pass one of them, such as {name}[0]")
        x = [np.asarray(row.detach().cpu()) if isinstance(row, Tensor) else row for row in x]
    if isinstance(x, np.ma.MaskedArray):
        x = np.ma.filled(x.astype(float), np.nan)
    try:
        return _array(np.asarray(x), name)
    except ValueError as error:
        raise ValueError(f"the rows of {name} differ in length; pass a table: {error}") from None


def _array(values: np.ndarray, name: str) -> np.ndarray:
    """An array of numbers, from one that may hold them as objects."""
    if values.dtype.kind in "biuf":
        return values
    first = values.flat[0] if values.dtype.kind == "O" and values.size else None
    if values.dtype.kind in "mM" or hasattr(first, "year") or hasattr(first, "utcoffset"):
        raise TypeError(
            f"{name} holds dates or times; pass numbers, such as the days since the first: "
            "(dates - dates.min()) / numpy.timedelta64(1, 'D')"
        )
    if values.dtype.kind != "O":
        remedy = "pass real numbers, such as abs(x)" if values.dtype.kind == "c" else ENCODE
        raise TypeError(f"{name} is of type {values.dtype}, such as {values.flat[0]!r}; {remedy}")
    numbers = np.empty(values.shape)
    for where, value in np.ndenumerate(values):
        # What frames have where nothing is known: None, and pandas' NA, which equals nothing.
        missing = value is None or type(value).__name__ in ("NAType", "NaTType")
        if not missing and (isinstance(value, str | bytes) or not hasattr(value, "__float__")):
            at = where[0] if len(where) == 1 else list(where)
            raise TypeError(f"{name} is {value!r} at {at}, which is no number; {ENCODE}")
        numbers[where] = np.nan if missing else float(value)
    return numbers


def _warn_where_merged(x: np.ndarray, dtype: torch.dtype, name: str) -> None:
    """Says which columns lose values that they tell apart when they become float32."""
    if x.ndim != 2 or x.dtype.itemsize < 4 or x.dtype == np.float32 or dtype == torch.float64:
        return
    for i, column in enumerate(x.T.astype(np.float64, copy=False)):
        column = column[np.isfinite(column)]
        column = column[:10_000]  # sorting takes time
        before, after = len(np.unique(column)), len(np.unique(column.astype(np.float32)))
        if after < 0.99 * before:  # measurements of more digits than seven coincide now and then
            warnings.warn(
                f"column {i} of {name} has {before} values, of which {after} are left in float32, "
                "which holds seven digits; subtract the column's mean first, in float64",
                stacklevel=4,
            )
