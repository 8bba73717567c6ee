"""An I/O thread with a peer on it: the surroundings of a channel, without a process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from runtime.client.io_thread import IoThread
from runtime.wire.peer import Peer, peer_pair


class Pair:
    """``ours`` is a caller's peer as the actor sees it; ``theirs`` is the caller's end. Both live on ``io``."""

    def __init__(self) -> None:
        self.io = IoThread()
        self.received: list[Any] = []
        self.on_ours: Callable[[Peer, Any], None] = lambda peer, received: None
        self.on_lost: Callable[[Peer, Any], None] = lambda peer, error: None
        self.ours, self.theirs = self.io.run(self._make(), "make")

    async def _make(self) -> tuple[Peer, Peer]:
        return await peer_pair(lambda peer, received: self.on_ours(peer, received), lambda peer, received: self.received.append(received),
                               on_close_a=lambda peer, error: self.on_lost(peer, error))

    def on_loop(self, function: Callable[..., Any], *args: Any) -> Any:
        """Its result, run on the I/O thread after all that was posted before."""

        async def run() -> Any:
            return function(*args)

        return self.io.run(run(), "on loop")

    def close(self) -> None:
        async def close() -> None:
            self.theirs.close()
            await self.theirs.wait_closed()
            await self.ours.wait_closed()

        self.io.run(close(), "close")
        self.io.stop()


@pytest.fixture
def pair() -> Iterator[Pair]:
    """See Pair."""
    made = Pair()
    yield made
    made.close()
