"""The connections of an actor, all on its I/O thread: its lifeline, its own Unix socket, connections that the daemon hands over.

Calls go to the mailbox; their order is the order in which the connection brings them, and one that comes twice runs once. Replies come back
by ``reply``, from the main thread. When the lifeline ends, the daemon is dead, and so is this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import queue
import socket
import stat
import weakref
from typing import NoReturn

from runtime.actor import channel, context
from runtime.actor.mailbox import Mailbox, QueuedCall
from runtime.client.io_thread import IoThread
from runtime.errors import ConnectionLostError, FencedError, HeadwayError, ProtocolError, VersionMismatchError
from runtime.limits import LIMITS
from runtime.wire.messages import ActorUp, Call, CancelCall, InitFailed, Message, Ok, Setup, StopRequested
from runtime.wire.peer import Identity, Listener, Peer, Received, adopt, attach, listen

__all__ = ["Service"]

logger = logging.getLogger(__name__)

# Results given back before the end are worth a short wait for callers that read slowly; the daemon may kill us meanwhile.
LAST_FLUSH_S = 2.0


class Service:
    """What the main thread sees of the I/O thread. One per process."""

    def __init__(self, *, lifeline_fd: int, handover_fd: int) -> None:
        self.mailbox = Mailbox()
        self.io = IoThread()
        self.channels = channel.install(self.io)
        self._lifeline_socket = socket.socket(fileno=lifeline_fd)
        self._handover = socket.socket(fileno=handover_fd)
        self._handover.setblocking(False)
        self._adopted: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._setups: queue.SimpleQueue[tuple[Setup, list[bytes | memoryview], int]] = queue.SimpleQueue()
        self._callers: dict[Peer, int] = {}  # -> the last call id seen
        self._identity = Identity("actor", "")
        self._token = b""
        self._incarnation = 0
        self._listener: Listener | None = None
        self._unix_path = ""
        self._lifeline: Peer | None = None
        os.register_at_fork(after_in_child=self._close_in_child)
        self.io.run(self._open(), "open the lifeline")

    # ---- main thread ----

    def wait_setup(self) -> tuple[Setup, list[bytes | memoryview]]:
        """Who this actor is, and its pickled class and arguments."""
        setup, buffers, self._setup_id = self._setups.get()
        return setup, buffers

    def tell_loaded(self) -> None:
        """The class is here, its constructor runs now: the start time-out ends."""
        assert self._lifeline is not None
        self.io.post(self._lifeline.reply, self._setup_id, Ok())

    def serve(self, setup: Setup) -> None:
        """Listen and tell the daemon that this actor is up. Raises: ConnectError: the socket file can't be made."""
        self.io.run(self._serve(setup), "listen")

    def tell_failed(self, message: InitFailed) -> None:
        """The constructor failed."""
        self.io.post(self._notify_daemon, message)

    def reply(self, peer: Peer, call_id: int, message: Message, buffers: list[bytes | memoryview]) -> None:
        """Answer a call. Waits while the caller is behind by more than its send queue."""
        self.io.post(self._reply, peer, call_id, message, buffers)
        if peer.queued_bytes > LIMITS.send_queue_bytes:
            self.io.run(peer.drain(), f"drain {peer.name}")

    def leave(self, code: int) -> NoReturn:
        """Write what is queued, and end the process."""
        with contextlib.suppress(HeadwayError):
            self.io.run(self._flush(), "last flush")
        os._exit(code)

    # ---- I/O thread ----

    async def _open(self) -> None:
        self._lifeline = await attach(self._lifeline_socket, name="the worker daemon", on_message=self._on_order,
                                      on_close=self._on_daemon_gone)
        self.io.loop.add_reader(self._handover.fileno(), self._on_handover)

    async def _serve(self, setup: Setup) -> None:
        self._unix_path = setup.unix_path
        self._token, self._incarnation = setup.token, setup.spec.incarnation
        self._identity = Identity("actor", setup.spec.label)
        self._listener = await listen([f"unix:{setup.unix_path}"], token=self._token, identity=self._identity, on_peer=self._greet)
        self._notify_daemon(ActorUp(setup.spec.actor_id))

    async def _flush(self) -> None:
        peers = [*self._callers, *([self._lifeline] if self._lifeline is not None else [])]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_FLUSH_S):
                for peer in peers:
                    await peer.flush()

    def _notify_daemon(self, message: Message) -> None:
        assert self._lifeline is not None
        with contextlib.suppress(ConnectionLostError):
            self._lifeline.notify(message)

    def _on_order(self, peer: Peer, received: Received) -> None:
        match received.message:
            case Setup() as setup:
                self._setups.put((setup, received.buffers, received.call_id))
            case StopRequested(reason, grace_s):
                for callback in context.request_stop(reason, grace_s):
                    try:
                        callback(reason, grace_s)
                    except Exception:  # user code; it must not keep the others from being told
                        logger.exception("a callback of on_stop_requested() failed")
                self.mailbox.close()
            case other:
                logger.warning("the worker daemon sent %s, which has no place here: ignored", type(other).__name__)

    def _on_daemon_gone(self, peer: Peer, error: HeadwayError) -> None:
        """The second net, where there is no parent-death signal; nobody is left to be told."""
        os._exit(1)

    def _on_handover(self) -> None:
        """Connections that the daemon accepted for us."""
        with contextlib.suppress(BlockingIOError):
            while True:
                data, fds, _, _ = socket.recv_fds(self._handover, 1, 1, socket.MSG_CMSG_CLOEXEC)
                if not data:
                    self.io.loop.remove_reader(self._handover.fileno())
                    return
                for fd in fds:
                    self.io.start(self._adopt(socket.socket(fileno=fd)), "adopt a connection")

    async def _adopt(self, sock: socket.socket) -> None:
        self._adopted.add(sock)
        try:
            sock.setblocking(False)
            peer = await adopt(sock, token=self._token, identity=self._identity)
        except (HeadwayError, TimeoutError, OSError) as exc:
            logger.warning("refused a connection: %s", exc)
        else:
            self._greet(peer)

    def _greet(self, peer: Peer) -> None:
        peer.epoch = self._incarnation
        peer.on_close = self._on_caller_gone
        theirs, ours = peer.hello.python, platform.python_version()
        if theirs.split(".")[:2] == ours.split(".")[:2]:
            self._callers[peer] = 0
            peer.on_message = self._on_call
        else:
            error = VersionMismatchError(f"{peer.name} runs Python {theirs}, this actor {ours}: pickles do not fit. Use one minor version.")
            peer.on_message = lambda peer, received: peer.reply_error(received.call_id, error) if received.call_id > 0 else None

    def _on_call(self, peer: Peer, received: Received) -> None:
        message, buffers, call_id, epoch = received
        if call_id > 0:
            if call_id <= self._callers[peer]:
                return  # doubled: it runs, or ran
            self._callers[peer] = call_id
            if epoch != self._incarnation:
                peer.reply_error(call_id, FencedError(f"The call was for incarnation {epoch} of this actor, which is {self._incarnation}."))
                return
        if type(message) is Call:
            self.mailbox.put(QueuedCall(peer, call_id, message.method, buffers))
        elif type(message) is CancelCall:
            self.mailbox.cancel(peer, message.target)
        else:
            self._on_channel_message(peer, received)

    def _on_channel_message(self, peer: Peer, received: Received) -> None:
        try:
            if not self.channels.receive(peer, received.message, received.buffers, received.call_id):
                raise ProtocolError(f"{type(received.message).__name__} is not for an actor")
        except ProtocolError as exc:
            logger.warning("closing the connection of %s: %s", peer.name, exc)
            peer.close(str(exc))

    def _on_caller_gone(self, peer: Peer, error: HeadwayError) -> None:
        self._callers.pop(peer, None)
        self.channels.lose(peer, error)

    def _reply(self, peer: Peer, call_id: int, message: Message, buffers: list[bytes | memoryview]) -> None:
        try:
            peer.reply(call_id, message, buffers)
        except HeadwayError as exc:  # too big
            peer.reply_error(call_id, exc)

    # ---- forks of user code ----

    def _close_in_child(self) -> None:
        """In a DataLoader worker and the like: let go of the actor's connections, so that they end when the actor does."""
        own = {sock.fileno() for sock in (self._lifeline_socket, self._handover, *self._adopted)}
        with contextlib.suppress(FileNotFoundError):  # no /proc: there they stay open until the child ends
            for name in os.listdir("/proc/self/fd"):
                with contextlib.suppress(OSError):
                    if int(name) in own or (self._unix_path and _bound_to(int(name)) == self._unix_path):
                        os.close(int(name))


def _bound_to(fd: int) -> str | None:
    """The path that a Unix socket is bound to: the sockets of our callers have our listener's."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return None
    with socket.socket(fileno=os.dup(fd)) as sock:
        return sock.getsockname() if sock.family == socket.AF_UNIX else None
