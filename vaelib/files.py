"""Trained models as files: weights, what they were built from, the data's scaler. No pickle."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaelib import checkpoints, loop
from vaelib.descriptions import build, describe
from vaelib.scalers import freeze, thaw
from vaelib.settings import differences
from vaelib.vae import VAE

KIND, FORMAT = "a model of vaelib", 1  # a file of a higher format was written by a later vaelib


class Saved(NamedTuple):
    """What `load` returns.

    Attributes:
        model: the VAE, in eval mode.
        scaler: what was saved beside it, or None.
    """

    model: VAE
    scaler: Any


def save(path: str | Path, model: VAE, scaler: Any = None) -> None:
    """Writes a trained VAE to a file from which another process can build it again.

    `save("wine.safetensors", model, wine.scaler)` is undone by
    `model, scaler = load("wine.safetensors")`. Weights, architecture, likelihood, open latents and
    `steps_trained` are kept. What an objective has learned for itself, and Adam's state, are not;
    they are in a checkpoint of `fit`.

    Networks and likelihoods of one's own can't be described in a file. A warning says so, and
    their weights are written all the same: `load` then asks for a model to fill.

    Args:
        path: the file, a .safetensors; its folder is made where missing.
        model: the VAE, on any device.
        scaler: what leads from the data's own units to x: a fitted transformer of scikit-learn's,
            or a pipeline of them.

    Raises:
        TypeError: path is no path, model no VAE, or the scaler of a type that only pickle can keep.
        ImportError: there is a scaler, but not the package skops, which writes it.
    """
    path = _path(path)
    if not isinstance(model, VAE):
        raise TypeError(
            f"model is a {type(model).__name__}; pass the trained VAE itself: save(path, model)"
        )
    parts, own = describe(model)
    if own:
        warnings.warn(
            f"{path} has the weights of {_listed(own)}, but not how to build that, since vaelib "
            "did not make it, or not as it is now; to load the file, build the model and pass it: "
            f"vaelib.load({str(path)!r}, model)",
            stacklevel=2,
        )
    # Clones, since two names may share one tensor, which a file can't.
    tree: dict[str, Any] = {"state": {k: v.clone() for k, v in model.state_dict().items()}}
    if scaler is not None:
        tree["scaler"] = torch.frombuffer(bytearray(freeze(scaler)), dtype=torch.uint8)
    header = {
        "kind": KIND,
        "format": FORMAT,
        "parts": parts,
        "own": own,
        "steps_trained": model.steps_trained,
    }
    checkpoints.save(path, tree, header)


def load(path: str | Path, model: VAE | None = None) -> Saved:
    """Reads what `save` wrote: `model, scaler = load("wine.safetensors")`.

    Nothing that a file holds is run. Of what it names, only networks and likelihoods of vaelib are
    built, and of a scaler only the types that skops trusts.

    Args:
        path: the file.
        model: a VAE to fill, for networks or likelihoods of one's own. It must be built as the
            saved one was, and stays on its device.

    Returns:
        The model, in eval mode, and the scaler, or None. A model that was not passed is on the
        CPU; `model.to(device)` moves it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is another kind of file, cut off, of a later vaelib, of networks of
            one's own where no model was passed, or does not fit the model that was.
        ImportError: there is a scaler, but not the package skops, which reads it.
    """
    path = _path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    tree, header = checkpoints.load(path)
    _refuse_kind(path, header)
    try:
        scaler = thaw(tree["scaler"].numpy().tobytes()) if "scaler" in tree else None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    # Memory of their own, aligned as torch does it: rounding may depend on it.
    state = {name: tensor.clone() for name, tensor in tree["state"].items()}
    if model is not None:
        _refuse_misfit(path, header, state, model)
        model.load_state_dict(state)
    elif header["own"]:
        raise ValueError(
            f"{path} has the weights of {_listed(header['own'])}, but not how to build that; build "
            f"the model as it was and pass it: vaelib.load({str(path)!r}, model)"
        )
    else:
        try:
            model = build(header["parts"])
            model.load_state_dict(state, assign=True)  # keeps their precision
        except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"this vaelib cannot build the model in {path}: {error}") from error
    model._steps_trained = header["steps_trained"]
    return Saved(model.eval(), scaler)


def _path(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"path is a {type(path).__name__}; it comes first, as in "
            'save("wine.safetensors", model)'
        )
    if Path(path).is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    return Path(path)


def _listed(own: dict[str, str]) -> str:
    return ", ".join(f"the {part} ({name})" for part, name in own.items())


def _refuse_kind(path: Path, header: Any) -> None:
    """Refuses what is not a model that this version can read."""
    kind = str(header.get("kind"))
    if kind.startswith(loop.KIND.partition(",")[0]):
        raise ValueError(
            f"{path} is a checkpoint of training, not a saved model; build the model as it was and "
            "call fit or fit_seeds with the same arguments and this checkpoint, then save the model"
        )
    if kind != KIND:
        raise ValueError(f"{path} holds no model that vaelib.save wrote; name another file")
    if header["format"] > FORMAT:
        raise ValueError(
            f"{path} was written by a later vaelib, in format {header['format']}, while this one "
            f"reads up to {FORMAT}; upgrade vaelib"
        )


def _refuse_misfit(path: Path, header: Any, state: dict[str, Tensor], model: VAE) -> None:
    """Refuses a model that was built in another way than the one in the file."""
    if not isinstance(model, VAE):
        raise TypeError(f"model is a {type(model).__name__}; pass the VAE that is to be filled")

    def looks(tensors: dict[str, Tensor]) -> dict[str, str]:
        return {name: f"{t.dtype} {list(t.shape)}" for name, t in tensors.items()}

    old, new = header["parts"], describe(model)[0]
    both = [name for name in old if name in new]
    different = [line for name in both for line in differences(old[name], new[name], name)]
    different = different or differences(looks(state), looks(model.state_dict()))
    if different:
        raise ValueError(
            f"{path} is of another model: {'; '.join(different[:5])}; build it as it was saved"
        )
