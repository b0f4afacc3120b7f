"""What the experiments share: a chapter's own cells, and the results written so far."""

import json
from pathlib import Path
from typing import Any

import nbformat

BOOK = Path(__file__).parent.parent


def chapter(name: str) -> dict[str, Any]:
    """What the cells tagged `experiment` of a chapter define; balance/showdown."""
    names: dict[str, Any] = {}
    for cell in nbformat.read(BOOK / f"{name}.ipynb", as_version=4).cells:
        if "experiment" in cell.metadata.get("tags", []):
            exec(cell.source, names)
    return names


def done(out: Path) -> dict[str, Any]:
    """The results in a record, none where there is no record yet."""
    return json.loads(out.read_text("utf-8"))["results"] if out.exists() else {}
