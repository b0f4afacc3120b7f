"""What things were made of: the arguments of their constructors, as reprs and files tell them.

A checkpoint has to know whether it is of the same run, a file how to build a model again, and a
reader which β an objective has. All three ask here.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, SupportsFloat, SupportsIndex, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

P = ParamSpec("P")
Networks = TypeVar("Networks", bound=tuple[nn.Module, ...])
MADE = "_made"  # in the __dict__ of what was made: (by what, from which arguments)
MAKERS: dict[str, Callable[..., Any]] = {}  # by full name, all that keep such a note


class Remembers:
    """Keeps the arguments that an instance was made from, in all subclasses alike."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        MAKERS[name_of(cls)] = cls
        if "__init__" not in cls.__dict__:
            return
        init = cls.__init__

        @functools.wraps(init)
        def remembering(self: Any, *args: Any, **kwargs: Any) -> None:
            _refuse_kinds(type(self).__name__, init, self, *args, **kwargs)
            init(self, *args, **kwargs)
            if type(self).__init__ is remembering:  # and not that of a base, called from there
                _, *arguments = _bind(init, self, *args, **kwargs).items()
                self.__dict__[MADE] = (name_of(type(self)), dict(arguments))

        cls.__init__ = remembering  # type: ignore[method-assign]

    def __repr__(self) -> str:
        return short(self)


def remembered(function: Callable[P, Networks]) -> Callable[P, Networks]:
    """Has a function that builds several networks note its arguments in each of them."""

    @functools.wraps(function)
    def remembering(*args: P.args, **kwargs: P.kwargs) -> Networks:
        _refuse_kinds(function.__name__, function, *args, **kwargs)
        networks = function(*args, **kwargs)
        for network in networks:
            network.__dict__[MADE] = (name_of(function), _bind(function, *args, **kwargs))
        return networks

    MAKERS[name_of(function)] = remembering
    return remembering


