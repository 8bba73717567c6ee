"""Peers over real sockets: requests and their ends, order, closing, joining and being refused."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import os
import socket
from typing import Any

import pytest

from runtime.errors import (
    ActorNotFoundError,
    ArgumentError,
    AuthenticationError,
    ConnectError,
    ConnectionLostError,
    GetTimeoutError,
    HeadwayError,
    NameTakenError,
    PlacementTimeoutError,
    VersionMismatchError,
)
from runtime.ids import new_actor_id
from runtime.limits import Limits
from runtime.wire import auth
from runtime.wire.messages import Call, CancelCall, Challenge, Credit, FindActor, Heartbeat, Hello, Item, Message, Ok, Ping, Pong, Result
from runtime.wire.peer import Identity, Peer, Received, adopt, attach, connect, connect_retrying, host_id, listen, peer_pair, refuse

Network = Any  # the fixture of conftest.py


# ---- joining ----


@pytest.mark.asyncio
async def test_both_sides_know_each_other(network: Network) -> None:
    await network.start()
    by_unix, by_tcp = await network.dial(), await network.dial(network.listener.addresses[1])
    for client in (by_unix, by_tcp):
        assert isinstance(client.hello, Challenge)
        assert (client.hello.role, client.hello.name, client.hello.pid, client.hello.host_id) == ("head", "h", os.getpid(), host_id())
        assert client.is_open
    server = network.served[1]
    assert isinstance(server.hello, Hello)
    assert server.hello.role == "driver"
    assert (by_unix.local_host, by_unix.remote_host) == ("", "")
    assert (by_tcp.local_host, by_tcp.remote_host, server.remote_host) == ("127.0.0.1", "127.0.0.1", "127.0.0.1")
    assert by_unix.name == f"head h ({network.listener.addresses[0]})"
    assert server.name.startswith("driver d (127.0.0.1:")
    assert network.listener.addresses[1] == f"127.0.0.1:{network.listener.port}"


@pytest.mark.asyncio
async def test_who_has_no_name_is_called_by_its_pid(network: Network) -> None:
    await network.start()
    await network.dial(identity=Identity("driver", ""))
    assert network.served[0].name == f"driver {os.getpid()} (unix socket)"


@pytest.mark.asyncio
@pytest.mark.parametrize("way", [0, 1], ids=["unix", "tcp"])
async def test_wrong_token_is_told_to_the_client(network: Network, way: int, caplog: pytest.LogCaptureFixture) -> None:
    await network.start()
    with pytest.raises(AuthenticationError, match=r"this token \(sha256 .*\) is not the cluster's \(.*HEADWAY_TOKEN_FILE"):
        await network.dial(network.listener.addresses[way], token=b"w" * 32)
    await network.dial()
    assert len(network.served) == 1
    assert sum("refused a connection" in record.message for record in caplog.records) == 1


@pytest.mark.asyncio
async def test_version_mismatch_is_told_to_the_client(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    await network.start()
    hello = auth.Dialler(network.token, Identity("driver", "d")).start()
    monkeypatch.setattr(auth.Dialler, "start", lambda self: hello.replace(b"\xa1d\x01", b"\xa1d\x09"))
    with pytest.raises(VersionMismatchError, match="driver d speaks protocol 9 .*head h speaks 1 .*pip install headway=="):
        await network.dial()


@pytest.mark.asyncio
async def test_a_server_that_cannot_prove_the_token_is_refused(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    class Impostor(auth.Acceptor):
        """Knows the token's id, which is no secret, and accepts anybody."""

        def _mac(self, label: bytes) -> bytes:
            return b"\0" * 32

    monkeypatch.setattr("runtime.wire.peer.Acceptor", Impostor)
    monkeypatch.setattr(auth.hmac, "compare_digest", lambda a, b: True if b == b"\0" * 32 else a == b)
    await network.start()
    with pytest.raises(AuthenticationError, match="who answered as head h could not prove that it holds the token"):
        await network.dial()


