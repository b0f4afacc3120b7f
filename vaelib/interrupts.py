"""Interrupts that wait for the step at hand: Ctrl-C, or a notebook's stop button."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Turns the first interrupt into an event, so that no step is left half done."""
    interrupted = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    # Only the main thread gets signals, and a background job may be meant to ignore this one.
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield interrupted
        return

    def handle(signum: int, frame: Any) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)  # a second interrupt acts at once

    signal.signal(signal.SIGINT, handle)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
