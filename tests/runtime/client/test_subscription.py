"""The subscriber's end of a channel."""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import Any

import pytest

from runtime.client.handle import ActorHandle
from runtime.client.serialization import dumps, loads
from runtime.errors import ActorDiedError, ArgumentError, ArgumentTypeError, ChannelClosedError, ConnectionLostError, GetTimeoutError
from runtime.wire.messages import Credit, EndChannel, Item, Subscribe


def of(actor: Any, kind: type) -> list[Any]:
    return [received.message for received in actor.received if isinstance(received.message, kind)]


def give(actor: Any, *items: Any, first: int = 1) -> None:
    channel_id = of(actor, Subscribe)[-1].channel_id
    for seq, item in enumerate(items, first):
        actor.send(Item(channel_id, seq), dumps(item, what="item"))


def end(actor: Any, reason: str = "") -> None:
    actor.send(EndChannel(of(actor, Subscribe)[-1].channel_id, reason))


@pytest.fixture
def actor(cluster: Any, handle: ActorHandle) -> Any:
    cluster.actor().ready()
    return cluster.actor()


def test_iterates_in_order_until_the_end(actor: Any, handle: ActorHandle) -> None:
    subscription = handle.subscribe("reports", window=4)
    actor.wait_arrived()
    assert of(actor, Subscribe)[0].name == "reports"
    assert of(actor, Subscribe)[0].window == 4
    give(actor, *range(4))
    assert [next(subscription) for _ in range(4)] == [0, 1, 2, 3]
    actor.wait_arrived(2)
    assert [credit.count for credit in of(actor, Credit)] == [2, 2]  # in halves of the window
    end(actor)
    assert list(subscription) == []
    assert list(subscription) == []


def test_async_iteration_on_two_loops_of_life(actor: Any, handle: ActorHandle) -> None:
    subscription = handle.subscribe("reports")
    actor.wait_arrived()

    async def consume() -> list[Any]:
        return [item async for item in subscription]

    threading.Timer(0.05, lambda: (give(actor, 1, 2), end(actor))).start()
    assert asyncio.run(consume()) == [1, 2]
    assert subscription._wakers == []


def test_callbacks_run_in_order_on_the_io_thread_and_credit_is_given_by_take(actor: Any, handle: ActorHandle) -> None:
    seen: queue.SimpleQueue[Any] = queue.SimpleQueue()
    subscription = handle.subscribe("reports", on_item=lambda item: seen.put((item, threading.current_thread().name)),
                                    on_end=lambda error: seen.put(("end", error)))
    actor.wait_arrived()
    give(actor, 1, 2)
    assert seen.get(timeout=10) == (1, "headway-io")
    assert seen.get(timeout=10) == (2, "headway-io")
    subscription.take(2)
    actor.wait_arrived()
    assert of(actor, Credit)[0].count == 2
    end(actor)
    assert seen.get(timeout=10) == ("end", None)
    with pytest.raises(ArgumentError):
        subscription.take(-1)


def test_items_before_the_death_are_delivered_before_it(actor: Any, handle: ActorHandle) -> None:
    seen: queue.SimpleQueue[Any] = queue.SimpleQueue()
    handle.subscribe("a", on_item=seen.put, on_end=seen.put)
    actor.wait_arrived()
    give(actor, 1, 2)
    actor.die()
    assert [seen.get(timeout=10), seen.get(timeout=10)] == [1, 2]
    error = seen.get(timeout=10)
    assert isinstance(error, ActorDiedError)
    assert error.evidence.signal == "SIGKILL"


def test_death_ends_iteration_with_an_error_after_the_items(actor: Any, handle: ActorHandle) -> None:
    subscription = handle.subscribe("a")
    actor.wait_arrived()
    give(actor, 1)
    actor.die()
    assert next(subscription) == 1
    for _ in range(2):
        with pytest.raises(ActorDiedError):
            next(subscription)
    with pytest.raises(ActorDiedError):
        subscription.send(1)


def test_a_lost_connection_ends_it_with_that(actor: Any, handle: ActorHandle) -> None:
    subscription = handle.subscribe("a")
    actor.wait_arrived()
    actor.hang_up()
    with pytest.raises(ConnectionLostError):
        next(subscription)


def test_a_reason_to_close_is_an_error(actor: Any, handle: ActorHandle) -> None:
    subscription = handle.subscribe("a")
    actor.wait_arrived()
    end(actor, "too late")
    with pytest.raises(ChannelClosedError, match="too late"):
        next(subscription)


def test_sends_towards_the_actor_within_the_window(actor: Any, handle: ActorHandle) -> None:
    subscription = handle.subscribe("a", window=2)
    subscription.send("x")
    subscription.send("y")
    with pytest.raises(GetTimeoutError, match="last 2 items"):
        subscription.send("z", timeout_s=0.01)
    actor.wait_arrived(3)
    actor.send(Credit(of(actor, Subscribe)[0].channel_id, 1))
    subscription.send("z", timeout_s=10)
    actor.wait_arrived()
    items = [received for received in actor.received if isinstance(received.message, Item)]
    assert [item.message.seq for item in items] == [1, 2, 3]
    assert [loads(item.buffers) for item in items] == ["x", "y", "z"]


def test_a_sender_that_waits_learns_of_the_end(actor: Any, handle: ActorHandle) -> None:
    subscription = handle.subscribe("a", window=1)
    subscription.send("x")
    actor.wait_arrived(2)
    threading.Timer(0.05, lambda: end(actor)).start()
    with pytest.raises(ChannelClosedError, match="is closed"):
        subscription.send("y", timeout_s=10)
    with pytest.raises(ChannelClosedError):
        subscription.send("z", timeout_s=10)


def test_close_ends_iteration_and_drops_what_still_comes(actor: Any, handle: ActorHandle) -> None:
    ended: list[Any] = []
    subscription = handle.subscribe("a", on_end=ended.append)
    actor.wait_arrived()
    subscription.close()
    actor.wait_arrived()
    assert of(actor, EndChannel)
    give(actor, 1)
    actor.wait_arrived()
    assert of(actor, Credit)[0].count == 1
    assert list(subscription) == []
    assert ended == []


def test_subscriptions_wait_for_the_actor_and_keep_their_place(cluster: Any, handle: ActorHandle) -> None:
    subscription = handle.subscribe("a")
    ref = handle.f.remote()
    cluster.actor().ready()
    cluster.actor().wait_arrived(2)
    assert [type(received.message).__name__ for received in cluster.actor().received] == ["Subscribe", "Call"]
    end(cluster.actor())
    assert list(subscription) == []
    assert ref.future().result(10)


def test_a_callback_that_raises_is_logged(actor: Any, handle: ActorHandle, caplog: pytest.LogCaptureFixture) -> None:
    seen: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def bad(item: Any) -> None:
        if item == 1:
            raise RuntimeError("oops")
        seen.put(item)

    handle.subscribe("a", on_item=bad)
    actor.wait_arrived()
    give(actor, 1, 2)
    assert seen.get(timeout=10) == 2
    assert "oops" in caplog.text


@pytest.mark.parametrize(("window", "error"), [
    (0, ArgumentError), (True, ArgumentTypeError), ("4", ArgumentTypeError), (1 << 20, ArgumentError)])
def test_bad_windows(handle: ActorHandle, window: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="window"):
        handle.subscribe("a", window=window)
    with pytest.raises(ArgumentError):
        handle.subscribe("")
