"""Run notebooks of the book again, in place, as readers' outputs are made: on a CPU, from the top.

    python tools/execute.py [NOTEBOOK …]      (all of _toc.yml's when none is named)

A notebook is written only when each of its cells passed.
"""

import os
import sys
import time
from pathlib import Path

import nbformat
from digest import KEY, digest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from pages import ROOT, notebooks

KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
CELL_TIMEOUT = 300  # seconds; a hanging cell should fail, not wait for ever

# What the kernel finds in its environment: no graphics card, and no progress bars in the outputs.
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}


def execute(path: Path) -> None:
    """Run one notebook and write it back, without anything that tells when or where it ran.

    Raises:
        RuntimeError: a cell failed, and which; the file is untouched.
    """
    notebook = nbformat.read(path, as_version=4)
    made_with = digest(notebook)  # before it runs: an edit of vaelib meanwhile is a later version
    client = NotebookClient(
        notebook,
        kernel_name=KERNELSPEC["name"],
        timeout=CELL_TIMEOUT,
        record_timing=False,
        coalesce_streams=True,  # one output per stream, however the text happened to be buffered
        resources={"metadata": {"path": str(path.parent)}},
    )
    # nbclient plays the front end of Output widgets, and what it then sends can hide a cell's reply
    # from it until the timeout (jupyter/nbclient#312). Without, what a widget shows at its start is
    # its cell's output, instead of what the cell printed before: give `interact` a cell of its own.
    client.widget_registry.clear()
    try:
        client.execute(env=os.environ | ENVIRONMENT)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise RuntimeError(f"code cell {client.code_cells_executed} failed.\n{error}") from error
    notebook.metadata.kernelspec = KERNELSPEC
    notebook.metadata.language_info = {"name": "python"}
    notebook.metadata[KEY] = made_with
    # A widget lives by its kernel. In a page it would be a dead control, so its code stands alone.
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                each for each in cell.outputs if WIDGET_VIEW not in each.get("data", {})
            ]

    # Written beside it and moved over it: an interruption leaves the old file or the new one.
    written = path.with_name(path.name + ".new")
    nbformat.write(notebook, written)
    written.replace(path)


def main() -> None:
    """Execute the named notebooks, or all; report seconds, and fail when one of them failed."""
    paths = [Path(name) for name in sys.argv[1:]] or [ROOT / path for path in notebooks()]
    if unknown := [str(path) for path in paths if path.suffix != ".ipynb" or not path.is_file()]:
        known = "\n  ".join(map(str, notebooks()))
        sys.exit(f"Not a notebook: {', '.join(unknown)}. The book has:\n  {known}")
    failed = 0
    for path in paths:
        start = time.perf_counter()
        try:
            execute(path)
            print(f"{time.perf_counter() - start:7.1f} s  {os.path.relpath(path)}", flush=True)
        except RuntimeError as error:
            failed += 1
            print(f"   FAILED  {os.path.relpath(path)}, left as it was: {error}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
