"""Checkpoints: a tree of tensors in one safetensors file, with JSON in its header. No pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

# safetensors is imported where it is used: training itself does without.


def save(path: Path, tree: dict[str, Any], header: dict[str, Any]) -> None:
    """Writes nested dicts of tensors, and what JSON can say beside them, in one atomic move.

    Args:
        path: the file; its folder is made where missing.
        tree: dicts of dicts … of tensors, with strings that hold no "/" as keys.
        header: anything that JSON can hold.
    """
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    # Of this process alone: another may be at work on the same run, on a cluster that lost it.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.touch()
    mode = partial.stat().st_mode
    save_file(_flat(tree), partial, {"header": json.dumps(header)})
    partial.chmod(mode)  # as any file here, where safetensors lets its owner alone read it
    os.replace(partial, path)  # a kill leaves either the old file or the new one


def load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads what `save` wrote: the tree, its tensors on the CPU, and the header.

    Raises:
        ValueError: the file is none that `save` wrote, or is cut off.
    """
    from safetensors import SafetensorError, safe_open

    tree: dict[str, Any] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (the file is no mapping)
                *folders, name = key.split("/")
                branch = tree
                for folder in folders:
                    branch = branch.setdefault(folder, {})
                branch[name] = file.get_tensor(key)
            return tree, json.loads(file.metadata()["header"])
    except (SafetensorError, TypeError, KeyError, ValueError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(
            f"{path} is no file that vaelib wrote, or only a part of one ({error}); "
            "delete it, or name another"
        ) from error


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, torch.Tensor]:
    flat: dict[str, torch.Tensor] = {}
    for name, node in tree.items():
        if isinstance(node, dict):
            flat |= _flat(node, f"{prefix}{name}/")
        else:
            flat[prefix + name] = node.detach().cpu().contiguous()
    return flat
