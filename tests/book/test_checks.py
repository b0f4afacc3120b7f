"""Each check of checks.py passes a good chapter and catches a fault planted in it."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cells
import checks
import checks_outputs
import pytest
import repository
from digest import KEY, digest
from execute import KERNELSPEC, WIDGET_VIEW
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

PATH = Path("book/foundations/example.ipynb")
PIXEL = "iVBORw0KGgo/tmp/home/x="  # stands for a PNG; base64 may look like a path
DESCRIBED = {
    "mystnb": {
        "image": {"alt": "A cloud of points, denser around the origin than outside."},
        "figure": {"caption": "What the encoder returns.", "name": "fig-example"},
    }
}
PLAYER = (
    '<figure class="vaelib-player" aria-label="Points that move together, one frame an epoch">'
    "<figcaption>The latent plane while it is trained.</figcaption></figure>"
)

TITLE = "# Why does a latent dimension go silent?"
OBJECTIVES = """\
:::{admonition} What you will learn
:class: objectives
- to tell a silent dimension from an active one

**Before you start.** Nothing but Python.

**Time.** 20 seconds on a CPU, 5 seconds on a GPU.
:::"""
TRAP = ":::{admonition} Trap: the mean that hides a weight\n:class: trap\nIt is run below.\n:::"
EXERCISE = ":::{exercise-start}\n:label: ex-example\n:::\nHalve it."
SOLUTION = ":::{exercise-end}\n:::\n\n:::{solution-start} ex-example\n:class: dropdown\n:::"


def chapter() -> NotebookNode:
    """A chapter with all that a chapter has. Cells by index: see the comments."""
    link = repository.colab_link(PATH)
    notebook = new_notebook(
        metadata={"kernelspec": KERNELSPEC, "language_info": {"name": "python"}},
        cells=[
            new_markdown_cell(f"{TITLE}\n\n{link}\n\n{OBJECTIVES}"),  # 0
            new_code_cell(repository.setup_cell(), metadata={"tags": ["setup", "hide-cell"]}),  # 1
            new_code_cell("show(x)", metadata=DESCRIBED),  # 2
            new_markdown_cell(TRAP),  # 3
            new_code_cell("loss = x.mean()"),  # 4
            new_markdown_cell("## What we claimed"),  # 5
            new_code_cell("assert loss < 1"),  # 6
            new_markdown_cell(f"## Exercises\n\n{EXERCISE}"),  # 7
            new_code_cell('print("your value", 2, "reference range", (1, 3))'),  # 8
            new_markdown_cell(SOLUTION),  # 9
            new_code_cell("assert 1 < value < 3"),  # 10
            new_markdown_cell(":::{solution-end}\n:::\n\n## Summary\n\nIt depends."),  # 11
            new_markdown_cell("## Further reading\n\n{cite:t}`kingma2014` began it."),  # 12
        ],
    )
    for count, (_, cell) in enumerate(cells.code_cells(notebook), 1):
        cell.execution_count = count
    show(notebook, {"image/png": PIXEL})
    notebook.metadata[KEY] = digest(notebook)
    return notebook


def show(notebook: NotebookNode, data: dict[str, Any]) -> None:
    """Add an output to the cell that shows things."""
    notebook.cells[2].outputs.append(new_output("display_data", data=data))


def say(notebook: NotebookNode, text: str, name: str = "stdout") -> None:
    """Add text to the outputs of the cell that shows things."""
    notebook.cells[2].outputs.append(new_output("stream", name=name, text=text))


def print_source(source: str, output: str) -> Callable[[NotebookNode], None]:
    """Another cell 4, which prints source, and its stored output."""

    def plant(notebook: NotebookNode) -> None:
        imports = "import inspect\nimport repository\nfrom IPython.display import Markdown\n"
        notebook.cells[4].source = imports + source
        notebook.cells[4].outputs = [new_output("stream", text=output)]

    return plant


def replace(index: int, old: str, new: str) -> Callable[[NotebookNode], None]:
    """A fault: other words in a cell. Fails when the words to replace are not there."""

    def plant(notebook: NotebookNode) -> None:
        cell = notebook.cells[index]
        assert old in cell.source
        cell.source = cell.source.replace(old, new)

    return plant


def put(index: int, value: Any, *keys: str) -> Callable[[NotebookNode], None]:
    """A fault: another value below a cell's metadata."""

    def plant(notebook: NotebookNode) -> None:
        node = notebook.cells[index].metadata
        for key in keys[:-1]:
            node = node[key]
        assert node.get(keys[-1]) != value
        node[keys[-1]] = value

    return plant


