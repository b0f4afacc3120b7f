import math

import pytest

from vaelib.verdicts import Diagnosis, judge

CAUSES = {"too_low": ("small", "part/low"), "too_high": ("large", "part/high")}


@pytest.mark.parametrize(
    ("value", "cause", "chapter"),
    [(1.0, "", ""), (2.0, "", ""), (0.99, "small", "part/low"), (2.01, "large", "part/high")],
)
def test_a_value_outside_its_range_gets_the_cause_of_that_side(value, cause, chapter):
    row = judge("a & b", value, 1, 2, **CAUSES)
    assert (row.cause, row.chapter) == (cause, chapter)
    assert row.verdict == (f"amiss: {cause} → {chapter}" if cause else "fine")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_skipped_and_says_why(value):
    assert judge("a", value, 1, 2, "for a reason", **CAUSES).verdict == "skipped: for a reason"
    row = judge("a", value, 1, 2, **CAUSES)
    assert row.verdict == "skipped: it is not finite" and not row.cause
    assert row.cells() == ("a", "–", "–", row.verdict)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0, 0, "0"),
        (1, 2.5, "1 to 2.5"),
        (-math.inf, 0.5, "at most 0.5"),
        (0.5, math.inf, "at least 0.5"),
    ],
)
def test_the_range_is_said_in_words(low, high, words):
    assert judge("a", 0, low, high).expected == words


@pytest.fixture
def diagnosis():
    rows = judge("a & b", 3, 1, 2, "of 4", **CAUSES), judge("c", 1, 1, 2), judge("d", math.nan)
    return Diagnosis(rows)


def test_a_diagnosis_finds_rows_and_what_is_amiss(diagnosis):
    assert [row.name for row in diagnosis.amiss] == ["a & b"]
    assert diagnosis["a"].detail == "of 4"
    with pytest.raises(KeyError, match="the rows are"):
        diagnosis["e"]


def test_it_prints_a_line_for_each_number(diagnosis):
    assert repr(diagnosis) == str(diagnosis)
    header, *lines = str(diagnosis).splitlines()
    assert header.split() == ["number", "value", "should", "be", "verdict"]
    assert [line[header.index("verdict") :] for line in lines] == [
        "amiss: large → part/high",
        "fine",
        "skipped: it is not finite",
    ]
    assert lines[0].startswith("a & b   3 (of 4)  1 to 2")


def test_a_notebook_shows_a_table_with_headers(diagnosis):
    page = diagnosis._repr_html_()
    assert "<caption>Diagnosis: 1 of 3 numbers amiss</caption>" in page
    assert page.count('<th scope="col">') == 4
    assert page.count('<th scope="row">') == 3
    assert '<th scope="row">a &amp; b</th>' in page
    assert page.count("<strong>") == 1
    assert "<td><strong>amiss: large → part/high</strong></td>" in page
