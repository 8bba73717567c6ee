"""Named channels of an actor: ordered items, pushed, at most a window of them unacknowledged, in both directions.

User code sends and receives on any thread; the other end is one subscriber, who has to give credit for what it took. Until there is one,
up to a window of items waits here. ``send`` returns when the item is in the socket: what was sent before a crash arrives.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import Any

from runtime.actor.context import check_not_forked
from runtime.client import serialization
from runtime.client.io_thread import IoThread
from runtime.errors import ChannelClosedError, ConnectionLostError, GetTimeoutError, HeadwayError, NotInitializedError, ProtocolError
from runtime.limits import LIMITS
from runtime.wire.messages import Credit, EndChannel, Item, Message, Ok, Subscribe
from runtime.wire.peer import Peer

__all__ = ["Channel", "Channels", "channel", "install"]

Buffers = list[bytes | memoryview]


class _Writing(threading.Event):
    """Set when an item is in the socket, or will never be."""

    error: HeadwayError | None = None


class Channel:
    """One channel of this actor; ``runtime.channel(name)`` returns the same one each time."""

    def __init__(self, name: str, io: IoThread) -> None:
        self.name = name
        self._io = io
        self._changed = threading.Condition()  # guards all that follows
        self._subscriber: tuple[Peer, int] | None = None
        self._waiting: deque[Buffers] = deque()  # sent before there was a subscriber
        self._is_closed = False
        self._lost = ""  # why there is no subscriber any more
        self._credit = self._window = LIMITS.channel_window
        self._num_sent = self._num_received = 0
        self._received: deque[Buffers] = deque()
        self._receiving_ended = ""

    # ---- user code, any thread ----

    def send(self, item: Any, timeout_s: float | None = None) -> None:
        """Send an item; waits while the subscriber is a window behind.

        Raises: ChannelClosedError: closed, or its subscriber is gone. GetTimeoutError: no room within ``timeout_s``. SerializationError.
        """
        check_not_forked(f"channel {self.name!r}")
        buffers = serialization.dumps(item, what=f"an item of channel {self.name!r}")
        with self._changed:
            if not self._changed.wait_for(lambda: self._is_closed or self._lost or self._credit > 0, timeout_s):
                raise GetTimeoutError(f"Channel {self.name!r}: no room within {timeout_s:g} s; its subscriber is a whole window behind.")
            if self._is_closed or self._lost:
                raise ChannelClosedError(f"Channel {self.name!r} is closed: {self._lost or 'close() was called'}.")
            self._credit -= 1
            if self._subscriber is None:
                self._waiting.append(buffers)
                return
            writing = self._post(buffers)
        writing.wait()
        if writing.error is not None:
            raise writing.error

    def recv(self, timeout_s: float | None = None) -> Any:
        """The next item from the subscriber; waits for it.

        Raises: ChannelClosedError: no more will come. GetTimeoutError: none within ``timeout_s``.
        """
        check_not_forked(f"channel {self.name!r}")
        with self._changed:
            if not self._changed.wait_for(lambda: self._received or self._receiving_ended, timeout_s):
                raise GetTimeoutError(f"Channel {self.name!r}: no item within {timeout_s:g} s.")
            if not self._received:
                raise ChannelClosedError(f"Channel {self.name!r} is closed: {self._receiving_ended}.")
            buffers = self._received.popleft()
            subscriber = self._subscriber
        if subscriber is not None:
            self._io.post(_notify, subscriber[0], Credit(subscriber[1], 1))
        return serialization.loads(buffers)

    def close(self) -> None:
        """Send no more; what was sent still arrives."""
        check_not_forked(f"channel {self.name!r}")
        with self._changed:
            if not self._is_closed and self._subscriber is not None:
                self._io.post(_notify, self._subscriber[0], EndChannel(self._subscriber[1]))
            self._is_closed = True
            self._changed.notify_all()

    # ---- I/O thread ----

    def subscribe(self, peer: Peer, message: Subscribe) -> None:
        """Take the subscriber; what waits is sent to it.

        Raises: ChannelClosedError: there is one already, and it did not end its own direction.
        """
        with self._changed:
            if self._subscriber is not None and not self._receiving_ended:
                raise ChannelClosedError(f"Channel {self.name!r} has a subscriber already: {self._subscriber[0].name}.")
            self._subscriber = (peer, message.channel_id)
            self._lost = self._receiving_ended = ""
            self._num_sent = self._num_received = 0
            self._received.clear()
            self._window = message.window
            self._credit = message.window - len(self._waiting)
            while self._waiting:
                self._post(self._waiting.popleft())
            if self._is_closed:
                self._io.post(_notify, peer, EndChannel(message.channel_id))
            self._changed.notify_all()

    def add_credit(self, count: int) -> None:
        """The subscriber took items."""
        with self._changed:
            self._credit += count
            self._changed.notify_all()

    def receive(self, item: Item, buffers: Buffers) -> None:
        """An item from the subscriber. Raises: ProtocolError: out of order, or more than the window."""
        with self._changed:
            if item.seq <= self._num_received:
                return  # doubled
            if item.seq != self._num_received + 1 or len(self._received) >= self._window:
                raise ProtocolError(f"channel {self.name!r}: item {item.seq} came after {self._num_received}, "
                                    f"{len(self._received)} wait, the window is {self._window}")
            self._num_received = item.seq
            self._received.append(buffers)
            self._changed.notify_all()

    def end_receiving(self, reason: str) -> None:
        """The subscriber sends no more."""
        with self._changed:
            self._receiving_ended = reason
            self._changed.notify_all()

    def lose(self, reason: str) -> None:
        """The subscriber is gone; what it had sent can still be received."""
        with self._changed:
            self._lost = reason
            self._receiving_ended = self._receiving_ended or reason
            self._subscriber = None
            self._changed.notify_all()

    def _post(self, buffers: Buffers) -> _Writing:
        """Have the I/O thread send an item, after those posted before. The lock is held."""
        assert self._subscriber is not None, self.name
        self._num_sent += 1
        writing = _Writing()
        self._io.post(self._transmit, self._subscriber[0], Item(self._subscriber[1], self._num_sent), buffers, writing)
        return writing

    def _transmit(self, peer: Peer, item: Item, buffers: Buffers, writing: _Writing) -> None:
        try:
            peer.notify(item, buffers)
        except HeadwayError as exc:  # lost, or too big
            self._end_writing(writing, exc)
            return
        self._io.loop.call_soon(self._check_written, peer, writing)  # frames leave at the end of this turn of the loop

    def _check_written(self, peer: Peer, writing: _Writing) -> None:
        if not peer.queued_bytes:
            self._end_writing(writing, None if peer.is_open else ConnectionLostError(f"{peer.name} is gone"))
            return

        async def wait_written() -> None:
            await peer.flush()
            self._end_writing(writing, None if peer.is_open else ConnectionLostError(f"{peer.name} is gone"))

        self._io.start(wait_written(), f"write an item of channel {self.name!r}")

    def _end_writing(self, writing: _Writing, error: HeadwayError | None) -> None:
        if isinstance(error, ConnectionLostError):
            writing.error = ChannelClosedError(f"Channel {self.name!r} is closed: {error}")
        else:
            writing.error = error
        writing.set()


class Channels:
    """All channels of this actor; what peers say of them is passed on here, on the I/O thread."""

    def __init__(self, io: IoThread) -> None:
        self._io = io
        self._lock = threading.Lock()
        self._by_name: dict[str, Channel] = {}
        self._subscribed: dict[tuple[Peer, int], Channel] = {}

    def get(self, name: str) -> Channel:
        """The channel of this name; any thread."""
        with self._lock:
            found = self._by_name.get(name)
            if found is None:
                found = self._by_name[name] = Channel(name, self._io)
            return found

    def receive(self, peer: Peer, message: Message, buffers: Buffers, call_id: int) -> bool:
        """Handle a message of a channel. Returns: False if it is none.

        Raises: ProtocolError: the peer broke the rules.
        """
        if isinstance(message, Subscribe):
            self._subscribe(peer, message, call_id)
            return True
        if not isinstance(message, (Item, Credit, EndChannel)):
            return False
        found = self._subscribed.get((peer, message.channel_id))
        if found is None:
            return True  # it has ended meanwhile
        match message:
            case Item():
                found.receive(message, buffers)
            case Credit(_, count):
                found.add_credit(count)
            case EndChannel(_, reason):
                found.end_receiving(reason or "the subscriber sends no more")
        return True

    def _subscribe(self, peer: Peer, message: Subscribe, call_id: int) -> None:
        key = (peer, message.channel_id)
        if message.window < 1 or key in self._subscribed:
            raise ProtocolError(f"channel id {message.channel_id} was subscribed to twice, or with a window of {message.window}")
        found = self.get(message.name)
        try:
            found.subscribe(peer, message)
        except ChannelClosedError as exc:
            peer.reply_error(call_id, exc)
            return
        self._subscribed = {other: known for other, known in self._subscribed.items() if known is not found}
        self._subscribed[key] = found
        peer.reply(call_id, Ok())

    def lose(self, peer: Peer, error: HeadwayError) -> None:
        """The peer is gone, and with it its subscriptions."""
        for key in [key for key in self._subscribed if key[0] is peer]:
            self._subscribed.pop(key).lose(str(error).rstrip("."))


_channels: Channels | None = None


def install(io: IoThread) -> Channels:
    """The channels of this process, which is an actor."""
    global _channels
    _channels = Channels(io)
    return _channels


def channel(name: str) -> Channel:
    """The channel ``name`` of this actor.

    Raises: NotInitializedError: this process is no actor.
    """
    if _channels is None:
        raise NotInitializedError("channel() is for code inside an actor; this process is none. From outside: handle.subscribe(name).")
    return _channels.get(name)


def _notify(peer: Peer, message: Credit | EndChannel) -> None:
    with contextlib.suppress(ConnectionLostError):  # the channel is told by on_close
        peer.notify(message)
