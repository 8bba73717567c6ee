"""Everything that makes a socket: dialling, binding, accepting, and showing out who is not welcome.

Until a connection's preamble is read its socket is read raw and exactly, so that it can be handed to another process; a transport would
swallow bytes behind it. Few may be unauthenticated at once, all under one deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import cast

from runtime.errors import ConnectError, HeadwayError
from runtime.limits import LIMITS, Limits
from runtime.wire.address import Address, format_tcp
from runtime.wire.codec import encode
from runtime.wire.connection import wire_text
from runtime.wire.framing import control_frame
from runtime.wire.messages import Failed

__all__ = ["AcceptLoop", "bind", "dial", "peer_name", "preamble", "refuse", "target_of", "tune"]

logger = logging.getLogger(__name__)

BACKLOG = 1024

MAGIC = b"HWAY"
PREAMBLE_BYTES = 24
PREAMBLE_VERSION = 1
FOREIGN_ANSWER = b"This port speaks the Headway protocol only (no HTTP, no TLS).\r\n"


def tune(sock: socket.socket, limits: Limits) -> None:
    """No delay, keep-alive and user time-out on TCP; nothing to do on Unix sockets."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    seconds = [("TCP_KEEPIDLE", limits.tcp_keepalive_idle_s), ("TCP_KEEPINTVL", limits.tcp_keepalive_interval_s),
               ("TCP_KEEPCNT", limits.tcp_keepalive_count), ("TCP_USER_TIMEOUT", limits.tcp_user_timeout_s * 1000)]
    for name, value in seconds:
        if hasattr(socket, name):  # macOS lacks some
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), max(1, round(value)))


def peer_name(sock: socket.socket) -> str:
    """The other end of a connected socket, for people."""
    if sock.family == socket.AF_UNIX:
        return "unix socket"
    try:
        return format_tcp(*sock.getpeername()[:2])
    except OSError:
        return "a closed connection"


def preamble(target: str = "") -> bytes:
    """The first bytes of every connection: for the listener itself, or for the actor ``target`` (32 hexadecimal digits)."""
    return MAGIC + bytes((PREAMBLE_VERSION, bool(target), 0, 0)) + (bytes.fromhex(target) if target else bytes(16))


def target_of(head: bytes) -> str | None:
    """The actor id that a preamble names, "" for the listener itself, None if it is no preamble of ours."""
    kind = head[5] if len(head) == PREAMBLE_BYTES and head[:5] == MAGIC + bytes((PREAMBLE_VERSION,)) else -1
    if kind == 1:
        return head[8:].hex()
    return "" if kind == 0 else None


async def dial(address: Address, limits: Limits = LIMITS) -> socket.socket:
    """A connected socket, within ``dial_s``.

    Raises: ConnectError: with the OSError or TimeoutError as its cause.
    """
    try:
        async with asyncio.timeout(limits.dial_s):
            if address.path:
                return await _connected(socket.AF_UNIX, address.path)
            return await _dial_tcp(address)
    except TimeoutError as exc:
        raise ConnectError(f"cannot reach {address} (time-out, no answer within {limits.dial_s:g} s)") from exc
    except socket.gaierror as exc:
        raise ConnectError(f"cannot reach {address} (name look-up of {address.host!r} failed: {exc.strerror})") from exc
    except ConnectionRefusedError as exc:
        raise ConnectError(f"cannot reach {address} (refused)") from exc
    except FileNotFoundError as exc:
        raise ConnectError(f"cannot reach {address} (no such socket file)") from exc
    except BlockingIOError as exc:
        raise ConnectError(f"cannot reach {address} (its backlog is full)") from exc
    except OSError as exc:
        raise ConnectError(f"cannot reach {address} ({exc.strerror or exc})") from exc


async def _dial_tcp(address: Address) -> socket.socket:
    """The first of the name's addresses that answers; the error of the last one if none does."""
    error: OSError = OSError(f"{address.host} has no address")
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)  # never blocks
    except socket.gaierror:
        found = await asyncio.get_running_loop().getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    for family, _, _, _, target in found:
        try:
            return await _connected(family, target)
        except OSError as exc:
            error = exc
    raise error


