"""The way onto the I/O thread."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from runtime.client.io_thread import IoThread
from runtime.errors import NotInitializedError


@pytest.fixture
def io() -> Iterator[IoThread]:
    thread = IoThread()
    yield thread
    thread.stop()


async def nothing() -> None:
    pass


def test_posts_run_in_order_on_the_io_thread(io: IoThread) -> None:
    seen: list[tuple[int, str]] = []
    for i in range(1000):
        io.post(lambda i=i: seen.append((i, threading.current_thread().name)))
    io.run(nothing(), "barrier")
    assert seen == [(i, "headway-io") for i in range(1000)]


def test_many_posts_wake_the_loop_once(io: IoThread) -> None:
    wakes = 0
    release = threading.Event()
    original = io.loop.call_soon_threadsafe

    def counted(*args: object) -> object:
        nonlocal wakes
        wakes += 1
        return original(*args)  # type: ignore[arg-type]

    io.post(release.wait)
    time.sleep(0.05)  # the loop is in that post now
    io.loop = _Wrapped(io.loop, counted)  # type: ignore[assignment]
    for _ in range(100):
        io.post(lambda: None)
    assert wakes == 1
    release.set()
    io.loop = io.loop.loop  # type: ignore[attr-defined]


class _Wrapped:
    def __init__(self, loop: asyncio.AbstractEventLoop, counted: object) -> None:
        self.loop = loop
        self.call_soon_threadsafe = counted


def test_a_failing_post_does_not_take_the_next_with_it(io: IoThread) -> None:
    seen: list[int] = []
    problems: list[object] = []
    io.loop.set_exception_handler(lambda loop, context: problems.append(context["exception"]))
    io.post(lambda: 1 / 0)
    io.post(seen.append, 1)
    io.run(nothing(), "barrier")
    assert seen == [1]
    assert isinstance(problems[0], ZeroDivisionError)


def test_run_returns_and_raises(io: IoThread) -> None:
    async def double(x: int) -> int:
        await asyncio.sleep(0)
        return 2 * x

    async def fail() -> None:
        raise KeyError("x")

    assert io.run(double(2), "double") == 4
    with pytest.raises(KeyError):
        io.run(fail(), "fail")


def test_ctrl_c_cancels_what_run_waits_for(io: IoThread) -> None:
    cancelled = threading.Event()

    async def forever() -> None:
        try:
            threading.Timer(0.05, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)).start()  # type: ignore[arg-type]
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            io.run(forever(), "forever")
    finally:
        signal.signal(signal.SIGINT, before)
    assert cancelled.is_set()


def test_is_current_only_on_the_loops_thread(io: IoThread) -> None:
    async def ask() -> bool:
        return io.is_current()

    assert io.run(ask(), "ask")
    assert not io.is_current()
    assert not asyncio.run(ask())


def test_stop_cancels_tasks_and_is_idempotent() -> None:
    io = IoThread()
    ended = threading.Event()
    started = threading.Event()

    async def forever() -> None:
        try:
            started.set()
            await asyncio.sleep(60)
        finally:
            ended.set()

    io.post(lambda: io.start(forever(), "forever"))
    assert started.wait(10)
    io.stop()
    io.stop()
    assert ended.is_set()
    with pytest.raises(NotInitializedError, match="shutdown"):
        io.post(print)
    with pytest.raises(NotInitializedError):
        io.run(nothing(), "late")


@pytest.mark.asyncio
async def test_on_a_loop_of_somebody_else() -> None:
    io = IoThread(asyncio.get_running_loop())
    seen: list[int] = []
    threading.Thread(target=io.post, args=(seen.append, 1)).start()
    while not seen:
        await asyncio.sleep(0)
    task = io.start(asyncio.sleep(60), "long")
    io.stop()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_ctrl_c_before_the_first_step_does_not_wait_for_ever() -> None:
    io = IoThread()
    try:
        gate = threading.Event()
        io.post(gate.wait)  # so that the start and its cancellation fall into one turn of the loop
        io.post(lambda: None)

        async def never() -> None:
            raise AssertionError("cancelled before it ran")

        threading.Timer(0.05, lambda: (signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT), gate.set())).start()
        with pytest.raises((KeyboardInterrupt, AssertionError)):
            io.run(never(), "never")
    finally:
        io.stop()
