"""Every notebook of the book against every check, and the pages against each other."""

import re
from collections.abc import Callable
from pathlib import Path

import checks
import nbformat
import pages
import pytest
from pybtex.database import parse_file

NOTEBOOKS = pages.notebooks()


@pytest.mark.parametrize("check", checks.ALL, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=str)
def test_notebook(path: Path, check: Callable) -> None:
    problems = check(nbformat.read(pages.ROOT / path, as_version=4), path)
    assert not problems, f"{path}:\n" + "\n".join(problems)


def test_every_notebook_and_page_below_book_is_in_the_toc() -> None:
    found = {
        path.relative_to(pages.ROOT)
        for suffix in ("*.ipynb", "*.md")
        for path in (pages.ROOT / "book").rglob(suffix)
        if ".ipynb_checkpoints" not in path.parts
    }
    assert found == set(pages.pages())


def test_citations_and_bibliography_agree() -> None:
    texts = [(pages.ROOT / path).read_text("utf-8") for path in pages.pages()]
    cited = {
        key.strip()
        for text in texts
        for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text)
        for key in keys.split(",")
    }
    known = set(parse_file(pages.ROOT / "book" / "references.bib").entries)
    assert cited <= known, f"not in references.bib: {sorted(cited - known)}"
    if not any(re.search(r"\{bibliography\}[^`]*:all:", text) for text in texts):
        assert known <= cited, f"in references.bib, but neither cited nor listed: {known - cited}"
