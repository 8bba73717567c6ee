"""The result of a call, now or later: ``ObjectRef``, and ``get`` and ``wait`` on several of them.

A reference is settled exactly once, on the I/O thread (A2). What arrived is unpickled by the first thread that asks for it, never on the
I/O thread. Waiting is a lock that is released when the reference settles: no polling, and Ctrl-C interrupts it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar, overload

from runtime.client.serialization import Buffer, loads
from runtime.errors import ArgumentError, ArgumentTypeError, GetTimeoutError, HeadwayError, SerializationError

__all__ = ["ObjectRef", "Outcome", "failed", "get", "pickled", "value", "wait"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
Callback = Callable[["ObjectRef"], object]

# One lock for all references: it is held for a few instructions, a lock for each would cost more than the waiting.
_lock = threading.Lock()


class Outcome:
    """How a call ended: a value, or an error, that is loaded when first asked for."""

    __slots__ = ("_error", "_load", "_value", "buffers")

    def __init__(self, load: Callable[[], Any] | None, *, value: Any = None, buffers: Sequence[Buffer] | None = None) -> None:
        """``load`` gives the value or raises. ``buffers``: the pickle of the value, to pass it on without loading it."""
        self._load = load
        self._value = value
        self._error: BaseException | None = None
        self.buffers = buffers

    def value(self) -> Any:
        """The value.

        Raises: what the call raised.
        """
        load = self._load
        if load is not None:
            try:
                self._value = load()
            except Exception as exc:  # noqa: BLE001 - kept for who asks again; Ctrl-C is not
                self._error = exc
            self._load = self.buffers = None  # the value may be changed by its owner from here on
        if self._error is not None:
            raise self._error.with_traceback(None)
        return self._value

    def is_error(self) -> bool:
        """True if the call failed; False also for a value that can't be loaded here."""
        return self.buffers is None and (self._error is not None or self._load is not None)


def value(result: Any) -> Outcome:
    """A value that is here already."""
    return Outcome(None, value=result)


def failed(error: BaseException | Callable[[], BaseException]) -> Outcome:
    """An error, or what makes it when it is first asked for."""

    def load() -> Any:
        raise error if isinstance(error, BaseException) else error()

    return Outcome(load)


def pickled(buffers: Sequence[Buffer], what: str) -> Outcome:
    """The pickle of the result of ``what``."""

    def load() -> Any:
        try:
            return loads(buffers)
        except Exception as exc:
            raise SerializationError(f"The result of {what} arrived, but can't be loaded here: {type(exc).__name__}: {exc}") from exc

    return Outcome(load, buffers=buffers)


