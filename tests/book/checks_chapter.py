"""Checks of a chapter's parts, from its title to its further reading; see checks.py."""

import re
from pathlib import Path

import repository
from cells import asserts, code_cells, markdown, section
from nbformat import NotebookNode

MAX_LINES = 15


def opens_well(notebook: NotebookNode, path: Path) -> list[str]:
    """First cell: a title without a number, the Colab link, objectives, before you start, time."""
    first = notebook.cells[0]
    if first.cell_type != "markdown" or not first.source.startswith("# "):
        return ["the first cell must be Markdown that starts with '# ' and the title"]
    problems = []
    title, *lines = first.source.split("\n")
    if re.match(r"# (chapter\b|part\b|[\dIVX]+[.:)]|\d)", title, re.I):
        problems.append(f"the title is numbered: {title!r}; order lives in _toc.yml alone")
    link = repository.colab_link(path)
    if lines[:2] != ["", link]:
        problems.append(f"after the title and an empty line must stand exactly: {link}")
    fence = re.search(
        r"^:::+\{admonition\} .+\n:class: objectives\n(.+?)^:::", first.source, re.M | re.S
    )
    if not fence:
        return [*problems, "no :::{admonition} with :class: objectives in the first cell"]
    if not re.search(r"^[-*] \w", fence[1], re.M):
        problems.append("the objectives are not a bullet list")
    if not re.search(r"^\*\*Before you start\.\*\* \S", fence[1], re.M):
        problems.append("the objectives have no line '**Before you start.** …'")
    time = re.search(r"^\*\*Time\.\*\* (.+?)(\n\n|\Z)", fence[1], re.M | re.S)
    if not time:
        problems.append("the objectives have no line '**Time.** …'")
    elif not re.search(r"\b(second|minute)s?\b.*\bCPU\b.*\bGPU\b", time[1], re.S):
        problems.append(f"the time must name seconds or minutes on a CPU and on a GPU: {time[1]!r}")
    return problems


def sets_up(notebook: NotebookNode, path: Path) -> list[str]:
    """The first code cell is the one that fetches vaelib on Colab, hidden in the page."""
    cells = [cell for _, cell in code_cells(notebook)]
    expected = repository.setup_cell()
    if not cells or cells[0].source != expected:
        return [f"the first code cell must be exactly:\n{expected}"]
    if set(cells[0].metadata.get("tags", [])) != {"setup", "hide-cell"}:
        return ['the setup cell needs the tags "setup" and "hide-cell"']
    return []


def runs_its_trap(notebook: NotebookNode, path: Path) -> list[str]:
    """There is a trap, and a code cell right before or after each box makes the mistake."""
    traps = [
        index
        for index, cell in enumerate(notebook.cells)
        if re.search(r"^:::+\{admonition\} Trap: .+\n:class: trap$", cell.source, re.M)
    ]
    if not traps:
        return ["no trap: a box ':::{admonition} Trap: …' with ':class: trap'"]
    return [
        f"cell {index + 1} tells of a trap that no code cell beside it runs"
        for index in traps
        if all(cell.cell_type != "code" for cell in notebook.cells[index - 1 : index + 2])
    ]


def asserts_its_claims(notebook: NotebookNode, path: Path) -> list[str]:
    """`## What we claimed` has code cells, each with asserts that can fail."""
    cells = section(notebook, "What we claimed")
    if cells is None:
        return ["no section '## What we claimed'"]
    code = [cell for cell in cells if cell.cell_type == "code"]
    if not code:
        return ["'## What we claimed' has no code cell with asserts"]
    return [
        f"'## What we claimed' has a cell without an assert that can fail: {cell.source!r}"
        for cell in code
        if not asserts(cell)
    ]


_FENCE = re.compile(
    r"^:::+\{(exercise-start|solution-start|solution-end)\} ?(\S*)\n((?::[\w-]+:.*\n)*):::+$", re.M
)


def solves_its_exercises(notebook: NotebookNode, path: Path) -> list[str]:
    """Each exercise prints a value and its reference range; its folded solution ends in asserts."""
    problems = []
    code: dict[str, list[NotebookNode]] = {}  # label → code cells of exercise and solution
    solution: dict[str, list[NotebookNode]] = {}  # label → code cells of the solution
    label, solved = "", ""
    for cell in section(notebook, "Exercises") or []:
        if cell.cell_type == "code" and label:
            code[label].append(cell)
            if solved:
                solution[solved].append(cell)
        if cell.cell_type != "markdown":
            continue
        for directive, argument, options in _FENCE.findall(cell.source):
            solved = argument if directive == "solution-start" else ""
            if directive == "exercise-start":
                label = "".join(re.findall(r"^:label: (ex-\S+)$", options, re.M))
                code[label] = []
                if not label:
                    problems.append("an exercise has no ':label: ex-…'")
            elif solved:
                solution[solved] = []
                if solved != label:
                    problems.append(f"the solution of {solved!r} does not follow its exercise")
                if ":class: dropdown" not in options:
                    problems.append(f"the solution of {solved!r} has no ':class: dropdown'")
    if not code:
        problems.append("no section '## Exercises' with an :::{exercise-start}")
    for label, cells in code.items():
        if not any(
            "your value" in cell.source.lower() and "reference range" in cell.source.lower()
            for cell in cells
        ):
            problems.append(f"no cell of {label!r} prints 'your value' and 'reference range'")
        if not solution.get(label) or not asserts(solution[label][-1]):
            problems.append(f"{label!r} has no solution whose last code cell asserts")
    return problems


def closes_well(notebook: NotebookNode, path: Path) -> list[str]:
    """Claims, exercises, summary and further reading, in this order; the last with citations."""
    expected = ["What we claimed", "Exercises", "Summary", "Further reading"]
    found = [
        title
        for title in re.findall(r"^## (.+?)\s*$", markdown(notebook), re.M)
        if title in expected
    ]
    if found != expected:
        return [f"the sections must be {expected}, in this order; found {found}"]
    reading = "\n".join(cell.source for cell in section(notebook, "Further reading") or [])
    return [] if "{cite" in reading else ["'## Further reading' cites nothing: use {cite} roles"]


def cells_short(notebook: NotebookNode, path: Path) -> list[str]:
    """Code cells have at most 15 lines, blank lines and comments aside."""
    problems = []
    for name, cell in code_cells(notebook):
        lines = [line.strip() for line in cell.source.split("\n")]
        count = sum(bool(line) and not line.startswith("#") for line in lines)
        if count > MAX_LINES:
            problems.append(
                f"{name} has {count} lines, over {MAX_LINES}: split it, or move it to vaelib"
            )
    return problems
