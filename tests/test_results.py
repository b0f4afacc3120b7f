import math

import numpy as np
import pytest
import torch

from vaelib.results import Table

TABLE = Table(
    ["", "seeds", "error & more", "note"],
    [["plain <VAE>", 3, 1.23456, "**best**"], ["other", np.int64(12), math.nan, "a\nb"]],
    "What came of it",
)


def test_a_screen_reader_finds_headers_and_caption():
    shown = TABLE._repr_html_()
    assert "<caption>What came of it</caption>" in shown
    assert '<th scope="col" style="text-align: right">seeds</th>' in shown
    assert '<th scope="row">plain &lt;VAE&gt;</th>' in shown
    assert "<thead><tr><td></td>" in shown  # an empty corner is no header


def test_numbers_are_rounded_and_stand_to_the_right():
    shown = TABLE._repr_html_()
    for number in ("3", "1.23", "12", "–"):
        assert f'<td style="text-align: right">{number}</td>' in shown
    assert "<td><b>best</b></td>" in shown and "<td>a<br>b</td>" in shown


def test_a_terminal_shows_the_same():
    assert repr(TABLE).splitlines() == [
        "What came of it",
        "             seeds  error & more  note",
        "plain <VAE>      3          1.23  **best**",
        "other           12             –  a b",
    ]


def test_numbers_of_torch_and_numpy_and_truth():
    row = ["x", torch.tensor(0.5), np.float32(2), 2.0, True, None]
    assert Table([*"abcdef"], [row], digits=1).rows == [["x", "0.5", "2", "2.0", "yes", "–"]]


def test_a_row_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="'x' has 1 entries for 2 columns"):
        Table(["", "n"], [["x"]])
