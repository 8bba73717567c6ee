"""Sockets: dialling and its errors, the preamble, who is let in, and who is shown out."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import logging
import os
import resource
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runtime.errors import ConnectError
from runtime.limits import Limits
from runtime.wire.address import parse_address
from runtime.wire.framing import HEADER
from runtime.wire.peer import Identity, Listener, Peer, connect, listen
from runtime.wire.sockets import FOREIGN_ANSWER, bind, dial, preamble, target_of, tune

LIMITS = Limits().scaled(0.3)
TOKEN = b"t" * 32
ACTOR = "0123456789abcdef" * 2


class Server:
    """A listener whose peers are kept; drops their messages."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.joined = asyncio.Event()
        self.handed: list[tuple[socket.socket, str]] = []
        self.listener: Listener

    def on_peer(self, peer: Peer) -> None:
        peer.on_message = lambda peer, received: None
        self.peers.append(peer)
        self.joined.set()

    def on_handover(self, sock: socket.socket, actor_id: str) -> None:
        self.handed.append((sock, actor_id))
        self.joined.set()

    @property
    def address(self) -> str:
        return self.listener.addresses[0]


@contextlib.asynccontextmanager
async def serving(limits: Limits = LIMITS, address: str = "127.0.0.1:0") -> AsyncIterator[Server]:
    server = Server()
    server.listener = await listen([address], token=TOKEN, identity=Identity("head", "h"), on_peer=server.on_peer,
                                   on_handover=server.on_handover, limits=limits)
    try:
        yield server
    finally:
        await server.listener.close()
        for peer in server.peers:
            peer.close()
            await peer.wait_closed()
        for sock, _ in server.handed:
            sock.close()


async def join(server: Server, limits: Limits = LIMITS) -> None:
    """A real peer gets in."""
    peer = await connect(server.address, token=TOKEN, identity=Identity("driver", "d"), on_message=lambda peer, received: None,
                         on_close=lambda peer, error: None, limits=limits)
    peer.close()
    await peer.wait_closed()