@pytest.mark.asyncio
async def test_another_service_is_told_from_a_wrong_token() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(ConnectError, match=f"cannot reach {address}: what listens there does not speak this protocol"):
            await connect_retrying(address, token=b"t" * 32, identity=Identity("driver", "d"), on_message=nothing, on_close=nothing,
                                   within_s=60)


@pytest.mark.asyncio
async def test_a_listener_that_never_answers_is_a_time_out() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        limits = dataclasses.replace(Limits(), handshake_s=0.1)
        with pytest.raises(ConnectError, match=r"time-out: connected, but no handshake within 0.1 s"):
            await connect(f"127.0.0.1:{silent.getsockname()[1]}", token=b"t" * 32, identity=Identity("driver", "d"), on_message=nothing,
                          on_close=nothing, limits=limits)


@pytest.mark.asyncio
async def test_retrying_ends_with_what_to_check() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ConnectError, match=rf"reach {address} \(refused\) after 0.2 s; is `python -m runtime.head` running there\?"):
            await connect_retrying(address, token=b"t" * 32, identity=Identity("driver", "d"), on_message=nothing, on_close=nothing,
                                   within_s=0.2)


@pytest.mark.asyncio
async def test_retrying_finds_a_listener_that_comes_later(network: Network) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    retrying = asyncio.create_task(connect_retrying(f"127.0.0.1:{port}", token=network.token, identity=Identity("driver", "d"),
                                                    on_message=nothing, on_close=nothing, within_s=30))
    await asyncio.sleep(0.05)
    listener = await listen([f"127.0.0.1:{port}"], token=network.token, identity=Identity("head", "h"), on_peer=network._joined)
    await closed(await retrying)
    await listener.close()


@pytest.mark.asyncio
async def test_retrying_does_not_repeat_what_time_does_not_heal(network: Network) -> None:
    await network.start()
    options = {"identity": Identity("driver", "d"), "on_message": nothing, "on_close": nothing, "within_s": 600.0}
    with pytest.raises(AuthenticationError):
        await connect_retrying(network.listener.addresses[0], token=b"wrong", **options)
    with pytest.raises(ConnectError, match="no such socket file"):
        await connect_retrying("unix:/nonexistent/socket", token=network.token, **options)
    with pytest.raises(ArgumentError, match="HOST:PORT"):
        await connect_retrying("nonsense", token=network.token, **options)


@pytest.mark.asyncio
async def test_connect_can_be_cancelled_and_leaves_nothing(network: Network) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        dialling = asyncio.create_task(network.dial(f"127.0.0.1:{silent.getsockname()[1]}"))
        accepted, _ = await asyncio.get_running_loop().run_in_executor(None, silent.accept)
        dialling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dialling
        accepted.settimeout(10)
        while accepted.recv(4096):  # preamble and Hello, then the end
            pass
        accepted.close()


@pytest.mark.asyncio
async def test_hundred_peers_join_at_once(network: Network) -> None:
    await network.start()
    peers = await asyncio.gather(*[network.dial() for _ in range(100)])
    replies = await asyncio.gather(*[peer.call(Call("m"), [b"%d" % number], timeout_s=30) for number, peer in enumerate(peers)])
    assert [reply.buffers for reply in replies] == [[b"%d" % number] for number in range(100)]


@pytest.mark.asyncio
async def test_listening_on_a_taken_port_leaves_no_socket(network: Network) -> None:
    await network.start()
    with pytest.raises(ConnectError, match="Address already in use"):
        await listen(["127.0.0.1:0", network.listener.addresses[1]], token=b"t", identity=Identity("head", "h"), on_peer=nothing)
    gc.collect()  # an unclosed socket would warn


