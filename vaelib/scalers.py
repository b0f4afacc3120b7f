"""A data set's scaler as bytes, without pickle, and back."""

from __future__ import annotations

from typing import Any

# skops is imported where it is used: it brings all of scikit-learn with it.

TRUSTED = [  # beside what skops trusts: column transformers hold them, and none of them runs code
    "numpy.dtype",
    "numpy.number",
    "sklearn.compose._column_transformer.make_column_selector",
]


def freeze(scaler: Any) -> bytes:
    """A scaler as bytes that `thaw` reads.

    Args:
        scaler: a transformer of scikit-learn's, or a pipeline of them.

    Raises:
        TypeError: it is of a type, or holds one, that `thaw` would not let in.
        ImportError: the package skops is missing.
    """
    io = _skops()
    try:
        frozen = io.dumps(scaler)
        io.loads(frozen, trusted=TRUSTED)
    except Exception as error:  # of whatever kind that object's own methods raise
        raise TypeError(
            f"the scaler, a {type(scaler).__name__}, can't be kept without pickle ({error}); pass "
            "a fitted transformer of scikit-learn's, such as data.wine().scaler, that has no "
            "functions or classes of your own"
        ) from error
    return frozen


def thaw(frozen: bytes) -> Any:
    """The scaler that `freeze` made these bytes of.

    Raises:
        ValueError: they hold a type that is not trusted, or no scaler that this scikit-learn knows.
        ImportError: the package skops is missing.
    """
    io = _skops()
    try:
        return io.loads(frozen, trusted=TRUSTED)
    except Exception as error:  # of whatever kind the bytes lead to
        raise ValueError(f"the scaler is not let in: {error}") from error


def _skops() -> Any:
    try:
        import skops.io
    except ImportError as error:
        raise ImportError(
            f"scalers are kept by the package skops ({error}); install it: pip install skops"
        ) from error
    return skops.io
