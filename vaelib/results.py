"""Results as a table that a notebook shows, a screen reader reads, and a terminal prints."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

_NUMBER = re.compile(r"[+\-−±\d–]|\b(nan|inf)\b")


class Table:
    """Rows under a header, of which the first column names the rows.

    Args:
        header: of each column; the first is usually "".
        rows: strings, numbers or booleans. Floats are shown with so many digits after the point, a
            missing one as a dash; **so** marks a string as bold.
        caption: what the table shows, in words.
        digits: after the decimal point, of floats.

    Raises:
        ValueError: a row of another length than the header.
    """

    def __init__(
        self,
        header: Sequence[str],
        rows: Iterable[Sequence[Any]],
        caption: str = "",
        digits: int = 2,
    ) -> None:
        self.header, self.caption = [str(each) for each in header], caption
        self.rows = [[_text(value, digits) for value in row] for row in rows]
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(
                    f"the row {row[0]!r} has {len(row)} entries for {len(self.header)} columns; "
                    "pass one for each"
                )

    def _numeric(self, column: int) -> bool:
        """Whether all of a column's entries begin as numbers do."""
        return all(_NUMBER.match(row[column].strip("*")) for row in self.rows)

    def _repr_html_(self) -> str:
        right = [self._numeric(i) for i in range(len(self.header))]

        def cells(row: Sequence[str], head: bool) -> str:
            line = ""
            for i, text in enumerate(row):
                tag, scope = "td", ""
                if head or i == 0:
                    # A corner without words names nothing.
                    tag, scope = ("th", f' scope="{"col" if head else "row"}"')
                    if not text:
                        tag, scope = "td", ""
                align = ' style="text-align: right"' if right[i] else ""
                line += f"<{tag}{scope}{align}>{_marked(text)}</{tag}>"
            return f"<tr>{line}</tr>"

        caption = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        body = "".join(cells(row, head=False) for row in self.rows)
        head = f"<thead>{cells(self.header, head=True)}</thead>"
        return f'<table class="dataframe">{caption}{head}<tbody>{body}</tbody></table>'

    def __repr__(self) -> str:
        lines = [self.header, *self.rows]
        lines = [[text.replace("\n", " ") for text in line] for line in lines]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]

        def padded(text: str, i: int) -> str:
            return text.rjust(widths[i]) if self._numeric(i) else text.ljust(widths[i])

        shown = ["  ".join(padded(t, i) for i, t in enumerate(line)).rstrip() for line in lines]
        return "\n".join([*([self.caption] if self.caption else []), *shown])


def _text(value: Any, digits: int) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value != value:  # NaN
        return "–"
    whole = float(value).is_integer() and not isinstance(value, float)
    return str(int(value)) if whole else f"{float(value):.{digits}f}"


def _marked(text: str) -> str:
    escaped = html.escape(text).replace("\n", "<br>")
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escaped)