@pytest.mark.asyncio
async def test_an_owner_that_fails_on_a_new_peer_loses_that_peer_only(network: Network, caplog: pytest.LogCaptureFixture) -> None:
    def fail(peer: Peer) -> None:
        if not network.served:
            network.served.append(peer)
            raise RuntimeError("bug")
        peer.on_message = nothing

    listener = await listen([f"unix:{network.path}/x"], token=network.token, identity=Identity("head", "h"), on_peer=fail)
    first = await network.dial(listener.addresses[0])
    await first.wait_closed()
    assert "internal error" in str(network.ended[first][0])
    assert "bug" in caplog.text
    await closed(await network.dial(listener.addresses[0]))
    await network.served[0].wait_closed()
    await listener.close()


# ---- handing over ----


@pytest.mark.asyncio
async def test_a_connection_for_an_actor_is_handed_over_and_adopted(network: Network) -> None:
    await network.start()
    actor_id = new_actor_id()
    dialling = asyncio.create_task(network.dial(network.listener.addresses[1], target=actor_id))
    while not network.handed:
        await asyncio.sleep(0)
    sock, asked = network.handed.pop()
    assert asked == actor_id
    actor = await adopt(sock, token=network.token, identity=Identity("actor", "a"), limits=network.limits)
    caller = await dialling
    assert caller.name == f"actor a ({network.listener.addresses[1]})"
    assert actor.hello.role == "driver"
    reply = caller.request(Call("m"), [b"x"])
    await caller.flush()
    await asyncio.sleep(0.01)
    actor.on_message = lambda peer, received: peer.reply(received.call_id, Result(), received.buffers)
    assert (await reply).buffers == [b"x"]
    await closed(actor)


@pytest.mark.asyncio
async def test_adopting_a_socket_whose_caller_is_gone_or_wrong_raises(network: Network) -> None:
    for last_words, error in ((b"", ConnectionLostError), (b"\xff" * 100, HeadwayError)):
        ours, theirs = socket.socketpair()
        theirs.sendall(last_words)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(error):
            await adopt(ours, token=network.token, identity=Identity("actor", "a"), limits=network.limits)
        assert ours.fileno() == -1
        theirs.close()
    ours, theirs = socket.socketpair()
    with pytest.raises(ConnectError, match="did not finish the handshake within 0.1 s"):
        await adopt(ours, token=network.token, identity=Identity("actor", "a"), limits=dataclasses.replace(network.limits, handshake_s=0.1))
    assert ours.fileno() == -1
    theirs.close()


@pytest.mark.asyncio
async def test_without_actors_a_connection_for_one_is_refused(network: Network) -> None:
    listener = await listen(["127.0.0.1:0"], token=network.token, identity=Identity("head", "h"), on_peer=nothing)
    with pytest.raises(ActorNotFoundError, match="head 'h' has no actors"):
        await network.dial(listener.addresses[0], target=new_actor_id())
    await listener.close()


@pytest.mark.asyncio
async def test_who_gets_a_socket_may_refuse_it_with_words(network: Network) -> None:
    await network.start()
    dialling = asyncio.create_task(network.dial(network.listener.addresses[1], target=new_actor_id()))
    while not network.handed:
        await asyncio.sleep(0)
    await refuse(network.handed.pop()[0], ActorNotFoundError("that one is dead"))
    with pytest.raises(ActorNotFoundError, match="that one is dead"):
        await dialling


# ---- requests ----


@pytest.mark.asyncio
async def test_replies_errors_and_pings(network: Network) -> None:
    def serve(peer: Peer, received: Received) -> None:
        match received.message:
            case Call("ok"):
                peer.reply(received.call_id, Result(), received.buffers)
            case Call("taken"):
                peer.reply_error(received.call_id, NameTakenError("the name \udcff is taken"))
            case Call("table"):
                peer.reply_error(received.call_id, NameTakenError("row\n" * 10_000))
            case Call("slow"):
                peer.reply_error(received.call_id, PlacementTimeoutError("busy"))

    network.serve = serve
    await network.start()
    peer = await network.dial()
    assert (await peer.request(Call("ok"), [b"a", bytes(100_000)])).buffers == [b"a", bytes(100_000)]
    with pytest.raises(NameTakenError, match=r"the name \\udcff is taken"):
        await peer.request(Call("taken"))
    with pytest.raises(PlacementTimeoutError, match="busy"):  # a TimeoutError, but not the deadline's
        await peer.call(Call("slow"), timeout_s=60)
    with pytest.raises(NameTakenError) as whole:
        await peer.request(Call("table"))
    assert str(whole.value) == "row\n" * 10_000
    assert (await peer.call(Ping(3), timeout_s=60)).message == Pong(3)


