"""Channels: order, windows, ends, both directions; on a socket pair, and in a real actor."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from runtime.actor.channel import Channel, Channels
from runtime.client import serialization
from runtime.errors import ChannelClosedError, GetTimeoutError, ProtocolError
from runtime.limits import LIMITS
from runtime.wire.messages import Credit, EndChannel, Item, Ok, Subscribe

AnyCluster = Callable[..., Any]


def _subscribe(pair: Any, channels: Channels, *, window: int, channel_id: int = 1, name: str = "c") -> Channel:
    assert pair.on_loop(channels.receive, pair.ours, Subscribe(channel_id, name, window), [], 7)
    return channels.get(name)


def _items(pair: Any) -> list[Any]:
    """What the caller has received, once everything sent so far is there."""

    async def settle() -> None:
        await pair.ours.flush()
        await asyncio.sleep(0.02)

    pair.io.run(settle(), "settle")
    return [serialization.loads(received.buffers) for received in pair.received if isinstance(received.message, Item)]


def test_items_wait_for_the_subscriber_up_to_the_window(pair: Any) -> None:
    channels = Channels(pair.io)
    named = channels.get("c")
    for i in range(LIMITS.channel_window):
        named.send(i)
    with pytest.raises(GetTimeoutError, match="a whole window behind"):
        named.send("one too many", timeout_s=0.01)
    _subscribe(pair, channels, window=LIMITS.channel_window)
    assert _items(pair) == list(range(LIMITS.channel_window))
    assert [received.message.seq for received in pair.received if isinstance(received.message, Item)] == list(range(1, 65))


def test_at_most_a_window_is_unacknowledged(pair: Any) -> None:
    channels = Channels(pair.io)
    named = _subscribe(pair, channels, window=2)
    sent: list[int] = []

    def send_all() -> None:
        for i in range(5):
            named.send(i)
            sent.append(i)

    thread = threading.Thread(target=send_all)
    thread.start()
    for credit, expected in ((0, 2), (1, 3), (2, 5)):
        pair.on_loop(channels.receive, pair.ours, Credit(1, credit), [], 0)
        while len(_items(pair)) < expected:
            pass
        assert len(_items(pair)) == expected
    thread.join(10)
    assert sent == [0, 1, 2, 3, 4]


def test_send_returns_when_the_item_is_in_the_socket(pair: Any) -> None:
    channels = Channels(pair.io)
    named = _subscribe(pair, channels, window=8)
    named.send(b"x" * 100)
    assert pair.ours.queued_bytes == 0
    pair.on_loop(setattr, pair.theirs, "on_message", None)  # reads nothing
    thread = threading.Thread(target=named.send, args=(b"x" * (16 << 20),))
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    pair.on_loop(setattr, pair.theirs, "on_message", lambda peer, received: pair.received.append(received))
    thread.join(10)
    assert not thread.is_alive()


def test_items_from_the_subscriber_are_received_in_order_with_credit(pair: Any) -> None:
    channels = Channels(pair.io)
    named = _subscribe(pair, channels, window=3)
    with pytest.raises(GetTimeoutError, match="no item"):
        named.recv(timeout_s=0.01)
    for i in (1, 2, 2, 3):  # one of them doubled
        pair.on_loop(channels.receive, pair.ours, Item(1, i), serialization.dumps(i, what="i"), 0)
    with pytest.raises(ProtocolError, match="the window is 3"):
        pair.on_loop(channels.receive, pair.ours, Item(1, 4), [], 0)
    assert [named.recv(), named.recv()] == [1, 2]
    _items(pair)
    assert sum(received.message.count for received in pair.received if isinstance(received.message, Credit)) == 2
    with pytest.raises(ProtocolError, match="item 9 came after 3"):
        pair.on_loop(channels.receive, pair.ours, Item(1, 9), [], 0)
    pair.on_loop(channels.receive, pair.ours, EndChannel(1, "all said"), [], 0)
    assert named.recv() == 3
    with pytest.raises(ChannelClosedError, match="all said"):
        named.recv()
    named.send("the other direction goes on")


def test_closing_ends_the_channel_behind_its_items(pair: Any) -> None:
    channels = Channels(pair.io)
    named = channels.get("c")
    named.send(1)
    named.close()
    named.close()
    with pytest.raises(ChannelClosedError, match="close"):
        named.send(2)
    _subscribe(pair, channels, window=4)
    assert _items(pair) == [1]
    kinds = [type(received.message) for received in pair.received]
    assert kinds[-2:] == [Item, EndChannel]


def test_a_lost_subscriber_closes_the_channel_until_the_next_one(pair: Any) -> None:
    channels = Channels(pair.io)
    named = _subscribe(pair, channels, window=1)
    named.send(1)
    failed: list[BaseException] = []

    def send() -> None:
        try:
            named.send(2)
        except ChannelClosedError as exc:
            failed.append(exc)

    thread = threading.Thread(target=send)
    thread.start()
    pair.on_loop(channels.lose, pair.ours, ChannelClosedError("gone away."))
    thread.join(10)
    assert "gone away" in str(failed[0])
    with pytest.raises(ChannelClosedError, match="gone away"):
        named.recv()
    _subscribe(pair, channels, window=1, channel_id=2)
    named.send(3)
    assert _items(pair) == [1, 3]


def test_a_channel_has_one_subscriber_unless_that_has_ended_its_side(pair: Any) -> None:
    channels = Channels(pair.io)
    named = _subscribe(pair, channels, window=4)
    _subscribe(pair, channels, window=4, channel_id=2)
    named.send("for the first")
    pair.on_loop(channels.receive, pair.ours, EndChannel(1), [], 0)
    _subscribe(pair, channels, window=4, channel_id=3)
    named.send("for the third")
    _items(pair)
    assert [received.message.channel_id for received in pair.received if isinstance(received.message, Item)] == [1, 3]


@pytest.mark.parametrize("message", [Subscribe(1, "c", 4), Subscribe(2, "d", 0)])
def test_what_breaks_the_rules_is_refused(pair: Any, message: Subscribe) -> None:
    channels = Channels(pair.io)
    _subscribe(pair, channels, window=4)
    with pytest.raises(ProtocolError):
        pair.on_loop(channels.receive, pair.ours, message, [], 1)
    assert pair.on_loop(channels.receive, pair.ours, Item(77, 1), [], 0)  # of a channel that has ended: ignored
    assert not pair.on_loop(channels.receive, pair.ours, Ok(), [], 0)


def _reporter() -> type:
    class Reporter:
        def report(self, count: int, die: bool) -> None:
            import os

            from runtime.actor.channel import channel

            for i in range(count):
                channel("reports").send({"step": i})
            if die:
                os._exit(3)

        def add_up(self) -> int:
            from runtime.actor.channel import channel
            from runtime.errors import ChannelClosedError

            total = 0
            while True:
                try:
                    total += channel("numbers").recv()
                except ChannelClosedError:
                    return total

    return Reporter


@pytest.mark.process
@pytest.mark.asyncio
async def test_what_an_actor_sent_before_it_crashed_arrives(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_reporter())
        for by_tcp in (True,):
            caller = await cluster.connect(actor, by_tcp=by_tcp)
            await caller.peer.call(Subscribe(1, "reports", 500), timeout_s=10)
            with pytest.raises(Exception, match="connection|closed|broke"):
                await caller.call("report", 500, True)
            steps = [serialization.loads(received.buffers)["step"] for received in caller.received if isinstance(received.message, Item)]
            assert steps == list(range(500))


@pytest.mark.process
@pytest.mark.asyncio
async def test_a_subscriber_sends_towards_the_actor(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_reporter())
        caller = await cluster.connect(actor)
        await caller.peer.call(Subscribe(5, "numbers", 64), timeout_s=10)
        adding = asyncio.ensure_future(caller.call("add_up"))
        for i in range(1, 11):
            caller.peer.notify(Item(5, i), serialization.dumps(i, what="i"))
        caller.peer.notify(EndChannel(5))
        assert await adding == 55
        assert sum(received.message.count for received in caller.received if isinstance(received.message, Credit)) == 10


@pytest.mark.process
@pytest.mark.asyncio
async def test_who_breaks_the_rules_of_a_channel_is_disconnected(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_reporter())
        caller = await cluster.connect(actor)
        await caller.peer.call(Subscribe(5, "numbers", 2), timeout_s=10)
        for i in range(1, 5):
            caller.peer.notify(Item(5, i), serialization.dumps(i, what="i"))
        async with asyncio.timeout(10):
            await caller.peer.wait_closed()
        other = await cluster.connect(actor)
        await other.call("report", 1, False)
