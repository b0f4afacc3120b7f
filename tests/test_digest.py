"""The digest of what a notebook's outputs were made with: what changes it, and what does not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import repository
from digest import code, digest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

MODULE = '''\
"""A module of the library."""

ADDRESS = "https://github.com/ada/vaes"


class Sum:
    """Adds."""

    def add(self, x: float, *, y: float = 1) -> float:
        """x + y."""
        return x + y
'''


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with a library of two modules, a record and an experiment."""
    for name, text in {
        "_config.yml": "repository:\n  url: https://github.com/ada/vaes\n  branch: main\n",
        "vaelib/__init__.py": "",
        "vaelib/data/sums.py": MODULE,
        "book/results/sprites-35.json": "{}\n",
        "book/experiments/train.py": "x = 1\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def notebook(*sources: str) -> NotebookNode:
    return new_notebook(cells=[new_code_cell(source) for source in sources])


def rewrite(name: str, old: str, new: str) -> Callable[[Path], object]:
    """A change of a file. Fails when the words to replace are not there."""

    def change(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_bytes(text.replace(old, new).encode())

    return change


SUMS = "vaelib/data/sums.py"
RECORD = "book/results/sprites-35.json"
READER = ('records.read("sprites-35")', "import train")

HARMLESS = [
    rewrite(SUMS, "A module", "One module"),
    rewrite(SUMS, "Adds", "Adds, slowly"),
    rewrite(SUMS, '        """x + y."""\n', ""),
    rewrite(SUMS, "return x + y", "return (x +\n            y)  # a comment"),
    rewrite(SUMS, "\n", "\r\n"),
    rewrite(RECORD, "\n", "\r\n"),
    rewrite("book/experiments/train.py", "\n", "  # a comment\n"),
    lambda root: repository.change("https://github.com/eve/fork", root),
    lambda root: (root / "vaelib/notes.txt").write_text("x"),
    lambda root: (root / "book/results/other.json").write_text("{}"),
]
HARMFUL = [
    rewrite(SUMS, "x + y\n", "x - y\n"),
    rewrite(SUMS, "y: float = 1", "y: float = 2"),
    rewrite(SUMS, "y: float = 1", "y: float = None"),
    rewrite(SUMS, 'ADDRESS = "', 'ADDRESS = "x'),
    rewrite(RECORD, "{}", '{"a": 1}'),
    rewrite("book/experiments/train.py", "1", "2"),
    lambda root: (root / SUMS).rename(root / "vaelib/sums.py"),
    lambda root: (root / "vaelib/more.py").write_text(""),
]


@pytest.mark.parametrize("change", HARMLESS)
def test_what_changes_no_output_keeps_the_digest(root: Path, change: Callable) -> None:
    before = digest(notebook(*READER), root, root / "vaelib")
    change(root)
    assert digest(notebook(*READER), root, root / "vaelib") == before


@pytest.mark.parametrize("change", HARMFUL)
def test_what_can_change_an_output_changes_the_digest(root: Path, change: Callable) -> None:
    before = digest(notebook(*READER), root, root / "vaelib")
    change(root)
    assert digest(notebook(*READER), root, root / "vaelib") != before


def test_a_record_counts_only_where_it_is_named_in_code(root: Path) -> None:
    before = digest(notebook("x = 1"), root, root / "vaelib")
    in_text = notebook("x = 1")
    in_text.cells.append(new_markdown_cell('The record "sprites-35".'))
    assert digest(in_text, root, root / "vaelib") == before
    assert digest(notebook('x = "sprites-35"'), root, root / "vaelib") != before


def test_the_library_is_the_one_that_is_imported() -> None:
    import vaelib

    assert digest(notebook()) == digest(notebook(), library=Path(vaelib.__file__).parent)


def test_versions_of_python_agree() -> None:
    """Written out once; 3.12 would add an empty text after `{k}`, and `type_params` to f and C."""
    name_k = ["Name", {"id": "'k'", "ctx": ["Load", {}]}]
    width = ["JoinedStr", {"values": [["FormattedValue", {"value": name_k, "conversion": "-1"}]]}]
    value = ["FormattedValue", {"value": name_k, "conversion": "-1", "format_spec": width}]
    function = {
        "name": "'f'",
        "args": ["arguments", {"args": [["arg", {"arg": "'k'"}]]}],
        "body": [["Return", {"value": ["JoinedStr", {"values": [value]}]}]],
    }
    pass_class = ["ClassDef", {"name": "'C'", "body": [["Pass", {}]]}]
    source = 'def f(k):\n    "Doc."\n    return f"{k:{k}}"\nclass C:\n    pass'
    assert code(source) == ["Module", {"body": [["FunctionDef", function], pass_class]}]
