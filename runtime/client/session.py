"""A client's session with a cluster: the connection to the head, what comes over it, and its end.

Methods of the first section may be called from any thread; all else lives on the I/O thread. When the connection to a head that others
started is lost, it is dialled again for ``limits.reconnect_grace_s``; then, or if another head answers, the session has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from runtime.client import logs
from runtime.client.actor_link import ActorLink, Failure
from runtime.client.interrupts import interrupts_deferred
from runtime.client.io_thread import IoThread
from runtime.client.notice import say
from runtime.client.run_news import RunNews
from runtime.client.serialization import Buffer
from runtime.errors import ConnectionLostError, HeadLostError, HeadwayError, JobStoppedError, NotInitializedError, TaskCancelledError
from runtime.ids import ActorId, JobId, short
from runtime.limits import LIMITS
from runtime.wire.messages import (
    ActorInfo,
    ActorsChanged,
    CloseJob,
    CreateActors,
    CreateGroup,
    FindActor,
    GroupChanged,
    JobOpened,
    JobStopped,
    LogEnd,
    LogLines,
    Message,
    NodeFacts,
    OpenJob,
    Preload,
)
from runtime.wire.peer import Identity, Peer, Received, connect_retrying, host_id

__all__ = ["EmbeddedCluster", "GroupListener", "Session"]

logger = logging.getLogger(__name__)


class EmbeddedCluster(Protocol):
    """A cluster that lives and dies with this session."""

    address: str
    token: bytes

    def describe_end(self) -> str:
        """How its process ended, or that it still runs."""

    def close(self) -> None:
        """End it; nothing of it is left."""


class GroupListener(Protocol):
    """Who wants to hear what becomes of a group."""

    def group_changed(self, message: GroupChanged) -> None:
        """The head says so."""

    def fail(self, failure: Failure) -> None:
        """Nothing more will be heard."""


class Session:
    """One client of one cluster. ``io`` is the way onto its I/O thread."""

    def __init__(self, *, address: str, token: bytes, job_id: JobId, namespace: str, io: IoThread, identity: Identity,
                 owner: ActorId | None = None, embedded: EmbeddedCluster | None = None, log_to_driver: bool = True,
                 preload: tuple[str, ...] = ()) -> None:
        self.address = address
        self.token = token
        self.job_id = job_id
        self.namespace = namespace
        self.io = io
        self.identity = identity
        self.owner = owner  # the actor that this process is
        self.embedded = embedded
        self.preload = preload
        self.host_id = host_id()
        self.runs = RunNews(self)
        self.failure: Failure | None = None  # set once: the session has ended
        self.links: weakref.WeakValueDictionary[ActorId, ActorLink] = weakref.WeakValueDictionary()
        self.living: set[ActorLink] = set()  # calls may wait in a link that nobody has a handle of any more
        self.groups: dict[str, GroupListener] = {}
        self.actor_peers: set[Peer] = set()
        self._is_closed = False
        self._log_to_driver = log_to_driver
        self._head_epoch = 0
        self._peer: Peer | None = None
        self._online = asyncio.Event()  # connected, or never again

    # ---- from any thread ----

    def open(self) -> None:
        """Connect, and open the job. Raises: ConnectError, AuthenticationError, VersionMismatchError …"""
        self.io.run(self._open(), "open the session")

    def close(self) -> None:
        """Fail what is pending, close the job and every connection; nothing of it is left when this returns. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        with interrupts_deferred():
            try:
                self.io.run(self._close(), "close the session")
            finally:
                self.io.stop()
                if self.embedded is not None:
                    self.embedded.close()

    def check_open(self) -> None:
        """Raise what ended the session, if it has ended."""
        if self.failure is not None:
            raise self.failure()

    def post(self, callback: Callable[..., object], *args: Any) -> None:
        """Call it on the I/O thread."""
        self.check_open()
        self.io.post(callback, *args)

    def call(self, message: Message, buffers: Sequence[Buffer] = (), *, timeout_s: float | None = None) -> Received:
        """The head's answer; waits for it.

        Raises: what the head answered with; GetTimeoutError: not within ``timeout_s`` (default: limits.connect_s); HeadLostError.
        """
        self.check_open()
        if self.io.is_current():
            raise HeadwayError(f"{type(message).__name__} waits for the head and can't be used in a callback, on the I/O thread.")
        return self.io.run(self.request(message, buffers, LIMITS.connect_s if timeout_s is None else timeout_s), type(message).__name__)

    # ---- on the I/O thread ----

    async def request(self, message: Message, buffers: Sequence[Buffer] = (), timeout_s: float = LIMITS.connect_s) -> Received:
        """The head's answer. What may be asked twice is asked again after a re-dial."""
        again = not isinstance(message, (CreateActors, CreateGroup))
        while True:
            await self._online.wait()
            self.check_open()
            peer = self._peer
            assert peer is not None, "online"
            try:
                return await peer.call(message, buffers, timeout_s=timeout_s)
            except ConnectionLostError:
                if not again:
                    raise
                await peer.wait_closed()  # then _lost was called

    def notify(self, message: Message) -> None:
        """Tell the head what it may miss."""
        if self._peer is not None and self.failure is None:
            with contextlib.suppress(ConnectionLostError):
                self._peer.notify(message)

    def create(self, message: CreateActors | CreateGroup, buffers: Sequence[Buffer], listener: GroupListener,
               done: Callable[[], None] | None = None) -> None:
        """Ask the head for a group; ``done`` is called when it took it in, the listener's ``fail`` when not."""
        if self.failure is not None or self._peer is None:
            listener.fail(self.failure or (lambda: HeadLostError(f"The connection to the head at {self.address} is lost at the moment.")))
            return
        if not isinstance(message, CreateActors) or message.bundles:
            self.groups[message.group_id] = listener

        def answered(future: asyncio.Future[Received]) -> None:
            error = None if future.cancelled() else future.exception()
            if isinstance(error, HeadwayError):
                self.groups.pop(message.group_id, None)
                listener.fail(lambda: error)
            elif done is not None:
                done()

        try:
            self._peer.request(message, buffers).add_done_callback(answered)
        except HeadwayError as exc:
            self.groups.pop(message.group_id, None)
            listener.fail(lambda error=exc: error)  # type: ignore[misc]

    def register(self, link: ActorLink) -> None:
        """Have news of the actor go to ``link``, until it ends."""
        self.links[link.actor_id] = link
        self.living.add(link)

    async def find(self, actor_id: ActorId, label: str) -> ActorLink:
        """The one link of this client to an actor that somebody else created; that it does not exist is found out by using it."""
        found = self.links.get(actor_id)
        if found is None:
            found = ActorLink(self, actor_id, label)
            self.register(found)
            self.io.start(self._look_up(found), f"find actor {short(actor_id)}")
        return found

    async def _look_up(self, link: ActorLink) -> None:
        try:
            info = (await self.request(FindActor(actor_id=link.actor_id))).message
            assert isinstance(info, ActorInfo), info
            link.update(info.status, info.node)
        except HeadwayError as exc:
            link.end(lambda error=exc: error)  # type: ignore[misc]

    async def _open(self) -> None:
        self._peer = await self._connect(LIMITS.connect_s)
        self._online.set()
        if self.preload:
            self._peer.notify(Preload(self.preload))

    async def _connect(self, within_s: float) -> Peer:
        peer = await connect_retrying(self.address, token=self.token, identity=self.identity, on_message=self._receive, on_close=self._lost,
                                      within_s=within_s)
        try:
            answer = await peer.call(
                OpenJob(job_id=self.job_id, host_id=self.host_id, pid=os.getpid(), cwd=_cwd(), sys_path=_sys_path(),
                        namespace=self.namespace, log_to_driver=self._log_to_driver, owner_actor_id=self.owner or ""),
                timeout_s=LIMITS.dial_s)
            opened = answer.message
            if not isinstance(opened, JobOpened) or self._head_epoch not in (0, opened.head_epoch):
                raise HeadLostError(f"The head at {self.address} is another one than before: the job is lost.")
        except BaseException:
            peer.close()
            await peer.wait_closed()
            raise
        self._head_epoch = opened.head_epoch
        return peer

    def _receive(self, peer: Peer, received: Received) -> None:
        message = received.message
        if isinstance(message, ActorsChanged):
            nodes: dict[str, NodeFacts] = {node.node_id: node for node in message.nodes}
            for status in message.actors:
                link = self.links.get(ActorId(status.actor_id))
                if link is not None:
                    link.update(status, nodes.get(status.node_id))
        elif isinstance(message, GroupChanged):
            listener = self.groups.get(message.group_id)
            if message.state == "RELEASED":
                self.groups.pop(message.group_id, None)
            if listener is not None:
                listener.group_changed(message)
        elif isinstance(message, LogLines):
            logs.show(message)
        elif isinstance(message, LogEnd):
            link = self.links.get(ActorId(message.actor_id))
            if link is not None:
                link.logs_ended.set()
        elif isinstance(message, JobStopped) and self.failure is None:
            self._end(lambda: JobStoppedError(f"This job was {message.reason}."))

    def _lost(self, peer: Peer, error: HeadwayError) -> None:
        if self.failure is not None or peer is not self._peer:
            return
        self._peer = None
        self._online.clear()
        if self.embedded is not None:
            self._end(self._head_lost(error))
        else:
            say(f"{error} Trying again for {LIMITS.reconnect_grace_s:g} s.")
            self.io.start(self._resume(error), "resume the session")

    async def _resume(self, error: HeadwayError) -> None:
        try:
            self._peer = await self._connect(LIMITS.reconnect_grace_s)
        except (HeadwayError, OSError) as exc:
            logger.debug("re-dial failed: %s", exc)
            self._end(self._head_lost(error))
            return
        self._online.set()

    def _head_lost(self, error: HeadwayError) -> Failure:
        how = self.embedded.describe_end() if self.embedded is not None else str(error)
        return lambda: HeadLostError(f"The head at {self.address} is lost, and with it this job: {how}")

    def _end(self, failure: Failure) -> None:
        self.failure = failure
        self._online.set()
        for link in list(self.living):
            link.end(failure)
        groups, self.groups = self.groups, {}
        for listener in groups.values():
            listener.fail(failure)

    async def _close(self) -> None:
        peer, started = self._peer, [link for link in self.links.values() if link.status is not None and link.status.pid]
        self._end(lambda: TaskCancelledError("The session was closed by runtime.shutdown() before this ended."))
        if peer is not None:
            with contextlib.suppress(HeadwayError):
                if self.owner is None:
                    await peer.call(CloseJob(self.job_id), timeout_s=LIMITS.job_close_s + LIMITS.kill_wait_s)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LIMITS.log_flush_s):
                            for link in started:
                                await link.logs_ended.wait()
            peer.close("the session is closed")
            await peer.wait_closed()
        for other in list(self.actor_peers):
            other.close("the session is closed")
            await other.wait_closed()
        self.failure = lambda: NotInitializedError("This belongs to a session that was closed by runtime.shutdown().")


def _cwd() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed
        return ""


def _sys_path() -> tuple[str, ...]:
    return tuple(os.path.abspath(entry) for entry in sys.path if isinstance(entry, str))
