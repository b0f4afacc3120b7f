"""Checks of the outputs that a notebook stores, and of its metadata; see checks.py."""

import json
import re
import socket
from pathlib import Path

from cells import bundles, code_cells
from execute import KERNELSPEC, WIDGET_VIEW
from nbformat import NotebookNode
from pages import ROOT

MAX_BYTES = 1_500_000


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
