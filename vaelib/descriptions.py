"""What a VAE was built from, as JSON can hold it, and the way back."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vaelib.settings import MAKERS, made, name_of, settings
from vaelib.vae import VAE

PARTS = ("encoder", "decoder", "likelihood")


def describe(model: VAE) -> tuple[dict[str, Any], dict[str, str]]:
    """How to build each part of a model, and the classes of those of which that can't be said.

    Returns:
        By part, what JSON can hold and `build` takes; and by part, or as "model", names of classes
        that vaelib did not make, or that were changed since.
    """
    parts, own = {}, {} if type(model) is VAE else {"model": name_of(type(model))}
    for name in PARTS:
        part = getattr(model, name)
        try:
            parts[name] = _plain(part)
            # A network may have been changed since it was made.
            if _traits(_part(name, parts[name])) != _traits(part):
                raise TypeError
        except TypeError:
            parts.pop(name, None)
            own[name] = name_of(type(part))
    if len(_weights(model)) < sum(len(_weights(getattr(model, name))) for name in PARTS):
        own["model"] = name_of(type(model))  # its parts share weights
    return parts, own


def build(parts: dict[str, Any]) -> VAE:
    """An untrained VAE, on the CPU, from what `describe` said of each part.

    Only what keeps notes of its arguments, and is vaelib's own, is ever called.

    Raises:
        ValueError: something named there is not of this vaelib.
        KeyError, TypeError: it is, but takes other arguments.
    """
    return VAE(**{name: _part(name, parts[name]) for name in PARTS})


def _traits(part: nn.Module) -> tuple[Any, ...]:
    shapes = {name: tensor.shape for name, tensor in part.state_dict().items()}
    return settings(part), shapes, len(_weights(part))


def _weights(module: nn.Module) -> list[nn.Parameter]:
    """Each once, however many names it has."""
    return [*module.parameters()]


def _plain(value: Any) -> Any:
    """As JSON, all that `_make` needs. TypeError where vaelib does not know how it was made."""
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor | np.ndarray):
        tensor = torch.as_tensor(value)
        return {"values": tensor.tolist(), "type": str(tensor.dtype).removeprefix("torch.")}
    if isinstance(value, Sequence):
        return [_plain(each) for each in value]
    if isinstance(value, nn.Module):
        maker, arguments = made(value)
        if maker.startswith("vaelib.") and maker in MAKERS:
            return {"made by": maker, "arguments": {k: _plain(v) for k, v in arguments.items()}}
    raise TypeError(f"{value!r} can't be described")


def _make(description: Any) -> Any:
    """What was described. Only makers that keep notes, and vaelib's own, are ever called."""
    if isinstance(description, list):
        return tuple(_make(each) for each in description)
    if not isinstance(description, dict):
        return description
    if "values" in description:
        return torch.tensor(description["values"], dtype=getattr(torch, description["type"]))
    name = description["made by"]
    if not name.startswith("vaelib.") or name not in MAKERS:
        raise ValueError(f"it has nothing called {name}; upgrade it, if the file is yours")
    arguments = {key: _make(each) for key, each in description["arguments"].items()}
    parameters = inspect.signature(MAKERS[name]).parameters.values()
    starred = [each.name for each in parameters if each.kind is each.VAR_POSITIONAL]
    several = [each for key in starred for each in arguments.pop(key, ())]
    return MAKERS[name](*several, **arguments)


def _part(name: str, description: Any) -> Any:
    """A part of a VAE, with weights that nobody needs: torch's random numbers stay untouched."""
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        built = _make(description)
    return built if name == "likelihood" else built[PARTS.index(name)]  # of encoder and decoder
