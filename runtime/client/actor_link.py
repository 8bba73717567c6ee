"""The client's end of one actor: what is known of it, the connection to it, and the queue of what is to be sent there in order (A3).

It lives on the I/O thread. What is sent before the actor is ready waits here. Each message ends in exactly one of answer, error, or the
actor's end (A2): when the connection is lost, the news of the actor's death has ``limits.death_notice_s`` to arrive, so that the error
says how it died; when that news comes first, the connection is read to its end, so that no answer already given is lost.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import platform
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Protocol

from runtime.client.death import UNKNOWN_END, death_error
from runtime.errors import ConnectError, ConnectionLostError, HeadwayError, VersionMismatchError
from runtime.ids import ActorId, short
from runtime.limits import LIMITS
from runtime.wire.messages import ActorStatus, Credit, EndChannel, ExitEvidence, Item, NodeFacts
from runtime.wire.peer import Peer, Received, connect_retrying

if TYPE_CHECKING:
    from runtime.client.session import Session
    from runtime.client.subscription import Subscription

__all__ = ["ActorLink", "Failure", "Operation"]

STATES = ("PENDING", "STARTING", "READY", "STOPPING", "DEAD")

Failure = Callable[[], HeadwayError]
"""Makes the error when somebody asks for it: a constructor's exception is unpickled in the asking thread."""


class Failing(Protocol):
    """Something that ends with the connection."""

    @property
    def fail(self) -> Callable[[Failure], None]:
        """To be called when no answer will come."""


class Operation(Failing, Protocol):
    """Something that goes to an actor in its turn."""

    @property
    def send(self) -> Callable[[ActorLink, Peer], None]:
        """To be called to send it. Raises: HeadwayError: it can't be sent; ``fail`` is called with it."""

    def is_ready(self) -> bool:
        """False while an argument is the result of another call that goes on; ``ActorLink.pump`` is called when it has come."""


