"""What the checks of notebooks share: cells and sections of a notebook, and what cells hold."""

import ast
import re

from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode


def code_cells(notebook: NotebookNode) -> list[tuple[str, NotebookNode]]:
    """All code cells, each with the name that problems use: its number and first line."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    firsts = [cell.source.strip().split("\n")[0] for cell in code]
    return [
        (f"code cell {number} ({first})", cell)
        for number, (first, cell) in enumerate(zip(firsts, code, strict=True), 1)
    ]


def markdown(notebook: NotebookNode) -> str:
    """All Markdown of the notebook as one text."""
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def tree(cell: NotebookNode) -> ast.Module:
    """Syntax tree of a code cell, magics translated as IPython does."""
    return ast.parse(TransformerManager().transform_cell(cell.source))


def asserts(cell: NotebookNode) -> list[ast.Assert]:
    """The assert statements of a code cell that can fail (`assert True` can't)."""
    return [
        node
        for node in ast.walk(tree(cell))
        if isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant)
    ]


def bundles(cell: NotebookNode) -> list[dict[str, str]]:
    """The MIME bundles that a cell displays."""
    return [output.data for output in cell.outputs if "data" in output]


def section(notebook: NotebookNode, title: str) -> list[NotebookNode] | None:
    """The cells from `## title` up to the next one with a heading `##`; None when there is none."""
    starts = [
        index
        for index, cell in enumerate(notebook.cells)
        if cell.cell_type == "markdown" and re.search(r"^## ", cell.source, re.M)
    ]
    for start, end in zip(starts, [*starts[1:], len(notebook.cells)], strict=True):
        if re.search(rf"^## {re.escape(title)}\s*$", notebook.cells[start].source, re.M):
            return notebook.cells[start:end]
    return None
