"""Ctrl-C while something must be ended whole: it is kept until that is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["interrupts_deferred"]


@contextmanager
def interrupts_deferred(*, then_raise: bool = True) -> Iterator[None]:
    """Ctrl-C inside takes effect at the end (with ``then_raise``), or not at all: what is inside must be bounded in time.

    Does nothing in another than the main thread, which no signal handler runs in, and where SIGINT is not handled by Python.
    """
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return
    kept: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: kept.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if kept and then_raise:
        previous(*kept[0])
