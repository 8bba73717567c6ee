"""Lost, late and doubled messages, and what the layer makes of them."""

from __future__ import annotations

import asyncio

import pytest

from runtime.errors import GetTimeoutError
from runtime.wire.faults import Faults
from runtime.wire.messages import Call, Heartbeat, Message, Ok, Ping, Result
from runtime.wire.peer import Peer, Received, peer_pair


async def pair(got: list[Message]) -> tuple[Peer, Peer]:
    def serve(peer: Peer, received: Received) -> None:
        got.append(received.message)
        if received.call_id:
            peer.reply(received.call_id, Result())

    return await peer_pair(lambda peer, received: None, serve)


async def close(*peers: Peer) -> None:
    for peer in peers:
        peer.close()
    for peer in peers:
        await peer.wait_closed()


@pytest.mark.asyncio
async def test_dropped_messages_do_not_arrive_and_others_do() -> None:
    got: list[Message] = []
    a, b = await pair(got)
    faults = Faults(a)
    faults.drop(Heartbeat)
    a.notify(Heartbeat(1))
    await a.call(Call("m"), timeout_s=60)
    assert got == [Call("m")]
    assert faults.sent == [Heartbeat(1), Call("m")]
    faults.heal()
    a.notify(Heartbeat(2))
    await a.call(Ping(1), timeout_s=60)
    assert got == [Call("m"), Heartbeat(2)]
    await close(a, b)


@pytest.mark.asyncio
async def test_A2_a_dropped_reply_ends_by_the_deadline_and_a_doubled_one_counts_once() -> None:
    got: list[Message] = []
    a, b = await pair(got)
    faults = Faults(b)
    faults.drop(Result)
    with pytest.raises(GetTimeoutError):
        await a.call(Call("lost"), timeout_s=0.05)
    faults.duplicate(Result)
    assert (await a.call(Call("twice"), timeout_s=60)).message == Result()
    await a.call(Ping(1), timeout_s=60)
    assert a.is_open
    await close(a, b)


@pytest.mark.asyncio
async def test_delayed_messages_arrive_behind_others() -> None:
    got: list[Message] = []
    a, b = await pair(got)
    Faults(a).delay(0.02, Call)
    late = a.request(Call("late"))
    a.notify(Heartbeat(1))
    await late
    assert got == [Heartbeat(1), Call("late")]
    await close(a, b)


@pytest.mark.asyncio
async def test_a_partition_delivers_late_and_in_order() -> None:
    got: list[Message] = []
    a, b = await pair(got)
    faults = Faults(a)
    faults.hold()
    reply = a.request(Call("m"))
    a.notify(Ok())
    await asyncio.sleep(0.02)
    assert got == []
    faults.heal()
    await reply
    await a.call(Ping(1), timeout_s=60)
    assert got == [Call("m"), Ok()]
    await close(a, b)


@pytest.mark.asyncio
async def test_what_is_late_for_a_closed_connection_is_lost() -> None:
    got: list[Message] = []
    a, b = await pair(got)
    faults = Faults(a)
    faults.hold()
    a.notify(Heartbeat(1))
    await close(a, b)
    faults.heal()
    assert got == []
