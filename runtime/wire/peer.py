"""Peers: call, notify and serve over one connection, with deadlines; and the ways to get one.

``connect`` dials, ``listen`` accepts, ``adopt`` takes over a socket that somebody else accepted, ``attach`` one that was inherited. All of
it belongs to one event loop: nothing here may be called from another thread. No task is created for a message.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Callable, Sequence
from typing import Any

from runtime.errors import ActorNotFoundError, ConnectError, ConnectionLostError, GetTimeoutError, HeadwayError, ProtocolError
from runtime.limits import LIMITS, Limits
from runtime.wire.address import format_tcp, host_id, parse_address
from runtime.wire.auth import Acceptor, Dialler, Identity, load_or_create_token, load_token, who
from runtime.wire.connection import MAX_ERROR_CHARS, Connection, Received, State, wire_text
from runtime.wire.messages import PROTOCOL, Challenge, Failed, Hello, Message
from runtime.wire.sockets import AcceptLoop, bind, dial, peer_name, preamble, refuse
from runtime.wire.transport import Transport

__all__ = ["Identity", "Listener", "OnClose", "OnMessage", "Peer", "Received", "adopt", "attach", "connect", "connect_retrying", "host_id",
           "listen", "load_or_create_token", "load_token", "peer_pair", "refuse"]

logger = logging.getLogger(__name__)

OnMessage = Callable[["Peer", Received], None]
OnClose = Callable[["Peer", HeadwayError], None]


class _Call(asyncio.Future[Received]):
    """The future of a request; it knows its call id, so that it can be cancelled."""

    call_id = 0


class Peer:
    """The other side of an open connection.

    ``on_message(peer, received)`` is called on the loop for each message; while it is None nothing is read. ``on_close(peer, error)`` is
    called once, after all pending requests failed. ``hello`` is what the other side said of itself. Buffers are sent without a copy: do not
    change them before ``flush()``.
    """

    def __init__(self, connection: Connection, *, limits: Limits, on_message: OnMessage | None = None, on_close: OnClose | None = None,
                 on_open: Callable[[Peer], None] | None = None) -> None:
        self.name = connection.name
        self.hello: Hello | Challenge = _stranger(connection.name)
        self.local_host = self.remote_host = ""
        self.on_close = on_close
        self._on_message = on_message
        self._on_open = on_open
        self._backlog: list[Received] = []  # what came before somebody listened
        self._connection = connection
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._transport = Transport(connection, self._lost, limits)
        self._opened: asyncio.Future[None] = self._loop.create_future()
        connection.on_open = self._open
        connection.on_message = self._receive

    def __repr__(self) -> str:
        return f"<Peer {self.name} {self._connection.state.value}>"

    @property
    def epoch(self) -> int:
        """Stamped on everything sent from here on: the sender's fencing number, 0 for none."""
        return self._connection.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._connection.epoch = epoch

    @property
    def is_open(self) -> bool:
        """Messages can be sent."""
        return self._connection.state is State.OPEN

    @property
    def queued_bytes(self) -> int:
        """Bytes that the kernel did not take yet."""
        return self._transport.queued_bytes

    @property
    def on_message(self) -> OnMessage | None:
        """Who takes the messages."""
        return self._on_message

    @on_message.setter
    def on_message(self, on_message: OnMessage | None) -> None:
        self._on_message = on_message
        if on_message is None:
            self._transport.pause_reading()
            return
        backlog, self._backlog = self._backlog, []
        for received in backlog:
            self._receive(received)
        self._transport.resume_reading()

    def notify(self, message: Message, buffers: Sequence[Any] = ()) -> None:
        """Send a one-way message.

        Raises: ConnectionLostError: closed. ArgumentError: what is to be sent can't be, or is too big.
        """
        try:
            self._connection.send(message, buffers)
        finally:  # it may have closed the connection
            self._transport.flush_soon()

    def request(self, message: Message, buffers: Sequence[Any] = ()) -> asyncio.Future[Received]:
        """Send a request; the future ends in its reply, in the error that it was answered with, or in ConnectionLostError.

        Raises: ArgumentError: what is to be sent can't be, or is too big.
        """
        call = _Call(loop=self._loop)
        try:
            call.call_id = self._connection.request(message, buffers, call)
        except ConnectionLostError as exc:
            call.set_exception(exc)
        finally:
            self._transport.flush_soon()
        return call

    async def call(self, message: Message, buffers: Sequence[Any] = (), *, timeout_s: float) -> Received:
        """The reply to a request.

        Raises: GetTimeoutError: not within ``timeout_s``. ConnectionLostError, or the error that the other side answered with.
        """
        future = self.request(message, buffers)
        deadline = asyncio.timeout(timeout_s)
        try:
            async with deadline:
                return await future
        except TimeoutError:
            if not deadline.expired():
                raise  # an answer: some of our errors are TimeoutErrors
            raise GetTimeoutError(f"{self.name} did not answer {type(message).__name__} within {timeout_s:g} s.") from None
        finally:
            if future.cancelled():
                self.cancel(future)

    def cancel(self, future: asyncio.Future[Received]) -> None:
        """Forget a pending request and tell the other side; does nothing to one that has ended."""
        future.cancel()
        if isinstance(future, _Call) and future.cancelled():
            self._connection.forget(future.call_id)
            self._transport.flush_soon()

    def reply(self, call_id: int, message: Message, buffers: Sequence[Any] = ()) -> None:
        """Answer the request ``call_id``; does nothing when the peer is closed."""
        try:
            self._connection.send(message, buffers, -call_id)
        except ConnectionLostError:
            pass  # who asked knows
        finally:
            self._transport.flush_soon()

    def reply_error(self, call_id: int, error: HeadwayError) -> None:
        """Answer the request ``call_id`` with an error; does nothing when the peer is closed."""
        self.reply(call_id, Failed(type(error).__name__, wire_text(error, MAX_ERROR_CHARS)))

    async def drain(self) -> None:
        """Wait until less than half of the send queue is used, or the peer is closed."""
        await self._transport.wait_queued_below(self._limits.send_queue_bytes // 2)

    async def flush(self) -> None:
        """Wait until the kernel has taken all that is queued, or the peer is closed."""
        await self._transport.wait_queued_below(0)

    def close(self, reason: str = "") -> None:
        """Fail all pending requests, send what is queued and a goodbye, and close; ``wait_closed()`` and ``on_close`` tell the end."""
        self._connection.close(reason)
        self._transport.flush_soon()

    def abort(self) -> None:
        """Fail all pending requests and drop the socket without a goodbye, for a peer whose host is gone: it would be waited for."""
        self._transport.abort()

    async def wait_closed(self) -> None:
        """Wait until the socket is closed and ``on_close`` was called."""
        await self._transport.closed.wait()

    # ---- the connection's events ----

    async def _start(self, sock: socket.socket) -> None:
        """Take over the connected socket; returns when the connection is open. A failure leaves nothing behind."""
        try:
            if sock.family != socket.AF_UNIX:
                self.local_host, self.remote_host = sock.getsockname()[0], sock.getpeername()[0]
            await self._transport.start(sock)
            await self._opened
        except BaseException:
            if not self._transport.abort():
                sock.close()
            else:
                await self._transport.closed.wait()
            raise

    def _open(self) -> None:
        remote = self._connection.remote
        if remote is not None:
            self.hello = remote
            self.name = self._connection.name = f"{who(remote)} ({self.name})"
        if not self._opened.done():
            self._opened.set_result(None)
        if self._on_open is not None:
            self._guard(self._on_open)
        if self._on_message is None:
            self._transport.pause_reading()

    def _receive(self, received: Received) -> None:
        if self._on_message is None:
            self._backlog.append(received)
        else:
            self._guard(self._on_message, received)

    def _lost(self) -> None:
        error = self._connection.error or ConnectionLostError(f"The connection to {self.name} is closed.")
        if not self._opened.done():
            self._opened.set_exception(error)
        elif self.on_close is not None and not self._opened.cancelled():
            self._guard(self.on_close, error)

    def _guard(self, callback: Callable[..., None], *args: Any) -> None:
        """Call the owner's code, whose faults must not pass for the peer's."""
        try:
            callback(self, *args)
        except Exception:
            logger.exception("%s: %r failed at %.200r", self.name, callback, args)
            self.close("internal error")


async def connect(address: str, *, token: bytes, identity: Identity, on_message: OnMessage, on_close: OnClose, target: str = "",
                  limits: Limits = LIMITS) -> Peer:
    """An open peer at ``address``, by one attempt within ``dial_s`` and ``handshake_s``. ``target``: the actor to be handed over to.

    ``on_message`` may be called before this returns.

    Raises: ConnectError: says refused, time-out, failed name look-up or no such socket file. AuthenticationError. VersionMismatchError.
        ArgumentError: ``address`` is none.
    """
    connection = Connection(Dialler(token, identity), name=address, limits=limits, preamble=preamble(target))
    sock = await dial(parse_address(address), limits)
    peer = Peer(connection, limits=limits, on_message=on_message, on_close=on_close)
    try:
        async with asyncio.timeout(limits.handshake_s):
            await peer._start(sock)
    except TimeoutError as exc:
        raise ConnectError(f"cannot reach {address} (time-out: connected, but no handshake within {limits.handshake_s:g} s)") from exc
    except ProtocolError as exc:
        raise ConnectError(f"cannot reach {address}: what listens there does not speak this protocol ({exc})") from exc
    except OSError as exc:  # ConnectionLostError among them
        raise ConnectError(f"cannot reach {address} ({exc})") from exc
    return peer


async def connect_retrying(address: str, *, token: bytes, identity: Identity, on_message: OnMessage, on_close: OnClose, within_s: float,
                           target: str = "", limits: Limits = LIMITS) -> Peer:
    """``connect``, again and again for ``within_s`` while nobody answers; what time does not heal is raised at once."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    pause_s = limits.redial_min_s
    told = False
    while True:
        try:
            return await connect(address, token=token, identity=identity, on_message=on_message, on_close=on_close, target=target,
                                 limits=limits)
        except ConnectError as exc:
            if isinstance(exc.__cause__, (FileNotFoundError, PermissionError, ProtocolError)):
                raise
            wait_s = random.uniform(0, pause_s)  # full jitter: many who lost one head do not come back in step
            if loop.time() + wait_s >= deadline:
                raise ConnectError(f"{exc} after {within_s:g} s; is `python -m runtime.head` running there? Is there a firewall?") from exc
            if not told:
                told = True
                logger.warning("%s; trying for %g s", exc, within_s)
        await asyncio.sleep(wait_s)
        pause_s = min(2 * pause_s, limits.redial_max_s)


class Listener:
    """Listening sockets; ``addresses`` has the actual ports."""

    def __init__(self, addresses: list[str], port: int, loops: list[AcceptLoop]) -> None:
        self.addresses = addresses
        self.port = port  # of the first TCP socket, 0 without one
        self._loops = loops

    async def close(self) -> None:
        """Stop accepting; open peers live on."""
        for loop in self._loops:
            await loop.close()


async def listen(addresses: list[str], *, token: bytes, identity: Identity, on_peer: Callable[[Peer], None],
                 on_handover: Callable[[socket.socket, str], None] | None = None, limits: Limits = LIMITS) -> Listener:
    """Accept peers at ``addresses`` (port 0: any). ``on_peer`` is called when a handshake is done and sets the peer's callbacks.

    A connection for an actor goes to ``on_handover(socket, actor_id)``, which owns the socket; nothing beyond its preamble was read.

    Raises: ConnectError: can't bind, with the cause's ``errno``. ArgumentError: an address is none.
    """

    async def greet(sock: socket.socket, name: str, target: str, admitted: Callable[[], None]) -> None:
        if target and on_handover is not None:
            admitted()
            try:
                on_handover(sock, target)
            except Exception:
                sock.close()
                logger.exception("%s: handing over to actor %s failed", name, target)
        elif target:
            await refuse(sock, ActorNotFoundError(f"{identity.role} {identity.name!r} has no actors to connect to."), limits)
        else:

            def opened(peer: Peer) -> None:
                admitted()
                on_peer(peer)

            connection = Connection(Acceptor(token, identity), name=name, limits=limits)
            await Peer(connection, limits=limits, on_open=opened)._start(sock)

    socks: list[socket.socket] = []
    try:
        for address in addresses:
            socks.append(bind(parse_address(address)))
    except BaseException:
        for sock in socks:
            sock.close()
        raise
    tcp = [sock.getsockname() for sock in socks if sock.family != socket.AF_UNIX]
    actual = [f"unix:{sock.getsockname()}" if sock.family == socket.AF_UNIX else format_tcp(*sock.getsockname()[:2]) for sock in socks]
    return Listener(actual, tcp[0][1] if tcp else 0, [AcceptLoop(sock, greet, limits) for sock in socks])


async def adopt(sock: socket.socket, *, token: bytes, identity: Identity, limits: Limits = LIMITS) -> Peer:
    """The open peer of an accepted socket whose preamble was consumed. Nothing is read from it until ``on_message`` is set.

    Raises: HeadwayError: the handshake failed, or was not done within ``handshake_s``; the socket is closed.
    """
    peer = Peer(Connection(Acceptor(token, identity), name=peer_name(sock), limits=limits), limits=limits)
    try:
        async with asyncio.timeout(limits.handshake_s):
            await peer._start(sock)
    except TimeoutError as exc:
        raise ConnectError(f"{peer.name} did not finish the handshake within {limits.handshake_s:g} s.") from exc
    return peer


async def attach(sock: socket.socket, *, name: str, on_message: OnMessage, on_close: OnClose, limits: Limits = LIMITS) -> Peer:
    """The open peer of an inherited socket pair: no preamble, no handshake; who holds the other end is trusted."""
    peer = Peer(Connection(None, name=name, limits=limits), limits=limits, on_message=on_message, on_close=on_close)
    await peer._start(sock)
    return peer


async def peer_pair(on_message_a: OnMessage = lambda peer, received: None, on_message_b: OnMessage = lambda peer, received: None, *,
                    on_close_a: OnClose = lambda peer, error: None, on_close_b: OnClose = lambda peer, error: None,
                    limits: Limits = LIMITS) -> tuple[Peer, Peer]:
    """Two peers of this process, connected to each other."""
    sock_a, sock_b = socket.socketpair()
    return (await attach(sock_a, name="peer b", on_message=on_message_a, on_close=on_close_a, limits=limits),
            await attach(sock_b, name="peer a", on_message=on_message_b, on_close=on_close_b, limits=limits))


def _stranger(name: str) -> Hello:
    """Who did not introduce himself."""
    return Hello(role="", name=name, protocol=PROTOCOL, version="", python="", pid=0, host_id="", nonce=b"")