@pytest.mark.asyncio
async def test_a_deadline_names_message_and_peer_and_cancels_the_call(network: Network) -> None:
    network.serve = nothing
    await network.start()
    peer = await network.dial()
    with pytest.raises(GetTimeoutError, match=r"head h \(unix:.*\) did not answer Call within 0.05 s"):
        await peer.call(Call("m"), timeout_s=0.05)
    await round_trip(peer)
    assert network.messages(network.served[0])[:2] == [Call("m"), CancelCall(1)]


@pytest.mark.asyncio
async def test_cancelling_tells_the_other_side_once(network: Network) -> None:
    network.serve = nothing
    await network.start()
    peer = await network.dial()
    future, waiting = peer.request(Call("a")), asyncio.create_task(peer.call(Call("b"), timeout_s=60))
    await asyncio.sleep(0)
    for _ in range(2):
        peer.cancel(future)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert future.cancelled()
    await round_trip(peer)
    server = network.served[0]
    assert network.messages(server) == [Call("a"), Call("b"), CancelCall(1), CancelCall(2)]
    server.reply(1, Result())  # too late, ignored
    await round_trip(server)
    assert peer.is_open


@pytest.mark.asyncio
async def test_cancelling_what_has_ended_does_nothing(network: Network) -> None:
    await network.start()
    peer = await network.dial()
    future = peer.request(Call("a"))
    await future
    peer.cancel(future)
    await round_trip(peer)
    assert network.messages(network.served[0]) == [Call("a")]


@pytest.mark.asyncio
@pytest.mark.parametrize("end", ["close here", "close there", "drop there", "garbage", "internal error"])
async def test_A2_each_request_ends_in_exactly_one_way(network: Network, end: str) -> None:
    def serve(peer: Peer, received: Received) -> None:
        match received.message:
            case Call("reply"):
                peer.reply(received.call_id, Result())
            case Call("error"):
                peer.reply_error(received.call_id, NameTakenError("no"))
            case Call("bug"):
                raise RuntimeError("bug")

    logging.getLogger("runtime.wire.peer").setLevel(logging.CRITICAL)
    network.serve = serve
    await network.start()
    peer = await network.dial()
    ends: dict[str, list[str]] = {}

    def note(name: str, future: asyncio.Future[Received]) -> asyncio.Future[Received]:
        future.add_done_callback(lambda done: ends.setdefault(name, []).append(
            "cancelled" if done.cancelled() else type(done.exception()).__name__ if done.exception() else "reply"))
        return future

    ended = [note("replied", peer.request(Call("reply"))), note("refused", peer.request(Call("error")))]
    note("cancelled", peer.request(Call("nothing"))).cancel()
    forgotten = note("forgotten", peer.request(Call("nothing")))
    peer.cancel(forgotten)
    deadline = asyncio.ensure_future(peer.call(Call("nothing"), timeout_s=0.02))
    await asyncio.wait([*ended, note("deadline", deadline)])
    lost = [note(f"lost {number}", peer.request(Call("nothing"))) for number in range(3)]
    server = network.served[0]
    if end == "close here":
        peer.close()
    elif end == "close there":
        server.close()
    elif end == "drop there":
        server._transport.abort()
    elif end == "garbage":
        assert server._transport._stream is not None
        server._transport._stream.write(b"\xff" * 100)
    else:
        peer.notify(Call("bug"))
    await peer.wait_closed()
    await server.wait_closed()
    lost.append(note("after", peer.request(Call("nothing"))))
    await asyncio.wait(lost)
    await asyncio.sleep(0)
    assert ends == {"replied": ["reply"], "refused": ["NameTakenError"], "cancelled": ["cancelled"], "forgotten": ["cancelled"],
                    "deadline": ["GetTimeoutError"], "after": ["ConnectionLostError"],
                    **{f"lost {number}": ["ConnectionLostError"] for number in range(3)}}
    assert len(network.ended[peer]) == len(network.ended[server]) == 1
    assert not peer.is_open
    logging.getLogger("runtime.wire.peer").setLevel(logging.NOTSET)


