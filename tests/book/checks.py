"""What every notebook of the book has to be; one small function a check.

Each takes the notebook and its path relative to the checkout and returns a list of problems, in
words that name the cell and the remedy; an empty list is a pass. `ALL` lists the checks.
"""

import ast
import json
import re
import socket
from html.parser import HTMLParser
from pathlib import Path

import repository
from execute import KERNELSPEC, WIDGET_VIEW
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

ROOT = repository.ROOT
MAX_BYTES = 1_500_000
MAX_LINES = 15
MIN_ALT = 30  # letters; "Plot of the loss" describes nothing


# --- helpers -----------------------------------------------------------------------------------


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


# --- outputs -----------------------------------------------------------------------------------


def no_errors(notebook: NotebookNode, path: Path) -> list[str]:
    """No cell stored an error or anything on stderr (warnings, progress bars)."""
    problems = []
    for name, cell in code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "error":
                problems.append(f"{name} stored the error {output.ename}: {output.evalue}")
            elif output.get("name") == "stderr":
                text = output.text.strip().split("\n")[0]
                problems.append(f"{name} wrote to stderr: {text!r}; mend the cause of the warning")
    return problems


def run_in_order(notebook: NotebookNode, path: Path) -> list[str]:
    """Every code cell has code and was run, from the top, once: counts are 1, 2, 3, …"""
    counts = [cell.execution_count for _, cell in code_cells(notebook)]
    problems = [
        f"{name} is empty" for name, cell in code_cells(notebook) if not cell.source.strip()
    ]
    if counts != list(range(1, len(counts) + 1)):
        problems.append(f"cells were run in the order {counts}; make execute NB={path}")
    return problems


def plain_metadata(notebook: NotebookNode, path: Path) -> list[str]:
    """Format 4.5 and the kernel every Jupyter has; nothing about when or with what it was run."""
    problems = []
    remedy = f"; make execute NB={path}"
    version = (notebook.nbformat, notebook.nbformat_minor)
    if version != (4, 5):
        problems.append(f"the format is {version}, not (4, 5); save it with a current Jupyter")
    if notebook.metadata.get("kernelspec") != KERNELSPEC:
        problems.append(f"kernelspec is {notebook.metadata.get('kernelspec')}{remedy}")
    if notebook.metadata.get("language_info") != {"name": "python"}:
        problems.append(f"language_info is {notebook.metadata.get('language_info')}{remedy}")
    for name, cell in code_cells(notebook):
        if "execution" in cell.metadata:
            problems.append(f"{name} stores when it ran; take metadata.execution out")
    return problems


def no_dead_controls(notebook: NotebookNode, path: Path) -> list[str]:
    """No widget is stored: in a page it would answer nothing, and say nothing about it."""
    return [
        f"{name} stored a widget, which is dead without a kernel; make execute NB={path}"
        for name, cell in code_cells(notebook)
        for bundle in bundles(cell)
        if WIDGET_VIEW in bundle
    ]


def figures_described(notebook: NotebookNode, path: Path) -> list[str]:
    """Each image has alt text (what is to be seen), a caption (what it means) and a name."""
    problems = []
    for name, cell in code_cells(notebook):
        images = sum(any(kind.startswith("image/") for kind in bundle) for bundle in bundles(cell))
        if not images:
            continue
        described = cell.metadata.get("mystnb", {})
        alt = described.get("image", {}).get("alt", "").strip()
        caption = described.get("figure", {}).get("caption", "").strip()
        if images > 1:
            problems.append(f"{name} shows {images} images, but metadata describes one: split it")
        if len(alt) < MIN_ALT:
            problems.append(f"{name} has the alt text {alt!r}: say what one would see")
        if not caption:
            problems.append(f"{name} has no caption in metadata.mystnb.figure")
        if alt and alt == caption:
            problems.append(f"{name} repeats its caption as alt text: say what one would see")
        if not described.get("figure", {}).get("name", "").startswith("fig-"):
            problems.append(f"{name} needs a metadata.mystnb.figure.name that starts with fig-")
    for alt, source in re.findall(r"!\[(.*?)\]\((.*?)\)", markdown(notebook)):
        if len(alt.strip()) < MIN_ALT:
            problems.append(f"the image {source} has the alt text {alt!r}: say what one would see")
    return problems