async def _connected(family: int, target: str | tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if family == socket.AF_UNIX:
            sock.connect(target)  # done or failed at once; asyncio takes the EAGAIN of a full backlog for a connection under way
        else:
            await asyncio.get_running_loop().sock_connect(sock, target)
            if sock.getsockname() == sock.getpeername():  # TCP's simultaneous open, with ourselves: nobody listens on that port
                raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    except BaseException:
        sock.close()
        raise
    return sock


def bind(address: Address) -> socket.socket:
    """A listening socket.

    Raises: ConnectError: with ``errno`` of the OSError that is its cause.
    """
    sock = None
    try:
        if address.path:
            family, target = int(socket.AF_UNIX), cast("tuple[object, ...] | str", address.path)
        else:
            family, _, _, _, target = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        if not address.path:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(target)
        if address.path:
            os.chmod(address.path, 0o600)
        sock.listen(BACKLOG)
    except OSError as exc:
        if sock is not None:
            sock.close()
        error = ConnectError(f"cannot listen on {address}: {exc.strerror or exc}.")
        error.errno = exc.errno
        raise error from exc
    return sock


async def refuse(sock: socket.socket, error: HeadwayError, limits: Limits = LIMITS) -> None:
    """Tell the other side of a raw socket why, and close it."""
    await _last_words(sock, control_frame(encode(Failed(type(error).__name__, wire_text(error)), 0, 0)), limits)


async def _last_words(sock: socket.socket, words: bytes, limits: Limits) -> None:
    """Send, then read to the end within ``handshake_s``: closing over unread bytes would reset the connection and lose the words."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(limits.handshake_s):
            await loop.sock_sendall(sock, words)
            sock.shutdown(socket.SHUT_WR)
            left = limits.handshake_max_bytes
            while left > 0 and (data := await loop.sock_recv(sock, left)):
                left -= len(data)
    except (OSError, TimeoutError):
        pass  # who does not listen does not hear it
    finally:
        sock.close()


class AcceptLoop:
    """Accepts on one socket and greets each connection in a task. Few may be unauthenticated at once: the oldest makes room."""

    def __init__(self, sock: socket.socket, greet: Callable[[socket.socket, str, str, Callable[[], None]], Awaitable[None]],
                 limits: Limits) -> None:
        self._sock = sock
        self._greet = greet
        self._limits = limits
        self._tasks: set[asyncio.Task[None]] = set()
        self._greetings: dict[asyncio.Task[None], str] = {}  # those not yet authenticated, oldest first -> host
        self._last_complaint: dict[str, float] = {}
        self._task = asyncio.get_running_loop().create_task(self._accept(), name=f"accept {sock.getsockname()}")

    async def close(self) -> None:
        """Stop accepting, drop who is being greeted; open connections live on."""
        for task in (self._task, *self._greetings):
            task.cancel()
        await asyncio.gather(self._task, *self._tasks, return_exceptions=True)
        if self._sock.fileno() >= 0 and self._sock.family == socket.AF_UNIX:
            with contextlib.suppress(OSError):
                os.unlink(self._sock.getsockname())
        self._sock.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(self._sock)
            except OSError as exc:  # out of descriptors or memory: who waits stays in the backlog
                logger.error("accept: %s; trying again in %g s", exc, self._limits.redial_max_s)
                await asyncio.sleep(self._limits.redial_max_s)
                continue
            host = address[0] if self._sock.family != socket.AF_UNIX else ""
            self._make_room(host)
            task = loop.create_task(self._run_greeting(sock, host), name=f"greet {address}")
            self._tasks.add(task)
            self._greetings[task] = host
            task.add_done_callback(functools.partial(self._greeted, sock))
            await asyncio.sleep(0)  # asyncio's sock_accept does not yield while the backlog is full

    def _make_room(self, host: str) -> None:
        """The oldest of the same host, or of all, goes. On Unix sockets all come from here: no limit by address."""
        same = [task for task, other in self._greetings.items() if host and other == host]
        if len(same) >= self._limits.max_unauthenticated_per_address:
            self._drop(same[0])
        elif len(self._greetings) >= self._limits.max_unauthenticated:
            self._drop(next(iter(self._greetings)))

    def _drop(self, task: asyncio.Task[None]) -> None:
        self._greetings.pop(task)
        task.cancel()

    def _greeted(self, sock: socket.socket, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._greetings.pop(task, None)
        if task.cancelled():  # perhaps before it began
            sock.close()

    async def _run_greeting(self, sock: socket.socket, host: str) -> None:
        task, name = cast("asyncio.Task[None]", asyncio.current_task()), peer_name(sock)
        try:
            async with asyncio.timeout(self._limits.handshake_s):
                head = await self._read_preamble(sock)
                target = target_of(head)
                if target is not None:
                    await self._greet(sock, name, target, lambda: cast(None, self._greetings.pop(task, None)))
                    return
            self._complain(host, f"{name} sent {len(head)} bytes that begin no connection of ours")
            await _last_words(sock, FOREIGN_ANSWER, self._limits)
        except TimeoutError:
            sock.close()
            self._complain(host, f"{name} did not finish the handshake within {self._limits.handshake_s:g} s")
        except (OSError, HeadwayError) as exc:
            sock.close()
            self._complain(host, f"{name}: {exc}")

    async def _read_preamble(self, sock: socket.socket) -> bytes:
        """24 bytes and not one more; less if they are not ours."""
        head = bytearray(PREAMBLE_BYTES)
        view, filled = memoryview(head), 0
        while filled < PREAMBLE_BYTES and head[:min(filled, 4)] == MAGIC[:min(filled, 4)]:
            num_bytes = await asyncio.get_running_loop().sock_recv_into(sock, view[filled:])
            if not num_bytes:
                break
            filled += num_bytes
        return bytes(head[:filled])

    def _complain(self, host: str, text: str) -> None:
        """One line a minute and address."""
        now = time.monotonic()
        if now - self._last_complaint.get(host, -60.0) >= 60.0:
            if len(self._last_complaint) >= 1000:
                self._last_complaint.clear()
            self._last_complaint[host] = now
            logger.warning("refused a connection: %s", text)
