"""Results of runs too long for a page: an experiment writes them once, chapters read them."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

REPOSITORY = "https://github.com/your_name/practical-vaes"


def write(path: str | Path, results: Any, device: str = "cpu") -> None:
    """Writes results as JSON, with the command, the versions and the device they came from.

    The file appears whole or not at all, so that an experiment may write it after every part.

    Args:
        path: the file; its folder is made where it is missing.
        results: what `json` can write.
        device: where they were computed, such as "cuda".
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "command": " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "device": torch.cuda.get_device_name()
        if "cuda" in device
        else f"CPU, {os.cpu_count()} cores",
        "results": results,
    }
    written = path.with_name(path.name + ".new")
    written.write_text(json.dumps(record, ensure_ascii=False) + "\n", "utf-8")
    written.replace(path)


def read(name: str) -> dict[str, Any]:
    """What `write` wrote: book/results/<name>.json of the checkout we are in, or a download.

    Args:
        name: the file's, without folder and ending, such as "showdown".

    Returns:
        A dict with "command", "versions", "device" and "results".
    """
    for folder in (Path.cwd(), *Path.cwd().parents):
        path = folder / "book" / "results" / f"{name}.json"
        if path.is_file():
            return json.loads(path.read_text("utf-8"))
    import pooch  # only here: it would slow down `import vaelib`

    url = f"{REPOSITORY}/raw/main/book/results/{name}.json"
    # No hash: the record is renewed with the book, and nothing in it is run.
    fetched = pooch.retrieve(url, known_hash=None, path=pooch.os_cache("vaelib"))
    return json.loads(Path(fetched).read_text("utf-8"))