class ActorLink:
    """One actor, as this client sees it."""

    def __init__(self, session: Session, actor_id: ActorId, label: str) -> None:
        self.session = session
        self.actor_id = actor_id
        self.label = label
        self.status: ActorStatus | None = None
        self.node: NodeFacts | None = None
        self.was_ready = False
        self.failure: Failure | None = None  # set once: it has ended, or will never be
        self.ended = asyncio.Event()  # set with ``failure``
        self.logs_ended = asyncio.Event()
        self.on_change: list[Callable[[ActorLink], None]] = []
        self.subscriptions: dict[int, Subscription] = {}
        self.channel_ids = itertools.count(1)
        self._queue: deque[Operation] = deque()
        self._peer: Peer | None = None
        self._task: asyncio.Task[None] | None = None  # dials, or waits until the send queue is shorter
        self._unresolved: list[tuple[Failing, HeadwayError]] = []
        self._timer: asyncio.TimerHandle | None = None  # the news of its death, or the end of its connection, has until then

    # ---- what the session tells ----

    def update(self, status: ActorStatus, node: NodeFacts | None) -> None:
        """The head says how the actor is."""
        before = self.status
        if self.failure is not None or (before is not None and _progress(status) < _progress(before)):
            return  # an answer to FindActor is handled a moment later than the news that followed it
        self.status = status
        self.node = node or self.node
        if status.state == "DEAD":
            evidence, was_ready = status.evidence or UNKNOWN_END, self.was_ready
            if evidence.kind == "node dead" and self._peer is not None:
                self._peer.abort()
            self.end(lambda: death_error(self.label, evidence, was_ready=was_ready, node=self.node), drain=evidence.kind != "node dead")
        elif status.state == "READY":
            self.was_ready = True
            self.pump()
        self._tell()

    def end(self, failure: Failure, *, drain: bool = False) -> None:
        """It is over: what is queued fails now; what was sent, when the connection has been read to its end (``drain``) or at once."""
        if self.failure is not None:
            return
        self.failure = failure
        self.ended.set()
        self.session.living.discard(self)
        if self._task is not None:
            self._task.cancel()
        queue, self._queue = self._queue, deque()
        for operation in queue:
            operation.fail(failure)
        self._cancel_timer()
        if self._peer is None:
            self._resolve()
        elif drain:
            # Processes that the actor started may hold its sockets open a little longer.
            self._timer = self.session.io.loop.call_later(LIMITS.kill_wait_s, self._peer.close, "the actor ended")
        else:
            self._peer.close("the actor ended")
        self._tell()

    def evidence(self) -> ExitEvidence | None:
        """How it ended; None while it lives, or when it never was."""
        return self.status.evidence if self.status is not None else None

    # ---- sending ----

    def submit(self, operation: Operation) -> None:
        """Send ``operation`` after all that was submitted before."""
        if self.failure is not None:
            operation.fail(self.failure)
        else:
            self._queue.append(operation)
            self.pump()

    def pump(self) -> None:
        """Send what can be sent now."""
        while self._queue and self._queue[0].is_ready() and self._task is None and self._timer is None:
            peer = self._peer
            if peer is None:
                if self.status is not None and self.status.state == "READY":
                    self._start(self._dial(), "dial")
                return
            if peer.queued_bytes > LIMITS.send_queue_bytes:
                self._start(peer.drain(), "drain")
                return
            operation = self._queue.popleft()
            try:
                operation.send(self, peer)
            except HeadwayError as exc:
                self.fail_sent(operation, exc)

    def fail_sent(self, operation: Failing, error: HeadwayError) -> None:
        """What was sent failed with ``error``; a lost connection first waits for news of the actor's death."""
        if not isinstance(error, ConnectionLostError):
            operation.fail(lambda: error)
        elif self.failure is not None and self._peer is None:
            operation.fail(self.failure)
        elif self._timer is not None or self._peer is not None:
            self._unresolved.append((operation, error))
        else:
            operation.fail(lambda: error)

    # ---- the connection ----

    def _start(self, steps: Coroutine[object, object, None], what: str) -> None:
        async def run() -> None:
            try:
                await steps
            finally:
                self._task = None
                self.pump()

        self._task = self.session.io.start(run(), f"{what} actor {short(self.actor_id)}")

    async def _dial(self) -> None:
        status, node = self.status, self.node
        assert status is not None and node is not None, self.label
        nearby = node.host_id == self.session.host_id and bool(status.unix_path)
        address = f"unix:{status.unix_path}" if nearby else f"{node.host}:{node.port}"
        try:
            peer = await connect_retrying(address, token=self.session.token, identity=self.session.identity, on_message=self._receive,
                                          on_close=self._lost, within_s=LIMITS.death_notice_s, target="" if nearby else self.actor_id)
        except (HeadwayError, OSError) as exc:
            cause = exc.__cause__ if isinstance(exc.__cause__, ConnectError) else exc  # the last attempt says why
            self._fail_queue(ConnectError(f"actor {self.label!r} is ready on node {node.name}, but can't be connected to: {cause}"))
            return
        self.session.actor_peers.add(peer)
        if self.failure is not None:
            peer.close("the actor ended")
            return
        peer.epoch = status.incarnation
        self._peer = peer
        self._check_python(peer)

    def _check_python(self, peer: Peer) -> None:
        theirs, ours = peer.hello.python, platform.python_version()
        if theirs.split(".")[:2] != ours.split(".")[:2]:
            self._fail_queue(VersionMismatchError(f"actor {self.label!r} runs Python {theirs}, this process {ours}: pickles do not fit. "
                                                  "Use the same minor version on both sides."))

    def _fail_queue(self, error: HeadwayError) -> None:
        queue, self._queue = self._queue, deque()
        for operation in queue:
            operation.fail(lambda: error)

    def _receive(self, peer: Peer, received: Received) -> None:
        message = received.message
        if isinstance(message, (Item, Credit, EndChannel)):
            subscription = self.subscriptions.get(message.channel_id)
            if subscription is not None:
                subscription.receive(message, received.buffers)

    def _lost(self, peer: Peer, error: HeadwayError) -> None:
        self.session.actor_peers.discard(peer)
        self._peer = None
        subscriptions, self.subscriptions = self.subscriptions, {}
        self._unresolved.extend((subscription, error) for subscription in subscriptions.values())
        self._cancel_timer()
        if self.failure is not None:
            self._resolve()
        else:
            self._timer = self.session.io.loop.call_later(LIMITS.death_notice_s, self._no_news)

    def _no_news(self) -> None:
        """The connection was lost, and the actor is not known to be dead: say so, and connect again for what comes next."""
        self._timer = None
        unresolved, self._unresolved = self._unresolved, []
        for operation, error in unresolved:
            operation.fail(functools.partial(_same, error))
        self.pump()

    def _resolve(self) -> None:
        assert self.failure is not None, self.label
        unresolved, self._unresolved = self._unresolved, []
        for operation, _ in unresolved:
            operation.fail(self.failure)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self) -> None:
        for callback in list(self.on_change):
            callback(self)


def _same(error: HeadwayError) -> HeadwayError:
    return error


def _progress(status: ActorStatus) -> tuple[int, int]:
    return status.incarnation, STATES.index(status.state)
