"""What a number should be, and the verdict where it is not: the rows of a diagnosis."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Row:
    """One number, what it should be, and what is amiss where it is not.

    Attributes:
        name: what was measured, with its unit.
        value: the number; NaN where it was skipped.
        low, high: the range of a healthy model, its ends included.
        detail: more about the number, or why it was skipped.
        cause: what a value outside the range points to; empty where nothing is amiss.
        chapter: the page that treats this cause; empty where nothing is amiss.
    """

    name: str
    value: float
    low: float
    high: float
    detail: str = ""
    cause: str = ""
    chapter: str = ""

    @property
    def expected(self) -> str:
        """The healthy range in words."""
        if self.low == self.high:
            return f"{self.low:.3g}"
        if self.low == -math.inf:
            return f"at most {self.high:.3g}"
        if self.high == math.inf:
            return f"at least {self.low:.3g}"
        return f"{self.low:.3g} to {self.high:.3g}"

    @property
    def verdict(self) -> str:
        """`fine`, `skipped` or `amiss`, and why."""
        if math.isnan(self.value):
            return f"skipped: {self.detail}"
        return f"amiss: {self.cause} → {self.chapter}" if self.cause else "fine"

    def cells(self) -> tuple[str, str, str, str]:
        """The row as text: name, value, should be, verdict."""
        if math.isnan(self.value):
            return self.name, "–", "–", self.verdict
        detail = f" ({self.detail})" if self.detail else ""
        return self.name, f"{self.value:.3g}{detail}", self.expected, self.verdict


HEADER = ("number", "value", "should be", "verdict")


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """The rows of a diagnosis, causes before their symptoms. `print` it, or let a notebook show it.

    Attributes:
        rows: one for each number, always in the same order. Where values are not finite, the row
            that says so is the only one.
    """

    rows: tuple[Row, ...]

    @property
    def amiss(self) -> tuple[Row, ...]:
        """The rows with a cause, the likeliest root first. Empty for a healthy model."""
        return tuple(row for row in self.rows if row.cause)

    def __getitem__(self, name: str) -> Row:
        """The row whose name starts with this."""
        for row in self.rows:
            if row.name.startswith(name):
                return row
        raise KeyError(f"{name!r}; the rows are {[row.name for row in self.rows]}")

    def __str__(self) -> str:
        cells = [HEADER, *(row.cells() for row in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(3)]
        lines = []
        for row in cells:
            padded = [text.ljust(width) for text, width in zip(row, widths, strict=False)]
            lines.append("  ".join([*padded, row[3]]))
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """A plain table with headers for rows and columns, as screen readers need it."""
        head = "".join(f'<th scope="col">{name}</th>' for name in HEADER)
        body = []
        for row in self.rows:
            name, *texts = (html.escape(text) for text in row.cells())
            texts[-1] = f"<strong>{texts[-1]}</strong>" if row.cause else texts[-1]
            cells = "".join(f"<td>{text}</td>" for text in texts)
            body.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
        caption = f"Diagnosis: {len(self.amiss)} of {len(self.rows)} numbers amiss"
        return (
            f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(body)}</tbody></table>"
        )


def judge(
    name: str,
    value: float | Tensor,
    low: float = -math.inf,
    high: float = math.inf,
    detail: str = "",
    too_low: tuple[str, str] = ("", ""),
    too_high: tuple[str, str] = ("", ""),
) -> Row:
    """A row with the cause for the side on which its value lies outside, each (cause, chapter)."""
    value = float(value)
    if not math.isfinite(value):
        return Row(name, math.nan, low, high, detail or "it is not finite")
    cause, chapter = too_low if value < low else too_high if value > high else ("", "")
    return Row(name, value, low, high, detail, cause, chapter)
