"""A server and clients on a Unix socket, closed at the end of the test."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from runtime.errors import HeadwayError
from runtime.limits import Limits
from runtime.wire.messages import Call, Message, Result
from runtime.wire.peer import Identity, Listener, Peer, Received, connect, listen

TOKEN = b"t" * 32


class Network:
    """One listener ("head") and those who dial it; what each peer received and how it ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token = TOKEN
        self.limits = Limits().scaled(0.3)
        self.listener: Listener
        self.served: list[Peer] = []
        self.got: dict[Peer, list[Received]] = {}
        self.ended: dict[Peer, list[HeadwayError]] = {}
        self.handed: list[tuple[socket.socket, str]] = []
        self.serve: Callable[[Peer, Received], None] = echo
        self.changed = asyncio.Condition()

    async def start(self, **options: Any) -> None:
        self.listener = await listen([f"unix:{self.path}/s", "127.0.0.1:0"], token=self.token, identity=Identity("head", "h"),
                                     on_peer=self._joined, on_handover=lambda sock, actor: self.handed.append((sock, actor)),
                                     **{"limits": self.limits, **options})

    async def dial(self, address: str = "", **options: Any) -> Peer:
        peer = await connect(address or self.listener.addresses[0],
                             **{"token": self.token, "identity": Identity("driver", "d"), "on_message": self._received,
                                "on_close": self._closed, "limits": self.limits, **options})
        self.got.setdefault(peer, [])
        self.ended.setdefault(peer, [])
        return peer

    def messages(self, peer: Peer) -> list[Message]:
        return [received.message for received in self.got[peer]]

    async def close(self) -> None:
        if hasattr(self, "listener"):
            await self.listener.close()
        for peer in self.got:
            peer.close()
        for peer in self.got:
            await peer.wait_closed()
        for sock, _ in self.handed:
            sock.close()

    def _joined(self, peer: Peer) -> None:
        self.served.append(peer)
        self.got[peer], self.ended[peer] = [], []
        peer.on_message, peer.on_close = self._serve, self._closed

    def _serve(self, peer: Peer, received: Received) -> None:
        self._received(peer, received)
        self.serve(peer, received)

    def _received(self, peer: Peer, received: Received) -> None:
        self.got.setdefault(peer, []).append(received)

    def _closed(self, peer: Peer, error: HeadwayError) -> None:
        self.ended.setdefault(peer, []).append(error)


def echo(peer: Peer, received: Received) -> None:
    if received.call_id and isinstance(received.message, Call):
        peer.reply(received.call_id, Result(), received.buffers)


@pytest_asyncio.fixture
async def network(short_tmp: Path) -> AsyncIterator[Network]:
    """Not started: ``await network.start()``, then ``await network.dial()``."""
    made = Network(short_tmp)
    yield made
    await made.close()


@pytest.fixture
def short_limits() -> Limits:
    """Little of everything, so that tests reach the limits."""
    import dataclasses

    return dataclasses.replace(Limits().scaled(0.3), send_queue_bytes=100_000, max_bulk_bytes=10_000, inline_bytes=1000)
