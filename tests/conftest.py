"""Where a run is kept, and a card's rules without a card: a tape takes a CUDA graph's place.

Like a graph it knows memory only: it records each operation with the tensors that it read and
wrote, computes nothing for good while it records, and repeats them on the same memory, with the
numbers that Python had at the time.
"""

import contextlib
import types

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from vaelib import graphs, loop


class Tape(TorchDispatchMode):
    """Operations of one step, to be repeated on the tensors that they had."""

    def __init__(self):
        super().__init__()
        self.operations, self.before, self.made = [], [], set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # A number read off the device, and one copied to it.
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.lift_fresh.default):
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        # All that goes in, since batch norm does not own up to what it writes.
        tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        self.before += [(t, t.clone()) for t in tensors if id(t) not in self.made]
        outputs = func(*args, **kwargs)
        self.made |= {id(t) for t in pytree.tree_leaves(outputs)}
        self.operations.append((func, args, kwargs, outputs))
        return outputs

    def __exit__(self, *error):
        super().__exit__(*error)
        with torch.no_grad():
            for tensor, value in reversed(self.before):
                tensor.detach().copy_(value)

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, outputs in self.operations:
            again = pytree.tree_leaves(func(*args, **kwargs))
            for old, new in zip(pytree.tree_leaves(outputs), again, strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.detach().copy_(new)


class Stream:
    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        assert isinstance(other, Stream)


@pytest.fixture
def path(tmp_path):
    """Where a run is kept."""
    return tmp_path / "run.safetensors"


@pytest.fixture
def card(monkeypatch):
    """Runs `fit` on the CPU as on a card; says what was recorded, and how often repeated."""
    log = types.SimpleNamespace(tapes=[], streams=[Stream()], replays=0, mended=0, mode=0)

    class Counted(Tape):
        def replay(self):
            log.replays += 1
            super().replay()

        def capture_begin(self):
            log.mended += 1

        def capture_end(self):
            pass

    @contextlib.contextmanager
    def graph(tape, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"  # other threads may go on
        log.streams.append(stream)  # left behind where recording fails, as torch does
        with tape:
            yield
        log.tapes.append(tape)
        log.streams.pop()

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: log.streams[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", log.streams.append)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Counted)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: log.mode)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: setattr(log, "mode", mode))

    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(loop, "graphed", graphs.Graphed)
    graphs._stream.cache_clear()
    return log
