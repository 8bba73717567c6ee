"""The asyncio shell around a Connection: bytes between it and a socket.

``Transport`` is a BufferedProtocol: bytes are received straight to where they belong, and what was queued in one turn of the loop leaves in
one ``writelines``. Callbacks only move bytes and set events.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import cast

from runtime.limits import Limits
from runtime.wire.connection import Connection, State
from runtime.wire.sockets import tune

__all__ = ["Transport"]

# 1 MiB: enough to keep a socket busy between two turns of the loop, little enough for an urgent frame to get in between.
WRITE_BYTES = 1024 * 1024


class Transport(asyncio.BufferedProtocol):
    """Bytes between one socket and one connection."""

    def __init__(self, connection: Connection, on_lost: Callable[[], None], limits: Limits) -> None:
        self.connection = connection
        self.closed = asyncio.Event()
        self._on_lost = on_lost
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._stream: asyncio.Transport | None = None
        self._paused = False
        self._flush_scheduled = False
        self._said_all = False
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._close_deadline: asyncio.TimerHandle | None = None

    async def start(self, sock: socket.socket) -> None:
        """Take over the connected socket and begin."""
        sock.setblocking(False)
        tune(sock, self._limits)
        await self._loop.connect_accepted_socket(lambda: self, sock)

    @property
    def queued_bytes(self) -> int:
        """Bytes that the kernel did not take yet."""
        stream = self._stream
        return self.connection.queued_bytes + (stream.get_write_buffer_size() if stream is not None else 0)

    def flush_soon(self) -> None:
        """Write what is queued, and what else is queued before it, at the end of this turn of the loop."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    async def wait_queued_below(self, num_bytes: int) -> None:
        """Return once at most ``num_bytes`` are queued, or the connection is gone."""
        if self.queued_bytes > num_bytes and not self.closed.is_set():
            waiter = self._loop.create_future()
            self._waiters.append((num_bytes, waiter))
            await waiter

    def abort(self) -> bool:
        """Drop the socket now; False if it was never ours."""
        if self._stream is None:
            return False
        self._stream.abort()
        return True

    def pause_reading(self) -> None:
        """Leave what comes in the kernel."""
        if self._stream is not None and not self._stream.is_closing():
            self._stream.pause_reading()

    def resume_reading(self) -> None:
        """Undo ``pause_reading``."""
        if self._stream is not None and not self._stream.is_closing():
            self._stream.resume_reading()

    # ---- callbacks of the event loop ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The loop has the socket."""
        self._stream = cast(asyncio.Transport, transport)
        self._stream.set_write_buffer_limits(high=0)  # paused means: the kernel does not take more, so we keep the rest
        self.connection.start()
        self.flush_soon()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to receive."""
        return self.connection.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes were received."""
        connection = self.connection
        connection.received(nbytes)
        if connection.queued_bytes or connection.state is State.CLOSING:
            self.flush_soon()

    def eof_received(self) -> None:
        """The other side sends no more; the loop closes the socket behind what it has left to write."""
        self.connection.eof()
        if self.connection.state is State.CLOSED:
            self.abort()  # nobody reads that any more

    def pause_writing(self) -> None:
        """The kernel's buffer is full."""
        self._paused = True

    def resume_writing(self) -> None:
        """The kernel took all that it was given."""
        self._paused = False
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        reason = f": {exc}" if exc is not None else " without a goodbye"
        self.connection.lost(f"The connection to {self.connection.name} broke{reason}.")
        if self._close_deadline is not None:
            self._close_deadline.cancel()
        self.closed.set()
        self._wake_waiters()
        self._on_lost()

    def _flush(self) -> None:
        self._flush_scheduled = False
        connection, stream = self.connection, self._stream
        if stream is None or stream.is_closing():
            return
        while connection.queued_bytes and not self._paused:
            stream.writelines(connection.take(WRITE_BYTES))
        if self._waiters:
            self._wake_waiters()
        if connection.state is State.CLOSING:
            self._close(stream)

    def _close(self, stream: asyncio.Transport) -> None:
        """Half-close behind the last words, then wait for the other side's end: closing over unread bytes would lose the words."""
        if self._close_deadline is None:
            self._close_deadline = self._loop.call_later(self._limits.handshake_s, stream.abort)
            stream.resume_reading()
        if not self.connection.queued_bytes and not self._said_all:
            self._said_all = True
            stream.write_eof()

    def _wake_waiters(self) -> None:
        queued = 0 if self.closed.is_set() else self.queued_bytes
        waiting = []
        for num_bytes, waiter in self._waiters:
            if waiter.done():
                continue
            if queued <= num_bytes:
                waiter.set_result(None)
            else:
                waiting.append((num_bytes, waiter))
        self._waiters = waiting