class _Figures(HTMLParser):
    """Collects players' labels and captions, and what a page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.players: list[dict[str, str]] = []
        self.loaded: list[str] = []
        self._in_player = self._in_caption = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attributes}
        if tag == "figure" and "vaelib-player" in values.get("class", "").split():
            self._in_player = True
            self.players.append({"label": values.get("aria-label", ""), "caption": ""})
        self._in_caption = self._in_caption or (self._in_player and tag == "figcaption")
        if tag != "a":
            links = [values.get("src", ""), values.get("href", "")]
            self.loaded += [link for link in links if re.match(r"(https?:)?//", link)]

    def handle_endtag(self, tag: str) -> None:
        self._in_caption = self._in_caption and tag != "figcaption"
        self._in_player = self._in_player and tag != "figure"

    def handle_data(self, data: str) -> None:
        if self._in_caption:
            self.players[-1]["caption"] += data


def players_described(notebook: NotebookNode, path: Path) -> list[str]:
    """Figures that move have a label and a caption, and no output loads anything from elsewhere."""
    problems = []
    for name, cell in code_cells(notebook):
        for bundle in bundles(cell):
            figures = _Figures()
            figures.feed(bundle.get("text/html", ""))
            problems += [
                f"{name} loads {link}: outputs must work offline" for link in figures.loaded
            ]
            for player in figures.players:
                if len(player["label"].strip()) < MIN_ALT:
                    label = player["label"]
                    problems.append(f"{name} shows a player with the aria-label {label!r}")
                if not player["caption"].strip():
                    problems.append(f"{name} shows a player without a figcaption")
    return problems


# A path of a machine, not a URL's, nor base64 by chance: no part of a longer word stands before it.
_PATHS = re.compile(
    r"(?<![\w+/=.%-])/(?:home|root|Users|tmp|var|usr|opt|mnt|media|srv|private|content|work\w*|data|Volumes)"
    r"/[\w.-]+|\b[A-Z]:\\\w+|file://\S+"
)
_ADDRESS_IN_MEMORY = re.compile(r"\bat 0x[0-9a-fA-F]{6,}")


def no_machine_traces(notebook: NotebookNode, path: Path) -> list[str]:
    """No output tells where it was made: paths, host names, addresses in memory."""
    host = socket.gethostname()
    problems = []
    for name, cell in code_cells(notebook):
        # Images are base64: text in them would be there by chance.
        texts = [
            json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
            for bundle in bundles(cell)
            for kind, value in bundle.items()
            if not kind.startswith("image/") or kind == "image/svg+xml"
        ]
        texts += [output.text for output in cell.outputs if output.output_type == "stream"]
        for text in texts:
            traces = _PATHS.findall(text) + _ADDRESS_IN_MEMORY.findall(text)
            if host != "localhost" and re.search(rf"\b{re.escape(host)}\b", text):
                traces.append(host)
            problems += [f"{name} tells where it was made: {trace!r}" for trace in traces]
    return problems


def small(notebook: NotebookNode, path: Path) -> list[str]:
    """The file has at most 1.5 MB: more, and hosts stop rendering it."""
    size = (ROOT / path).stat().st_size
    if size <= MAX_BYTES:
        return []
    return [f"the file has {size:,} bytes, over {MAX_BYTES:,}: fewer frames or a lower dpi"]


# --- a chapter's parts -------------------------------------------------------------------------


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


ALL = [
    no_errors,
    run_in_order,
    plain_metadata,
    no_dead_controls,
    figures_described,
    players_described,
    no_machine_traces,
    small,
    opens_well,
    sets_up,
    runs_its_trap,
    asserts_its_claims,
    solves_its_exercises,
    closes_well,
    cells_short,
]
