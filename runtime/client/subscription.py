"""The subscriber's end of an actor's channel: items in order, credit back, items towards the actor.

At most ``window`` items of each direction are under way untaken. Items that arrived before the end, also before the actor's death, are
delivered before it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from runtime.client.actor_link import ActorLink, Failure
from runtime.client.serialization import Buffer, dumps, loads
from runtime.errors import ArgumentError, ChannelClosedError, ConnectionLostError, GetTimeoutError, HeadwayError
from runtime.wire.messages import Credit, EndChannel, Item, Subscribe
from runtime.wire.peer import Peer, Received

__all__ = ["Subscription"]

logger = logging.getLogger(__name__)


class _End:
    """Last entry of the queue."""

    def __init__(self, failure: Failure | None) -> None:
        self.failure = failure


class Subscription:
    """Made by ``handle.subscribe``. Iterate over it (``for`` or ``async for``), or give it callbacks."""

    def __init__(self, link: ActorLink, name: str, window: int, on_item: Callable[[Any], object] | None,
                 on_end: Callable[[BaseException | None], object] | None) -> None:
        self.name = name
        self._link = link
        self._window = window
        self._on_item = on_item
        self._on_end = on_end
        self._entries: queue.SimpleQueue[Sequence[Buffer] | _End] = queue.SimpleQueue()
        self._wakers: list[Callable[[], None]] = []  # of coroutines that wait for an entry
        self._taken = 0  # by an iterator, not yet told to the actor
        self._credit = threading.Semaphore(window)  # items that may still be sent towards the actor
        self._sent = 0
        self._channel_id = 0
        self._peer: Peer | None = None
        self._ended: _End | None = None

    # ---- for the subscriber, from any thread ----

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return self._open(self._entries.get())
        except _Ended:
            raise StopIteration from None

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        loop = asyncio.get_running_loop()
        while True:
            arrived: asyncio.Future[None] = loop.create_future()
            waker = functools.partial(_wake, loop, arrived)
            self._wakers.append(waker)  # before the look into the queue: what comes after it wakes us
            try:
                return self._open(self._entries.get_nowait())
            except queue.Empty:
                await arrived
            except _Ended:
                raise StopAsyncIteration from None
            finally:
                self._wakers.remove(waker)

    def take(self, count: int = 1) -> None:
        """With callbacks: ``count`` more items are done with, the actor may send as many."""
        if count < 0:
            raise ArgumentError(f"take({count}): the number of items must not be negative.")
        if self._ended is None and count:
            self._link.session.post(self._give_credit, count)

    def send(self, item: Any, timeout_s: float | None = None) -> None:
        """Send an item to the actor, whose ``channel(name).recv()`` returns it. Blocks while ``window`` items are not yet received there.

        Raises: ChannelClosedError or how the actor ended; GetTimeoutError: no room within ``timeout_s``; SerializationError.
        """
        buffers = dumps(item, what=f"item of channel {self.name!r}")
        on_io_thread = self._link.session.io.is_current()
        if not self._credit.acquire(blocking=not on_io_thread, timeout=None if on_io_thread else timeout_s):
            if on_io_thread:
                raise HeadwayError(f"channel {self.name!r} is full, and a callback on the I/O thread can't wait until it is not.")
            raise GetTimeoutError(f"channel {self.name!r}: the actor did not receive the last {self._window} items within {timeout_s:g} s.")
        if self._ended is not None:
            self._credit.release()
            raise self._ended.failure() if self._ended.failure is not None else self._closed()
        self._link.session.post(self._send_item, buffers)

    def close(self) -> None:
        """End it from this side. Iteration ends, ``on_end`` is not called, and what the actor still sends is dropped."""
        if self._ended is None:
            self._link.session.io.post(self._close)

    # ---- on the I/O thread ----

    def start(self) -> None:
        """Queue the subscription behind the calls made before it."""
        self._link.submit(_Sending(self._subscribe, self.fail))

    def receive(self, message: Item | Credit | EndChannel, buffers: list[Buffer]) -> None:
        """What the actor sends on this channel."""
        if isinstance(message, EndChannel):
            reason = message.reason
            self._link.subscriptions.pop(self._channel_id, None)
            self._end((lambda: ChannelClosedError(f"channel {self.name!r} was closed by the actor: {reason}")) if reason else None)
        elif isinstance(message, Credit):
            self._credit.release(message.count)
        elif self._ended is not None:
            self._give_credit(1)  # dropped; the actor shall not wait for who left
        else:
            self._receive_item(buffers)

    def fail(self, failure: Failure) -> None:
        """The connection or the actor ended."""
        self._end(failure)

    def _answered(self, future: asyncio.Future[Received]) -> None:
        error = None if future.cancelled() else future.exception()
        # A lost connection is told by the link, together with the actor's end.
        if isinstance(error, HeadwayError) and not isinstance(error, ConnectionLostError):
            self._end(lambda: error)

    def _receive_item(self, buffers: list[Buffer]) -> None:
        if self._on_item is not None:
            try:
                self._on_item(loads(buffers))
            except Exception:
                logger.exception("on_item of channel %r failed", self.name)
        else:
            self._put(buffers)

    def _put(self, entry: Sequence[Buffer] | _End) -> None:
        self._entries.put(entry)
        for wake in list(self._wakers):
            wake()

    def _end(self, failure: Failure | None, *, tell: bool = True) -> None:
        if self._ended is not None:
            return
        self._ended = _End(failure)
        self._credit.release(self._window)  # who waits for room learns of the end; each passes it on
        self._put(self._ended)
        if tell and self._on_end is not None:
            try:
                self._on_end(failure() if failure is not None else None)
            except Exception:
                logger.exception("on_end of channel %r failed", self.name)

    def _subscribe(self, link: ActorLink, peer: Peer) -> None:
        if self._ended is None:
            self._peer = peer
            self._channel_id = next(link.channel_ids)
            link.subscriptions[self._channel_id] = self
            peer.request(Subscribe(self._channel_id, self.name, self._window)).add_done_callback(self._answered)

    def _close(self) -> None:
        self._notify(EndChannel(self._channel_id))
        self._end(None, tell=False)

    def _give_credit(self, count: int) -> None:
        self._notify(Credit(self._channel_id, count))

    def _notify(self, message: Credit | EndChannel) -> None:
        if self._peer is not None and self._peer.is_open:
            self._peer.notify(message)

    def _send_item(self, buffers: list[Buffer]) -> None:
        def send(link: ActorLink, peer: Peer) -> None:
            if self._ended is None and peer is self._peer:
                self._sent += 1
                peer.notify(Item(self._channel_id, self._sent), buffers)

        self._link.submit(_Sending(send, lambda failure: None))  # how it ended is told once, by the subscription

    # ---- in the consumer's thread ----

    def _open(self, entry: Sequence[Buffer] | _End) -> Any:
        if isinstance(entry, _End):
            self._entries.put(entry)  # for who asks again
            if entry.failure is not None:
                raise entry.failure()
            raise _Ended
        self._taken += 1
        if 2 * self._taken >= self._window and self._ended is None:  # in halves of the window: few messages, no stall
            taken, self._taken = self._taken, 0
            self._link.session.post(self._give_credit, taken)
        return loads(entry)

    def _closed(self) -> HeadwayError:
        return ChannelClosedError(f"channel {self.name!r} is closed.")


class _Ended(Exception):
    """The channel was closed, nothing failed."""


class _Sending:
    """An operation of the link: goes to the actor after all that was sent before."""

    def __init__(self, send: Callable[[ActorLink, Peer], None], fail: Callable[[Failure], None]) -> None:
        self.send = send
        self.fail = fail

    def is_ready(self) -> bool:
        """Always."""
        return True


def _wake(loop: asyncio.AbstractEventLoop, arrived: asyncio.Future[None]) -> None:
    def arrive() -> None:
        if not arrived.done():
            arrived.set_result(None)

    try:
        loop.call_soon_threadsafe(arrive)
    except RuntimeError:
        logger.debug("the loop of a subscriber is closed")
