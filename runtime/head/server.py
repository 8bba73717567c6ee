"""The head's shell: messages become events, commands become messages. It decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import secrets
from collections import deque
from dataclasses import replace

from runtime.errors import ArgumentError, HeadwayError
from runtime.head import events
from runtime.head.cluster import Cluster
from runtime.limits import LIMITS, Limits
from runtime.wire.address import parse_address
from runtime.wire.messages import Heartbeat, Hello, LogEnd, LogLines, Message
from runtime.wire.peer import Identity, Listener, Peer, Received, host_id, listen

__all__ = ["HeadServer", "is_loopback"]

logger = logging.getLogger(__name__)

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
GOODBYE = "the head is shutting down"


def is_loopback(address: str) -> bool:
    """Whether only this host can reach a listener at ``address``."""
    host = parse_address(address).host
    return not host or host in ("localhost", "::1") or host.startswith("127.")


class HeadServer:
    """A head that listens at ``addresses``. Belongs to one event loop.

    Args: addresses: ``HOST:PORT`` or ``unix:/path``; after ``start()`` the attribute has the actual ports. embedded: the cluster can't
        grow. strict: for tests, illegal transitions of the brain raise.
    """

    def __init__(self, *, addresses: list[str], token: bytes, embedded: bool, limits: Limits = LIMITS, strict: bool = False) -> None:
        self.addresses = list(addresses)
        self._token = token
        self._limits = limits
        # Without a journal each start is a cluster of its own: a random epoch lets clients that come back notice.
        self._epoch = secrets.randbits(31) | 1
        self._embedded = embedded
        self._strict = strict
        self._peers: dict[int, Peer] = {}
        self._last_conn = 0
        self._queue: deque[events.Event] = deque()
        self._handling = False
        self._watched: dict[str, int] = {}  # pidfd by job id
        self._dropped: dict[tuple[int, str], int] = {}  # log lines that a slow client lost, by connection and actor id
        self._timer: asyncio.Handle | None = None
        self._timer_due = 0.0
        self._emptied = asyncio.Event()
        self._closed = asyncio.Event()
        self._listener: Listener | None = None

    async def start(self) -> None:
        """Listen.

        Raises: ConnectError: an address can't be bound, with ``errno``. ArgumentError: it is none.
        """
        self._loop = asyncio.get_running_loop()
        self._listener = await listen(self.addresses, token=self._token, identity=Identity("head", str(os.getpid())), on_peer=self._greet,
                                      limits=self._limits)
        self.addresses = self._listener.addresses
        self._cluster = Cluster(self._limits, embedded=self._embedded, head_epoch=self._epoch, host_id=host_id(),
                                python=platform.python_version(), loopback_only=all(map(is_loopback, self.addresses)), strict=self._strict)

    async def run_until_closed(self) -> None:
        """Return when ``close()`` is done."""
        await self._closed.wait()

    async def close(self) -> None:
        """Close all jobs, say goodbye to everybody, and leave nothing open. May be called again."""
        if self._listener is None or self._closed.is_set():
            self._closed.set()
            return
        await self._listener.close()
        self._feed(events.ShutDown(GOODBYE))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.job_close_s + self._limits.heartbeat_s):  # the brain itself answers by job_close_s
                await self._emptied.wait()
        peers = list(self._peers.values())
        for peer in peers:
            peer.close(GOODBYE)
        for peer in peers:
            await peer.wait_closed()  # bounded: a peer that does not read is cut off after tcp_user_timeout_s
        for job_id in list(self._watched):
            self._unwatch(job_id)
        if self._timer is not None:
            self._timer.cancel()
        self._closed.set()

    # ---- events ----

    def _greet(self, peer: Peer) -> None:
        self._last_conn += 1
        conn = self._last_conn
        self._peers[conn] = peer
        peer.epoch = self._epoch

        def received(peer: Peer, received: Received) -> None:
            self._feed(events.MessageReceived(conn, received.message, received.buffers, received.call_id, received.epoch))

        def lost(peer: Peer, error: HeadwayError) -> None:
            del self._peers[conn]
            self._feed(events.PeerLost(conn, str(error)))

        peer.on_message, peer.on_close = received, lost
        assert isinstance(peer.hello, Hello)  # who dials says Hello
        self._feed(events.PeerJoined(conn, peer.hello))

    def _feed(self, event: events.Event) -> None:
        """Give the event to the brain and run what it orders; events that arise meanwhile wait for their turn."""
        self._queue.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._queue:
                for command in self._cluster.handle(self._queue.popleft(), self._loop.time()):
                    self._run(command)
        finally:
            self._handling = False
        if self._cluster.is_empty:
            self._emptied.set()
        else:
            self._emptied.clear()
        if not (isinstance(event, events.MessageReceived) and isinstance(event.message, Heartbeat)):  # these only put deadlines off
            self._set_timer()

    def _set_timer(self) -> None:
        due = self._cluster.next_deadline()
        if due is not None and (self._timer is None or due < self._timer_due):
            if self._timer is not None:
                self._timer.cancel()
            self._timer, self._timer_due = self._loop.call_at(due, self._tick), due

    def _tick(self) -> None:
        self._timer = None
        self._feed(events.Tick())

    # ---- commands ----

    def _run(self, command: events.Command) -> None:
        match command:
            case events.Send(conn, message, buffers):
                self._send(conn, message, buffers)
            case events.Reply(conn, call_id, message, buffers):
                self._reply(conn, call_id, message, buffers)
            case events.ReplyError(conn, call_id, error):
                if conn in self._peers:
                    self._peers[conn].reply_error(call_id, error)
            case events.Close(conn, reason):
                if conn in self._peers:
                    self._peers[conn].close(reason)
            case events.WatchPid(job_id, pid):
                self._watch(job_id, pid)
            case events.UnwatchPid(job_id):
                self._unwatch(job_id)
            case events.Log(level, text):
                logger.log(LEVELS[level], "%s", text)

    def _send(self, conn: int, message: Message, buffers: events.Buffers) -> None:
        peer = self._peers.get(conn)
        if peer is None or not peer.is_open:
            return
        if isinstance(message, (LogLines, LogEnd)):
            lost = self._dropped.pop((conn, message.actor_id), 0)
            if isinstance(message, LogLines):
                if peer.queued_bytes > self._limits.send_queue_bytes:
                    self._dropped[conn, message.actor_id] = lost + message.dropped + len(message.lines)
                    return
                message = replace(message, dropped=message.dropped + lost)
        try:
            peer.notify(message, buffers)
        except HeadwayError as exc:
            # Both sides find out what the other lacks when the connection comes back.
            logger.error("%s to %s: %s", type(message).__name__, peer.name, exc)
            peer.close("a message could not be sent")

    def _reply(self, conn: int, call_id: int, message: Message, buffers: events.Buffers) -> None:
        peer = self._peers.get(conn)
        if peer is None:
            return
        try:
            peer.reply(call_id, message, buffers)
        except ArgumentError as exc:
            peer.reply_error(call_id, exc)

    def _watch(self, job_id: str, pid: int) -> None:
        """Have the end of a process of this host reported. Where that can't be done, the end of its connection has to do."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._queue.append(events.DriverGone(job_id))
            return
        except (AttributeError, OSError) as exc:
            logger.warning("driver pid %d can't be watched: %s", pid, exc)
            return
        self._watched[job_id] = pidfd
        self._loop.add_reader(pidfd, self._driver_gone, job_id)

    def _driver_gone(self, job_id: str) -> None:
        self._unwatch(job_id)
        self._feed(events.DriverGone(job_id))

    def _unwatch(self, job_id: str) -> None:
        pidfd = self._watched.pop(job_id, None)
        if pidfd is not None:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)
