"""What the outputs of a notebook were made with, as a short string: 16 hexadecimal digits.

`make execute` writes the string into the notebook, and a test compares it with today's. It covers
what can change outputs without a change of the notebook: the code of vaelib, and the records and
experiments that the notebook names. Comments, docstrings, formatting and line ends do not count.
"""

import ast
import functools
import hashlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from nbformat import NotebookNode
from pages import ROOT
from repository import repository

KEY = "made_with"  # in the metadata of a notebook


@functools.cache
def code(source: str) -> Any:
    """Nested lists that tell what a module does, the same for each version of Python.

    `ast.dump` is not: newer versions have more fields, and 3.12 ends some formats of f-strings with
    an empty text. What is empty is left out here.
    """

    def shape(node: Any) -> Any:
        if isinstance(node, list):
            return [shape(each) for each in node]
        if not isinstance(node, ast.AST):
            return repr(node)
        fields = dict(ast.iter_fields(node))
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            fields["body"] = fields["body"][1:]
        if isinstance(node, ast.JoinedStr):
            fields["values"] = [each for each in node.values if getattr(each, "value", None) != ""]
        filled = {name: shape(each) for name, each in fields.items() if each not in (None, [])}
        return [type(node).__name__, filled]

    return shape(ast.parse(source))


def named(notebook: NotebookNode, root: Path = ROOT) -> list[Path]:
    """The records that the notebook names in quotes and the experiments that it imports."""
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    records = [root / "book/results" / f"{name}.json" for name in re.findall(r'"([\w-]+)"', source)]
    imports = re.findall(r"^import (\w+)$", source, re.M)
    experiments = [root / "book/experiments" / f"{name}.py" for name in imports]
    return sorted(path for path in {*records, *experiments} if path.is_file())


def digest(notebook: NotebookNode, root: Path = ROOT, library: Path | None = None) -> str:
    """The string for a notebook.

    Args:
        notebook: the notebook, for the files that it names.
        root: the checkout with these files.
        library: the folder of vaelib; left out, that of the one which `import vaelib` finds.
    """
    if library is None:
        library = Path(importlib.util.find_spec("vaelib").origin).parent
    modules = sorted(library.rglob("*.py"), key=lambda path: path.relative_to(library).as_posix())
    # A fork has another address in vaelib, and the same outputs.
    address = repository(root)["url"]
    parts: list[Any] = [
        [path.relative_to(library).as_posix(), code(path.read_text("utf-8").replace(address, ""))]
        for path in modules
    ]
    for path in named(notebook, root):
        text = path.read_text("utf-8")
        parts.append([path.name, code(text) if path.suffix == ".py" else text])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
