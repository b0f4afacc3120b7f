"""Checks that a notebook's outputs are those of the code as it stands; see checks.py."""

import ast
import contextlib
import io
from pathlib import Path
from typing import Any

from cells import bundles, code_cells, tree
from digest import KEY, digest
from nbformat import NotebookNode


def made_with_this_code(notebook: NotebookNode, path: Path) -> list[str]:
    """The outputs were made with vaelib's code, and with the records, as they are now."""
    if notebook.metadata.get(KEY) == digest(notebook):
        return []
    return [
        "the outputs were made with another version of vaelib's code, or of a record or experiment "
        f"that the notebook names; make execute NB={path}"
    ]


def _asks_for_source(node: ast.AST) -> bool:
    return any(
        isinstance(each, ast.Attribute) and each.attr == "getsource" for each in ast.walk(node)
    )


def _show(cell: ast.Module, names: dict[str, Any]) -> str:
    """Run a cell; what it prints, and the value of an expression at its end."""
    *body, last = cell.body
    value = None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        if not isinstance(last, ast.Expr):
            body.append(last)
        exec(compile(ast.Module(body, []), "cell", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    # As a stored output has it: the Markdown of a value that has some, else its text.
    text = getattr(value, "_repr_markdown_", value.__repr__)()
    return printed.getvalue() + (text if value is not None else "")


def prints_this_source(notebook: NotebookNode, path: Path) -> list[str]:
    """What a cell printed with `inspect.getsource` is what it prints now.

    The cell is run once more, without a kernel, after the notebook's imports and those of its
    functions that call `getsource`. So it may need nothing else of the notebook.
    """
    trees = {name: tree(cell) for name, cell in code_cells(notebook)}
    top = [node for each in trees.values() for node in each.body]
    helpers = [n for n in top if isinstance(n, ast.FunctionDef) and _asks_for_source(n)]
    needed = [node for node in top if isinstance(node, ast.Import | ast.ImportFrom)] + helpers
    called = {helper.name for helper in helpers}
    problems = []
    for name, cell in code_cells(notebook):
        words = {node.id for node in ast.walk(trees[name]) if isinstance(node, ast.Name)}
        if not (_asks_for_source(trees[name]) or words & called):
            continue
        names: dict[str, Any] = {}
        stored = "".join(output.text for output in cell.outputs if output.output_type == "stream")
        for bundle in bundles(cell):
            stored += bundle.get("text/markdown", bundle.get("text/plain", ""))
        try:
            exec(compile(ast.Module(needed, []), "imports", "exec"), names)
            now = _show(trees[name], names)
        except NameError as error:
            problems.append(f"{name} prints source and needs more than imports: {error}; split it")
            continue
        if stored != now:
            problems.append(f"{name} printed source that has changed since; make execute NB={path}")
    return problems
