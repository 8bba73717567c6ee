"""The event loop that all connections of a client live on, and the way onto it from other threads.

In a driver it runs on a thread of its own, in an actor it is the actor's I/O loop. ``post`` is the fast way: no task, no future, and many
posts of one moment wake the loop once. ``run`` is for the few things that take several steps.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from runtime.errors import NotInitializedError

__all__ = ["IoThread"]

T = TypeVar("T")


class IoThread:
    """A loop that other threads post to."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Run a new loop on a new thread, or use ``loop``, which runs on somebody else's."""
        self._lock = threading.Lock()  # guards the next three
        self._posted: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._scheduled = False
        self._ended = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread: threading.Thread | None = None
        self.loop = loop or _new_loop()
        if loop is None:
            # Daemonic: the interpreter joins other threads before it runs atexit hooks, and shutdown() is one.
            self._thread = threading.Thread(target=self._serve, name="headway-io", daemon=True)
            self._thread.start()

    def post(self, callback: Callable[..., object], *args: Any) -> None:
        """Call ``callback(*args)`` on the loop, after everything that this thread posted before.

        Raises: NotInitializedError: the loop has ended.
        """
        with self._lock:
            if self._ended:
                raise NotInitializedError("The session has ended: runtime.shutdown() was called.")
            self._posted.append((callback, args))
            if not self._scheduled:
                self._scheduled = True
                self.loop.call_soon_threadsafe(self._run_posted)

    def run(self, steps: Coroutine[Any, Any, T], name: str) -> T:
        """The result of ``steps``, run as a task on the loop while the caller waits; Ctrl-C cancels it."""
        outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        tasks: list[asyncio.Task[None]] = []

        async def tell() -> None:
            try:
                outcome.set_result(await steps)
            except BaseException as exc:  # noqa: BLE001 - the waiting thread raises it
                outcome.set_exception(exc)

        def ended(task: asyncio.Task[None]) -> None:
            steps.close()  # a task that is cancelled before its first step never tells
            outcome.cancel()

        def begin() -> None:
            task = self.start(tell(), name)
            task.add_done_callback(ended)
            tasks.append(task)

        try:
            self.post(begin)
        except NotInitializedError:
            steps.close()
            raise
        try:
            return outcome.result()
        except KeyboardInterrupt:
            self.post(lambda: [task.cancel() for task in tasks])
            with contextlib.suppress(BaseException):
                outcome.result()
            raise

    def start(self, steps: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """On the loop: a task that ``stop`` cancels and awaits."""
        task = self.loop.create_task(steps, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def is_current(self) -> bool:
        """True on the loop's own thread, where nothing may block."""
        try:
            return asyncio.get_running_loop() is self.loop
        except RuntimeError:
            return False

    def stop(self) -> None:
        """End the tasks, and the loop and its thread if they are ours. Idempotent."""
        if self._thread is None:
            with contextlib.suppress(NotInitializedError):
                self.post(self._cancel_tasks)
        else:
            with contextlib.suppress(NotInitializedError):
                self.post(self.loop.stop)
            self._thread.join()

    def _run_posted(self) -> None:
        with self._lock:
            self._scheduled = False
            posted, self._posted = self._posted, deque()
        for callback, args in posted:
            try:
                callback(*args)
            except Exception as exc:  # noqa: BLE001 - one failed callback must not take the others with it
                self.loop.call_exception_handler({"message": f"headway: {callback!r} failed", "exception": exc})

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            with self._lock:
                self._ended = True
            self._run_posted()
            self._cancel_tasks()
            self.loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            self.loop.close()

    def _cancel_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
