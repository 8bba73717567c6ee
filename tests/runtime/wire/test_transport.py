"""Bytes between a connection and a real socket: coalescing, back-pressure, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from runtime.limits import Limits
from runtime.wire.connection import Connection, State
from runtime.wire.framing import HEADER
from runtime.wire.messages import Goodbye, Item, Ok
from runtime.wire.transport import Transport

LIMITS = Limits().scaled(0.3)


@contextlib.asynccontextmanager
async def one_side(limits: Limits = LIMITS) -> AsyncIterator[tuple[Connection, Transport, socket.socket]]:
    """A transport at one end of a socket pair, the bare socket at the other."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    connection = Connection(None, name="peer", limits=limits)
    transport = Transport(connection, lambda: None, limits)
    await transport.start(ours)
    try:
        yield connection, transport, theirs
    finally:
        theirs.close()
        transport.abort()
        await transport.closed.wait()


async def receive(sock: socket.socket, enough: Callable[[bytes], bool]) -> bytes:
    data = b""
    while not enough(data):
        part = await asyncio.get_running_loop().sock_recv(sock, 1 << 20)
        if not part:
            break
        data += part
    return data


@pytest.mark.asyncio
async def test_messages_of_one_turn_leave_in_one_write() -> None:
    async with one_side() as (connection, transport, theirs):
        writes = []
        stream = transport._stream
        assert stream is not None

        class Spy:
            def writelines(self, parts: list[bytes]) -> None:
                writes.append(len(parts))
                stream.writelines(parts)

            def __getattr__(self, name: str) -> object:
                return getattr(stream, name)

        transport._stream = Spy()  # type: ignore[assignment]
        for _ in range(10):
            connection.send(Ok())
            transport.flush_soon()
        await receive(theirs, lambda data: data.count(HEADER.pack(5, 0, 0)) == 10)
        assert writes == [10]
        transport._stream = stream


@pytest.mark.asyncio
async def test_what_the_kernel_does_not_take_waits_in_the_outbox() -> None:
    async with one_side() as (connection, transport, theirs):
        connection.send(Item(1, 1), [bytes(8 << 20)])
        transport.flush_soon()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert transport._stream is not None
        assert transport._stream.get_write_buffer_size() <= 1 << 20
        assert transport.queued_bytes > 6 << 20
        waiter = asyncio.create_task(transport.wait_queued_below(0))
        data = await receive(theirs, lambda data: len(data) > 8 << 20)
        await waiter
        assert transport.queued_bytes == 0
        assert len(data) > 8 << 20


@pytest.mark.asyncio
async def test_waiting_for_the_queue_ends_with_the_connection() -> None:
    async with one_side() as (connection, transport, theirs):
        connection.send(Item(1, 1), [bytes(8 << 20)])
        transport.flush_soon()
        waiter = asyncio.create_task(transport.wait_queued_below(0))
        await asyncio.sleep(0)
        theirs.close()
        await waiter
        await transport.closed.wait()
        assert connection.state is State.CLOSED
        await transport.wait_queued_below(0)


@pytest.mark.asyncio
async def test_a_goodbye_is_read_even_if_the_other_side_was_still_sending() -> None:
    """The socket is closed only after the other side's end: closing over unread bytes resets it."""
    async with one_side() as (connection, transport, theirs):
        theirs.sendall(b"\xff" * 1000)
        data = await receive(theirs, lambda data: False)
        assert b"ProtocolError" in data
        assert connection.state is State.CLOSING
        theirs.sendall(b"more" * 1000)
        theirs.shutdown(socket.SHUT_WR)
        await transport.closed.wait()


@pytest.mark.asyncio
async def test_a_peer_that_never_ends_is_cut_off() -> None:
    async with one_side(dataclasses.replace(LIMITS, handshake_s=0.1)) as (connection, transport, theirs):
        connection.send(Item(1, 1), [bytes(8 << 20)])
        connection.close("enough")
        transport.flush_soon()
        await transport.closed.wait()


@pytest.mark.asyncio
async def test_a_half_closed_peer_that_does_not_read_is_dropped_at_once() -> None:
    async with one_side() as (connection, transport, theirs):
        connection.send(Item(1, 1), [bytes(8 << 20)])
        transport.flush_soon()
        theirs.shutdown(socket.SHUT_WR)
        await transport.closed.wait()
        assert "without a goodbye" in str(connection.error)


@pytest.mark.asyncio
async def test_goodbye_of_the_peer_closes_both_ways() -> None:
    async with one_side() as (connection, transport, theirs):
        other = Connection(None, name="us", limits=LIMITS)
        other.start()
        other.send(Goodbye("enough"))
        theirs.sendall(b"".join(bytes(part) for part in other.take(1 << 20)))
        theirs.shutdown(socket.SHUT_WR)
        await transport.closed.wait()
        assert str(connection.error) == "peer closed the connection: enough."
