"""Calls on their way from the I/O thread to the main thread: first in, first out, without a lock of ours."""

from __future__ import annotations

import queue
from dataclasses import dataclass

from runtime.wire.peer import Peer

__all__ = ["Mailbox", "QueuedCall"]


@dataclass(slots=True, eq=False)
class QueuedCall:
    """A call that was received and not started."""

    peer: Peer
    call_id: int
    method: str
    buffers: list[bytes | memoryview]
    is_cancelled: bool = False  # the caller does not want the answer any more


class Mailbox:
    """``put``, ``cancel`` and ``close`` on the I/O thread, ``get`` on the main thread."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[QueuedCall | None] = queue.SimpleQueue()
        self._waiting: dict[tuple[Peer, int], QueuedCall] = {}
        self._is_closed = False

    def put(self, call: QueuedCall) -> None:
        """Queue a call; after ``close`` it is dropped."""
        if not self._is_closed:
            self._waiting[call.peer, call.call_id] = call
            self._queue.put(call)

    def cancel(self, peer: Peer, call_id: int) -> None:
        """The call shall not be started; too late for one that was."""
        call = self._waiting.get((peer, call_id))
        if call is not None:
            call.is_cancelled = True

    def close(self) -> None:
        """Start nothing more: ``get`` returns None from now on, and wakes up for it."""
        self._is_closed = True
        self._waiting.clear()
        self._queue.put(None)

    def get(self) -> QueuedCall | None:
        """The next call; waits for one. None: closed. A signal interrupts it, so its handler runs at once."""
        while (call := self._queue.get()) is not None and not self._is_closed:
            self._waiting.pop((call.peer, call.call_id), None)
            if not call.is_cancelled:
                return call
        return None
