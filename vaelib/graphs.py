"""A training step as a CUDA graph: the host launches it once, instead of a hundred kernels.

A small network leaves a graphics card idle: each kernel takes microseconds, and launching it takes
the host as long. A graph is recorded once, and launches all kernels of a step together.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Step = Callable[..., dict[str, Tensor]]
# Of torch, that looking for waits is experimental, and that Adam runs without a graph as yet.
EXPECTED = "debug mode is a prototype", "capturable=True"
EAGER = 3  # steps before recording, in which libraries set themselves up, and Adam its state


class Graphed:
    """A step that, after a few calls as it is, runs as a CUDA graph: what it computes stays.

    The first calls are steps like all others, while recording computes nothing. A step that waits
    for the device, or that cannot be recorded, goes on as it is, and a warning says so.

    Args:
        step: takes tensors, whose shapes stay, and returns a dict of tensors without gradients.
            All else that it changes must be tensors too, and changed in place: a number is
            recorded as it is then.
    """

    def __init__(self, step: Step) -> None:
        self.step = step
        self.stream = torch.cuda.Stream()
        self.calls = 0
        self.run: Step = self._warm_up

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        return self.run(*inputs)

    def _warm_up(self, *inputs: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream), _waits() as waits:
            outputs = self.step(*inputs)
        current.wait_stream(self.stream)
        if self.calls == EAGER:
            self.run = self.step
            if waits:
                _say(f"it waits for the device ({waits[0]})")
            else:
                self._record(inputs, current)
        return outputs

    def _record(self, inputs: tuple[Tensor, ...], current: torch.cuda.Stream) -> None:
        self.graph, self.inputs = torch.cuda.CUDAGraph(), [each.clone() for each in inputs]
        try:
            # On the stream of the first calls, for which the libraries are set up by now.
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.outputs = self.step(*self.inputs)
            self.run = self._replay
        except RuntimeError as error:
            torch.cuda.set_stream(current)  # a failed recording leaves its own behind
            _say(str(error).partition("\n")[0])

    def _replay(self, *inputs: Tensor) -> dict[str, Tensor]:
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.graph.replay()
        return {name: value.clone() for name, value in self.outputs.items()}


@contextlib.contextmanager
def _waits() -> Iterator[list[str]]:
    """Where the block waits for the device, as far as torch can tell: its warnings, filled in."""
    found: list[str] = []
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for each in caught:
        message = str(each.message)
        if "called a synchronizing" in message:
            found.append(f"{each.filename}, line {each.lineno}")
        elif not any(expected in message for expected in EXPECTED):
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


def _say(reason: str) -> None:
    warnings.warn(
        f"the step could not be recorded as a CUDA graph, and runs slower without: {reason}",
        stacklevel=2,
    )
