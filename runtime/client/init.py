"""The session of this process: ``init`` and ``shutdown``, and where the rest of the library finds it.

A driver opens one by ``init()``, with an embedded cluster if there is none to join. Inside an actor it opens by itself on first use, on the
actor's own I/O loop; what is created there is stopped with the actor.
"""

from __future__ import annotations

import atexit
import os
import secrets
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol

from runtime.client.arguments import ClusterArguments, checked_init
from runtime.client.interrupts import interrupts_deferred
from runtime.client.io_thread import IoThread
from runtime.client.session import EmbeddedCluster, Session
from runtime.errors import AlreadyInitializedError, AuthenticationError, HeadLostError, NotInitializedError
from runtime.ids import new_job_id, short
from runtime.wire.peer import Identity

__all__ = ["ClientContext", "current_session", "init", "is_initialized", "open_session", "prepare", "session_or_init", "shutdown"]

_session: Session | None = None
_lock = threading.RLock()
_prepared: StartingCluster | None = None


class StartingCluster(Protocol):
    """An embedded cluster that was begun before anybody called ``init``."""

    def wait(self) -> EmbeddedCluster:
        """The cluster, when it is ready."""

    def close(self) -> None:
        """Nobody wants it."""


def prepare(starting: StartingCluster) -> None:
    """Have the next ``init`` use this cluster, if it wants an embedded one without further wishes; else it is ended."""
    global _prepared
    _prepared = starting


def init(address: str | None = None, *, num_cpus: float | None = None, num_gpus: float | None = None,
         resources: dict[str, float] | None = None, namespace: str | None = None, ignore_reinit_error: bool = False,
         log_to_driver: bool = True, preload: Sequence[str] = (), **unknown: Any) -> ClientContext:
    """Connect this process to a cluster, or start one that lives and dies with it.

    Args: address: ``HOST:PORT`` of a head; ``"auto"``: this user's running head; ``"local"``: start an embedded cluster; None: what
        ``HEADWAY_ADDRESS`` says, else an embedded one. num_cpus, num_gpus, resources: what the embedded cluster shall have.
        preload: modules that actors find imported already (``("torch",)``).
    Raises: ArgumentError, ArgumentTypeError; ConnectError, AuthenticationError, VersionMismatchError; AlreadyInitializedError.
    """
    global _session
    arguments = checked_init(address, num_cpus, num_gpus, resources, namespace, preload, unknown)
    with _lock:
        if _session is not None and isinstance(_session.failure and _session.failure(), HeadLostError):
            shutdown()
        if _session is not None or _in_actor():
            if not ignore_reinit_error:
                raise AlreadyInitializedError("runtime.init() was called before, and a process has one session. Call runtime.shutdown() "
                                              "first, or pass ignore_reinit_error=True to go on with the session that is there.")
            return ClientContext(current_session())
        _session = _open_driver(arguments, log_to_driver)
        return ClientContext(_session)


def shutdown() -> None:
    """End the session: calls that are pending fail, the job's actors end, an embedded cluster ends. Idempotent; also done at exit."""
    global _session
    with _lock:
        session, _session = _session, None
        try:
            if session is not None:
                session.close()
        finally:
            if (prepared := _take_prepared()) is not None:
                prepared.close()


def is_initialized() -> bool:
    """Whether this process has a session (in an actor: always)."""
    session = _session
    return (session is not None and session.failure is None) or _in_actor()


def current_session() -> Session:
    """The session of this process; opened now, if this is an actor that had none.

    Raises: NotInitializedError: there is none.
    """
    session = _session
    if session is None:
        session = _open_in_actor()
    if session is None:
        raise NotInitializedError("There is no session: call runtime.init() first.")
    session.check_open()
    return session


def open_session() -> Session | None:
    """The session of this process if it is open; none is opened."""
    session = _session
    return session if session is not None and session.failure is None else None


def session_or_init() -> Session:
    """The session of this process; without one, ``init()`` is called, as Ray does when the first actor is created."""
    if _session is None and not _in_actor():
        init(ignore_reinit_error=True)
    return current_session()


class ClientContext:
    """What ``init`` returns; as a context manager it shuts down at its end."""

    def __init__(self, session: Session) -> None:
        self.address = session.address
        self.job_id: str = session.job_id
        self.namespace = session.namespace

    @property
    def address_info(self) -> dict[str, str]:
        """Ray's form of the address."""
        return {"address": self.address}

    def __enter__(self) -> ClientContext:
        return self

    def __exit__(self, *exc_info: object) -> None:
        shutdown()

    def __repr__(self) -> str:
        return f"<ClientContext of the cluster at {self.address}>"


def _take_prepared() -> StartingCluster | None:
    global _prepared
    prepared, _prepared = _prepared, None
    return prepared


def _open_driver(arguments: ClusterArguments, log_to_driver: bool) -> Session:
    embedded: EmbeddedCluster | None = None
    no_token: AuthenticationError | None = None
    address, token = arguments.address, b""
    wishes = {"num_cpus": arguments.num_cpus, "num_gpus": arguments.num_gpus, "resources": arguments.resources}
    prepared = _take_prepared()
    if prepared is not None and (address is not None or any(wish is not None for wish in wishes.values())):
        prepared.close()
        prepared = None
    try:
        if address is None:
            # Started by name: it stands above this layer.
            embedded = cluster = prepared.wait() if prepared is not None else import_module("runtime.local").start_embedded(
                **wishes, preload=arguments.preload)
            address, token = cluster.address, cluster.token
        else:
            try:
                token = arguments.load_token()
            except AuthenticationError as exc:
                if not isinstance(exc.__cause__, FileNotFoundError):
                    raise
                no_token, token = exc, secrets.token_bytes(32)  # that nobody answers there is the better news of the two
        session = Session(address=address, token=token, job_id=new_job_id(), namespace=arguments.namespace, io=IoThread(),
                          identity=Identity("driver", ""), embedded=embedded, log_to_driver=log_to_driver, preload=arguments.preload)
    except BaseException:
        if embedded is not None:
            embedded.close()
        raise
    try:
        session.open()
    except BaseException as exc:
        session.close()
        if no_token is not None and isinstance(exc, AuthenticationError):
            raise no_token from None
        raise
    return session


def _in_actor() -> bool:
    context = sys.modules.get("runtime.actor.context")
    return context is not None and context.current_actor() is not None


def _open_in_actor() -> Session | None:
    global _session
    context = sys.modules.get("runtime.actor.context")
    parameters = context.client_parameters() if context is not None else None
    if parameters is None:
        return None
    with _lock:
        if _session is None:
            session = Session(address=parameters.head_address, token=parameters.token, job_id=parameters.job_id,
                              namespace=parameters.namespace, io=IoThread(parameters.loop),
                              identity=Identity("actor", short(parameters.actor_id)), owner=parameters.actor_id)
            session.open()
            _session = session
        return _session


def _forget() -> None:
    """In a forked child: the session, its thread and its sockets are the parent's."""
    global _session, _lock, _prepared
    _session, _lock, _prepared = None, threading.RLock(), None


os.register_at_fork(after_in_child=_forget)


@atexit.register
def _shutdown_at_exit() -> None:
    with interrupts_deferred(then_raise=False):  # the process ends anyway
        shutdown()
