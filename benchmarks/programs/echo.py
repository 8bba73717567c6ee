"""The least that an actor call needs: an echo over a Unix socket between two processes, each with a main and an I/O thread on uvloop.

A round trip has the same four hand-offs between threads as a call: caller to its I/O thread, I/O thread to the echo's main thread, back to
its I/O thread, I/O thread to the caller. Messages have a fixed size; nothing is pickled, framed, checked or looked up. Each message wakes
the loop and is written by itself; with the argument ``batched`` those of one moment do so together, as in the runtime.
"""

from __future__ import annotations

import asyncio
import os
import queue
import socket
import subprocess
import sys
import threading
from collections import deque

import uvloop
from serving import pin_threads, serve
from timing import rate_of, times_of

# About what a call of a method with one small argument has on the wire.
MESSAGE = bytes(64)
BATCHED = "batched" in sys.argv


class Wire(asyncio.Protocol):
    """A socket on a loop in a thread of its own; messages come out of ``inbox`` and go in by ``post``."""

    def __init__(self, sock: socket.socket, *, is_batched: bool) -> None:
        self.post = self._post_batched if is_batched else self._post_each
        self.inbox: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._loop = uvloop.new_event_loop()
        self._rest = 0
        self._lock = threading.Lock()
        self._posted: deque[bytes] = deque()
        self._scheduled = False
        self._ready = threading.Event()
        threading.Thread(target=self._serve, args=(sock,), daemon=True).start()
        self._ready.wait()

    def _post_each(self, message: bytes) -> None:
        self._loop.call_soon_threadsafe(self._transport.write, message)

    def _post_batched(self, message: bytes) -> None:
        with self._lock:
            self._posted.append(message)
            if not self._scheduled:
                self._scheduled = True
                self._loop.call_soon_threadsafe(self._write)

    def connection_made(self, transport) -> None:
        self._transport = transport
        self._ready.set()

    def data_received(self, data: bytes) -> None:
        num_messages, self._rest = divmod(self._rest + len(data), len(MESSAGE))
        for i in range(num_messages):
            self.inbox.put(i)

    def connection_lost(self, exc: Exception | None) -> None:
        self.inbox.put(None)

    def _write(self) -> None:
        with self._lock:
            self._scheduled = False
            posted, self._posted = self._posted, deque()
        self._transport.writelines(posted)

    def _serve(self, sock: socket.socket) -> None:
        self._loop.create_task(self._loop.create_connection(lambda: self, sock=sock))
        self._loop.run_forever()


def answer(fd: int, *, is_batched: bool) -> None:
    """The other process: its main thread sends each message back."""
    wire = Wire(socket.socket(fileno=fd), is_batched=is_batched)
    while wire.inbox.get() is not None:
        wire.post(MESSAGE)


def start() -> int:
    global wire, server
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, __file__, *sys.argv[1:], str(theirs.fileno())]
        server = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    wire = Wire(ours, is_batched=BATCHED)
    round_trip(0)
    return server.pid


def pin(cores: list[int]) -> None:
    for thread in os.listdir(f"/proc/{server.pid}/task"):
        os.sched_setaffinity(int(thread), cores)
    pin_threads(cores)


def round_trip(_: int) -> None:
    wire.post(MESSAGE)
    assert wire.inbox.get() is not None, "the other process ended"


def round_trips(count: int) -> None:
    for _ in range(count):
        wire.post(MESSAGE)
    for _ in range(count):
        assert wire.inbox.get() is not None, "the other process ended"


if __name__ == "__main__":
    if sys.argv[-1].isdigit():
        answer(int(sys.argv[-1]), is_batched=BATCHED)
    else:
        serve({"start": start, "pin": pin, "call": lambda count: times_of(round_trip, count),
               "pipeline": lambda count: rate_of(round_trips, count)})