# ---- order ----


@pytest.mark.asyncio
@pytest.mark.parametrize("way", [0, 1], ids=["unix", "tcp"])
async def test_small_messages_never_overtake_big_ones(network: Network, way: int) -> None:
    await network.start()
    peer = await network.dial(network.listener.addresses[way])
    sizes = [5_000_000, 10] * 3
    replies = []
    for number, size in enumerate(sizes):
        replies.append(peer.request(Call(str(number)), [bytes((number,)) * size]))
        peer.notify(FindActor(str(number)))
    finished: list[int] = []
    for number, reply in enumerate(replies):
        reply.add_done_callback(lambda _, number=number: finished.append(number))
    await asyncio.gather(*replies)
    assert network.messages(network.served[0]) == [m for number in range(6) for m in (Call(str(number)), FindActor(str(number)))]
    assert finished == list(range(6))
    assert [len(reply.result().buffers[0]) for reply in replies] == sizes
    assert all(reply.result().buffers[0][-1] == number for number, reply in enumerate(replies))


@pytest.mark.asyncio
async def test_an_urgent_message_gets_through_while_a_big_one_is_sent(network: Network) -> None:
    await network.start()
    peer = await network.dial()
    peer.notify(Item(1, 1), [bytes(64 << 20)])
    for _ in range(3):
        await asyncio.sleep(0)
    peer.notify(Credit(1, 1))
    await round_trip(peer, Call("m"))
    assert network.messages(network.served[0]) == [Credit(1, 1), Item(1, 1), Call("m")]


@pytest.mark.asyncio
async def test_big_replies_flow_both_ways_at_once(network: Network) -> None:
    """Neither side may wait for the other to read first."""
    await network.start()
    peer, big = await network.dial(), bytes(20 << 20)
    replies = await asyncio.gather(*[peer.request(Call("m"), [big]) for _ in range(4)])
    assert all(reply.buffers[0] == big for reply in replies)


# ---- back-pressure ----


@pytest.mark.asyncio
async def test_drain_and_flush_wait_for_the_queue(network: Network, short_limits: Limits) -> None:
    network.limits = dataclasses.replace(short_limits, send_queue_bytes=8 << 20)
    await network.start()
    peer = await network.dial()
    for _ in range(3):
        peer.notify(Item(1, 1), [bytes(4 << 20)])
    assert peer.queued_bytes > 12 << 20
    await peer.drain()
    assert peer.queued_bytes <= 4 << 20
    await peer.flush()
    assert peer.queued_bytes == 0
    await peer.drain()


@pytest.mark.asyncio
async def test_P3_a_peer_that_does_not_read_is_closed(network: Network, short_limits: Limits) -> None:
    network.limits = dataclasses.replace(short_limits, handshake_s=0.5)
    await network.start()
    peer = await network.dial()
    server = network.served[0]
    server.on_message = None  # nothing is read

    async def flood() -> None:
        while True:
            peer.notify(Item(1, 1), [bytes(50_000)])
            await asyncio.sleep(0)

    with pytest.raises(ConnectionLostError, match=r"head h \(.*\) does not read: \d+ bytes are waiting"):
        await flood()
    await peer.wait_closed()
    assert "does not read" in str(network.ended[peer][0])


# ---- closing ----


