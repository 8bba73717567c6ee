"""Who this actor is, and whether it was asked to stop. One per process, set once before the constructor runs.

User code and the client library of an actor read it; in a driver ``current_actor()`` is None. A forked child of an actor (a DataLoader
worker) may read the facts, but not talk: ``check_not_forked`` guards what needs the parent's sockets.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from runtime.errors import HeadwayError, NotInitializedError
from runtime.wire.messages import NodeFacts, Setup

__all__ = ["ActorContext", "ClientParameters", "StopNotice", "check_not_forked", "client_parameters", "current_actor", "install",
           "on_stop_requested", "request_stop", "stop_requested"]

StopCallback = Callable[[str, float], object]


@dataclass(frozen=True, slots=True)
class ActorContext:
    """Facts about the running actor; fixed for its life."""

    job_id: str
    group_id: str
    attempt: int
    actor_id: str
    incarnation: int
    index: int
    name: str
    label: str
    resources: dict[str, float]
    gpu_ids: tuple[int, ...]
    visible_gpu_ids: tuple[int, ...]
    node: NodeFacts
    log_path: str


@dataclass(frozen=True, slots=True)
class ClientParameters:
    """What a client session inside an actor is made from; it runs on ``loop``, the actor's own I/O loop."""

    head_address: str
    token: bytes
    job_id: str
    actor_id: str
    namespace: str
    node: NodeFacts
    loop: asyncio.AbstractEventLoop


class StopNotice:
    """Remembers the first request to stop and tells each callback exactly once, also one that is registered late."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._request: tuple[str, float] | None = None
        self._callbacks: list[StopCallback] = []

    @property
    def requested(self) -> bool:
        """True from the first request on."""
        return self._request is not None

    def request(self, reason: str, grace_s: float) -> list[StopCallback]:
        """Record the request. Returns: the callbacks that the caller has to run now; none the second time."""
        with self._lock:
            if self._request is not None:
                return []
            self._request = (reason, grace_s)
            callbacks, self._callbacks = self._callbacks, []
            return callbacks

    def add(self, callback: StopCallback) -> tuple[str, float] | None:
        """Register ``callback``. Returns: the request if it was made already; then the caller has to run the callback."""
        with self._lock:
            if self._request is None:
                self._callbacks.append(callback)
            return self._request


_context: ActorContext | None = None
_parameters: ClientParameters | None = None
_stop = StopNotice()
_pid = 0  # of the process that ``install`` ran in


def install(setup: Setup, *, log_path: str, loop: asyncio.AbstractEventLoop) -> ActorContext:
    """Make this process the actor that ``setup`` describes."""
    global _context, _parameters, _pid
    spec = setup.spec
    _context = ActorContext(
        job_id=setup.job_id, group_id=setup.group_id, attempt=setup.attempt, actor_id=spec.actor_id, incarnation=spec.incarnation,
        index=spec.index, name=spec.name, label=spec.label, resources=dict(spec.resources), gpu_ids=spec.gpu_ids,
        visible_gpu_ids=spec.visible_gpu_ids, node=setup.node, log_path=log_path)
    _parameters = ClientParameters(
        head_address=setup.head_address, token=setup.token, job_id=setup.job_id, actor_id=spec.actor_id, namespace=setup.namespace,
        node=setup.node, loop=loop)
    _pid = os.getpid()
    return _context


def current_actor() -> ActorContext | None:
    """The actor that this process is (or was forked from); None in a driver."""
    return _context


def client_parameters() -> ClientParameters | None:
    """For the client library, which opens its session from these on first use; None in a driver.

    Raises: HeadwayError: this is a forked child of the actor.
    """
    if _parameters is not None:
        check_not_forked("the client")
    return _parameters


def stop_requested() -> bool:
    """True once somebody asked this actor to stop; it has until the grace ends to finish what it does."""
    return _stop.requested


def on_stop_requested(callback: StopCallback) -> None:
    """Call ``callback(reason, grace_s)`` once when a stop is requested, on the I/O thread: it must be short.

    If the stop was requested already, it is called at once, here.
    Raises: NotInitializedError: not inside an actor. HeadwayError: in a forked child.
    """
    if _context is None:
        raise NotInitializedError("on_stop_requested() is for code inside an actor; this process is none.")
    check_not_forked("on_stop_requested()")
    request = _stop.add(callback)
    if request is not None:
        callback(*request)


def request_stop(reason: str, grace_s: float) -> list[StopCallback]:
    """For the host: note the request. Returns: callbacks to run."""
    return _stop.request(reason, grace_s)


def check_not_forked(what: str) -> None:
    """Raise: HeadwayError: this process is a forked child of the actor, which has none of its connections."""
    if _context is not None and os.getpid() != _pid:
        raise HeadwayError(f"{what} was used in process {os.getpid()}, a fork of actor {_context.label!r} (process {_pid}), which has no "
                           f"connections of its own. Use it in the actor itself, for example outside of DataLoader workers.")
