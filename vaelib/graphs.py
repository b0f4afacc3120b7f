"""A training step as a CUDA graph: the host launches it once, instead of a hundred kernels.

A small network leaves a graphics card idle: each kernel takes microseconds, and launching it takes
the host as long. A graph is recorded once, and launches all kernels of a step together.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Step = Callable[..., dict[str, Tensor]]
# Of torch, that looking for waits is experimental, that Adam runs without a graph as yet, and that
# a graph which we leave empty is empty.
EXPECTED = "debug mode is a prototype", "capturable=True", "Graph is empty"
EAGER = 3  # steps before recording, in which libraries set themselves up, and Adam its state


def graphed(step: Step, device: torch.device) -> Step:
    """The step as `Graphed` where the device is an NVIDIA GPU, and as it is elsewhere."""
    return Graphed(step, device) if device.type == "cuda" else step


class Graphed:
    """A step that, after a few calls as it is, runs as a CUDA graph: what it computes stays.

    The first calls are steps like all others, while recording computes nothing. A step that waits
    for the device, or that cannot be recorded, goes on as it is, and a warning says so.

    Args:
        step: takes tensors, whose shapes stay, and returns a dict of tensors without gradients.
            All else that it changes must be tensors too, and changed in place: a number is
            recorded as it is then.
        device: where it computes.
    """

    def __init__(self, step: Step, device: torch.device) -> None:
        self.step, self.device = step, device
        self.stream = _stream(device, threading.get_ident())
        self.calls = 0
        # Never a method of our own: in a cycle, a graph would outlive its run, and be destroyed
        # while another is recorded.
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        if self.graph is not None:
            return self._replay(self.graph, inputs)
        if self.calls == EAGER:
            return self.step(*inputs)
        with torch.cuda.device(self.device):
            return self._warm_up(*inputs)

    def _replay(self, graph: torch.cuda.CUDAGraph, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        graph.replay()
        return {name: value.clone() for name, value in self.outputs.items()}

    def _warm_up(self, *inputs: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream), _waits() as waits:
            outputs = self.step(*inputs)
        current.wait_stream(self.stream)
        if self.calls == EAGER and waits:
            _say(f"it waits for the device ({waits[0]})")
        elif self.calls == EAGER:
            self._record([each.clone() for each in inputs], current)
        return outputs

    def _record(self, inputs: list[Tensor], current: torch.cuda.Stream) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            # On the stream of the first calls, for which the libraries are set up by now. What
            # other threads do meanwhile is theirs: two runs may go on side by side.
            mode = "thread_local"
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode=mode):
                self.outputs = self.step(*inputs)
            self.graph, self.inputs = graph, inputs
        except RuntimeError as error:
            # torch ends the recording, which fails too, and hides what made it fail.
            _say(str(error.__context__ or error).partition("\n")[0])
            # A recording that failed leaves its stream behind, and torch's own random numbers
            # unusable, until another succeeds: an empty one.
            with contextlib.suppress(RuntimeError), _waits(), torch.cuda.stream(self.stream):
                empty = torch.cuda.CUDAGraph()
                empty.capture_begin()
                empty.capture_end()
            torch.cuda.set_stream(current)


@functools.cache
def _stream(device: torch.device, thread: int) -> torch.cuda.Stream:
    """One for all runs of a thread: cuBLAS keeps tens of megabytes for each stream it has seen."""
    return torch.cuda.Stream(device)


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