class ObjectRef:
    """The result of a remote call. ``runtime.get(ref)`` or ``await ref`` gives it."""

    __slots__ = ("__weakref__", "_callbacks", "_outcome", "what")

    def __init__(self, what: str) -> None:
        self.what = what
        self._outcome: Outcome | None = None
        self._callbacks: list[Callback] = []

    def __repr__(self) -> str:
        return f"<ObjectRef {self.what}: {'failed' if self.failed() else 'ready' if self.done() else 'pending'}>"

    def __await__(self) -> Generator[Any, None, Any]:
        if self._outcome is None:
            loop = asyncio.get_running_loop()
            arrived: asyncio.Future[None] = loop.create_future()

            def arrive() -> None:
                if not arrived.done():
                    arrived.set_result(None)

            callback = _threadsafe(loop, arrive)
            self.add_done_callback(callback)
            try:
                yield from arrived
            finally:
                self.remove_done_callback(callback)
        return self.result()

    def __reduce__(self) -> Any:
        raise TypeError("an ObjectRef can be an argument of a call itself, but not inside of another object: get() it first")

    def done(self) -> bool:
        """True once the call has ended."""
        return self._outcome is not None

    def failed(self) -> bool:
        """True once the call has ended in an error."""
        return self._outcome is not None and self._outcome.is_error()

    def result(self) -> Any:
        """The value of a reference that is done."""
        assert self._outcome is not None, self
        return self._outcome.value()

    def outcome(self) -> Outcome | None:
        """How the call ended, without loading it; None while it goes on."""
        return self._outcome

    def future(self) -> concurrent.futures.Future[Any]:
        """The same result as a ``concurrent.futures.Future``; it is unpickled on the I/O thread. Cancelling it does not cancel the call."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def copy(ref: ObjectRef) -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(ref.result())
                except BaseException as exc:  # noqa: BLE001 - the future's owner raises it
                    future.set_exception(exc)

        self.add_done_callback(copy)
        return future

    def add_done_callback(self, callback: Callback) -> None:
        """Call ``callback(ref)`` when the call has ended: on the I/O thread, where it must not block; at once, here, if it has ended."""
        with _lock:
            if self._outcome is None:
                self._callbacks.append(callback)
                return
        callback(self)

    def remove_done_callback(self, callback: Callback) -> None:
        """Undo ``add_done_callback``, if it is not too late."""
        with _lock:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

    def settle(self, outcome: Outcome) -> bool:
        """The one end of the call; False, and no effect, if it has ended before."""
        with _lock:
            if self._outcome is not None:
                return False
            self._outcome = outcome
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback(self)
            except Exception:
                logger.exception("a callback of %r failed", self)
        return True


@overload
def get(refs: ObjectRef, *, timeout: float | None = None) -> Any: ...
@overload
def get(refs: Sequence[ObjectRef], *, timeout: float | None = None) -> list[Any]: ...
def get(refs: ObjectRef | Sequence[ObjectRef], *, timeout: float | None = None) -> Any:
    """The value of a reference, or the values of a list of them, as soon as all are there.

    Args: timeout: in seconds; None waits for ever.
    Raises: GetTimeoutError: not within ``timeout``; the calls go on. As soon as one of the calls fails, its error: a TaskError that is also
        an instance of the class that the method raised, ActorDiedError, ConnectionLostError …
    """
    several = [refs] if isinstance(refs, ObjectRef) else _checked_refs(refs, "get")
    limit_s = _checked_timeout(timeout, "get")
    pending = [ref for ref in several if not ref.done()]
    if pending and not any(ref.failed() for ref in several):
        pending = _wait(pending, len(pending), limit_s, stop_at_error=True)
    for ref in several:
        if ref.failed():
            ref.result()
    if pending:
        more = f" and {len(pending) - 1} more" if len(pending) > 1 else ""
        raise GetTimeoutError(f"{pending[0].what}{more} had no result within {timeout:g} s. It goes on; get() it again to wait longer.")
    values = [ref.result() for ref in several]
    return values[0] if isinstance(refs, ObjectRef) else values


def wait(refs: Sequence[ObjectRef], *, num_returns: int = 1, timeout: float | None = None) -> tuple[list[ObjectRef], list[ObjectRef]]:
    """The references that are done (at most ``num_returns`` of them) and the others, both in the order given.

    Returns when ``num_returns`` calls have ended, well or not, or after ``timeout`` seconds.
    """
    several = _checked_refs(refs, "wait")
    if len(set(map(id, several))) != len(several):
        raise ArgumentError("wait(): the list has a reference twice; each may be there once.")
    if isinstance(num_returns, bool) or not isinstance(num_returns, int):
        raise ArgumentTypeError(f"wait(num_returns={num_returns!r}) must be an int, not {type(num_returns).__name__}.")
    if not 0 < num_returns <= len(several):
        raise ArgumentError(f"wait(num_returns={num_returns}) must be between 1 and the number of references, {len(several)}.")
    missing = num_returns - sum(ref.done() for ref in several)
    if missing > 0:
        _wait([ref for ref in several if not ref.done()], missing, _checked_timeout(timeout, "wait"))
    ready = [ref for ref in several if ref.done()][:num_returns]
    chosen = set(map(id, ready))
    return ready, [ref for ref in several if id(ref) not in chosen]


def _wait(refs: list[ObjectRef], missing: int, timeout_s: float | None, *, stop_at_error: bool = False) -> list[ObjectRef]:
    """Wait until ``missing`` more of the references are done, or one failed. Returns: those that are not done."""
    if timeout_s != 0:
        _refuse_on_io_thread()
        gate = threading.Lock()
        gate.acquire()

        def arrive(ref: ObjectRef) -> None:
            nonlocal missing
            with _lock:
                missing -= 1
                if (missing == 0 or (stop_at_error and ref.failed())) and gate.locked():
                    gate.release()

        try:
            for ref in refs:
                ref.add_done_callback(arrive)
            _acquire(gate, timeout_s)
        finally:
            for ref in refs:
                ref.remove_done_callback(arrive)
    return [ref for ref in refs if not ref.done()]


def _acquire(gate: threading.Lock, timeout_s: float | None) -> None:
    if timeout_s is None:
        gate.acquire()
        return
    deadline = time.monotonic() + timeout_s
    while (left_s := deadline - time.monotonic()) > 0 and not gate.acquire(timeout=min(left_s, threading.TIMEOUT_MAX)):
        pass


def _refuse_on_io_thread() -> None:
    if threading.current_thread().name == "headway-io":
        raise HeadwayError("get() and wait() can't be used in a callback: it runs on the I/O thread, which the result would arrive on.")


def _threadsafe(loop: asyncio.AbstractEventLoop, action: Callable[[], None]) -> Callback:
    def callback(ref: ObjectRef) -> None:
        try:
            loop.call_soon_threadsafe(action)
        except RuntimeError:  # the waiting loop is closed; nobody waits
            logger.debug("%r settled after the loop of its waiter was closed", ref)

    return callback


def _checked_refs(refs: object, where: str) -> list[ObjectRef]:
    if not isinstance(refs, (list, tuple)):
        wanted = "an ObjectRef or a list of them" if where == "get" else "a list of ObjectRefs"
        raise ArgumentTypeError(f"{where}() takes {wanted}, not {type(refs).__name__}.")
    for i, ref in enumerate(refs):
        if not isinstance(ref, ObjectRef):
            raise ArgumentTypeError(f"{where}(): item {i} of the list is {type(ref).__name__}, not an ObjectRef.")
    return list(refs)


def _checked_timeout(timeout: object, where: str) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise ArgumentTypeError(f"{where}(timeout={timeout!r}) must be a number of seconds or None, not {type(timeout).__name__}.")
    if not timeout >= 0:  # NaN too
        raise ArgumentError(f"{where}(timeout={timeout!r}) must be at least 0 seconds; None waits for ever.")
    return float(timeout)