async def raw(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", server.listener.port)


async def gone(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


# ---- dialling ----


@pytest.mark.asyncio
async def test_refused_is_told_from_a_missing_socket_file(short_tmp: Path) -> None:
    sock = bind(parse_address("127.0.0.1:0"))
    address = f"127.0.0.1:{sock.getsockname()[1]}"
    sock.close()
    with pytest.raises(ConnectError, match=rf"cannot reach {address} \(refused\)"):
        await dial(parse_address(address), LIMITS)
    with pytest.raises(ConnectError, match=r"no such socket file"):
        await dial(parse_address(f"unix:{short_tmp}/none"), LIMITS)
    bind(parse_address(f"unix:{short_tmp}/dead")).close()
    with pytest.raises(ConnectError, match=r"refused"):
        await dial(parse_address(f"unix:{short_tmp}/dead"), LIMITS)


@pytest.mark.asyncio
async def test_failed_look_up_is_named() -> None:
    with pytest.raises(ConnectError, match=r"name look-up of 'no-such-host.invalid' failed|time-out"):  # time-out: no name server here
        await dial(parse_address("no-such-host.invalid:80"), LIMITS)


@pytest.mark.asyncio
async def test_no_answer_is_a_time_out() -> None:
    """A full backlog: the kernel drops further SYNs."""
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    fillers = []
    for _ in range(4):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(full.getsockname())
        fillers.append(filler)
    try:
        with pytest.raises(ConnectError, match=r"time-out, no answer within 0.1 s"):
            await dial(parse_address(f"127.0.0.1:{full.getsockname()[1]}"), dataclasses.replace(LIMITS, dial_s=0.1))
    finally:
        for sock in (full, *fillers):
            sock.close()


@pytest.mark.asyncio
async def test_a_full_backlog_of_a_unix_socket_is_no_connection(short_tmp: Path) -> None:
    full = socket.socket(socket.AF_UNIX)
    full.bind(f"{short_tmp}/s")
    full.listen(0)
    filler = await dial(parse_address(f"unix:{short_tmp}/s"), LIMITS)
    with pytest.raises(ConnectError, match=r"its backlog is full") as caught:
        await dial(parse_address(f"unix:{short_tmp}/s"), LIMITS)
    assert isinstance(caught.value.__cause__, BlockingIOError)
    for sock in (full, filler):
        sock.close()


@pytest.mark.asyncio
async def test_a_connection_with_oneself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who dials a free port of the ephemeral range may get it as his own: both ends are then one socket."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]

    class Bound(socket.socket):
        def __init__(self, family: int = -1, kind: int = -1, proto: int = -1, fileno: int | None = None) -> None:
            super().__init__(family, kind, proto, fileno)
            if fileno is None:
                self.bind(("127.0.0.1", port))

    monkeypatch.setattr("runtime.wire.sockets.socket.socket", Bound)
    with pytest.raises(ConnectError, match="refused"):
        await dial(parse_address(f"127.0.0.1:{port}"), LIMITS)


def test_port_in_use_is_named_with_its_errno() -> None:
    first = bind(parse_address("127.0.0.1:0"))
    try:
        with pytest.raises(ConnectError, match=r"cannot listen on 127.0.0.1:\d+: Address already in use") as caught:
            bind(parse_address(f"127.0.0.1:{first.getsockname()[1]}"))
        assert caught.value.errno == errno.EADDRINUSE
    finally:
        first.close()


def test_unix_sockets_are_closed_to_others(short_tmp: Path) -> None:
    bind(parse_address(f"unix:{short_tmp}/s")).close()
    assert stat.S_IMODE(os.stat(short_tmp / "s").st_mode) == 0o600


def test_tcp_options_are_set() -> None:
    with socket.socket() as sock:
        tune(sock, Limits())
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == Limits().tcp_user_timeout_s * 1000
        assert [sock.getsockopt(socket.IPPROTO_TCP, option) for option in (
            socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)] == [5, 2, 3]


def test_preamble() -> None:
    assert preamble() == b"HWAY\x01\x00\x00\x00" + bytes(16)
    assert preamble(ACTOR) == b"HWAY\x01\x01\x00\x00" + bytes.fromhex(ACTOR)
    assert target_of(preamble()) == ""
    assert target_of(preamble(ACTOR)) == ACTOR
    for foreign in (b"", preamble()[:-1], b"HWAZ" + preamble()[4:], b"HWAY\x02" + preamble()[5:], b"HWAY\x01\x02" + preamble()[6:]):
        assert target_of(foreign) is None


# ---- who is let in ----


@pytest.mark.asyncio
@pytest.mark.parametrize("probe", [b"GET / HTTP/1.0\r\n\r\n", b"POST /x HTTP/1.1\r\nHost: evil.example\r\n\r\n" + b"x" * 3000,
                                   b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), b"\n", b"HWAX" + bytes(20)],
                         ids=["get", "post", "tls", "newline", "almost"])
async def test_foreign_bytes_get_one_fixed_line_and_a_close(probe: bytes) -> None:
    async with serving() as server:
        reader, writer = await raw(server)
        writer.write(probe)
        assert await reader.read() == FOREIGN_ANSWER
        await gone(writer)
        await join(server)


@pytest.mark.asyncio
async def test_slowloris_is_cut_off_by_one_deadline_for_all() -> None:
    async with serving(dataclasses.replace(LIMITS, handshake_s=0.2)) as server:
        reader, writer = await raw(server)

        async def trickle() -> None:
            for byte in preamble():
                writer.write(bytes((byte,)))
                await asyncio.sleep(0.03)

        task = asyncio.create_task(trickle())
        assert await reader.read() == b""
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await gone(writer)
        reader, writer = await raw(server)
        writer.write(preamble())  # and then silence
        assert await reader.read() == b""
        await gone(writer)


@pytest.mark.asyncio
async def test_a_4_gib_header_is_refused_at_once() -> None:
    async with serving() as server:
        reader, writer = await raw(server)
        writer.write(preamble() + HEADER.pack(2**32 - 1, 0, 0) + bytes(2000))
        assert b"ProtocolError" in await reader.read()
        await gone(writer)


@pytest.mark.asyncio
@pytest.mark.parametrize("first_words", [b"", b"HWAY", preamble()], ids=["silent", "half", "preamble"])
async def test_many_idle_connections_do_not_keep_a_real_one_out(first_words: bytes) -> None:
    limits = dataclasses.replace(LIMITS, handshake_s=60.0)
    async with serving(limits) as server:
        idle = []
        for _ in range(100):
            sock = socket.socket()
            sock.connect(("127.0.0.1", server.listener.port))
            sock.sendall(first_words)
            idle.append(sock)
        await join(server, limits)
        for sock in idle:
            sock.close()


@pytest.mark.asyncio
async def test_of_too_many_unauthenticated_connections_the_oldest_is_closed() -> None:
    limits = dataclasses.replace(LIMITS, handshake_s=60.0, max_unauthenticated_per_address=3)
    async with serving(limits) as server:
        streams = [await raw(server) for _ in range(4)]
        assert await streams[0][0].read() == b""
        await join(server, limits)  # closes the next one
        assert await streams[1][0].read() == b""
        assert not streams[3][0].at_eof()
        for _, writer in streams:
            await gone(writer)


@pytest.mark.asyncio
async def test_the_limit_of_all_holds_where_addresses_do_not_count(short_tmp: Path) -> None:
    limits = dataclasses.replace(LIMITS, handshake_s=60.0, max_unauthenticated=5, max_unauthenticated_per_address=2)
    async with serving(limits, f"unix:{short_tmp}/s") as server:
        streams = [await asyncio.open_unix_connection(f"{short_tmp}/s") for _ in range(6)]
        assert await streams[0][0].read() == b""
        await join(server, limits)
        assert [reader.at_eof() for reader, _ in streams[2:]] == [False] * 4
        for _, writer in streams:
            await gone(writer)


@pytest.mark.asyncio
async def test_open_peers_do_not_count() -> None:
    limits = dataclasses.replace(LIMITS, max_unauthenticated_per_address=2, max_unauthenticated=2)
    async with serving(limits) as server:
        for _ in range(6):
            await join(server, limits)
        assert len(server.peers) == 6


@pytest.mark.asyncio
async def test_handover_gives_the_socket_with_nothing_read_beyond_the_preamble() -> None:
    async with serving() as server:
        reader, writer = await raw(server)
        writer.write(preamble(ACTOR) + b"and what follows")
        await server.joined.wait()
        sock, actor_id = server.handed[0]
        assert actor_id == ACTOR
        assert not sock.getblocking()
        assert sock.recv(100) == b"and what follows"
        await gone(writer)


@pytest.mark.asyncio
async def test_closing_the_listener_drops_who_is_being_greeted_and_removes_the_socket_file(short_tmp: Path) -> None:
    async with serving(address=f"unix:{short_tmp}/s") as server:
        reader, writer = await asyncio.open_unix_connection(f"{short_tmp}/s")
        await join(server)
        await server.listener.close()
        assert await reader.read() == b""
        assert not (short_tmp / "s").exists()
        await gone(writer)


@pytest.mark.asyncio
async def test_running_out_of_descriptors_pauses_accepting() -> None:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())
            failed.set()

    lines: list[str] = []
    failed, handler = asyncio.Event(), Handler()
    logger = logging.getLogger("runtime.wire.sockets")
    logger.addHandler(handler)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with serving(dataclasses.replace(LIMITS, redial_max_s=0.05)) as server:
        sock = socket.socket()
        next_fd = os.dup(0)
        os.close(next_fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_fd, hard))
        try:
            sock.connect(("127.0.0.1", server.listener.port))
            await failed.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            logger.removeHandler(handler)
        assert "Too many open files" in lines[0]
        await join(server)
        sock.close()