def _bind(maker: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    bound = inspect.signature(maker).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


# What an annotation stands for, in words, and what is let in for it.
KINDS: dict[Any, tuple[str, type]] = {
    float: ("a number", SupportsFloat),
    int: ("a whole number", SupportsIndex),
    str: ("a string", str),
    bool: ("True or False", object),
    type(None): ("None", type(None)),
}


@functools.cache
def _hints(maker: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(maker) if maker.__module__.startswith("vaelib.") else {}


def _refuse_kinds(name: str, maker: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Refuses an argument of another kind than this library's own annotation says.

    Raises:
        TypeError: names the argument, its value, and what to pass.
    """
    signature, hints = inspect.signature(maker), _hints(maker)
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError:
        return  # one is missing or too many, as the call itself says
    for key, value in given.items():
        several = signature.parameters[key].kind is inspect.Parameter.VAR_POSITIONAL
        for each in value if several else [value]:
            if key in hints and not _fits(each, hints[key]):
                kinds = " or ".join(dict.fromkeys(_in_words(hints[key])))
                raise TypeError(f"{key} of {name} is {each!r}; pass {kinds}")


def _fits(value: Any, hint: Any) -> bool:
    kind, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is tuple and Ellipsis not in parts:
        several = isinstance(value, tuple | list) and len(value) == len(parts)
        return several and all(_fits(*each) for each in zip(value, parts, strict=True))
    if kind is Sequence:
        several = isinstance(value, Sequence) and not isinstance(value, str)
        return several and all(_fits(each, part) for each in value for part in parts)
    kind = KINDS[kind][1] if kind in KINDS else kind
    return not isinstance(kind, type) or isinstance(value, kind)


def _in_words(hint: Any) -> list[str]:
    kind, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return [word for part in parts for word in _in_words(part)]
    if kind is tuple and Ellipsis not in parts:
        return ["a pair of " + " and ".join(word for part in parts for word in _in_words(part))]
    if kind is Sequence:
        return ["a sequence, each " + " or ".join(w for part in parts for w in _in_words(part))]
    return [KINDS[kind][0] if kind in KINDS else f"a {getattr(kind, '__name__', kind)}"]


def made(thing: Any) -> tuple[str, dict[str, Any]]:
    """By what it was made and from which arguments; its class and none where it keeps no note."""
    return vars(thing).get(MADE, (name_of(type(thing)), {}))


def amend(thing: Any, **arguments: Any) -> None:
    """Says from which arguments a thing would be made as it is now, where it keeps a note."""
    if MADE in vars(thing):
        maker, before = vars(thing)[MADE]
        thing.__dict__[MADE] = (maker, {**before, **arguments})


def name_of(thing: Any) -> str:
    """A class's or function's full name."""
    return f"{thing.__module__}.{thing.__qualname__}"


def settings(value: Any, depth: int = 6) -> Any:
    """All that tells one object from another before either is trained, as JSON can hold it.

    Of a module: the arguments it was made from, its plain public attributes, and those of its
    parts. Not what training changes, such as weights. Of a function: its code, and what it has
    taken from around it. So many levels down, types alone count.
    """
    if isinstance(value, nn.Module):
        maker, arguments = made(value)
        passing = "training", "validate_args"
        plain = {k: v for k, v in attributes(value).items() if k not in passing}
        parts = {**plain, **dict(value.named_children())}
        all_of_it = {**arguments, **{k: v for k, v in parts.items() if k not in arguments}}
        return {"made by": maker, **{name: settings(each) for name, each in all_of_it.items()}}
    if isinstance(value, Tensor | np.ndarray):
        array = torch.as_tensor(value).detach().cpu()
        return array.tolist() if array.numel() <= 1000 else checksum(array)
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth == 0:
        return name_of(type(value))
    if isinstance(value, Mapping):
        return {str(k): settings(v, depth - 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [settings(each, depth - 1) for each in value]
    if isinstance(value, types.FunctionType):
        code = value.__code__
        constants = [c for c in code.co_consts if not isinstance(c, types.CodeType)]
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        text = f"{code.co_code.hex()} {code.co_names} {constants}"
        around = [settings(each, depth - 1) for each in (value.__defaults__, cells)]
        return {"made by": name_of(value), "code": zlib.crc32(text.encode()), "around": around}
    if isinstance(value, functools.partial):
        return settings([value.func, value.args, value.keywords], depth - 1)
    if isinstance(value, type) or hasattr(value, "__qualname__"):
        return name_of(value)
    if vars_of := attributes(value):
        return {"made by": name_of(type(value)), **settings(vars_of, depth - 1)}
    return repr(sorted(value, key=repr) if isinstance(value, set | frozenset) else value)


def attributes(value: Any) -> dict[str, Any]:
    """What an object holds in public, and what its class holds where that is one's own."""
    own = [c for c in type(value).__mro__ if not c.__module__.startswith(("vaelib.", "torch."))]
    found: dict[str, Any] = {}
    for each in reversed(own):
        held = vars(each).items()
        found |= {k: v for k, v in held if not callable(v) and not hasattr(type(v), "__get__")}
    found |= getattr(value, "__dict__", {})
    return {name: each for name, each in found.items() if name[0] != "_"}


def checksum(x: Tensor) -> dict[str, Any]:
    """What tells one tensor from another: its shape, its type and a CRC of its bytes."""
    data = x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return {"shape": [*x.shape], "type": str(x.dtype), "checksum": zlib.crc32(data.data)}


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Where two settings differ, a line each: "name: old in the file, new here"."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        keys = {**new, **old}
        parts = [
            differences(old.get(k), new.get(k), f"{name}.{k}" if name else str(k)) for k in keys
        ]
        return [line for part in parts for line in part]
    return (
        [] if repr(old) == repr(new) else [f"{name}: {_brief(old)} in the file, {_brief(new)} here"]
    )


def _brief(value: Any) -> str:
    text = str(value.get("made by", value) if isinstance(value, dict) else value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def short(thing: Any) -> str:
    """How it was made, in a line: all numbers, as they are now, and what is not the default."""
    maker, arguments = made(thing)
    name = maker.rpartition(".")[2]
    # By its name, since a function that was decorated could not be pickled within its networks.
    function = type(thing) if isinstance(thing, Remembers) else MAKERS.get(maker, type(thing))
    parts = []
    for key, value in arguments.items():
        parameter = inspect.signature(function).parameters[key]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            parts += [_show(each) for each in value]
        elif number or settings(value) != settings(parameter.default):
            parts.append(f"{key}={_show(getattr(thing, key, value))}")
    return f"{name}({', '.join(parts)})"


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        numbers = value.detach().flatten().tolist()
        shown = ", ".join(f"{each:.4g}" for each in numbers[:3])
        return shown if value.ndim == 0 else f"[{shown}{', …' * (len(numbers) > 3)}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(_show, value))})"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value.__name__ if hasattr(value, "__qualname__") else repr(value)