@pytest.mark.asyncio
async def test_close_delivers_all_that_was_sent_before_it(network: Network) -> None:
    await network.start()
    peer = await network.dial()
    peer.notify(Item(1, 1), [bytes(10 << 20)])
    peer.notify(FindActor("x"))
    peer.close("done")
    with pytest.raises(ConnectionLostError, match=r"closed here: done"):
        peer.notify(Ok())
    peer.reply(1, Ok())
    peer.reply_error(1, HeadwayError("x"))
    server = network.served[0]
    await peer.wait_closed()
    await server.wait_closed()
    assert network.messages(server) == [Item(1, 1), FindActor("x")]
    assert str(network.ended[server][0]) == f"{server.name} closed the connection: done."
    assert "closed here: done" in str(network.ended[peer][0])
    peer.close()
    await peer.drain()
    await peer.flush()


@pytest.mark.asyncio
async def test_pending_requests_fail_before_on_close_is_called(network: Network) -> None:
    network.serve = nothing
    await network.start()
    peer = await network.dial()
    future = peer.request(Call("m"))
    seen: list[bool] = []
    peer.on_close = lambda peer, error: seen.append(future.done())
    network.served[0].close()
    await peer.wait_closed()
    assert seen == [True]
    with pytest.raises(ConnectionLostError):
        await future


@pytest.mark.asyncio
async def test_closing_from_within_on_message_stops_delivery(network: Network) -> None:
    network.serve = lambda peer, received: peer.close("first is enough")
    await network.start()
    peer = await network.dial()
    for number in range(5):
        peer.notify(Heartbeat(number))
    await peer.wait_closed()
    assert network.messages(network.served[0]) == [Heartbeat(0)]


@pytest.mark.asyncio
async def test_an_owner_that_fails_on_a_message_or_the_end_is_logged(network: Network, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("bug in the owner")

    network.serve = fail
    await network.start()
    peer = await network.dial()
    peer.on_close = fail
    peer.notify(Heartbeat(1))
    await peer.wait_closed()
    assert caplog.text.count("RuntimeError: bug in the owner") == 2
    assert "internal error" in str(peer._connection.error)


@pytest.mark.asyncio
async def test_closing_the_listener_keeps_open_peers(network: Network) -> None:
    await network.start()
    peer = await network.dial()
    await network.listener.close()
    await round_trip(peer, Call("m"))
    with pytest.raises(ConnectError, match="no such socket file"):
        await network.dial()


# ---- pairs ----


@pytest.mark.asyncio
async def test_attached_pairs_need_no_handshake() -> None:
    got: list[Received] = []
    a, b = await peer_pair(lambda peer, received: got.append(received), lambda peer, received: peer.reply(received.call_id, Ok()))
    a.epoch = 5
    assert (await a.call(FindActor(name="x"), timeout_s=60)).message == Ok()
    b.notify(Heartbeat(2))
    await round_trip(b)
    assert [received.message for received in got] == [Heartbeat(2)]
    assert a.epoch == 5
    assert repr(a) == "<Peer peer b open>"
    await closed(a)
    await b.wait_closed()


@pytest.mark.asyncio
async def test_an_inherited_socket_that_is_dead_raises_or_closes() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    ended: list[HeadwayError] = []
    peer = await attach(ours, name="daemon", on_message=nothing, on_close=lambda peer, error: ended.append(error))
    await peer.wait_closed()
    assert "daemon closed the connection without a goodbye" in str(ended[0])


@pytest.mark.asyncio
async def test_a_loop_that_never_awaits_replies_leaves_no_task() -> None:
    a, b = await peer_pair(nothing, lambda peer, received: peer.reply(received.call_id, Ok()))
    before = asyncio.all_tasks()
    futures = [a.request(Call("m")) for _ in range(100)]
    await asyncio.wait(futures)
    assert asyncio.all_tasks() == before
    await closed(a)
    await b.wait_closed()


async def round_trip(peer: Peer, message: Message | None = None) -> None:
    """All that was sent before was received."""
    await peer.call(message or Ping(1), timeout_s=60)


async def closed(peer: Peer) -> None:
    peer.close()
    await peer.wait_closed()


def nothing(*args: object) -> None:
    """An owner that does not care."""