SLUG = inspect.getsource(repository.slug)
PRINT_SLUG = "print(inspect.getsource(repository.slug))"
HELPER = "def body(part):\n    return Markdown(inspect.getsource(part))\n\n\nbody(repository.slug)"

ALT = DESCRIBED["mystnb"]["image"]["alt"]
VIEW = {WIDGET_VIEW: {"model_id": "abc", "version_major": 2}}

# A check, the fault (a function that spoils the good chapter), a word of the problem it must name.
FAULTS = [
    (
        checks.no_errors,
        lambda nb: nb.cells[2].outputs.append(new_output("error", ename="E", evalue="no")),
        "stored the error E: no",
    ),
    (checks.no_errors, lambda nb: say(nb, "UserWarning: mind", "stderr"), "UserWarning: mind"),
    (checks.run_in_order, lambda nb: nb.cells[4].update(execution_count=7), "7"),
    (checks.run_in_order, lambda nb: nb.cells[10].update(execution_count=None), "None"),
    (checks.run_in_order, replace(4, "loss = x.mean()", ""), "empty"),
    (checks.plain_metadata, lambda nb: nb.update(nbformat_minor=4), "(4, 4)"),
    (checks.plain_metadata, lambda nb: nb.metadata.kernelspec.update(name="mine"), "mine"),
    (checks.plain_metadata, lambda nb: nb.metadata.language_info.update(version="3"), "language"),
    (checks.plain_metadata, put(4, {"iopub.execute_input": "12:00"}, "execution"), "when it ran"),
    (checks.no_dead_controls, lambda nb: show(nb, VIEW), "dead without a kernel"),
    (checks.figures_described, put(2, {}, "mystnb"), "alt text ''"),
    (checks.figures_described, put(2, "A plot.", "mystnb", "image", "alt"), "'A plot.'"),
    (checks.figures_described, put(2, " ", "mystnb", "figure", "caption"), "no caption"),
    (checks.figures_described, put(2, ALT, "mystnb", "figure", "caption"), "repeats"),
    (checks.figures_described, put(2, "example", "mystnb", "figure", "name"), "fig-"),
    (checks.figures_described, lambda nb: show(nb, {"image/svg+xml": "<svg/>"}), "2 images"),
    (checks.figures_described, replace(3, "It is", "![](gates.png) It is"), "gates.png"),
    (
        checks.players_described,
        lambda nb: show(nb, {"text/html": PLAYER.replace("aria-label", "title")}),
        "aria-label ''",
    ),
    (
        checks.players_described,
        lambda nb: show(nb, {"text/html": PLAYER.replace("figcaption", "p")}),
        "without a figcaption",
    ),
    (
        checks.players_described,
        lambda nb: show(nb, {"text/html": '<script src="https://cdn.example/a.js"></script>'}),
        "https://cdn.example/a.js",
    ),
    (checks.no_machine_traces, lambda nb: say(nb, "read /home/ada/wine.csv"), "/home/ada"),
    (checks.no_machine_traces, lambda nb: say(nb, r"read C:\wine.csv"), "C:"),
    (
        checks.no_machine_traces,
        lambda nb: show(nb, {"text/html": "<img src='/tmp/a.png'>"}),
        "/tmp/a.png",
    ),
    (checks.no_machine_traces, lambda nb: say(nb, "<VAE at 0x7f12aa34>"), "0x7f12aa34"),
    (checks.no_machine_traces, lambda nb: say(nb, "on host-of-ada:"), "host-of-ada"),
    (checks.opens_well, replace(0, "# Why", "Why"), "the title"),
    (checks.opens_well, replace(0, "# Why", "# 3. Why"), "numbered"),
    (checks.opens_well, replace(0, "/blob/main/", "/blob/master/"), "/blob/main/"),
    (checks.opens_well, replace(0, "objectives", "note"), "objectives"),
    (checks.opens_well, replace(0, "- to tell", "to tell"), "bullet"),
    (checks.opens_well, replace(0, "**Before you start.**", "Before you start."), "Before"),
    (checks.opens_well, replace(0, "**Time.**", "Time:"), "Time"),
    (checks.opens_well, replace(0, "5 seconds on a GPU", "less elsewhere"), "GPU"),
    (checks.sets_up, replace(1, "--no-deps ", ""), "--no-deps"),
    (checks.sets_up, replace(1, repository.repository()["url"], "https://x.org/a/b"), "exactly"),
    (checks.sets_up, put(1, ["setup"], "tags"), "hide-cell"),
    (checks.runs_its_trap, replace(3, "Trap: ", ""), "no trap"),
    (
        checks.runs_its_trap,
        lambda nb: (nb.cells.insert(3, new_markdown_cell("…")), nb.cells.pop(5)),
        "no code cell beside it",
    ),
    (checks.asserts_its_claims, replace(5, "## What we claimed", "## Claims"), "no section"),
    (checks.asserts_its_claims, lambda nb: nb.cells.pop(6), "no code cell"),
    (checks.asserts_its_claims, replace(6, "assert loss < 1", "loss < 1"), "'loss < 1'"),
    (checks.asserts_its_claims, replace(6, "loss < 1", "True"), "'assert True'"),
    (checks.solves_its_exercises, replace(7, "## Exercises", "## Tasks"), "no section"),
    (checks.solves_its_exercises, replace(7, ":label: ex-example\n", ""), ":label: ex-…"),
    (checks.solves_its_exercises, replace(8, "reference range", "true"), "reference range"),
    (checks.solves_its_exercises, replace(9, "ex-example", "ex-other"), "'ex-other'"),
    (checks.solves_its_exercises, replace(9, ":class: dropdown\n", ""), "dropdown"),
    (checks.solves_its_exercises, replace(9, "{solution-start} ex-example", "{tip}"), "asserts"),
    (checks.solves_its_exercises, replace(10, "assert 1 < value < 3", "value = 2"), "asserts"),
    (checks.closes_well, replace(11, "## Summary", "### Summary"), "Summary"),
    (checks.closes_well, lambda nb: nb.cells.insert(2, nb.cells.pop(12)), "in this order"),
    (checks.closes_well, replace(12, "{cite:t}`kingma2014`", "Kingma"), "cite"),
    (checks.made_with_this_code, lambda nb: nb.metadata.pop(KEY), f"make execute NB={PATH}"),
    (checks.made_with_this_code, lambda nb: nb.metadata.update({KEY: "0" * 16}), "vaelib's code"),
    (checks.prints_this_source, print_source(PRINT_SLUG, "def slug(): …"), "has changed"),
    (checks.prints_this_source, print_source(HELPER, SLUG + "#"), "has changed"),
    (checks.prints_this_source, print_source(f"{PRINT_SLUG}\nprint(loss)", SLUG), "'loss'"),
    (checks.cells_short, replace(4, "loss", "\n".join(["x += 1"] * 15 + ["loss"])), "16 lines"),
]


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The chapter lies in an empty checkout, on a machine whose name we know."""
    (tmp_path / PATH).parent.mkdir(parents=True)
    (tmp_path / PATH).write_text("{}")
    monkeypatch.setattr(checks_outputs, "ROOT", tmp_path)
    monkeypatch.setattr("socket.gethostname", lambda: "host-of-ada")


@pytest.mark.parametrize("check", checks.ALL, ids=lambda check: check.__name__)
def test_a_good_chapter_passes(check: Callable) -> None:
    assert check(chapter(), PATH) == []


def test_good_players_and_long_comments_pass() -> None:
    notebook = chapter()
    show(notebook, {"text/html": PLAYER + '<a href="https://example.org">paper</a>'})
    notebook.cells[4].source += "\n# a comment" * 20 + "\n" * 20
    assert [problem for check in checks.ALL for problem in check(notebook, PATH)] == []


def test_source_as_it_is_now_passes() -> None:
    notebook = chapter()
    print_source(PRINT_SLUG, SLUG + "\n")(notebook)
    assert checks.prints_this_source(notebook, PATH) == []
    print_source(HELPER, "")(notebook)
    shown = new_output("execute_result", data={"text/markdown": SLUG, "text/plain": "<…>"})
    notebook.cells[4].outputs = [shown]
    assert checks.prints_this_source(notebook, PATH) == []


@pytest.mark.parametrize(("check", "fault", "word"), FAULTS)
def test_a_fault_is_caught(check: Callable, fault: Callable, word: str) -> None:
    notebook = chapter()
    fault(notebook)
    problems = "\n".join(check(notebook, PATH))
    assert word in problems


def test_a_large_file_is_caught(tmp_path: Path) -> None:
    (tmp_path / PATH).write_bytes(b"x" * (checks_outputs.MAX_BYTES + 1))
    assert "1,500,001 bytes" in checks.small(chapter(), PATH)[0]


def test_every_check_has_a_fault() -> None:
    assert {check for check, _, _ in FAULTS} | {checks.small} == set(checks.ALL)
