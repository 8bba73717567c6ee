"""A connection without a socket: life cycle, calls, buffers, and what wrong bytes do to it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import (
    ActorNotFoundError,
    ArgumentError,
    AuthenticationError,
    ConnectionLostError,
    HeadwayError,
    ProtocolError,
)
from runtime.limits import Limits
from runtime.wire.auth import Acceptor, Dialler, Identity
from runtime.wire.codec import encode
from runtime.wire.connection import BETWEEN_CHUNKS, TRANSITIONS, Connection, Received, State
from runtime.wire.framing import BULK, CONTROL, HEADER, MAPPED_BYTES
from runtime.wire.messages import (
    Call,
    CancelCall,
    Challenge,
    Credit,
    Failed,
    Goodbye,
    Heartbeat,
    Hello,
    Item,
    Message,
    Ok,
    Ping,
    Pong,
    Result,
    Welcome,
)

LIMITS = dataclasses.replace(Limits(), max_bulk_bytes=1000, inline_bytes=100, max_message_bytes=100_000, max_control_bytes=10_000,
                             send_queue_bytes=20_000)
TOKEN = b"t" * 32


class Side:
    """A connection and what it delivered."""

    def __init__(self, name: str, handshake: Dialler | Acceptor | None = None, limits: Limits = LIMITS) -> None:
        self.connection = Connection(handshake, name=name, limits=limits)
        self.got: list[Received] = []
        self.num_opened = 0
        self.connection.on_message = self.got.append
        self.connection.on_open = self._opened

    def _opened(self) -> None:
        self.num_opened += 1

    @property
    def messages(self) -> list[Message]:
        return [received.message for received in self.got]

    def output(self, step: int = 1 << 20) -> bytes:
        parts: list[Any] = []
        while self.connection.queued_bytes:
            parts += self.connection.take(step)
        return b"".join(parts)


def pump(a: Side, b: Side, splits: Iterator[int] | None = None) -> None:
    """Move bytes both ways until both sides are silent."""
    sizes = splits or itertools.repeat(1 << 20)
    while a.connection.queued_bytes or b.connection.queued_bytes:
        for one, other in ((a, b), (b, a)):
            data = one.output()
            while data:
                size = next(sizes)
                other.connection.feed(data[:size])
                data = data[size:]


def open_pair(limits: Limits = LIMITS) -> tuple[Side, Side]:
    a, b = Side("b", limits=limits), Side("a", limits=limits)
    a.connection.start()
    b.connection.start()
    return a, b


def shaking_pair(token: bytes = TOKEN) -> tuple[Side, Side]:
    a, b = Side("head", Dialler(TOKEN, Identity("driver", "d"))), Side("driver", Acceptor(token, Identity("head", "h")))
    b.connection.start()
    a.connection.start()
    return a, b


def frame(kind: int, stream: int, body: bytes) -> bytes:
    return HEADER.pack(len(body), kind, stream) + body


def control(message: Message, call_id: int = 0, buffers: Any = (), stream: int = 0) -> bytes:
    return frame(CONTROL, stream, encode(message, call_id, 0, buffers))


# ---- life cycle ----


def test_the_table_goes_forward_only_and_closed_is_reached_from_any() -> None:
    order = list(State)
    assert set(TRANSITIONS) == set(State)
    for state, followers in TRANSITIONS.items():
        assert all(order.index(follower) > order.index(state) for follower in followers)
        assert state is State.CLOSED or State.CLOSED in followers


def test_illegal_transitions_raise() -> None:
    a, _ = open_pair()
    with pytest.raises(AssertionError, match="OPEN"):
        a.connection.start()


@given(st.lists(st.integers(1, 200), min_size=1, max_size=20))
@settings(deadline=None, max_examples=50)
def test_P1_handshake_and_messages_survive_any_split(sizes: list[int]) -> None:
    a, b = shaking_pair()
    pump(a, b, itertools.cycle(sizes))
    assert (a.num_opened, b.num_opened) == (1, 1)
    assert isinstance(a.connection.remote, Challenge)
    assert isinstance(b.connection.remote, Hello)
    a.connection.send(Call("m"), [b"x" * 50, b"", b"y" * 49])
    a.connection.send(Call("n"), [b"z" * 2500, b"", b"w"])
    b.connection.send(Heartbeat(1))
    pump(a, b, itertools.cycle(sizes))
    assert b.messages == [Call("m"), Call("n")]
    assert [list(map(bytes, received.buffers)) for received in b.got] == [[b"x" * 50, b"", b"y" * 49], [b"z" * 2500, b"", b"w"]]
    assert a.messages == [Heartbeat(1)]


def test_messages_in_the_same_read_as_the_last_step_of_the_handshake_are_delivered() -> None:
    a, b = shaking_pair()
    b.connection.feed(a.output())
    a.connection.feed(b.output())
    b.connection.feed(a.output())
    b.connection.send(Heartbeat(7))
    a.connection.feed(b.output())  # Welcome and Heartbeat at once
    assert a.messages == [Heartbeat(7)]


def test_wrong_token_closes_both_sides_with_the_same_words() -> None:
    a, b = shaking_pair(token=b"other" * 7)
    pump(a, b)
    assert a.connection.state is b.connection.state is State.CLOSING
    assert isinstance(a.connection.error, AuthenticationError)
    assert isinstance(b.connection.error, AuthenticationError)
    assert str(a.connection.error) == str(b.connection.error)
    assert (a.num_opened, b.num_opened) == (0, 0)


def test_nothing_can_be_sent_before_open_and_after_close() -> None:
    a, b = shaking_pair()
    with pytest.raises(ConnectionLostError, match="not open yet"):
        a.connection.send(Ok())
    pump(a, b)
    a.connection.close("enough")
    with pytest.raises(ConnectionLostError, match="closed here: enough"):
        a.connection.send(Ok())
    pump(a, b)
    with pytest.raises(ConnectionLostError, match="driver.*closed the connection: enough"):
        b.connection.send(Ok())


def test_close_sends_what_is_queued_then_goodbye() -> None:
    a, b = open_pair()
    a.connection.send(Call("m"), [b"x" * 3000])
    a.connection.close("enough")
    pump(a, b)
    assert b.messages == [Call("m")]
    assert str(b.connection.error) == "a closed the connection: enough."
    assert b.connection.state is State.CLOSING


@pytest.mark.parametrize("cut", [1, 20, 600])
def test_end_of_stream_says_what_is_missing(cut: int) -> None:
    a, b = open_pair()
    reply: Future[Received] = Future()
    b.connection.request(Ok(), (), reply)
    a.connection.send(Call("m"), [b"x" * 900])
    b.connection.feed(a.output()[:cut])
    b.connection.eof()
    assert b.connection.state is State.CLOSED
    with pytest.raises(ConnectionLostError, match="a closed the connection without a goodbye, mid-frame"):
        reply.result(0)


def test_end_of_stream_in_the_handshake_is_named_so() -> None:
    a, _ = shaking_pair()
    a.connection.eof()
    assert str(a.connection.error) == "head closed the connection during the handshake."


def test_the_first_reason_of_an_end_stands() -> None:
    a, _ = open_pair()
    a.connection.close("first")
    a.connection.fail(ProtocolError("second"))
    a.connection.lost("third")
    assert "first" in str(a.connection.error)
    assert a.connection.state is State.CLOSED


def test_reasons_are_cut_and_made_valid() -> None:
    a, b = open_pair()
    a.connection.close("\udcff\x1b[1m" * 5000)
    pump(a, b)
    assert b.connection.state is State.CLOSING
    assert "\x1b" not in str(b.connection.error)
    assert len(str(b.connection.error)) < 2000


# ---- calls ----


def test_replies_reach_their_requests_in_any_order() -> None:
    a, b = open_pair()
    replies: list[Future[Received]] = [Future() for _ in range(3)]
    for number, reply in enumerate(replies):
        a.connection.request(Call(str(number)), [b"q"], reply)
    pump(a, b)
    ids = [received.call_id for received in b.got]
    assert ids == [1, 2, 3]
    b.connection.epoch = 9
    b.connection.send(Result(), [b"two"], -ids[2])
    b.connection.send(Failed("ActorNotFoundError", "no such"), (), -ids[0])
    b.connection.send(Failed("NoSuchClass", "text"), (), -ids[1])
    pump(a, b)
    assert replies[2].result(0) == Received(Result(), [b"two"], -3, 9)
    with pytest.raises(ActorNotFoundError, match="no such"):
        replies[0].result(0)
    with pytest.raises(HeadwayError, match="NoSuchClass: text"):
        replies[1].result(0)
    assert a.connection.num_pending == 0
    assert a.got == []


def test_replies_to_nobody_are_ignored() -> None:
    a, b = open_pair()
    reply: Future[Received] = Future()
    call_id = a.connection.request(Call("m"), (), reply)
    a.connection.forget(call_id)
    a.connection.forget(call_id)
    for _ in range(2):
        b.connection.send(Result(), (), -call_id)
    b.connection.send(Result(), (), -77)
    pump(a, b)
    assert not reply.done()
    assert b.messages == [Call("m"), CancelCall(call_id)]
    assert a.got == []
    assert a.connection.state is State.OPEN


def test_a_doubled_reply_counts_once() -> None:
    a, b = open_pair()
    reply: Future[Received] = Future()
    a.connection.request(Call("m"), (), reply)
    b.connection.send(Result(), [b"first"], -1)
    b.connection.send(Result(), [b"second"], -1)
    pump(a, b)
    assert reply.result(0).buffers == [b"first"]


ACTIONS = ["request", "big", "reply", "error", "forget", "cancel", "pump", "close", "remote close", "lost", "garbage"]


@given(st.lists(st.sampled_from(ACTIONS), max_size=30))
@settings(deadline=None, max_examples=300)
def test_A2_each_request_ends_exactly_once(steps: list[str]) -> None:
    """A future of the standard library raises when it is set twice."""
    a, b = open_pair()
    calls: dict[int, Future[Received]] = {}
    forgotten: set[int] = set()
    unanswered = 0
    for step in steps:
        if step in ("request", "big") and a.connection.state is State.OPEN:
            reply: Future[Received] = Future()
            calls[a.connection.request(Call("m"), [b"x" * (3000 if step == "big" else 5)], reply)] = reply
        elif step in ("reply", "error") and len(b.got) > unanswered and b.connection.state is State.OPEN:
            answer = Result() if step == "reply" else Failed("TaskError", "x")
            b.connection.send(answer, (), -b.got[unanswered].call_id)
            unanswered += 1
        elif step == "forget" and calls:
            if not calls[max(calls)].done():
                forgotten.add(max(calls))
            a.connection.forget(max(calls))
        elif step == "cancel" and calls:
            calls[max(calls)].cancel()
        elif step == "pump":
            pump(a, b)
        elif step == "close":
            a.connection.close()
        elif step == "remote close":
            b.connection.close()
        elif step == "lost":
            a.connection.lost("gone")
        elif step == "garbage":
            a.connection.feed(b"\xff" * 20)
    pump(a, b)
    a.connection.lost("the end")
    assert a.connection.num_pending == 0
    for call_id, reply in calls.items():
        assert reply.done() or call_id in forgotten
        if reply.done() and not reply.cancelled() and (error := reply.exception(0)) is not None:
            assert isinstance(error, HeadwayError)


def test_A2_pending_calls_fail_with_connection_lost_caused_by_the_protocol_error() -> None:
    a, _ = open_pair()
    replies: list[Future[Received]] = [Future(), Future()]
    for reply in replies:
        a.connection.request(Call("m"), (), reply)
    a.connection.feed(frame(9, 0, b""))
    errors = [reply.exception(0) for reply in replies]
    assert all(isinstance(error, ConnectionLostError) and isinstance(error.__cause__, ProtocolError) for error in errors)
    assert errors[0] is not errors[1]


def test_ping_is_answered_by_the_connection_itself() -> None:
    a, b = open_pair()
    reply: Future[Received] = Future()
    a.connection.request(Ping(5), (), reply)
    a.connection.send(Ping(6))
    pump(a, b)
    assert reply.result(0).message == Pong(5)
    assert a.got == b.got == []


def test_epoch_is_stamped_on_everything() -> None:
    a, b = open_pair()
    a.connection.send(Ok())
    a.connection.epoch = 5
    a.connection.send(Ok())
    a.connection.send(Ok(), [b"x" * 500])
    pump(a, b)
    assert [received.epoch for received in b.got] == [0, 5, 5]


# ---- buffers ----


@pytest.mark.parametrize("sizes", [[], [0], [100], [101], [50, 50], [50, 51], [0, 101, 0], [1000], [1001], [2500, 1, 0, 999], [1] * 200])
def test_buffers_of_any_size_arrive(sizes: list[int]) -> None:
    a, b = open_pair()
    buffers = [bytes(i % 251 for i in range(size)) for size in sizes]
    a.connection.send(Item(1, 1), buffers)
    pump(a, b, itertools.cycle([7, 1000, 13]))
    assert [bytes(buffer) for buffer in b.got[0].buffers] == buffers


def test_buffers_may_be_any_contiguous_memory() -> None:
    import array

    a, b = open_pair()
    numbers = array.array("d", [1.0, 2.0])
    grid = memoryview(bytes(12)).cast("B", (3, 4))
    a.connection.send(Item(1, 1), [numbers, grid, bytearray(b"x"), memoryview(b"abcd")[1:3]])
    a.connection.send(Item(1, 2), [numbers, array.array("d", [0.5] * 20)])
    pump(a, b)
    assert [bytes(buffer) for buffer in b.got[0].buffers] == [numbers.tobytes(), bytes(12), b"x", b"bc"]
    assert [bytes(buffer) for buffer in b.got[1].buffers] == [numbers.tobytes(), array.array("d", [0.5] * 20).tobytes()]
    for bad in (memoryview(b"abcdef")[::2], "text", 5, None):
        with pytest.raises(ArgumentError, match="A buffer of Item"):
            a.connection.send(Item(1, 1), [bad])


def test_what_is_too_big_is_the_senders_error_and_leaves_the_connection_open() -> None:
    a, b = open_pair()
    with pytest.raises(ArgumentError, match="Call has 20020 bytes beside its buffers.*limit of 10000"):
        a.connection.send(Call("m" * 20_000))
    with pytest.raises(ArgumentError, match="1 buffers of 100001 bytes.*65536 and 100000"):
        a.connection.send(Call("m"), [bytes(100_001)])
    a.connection.send(Ok())
    pump(a, b)
    assert b.messages == [Ok()]


def test_a_small_message_never_overtakes_a_big_one() -> None:
    a, b = open_pair()
    for number in range(5):
        a.connection.send(Item(1, number), [bytes(3500 if number % 2 == 0 else 3)])
        a.connection.send(Call(str(number)))
    pump(a, b, itertools.cycle([999, 3, 5000]))
    assert b.messages == [message for number in range(5) for message in (Item(1, number), Call(str(number)))]


def test_pong_and_credit_go_between_the_chunks_but_a_cancel_never_before_its_call() -> None:
    a, b = open_pair()
    reply: Future[Received] = Future()
    a.connection.send(Item(1, 1), [bytes(9000)])
    call_id = a.connection.request(Call("m"), (), reply)
    first = b"".join(a.connection.take(1500))
    a.connection.forget(call_id)
    a.connection.send(Credit(1, 1))
    b.connection.feed(first + a.output())
    assert b.messages == [Credit(1, 1), Item(1, 1), Call("m"), CancelCall(call_id)]


@pytest.mark.parametrize("between", sorted(BETWEEN_CHUNKS, key=lambda cls: cls.__name__), ids=lambda cls: cls.__name__)
def test_what_may_come_between_chunks_is_accepted(between: type[Message]) -> None:
    _, b = open_pair()
    message = between(*[{"str": "x"}.get(str(f.type), 1) for f in dataclasses.fields(between)
                        if f.default is dataclasses.MISSING])  # type: ignore[arg-type]
    b.connection.feed(control(Item(1, 1), 0, [10], 4) + frame(BULK, 4, b"12345") + control(message) + frame(BULK, 4, b"67890"))
    if between is Goodbye:
        assert b.connection.state is State.CLOSING
    else:
        assert bytes(b.got[-1].buffers[0]) == b"1234567890"


def test_received_bulk_is_writable_and_owned() -> None:
    a, b = open_pair()
    source = bytearray(b"x" * 500)
    a.connection.send(Item(1, 1), [source])
    pump(a, b)
    got = b.got[0].buffers[0]
    source[:] = b"y" * 500
    assert isinstance(got, memoryview)
    assert bytes(got) == b"x" * 500
    got[0] = 0


def test_big_buffers_take_memory_only_as_they_arrive() -> None:
    limits = Limits()
    _, b = open_pair(limits)
    size = 1 << 32
    b.connection.feed(control(Item(1, 1), 0, [size], 1) + frame(BULK, 1, b"abc"))
    assert b.connection.state is State.OPEN  # 4 GiB announced: touched would be noticed
    b.connection.lost("enough")
    a, b = open_pair(limits)
    a.connection.send(Item(1, 1), [bytes(MAPPED_BYTES) + b"end"])
    pump(a, b)
    assert bytes(b.got[0].buffers[0][-4:]) == b"\0end"


# ---- wrong bytes ----

WRONG = {
    "bulk nobody announced": frame(BULK, 1, b"x"),
    "bulk of another stream": control(Item(1, 1), 0, [10], 1) + frame(BULK, 2, b"x"),
    "chunk too long": control(Item(1, 1), 0, [10], 1) + frame(BULK, 1, bytes(11)),
    "chunk over the end of its buffer": control(Item(1, 1), 0, [5, 5], 1) + frame(BULK, 1, bytes(6)),
    "empty chunk": control(Item(1, 1), 0, [10], 1) + frame(BULK, 1, b""),
    "message between chunks": control(Item(1, 1), 0, [10], 1) + control(Ok()),
    "reply between chunks": control(Item(1, 1), 0, [10], 1) + control(Ok(), -1),
    "two big messages at once": control(Item(1, 1), 0, [10], 1) + control(Item(1, 1), 0, [10], 2),
    "bulk without stream": control(Item(1, 1), 0, [10], 0),
    "stream without bulk": control(Item(1, 1), 0, [b"x"], 3),
    "bulk of 0 bytes": control(Item(1, 1), 0, [0, 0], 3),
    "more than allowed": control(Item(1, 1), 0, [100_001], 1),
    "more than allowed together": control(Item(1, 1), 0, [2**62] * 3, 1),
    "too long a frame": HEADER.pack(10_001, CONTROL, 0),
    "unknown kind": HEADER.pack(1, 2, 0),
    "no msgpack": frame(CONTROL, 0, b"\xc1"),
    "unknown code": frame(CONTROL, 0, b"\x94\xcd\x03\xe7\x00\x00\x90"),
    "hello again": control(Welcome(b"x")),
    "a refusal": control(Failed("ProtocolError", "x")),
}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG.keys())
def test_P2_wrong_bytes_are_one_protocol_error_that_both_sides_see(data: bytes) -> None:
    a, b = open_pair()
    b.connection.feed(data + control(Ok()) * 3)
    assert b.connection.state is State.CLOSING
    assert isinstance(b.connection.error, ProtocolError)
    assert str(b.connection.error).startswith("a: ")
    assert b.got == []
    a.connection.feed(b.output())
    assert isinstance(a.connection.error, ConnectionLostError)
    assert "ProtocolError" in str(a.connection.error)


@given(st.lists(st.tuples(st.integers(0, 10**5), st.integers(1, 255)), min_size=1, max_size=3), st.lists(st.integers(1, 5000), min_size=1))
@settings(deadline=None, max_examples=300)
def test_P2_a_mutated_stream_is_messages_or_one_protocol_error(flips: list[tuple[int, int]], sizes: list[int]) -> None:
    a, b = open_pair()
    for number in range(4):
        a.connection.send(Call("method"), [b"x" * 40])
        a.connection.send(Item(number, 2), [b"y" * 1500, b"z"])
        a.connection.send(Heartbeat(number))
    data = bytearray(a.output())
    for at, flip in flips:
        data[at % len(data)] ^= flip
    splits, rest = itertools.cycle(sizes), bytes(data)
    while rest:
        size = next(splits)
        b.connection.feed(rest[:size])
        rest = rest[size:]
    assert b.connection.state is State.OPEN or isinstance(b.connection.error, (ProtocolError, ConnectionLostError))
    assert sum(len(buffer) for received in b.got for buffer in received.buffers) <= len(data)


@given(st.binary(max_size=300), st.booleans())
@settings(deadline=None, max_examples=300)
def test_P2_any_bytes_leave_a_connection_open_or_closed_with_a_reason(data: bytes, shaken: bool) -> None:
    side = open_pair()[0] if shaken else shaking_pair()[1]
    side.connection.feed(data)
    side.connection.feed(data)
    if side.connection.state is State.CLOSING:
        assert isinstance(side.connection.error, HeadwayError)
    assert len(side.connection.get_buffer()) <= 64 * 1024


@pytest.mark.parametrize("data", [HEADER.pack(4097, CONTROL, 0), HEADER.pack(2**32 - 1, CONTROL, 0), HEADER.pack(1, BULK, 1),
                                  control(Ok(), 0, [5], 1), control(Ok()), control(Call("m"))])
def test_P2_before_the_handshake_only_small_frames_of_it_are_taken(data: bytes) -> None:
    _, b = shaking_pair()
    b.connection.feed(data)
    assert b.connection.state is State.CLOSING
    assert isinstance(b.connection.error, ProtocolError)
    assert b"ProtocolError" in b.output()  # the refusal


# ---- back-pressure ----


def test_P3_a_peer_that_does_not_read_is_closed_with_the_figures() -> None:
    a, _ = open_pair()
    a.connection.send(Item(1, 0), [bytes(3000)])
    pattern = r"b does not read: \d+ bytes are waiting for it, the limit is 4 x \(20000 \+ 30"
    with pytest.raises(ConnectionLostError, match=pattern):
        while True:
            a.connection.send(Heartbeat(1))
    assert a.connection.state is State.CLOSING
    assert a.connection.queued_bytes < 1000  # the goodbye


@given(st.lists(st.integers(0, 30_000), max_size=30))
@settings(deadline=None, max_examples=100)
def test_P3_queued_bytes_are_bounded(sizes: list[int]) -> None:
    a, _ = open_pair()
    biggest = 0
    for size in sizes:
        biggest = max(biggest, size + 100)
        try:
            a.connection.send(Item(1, 0), [bytes(size)])
        except ConnectionLostError:
            break
        assert a.connection.queued_bytes <= 4 * (LIMITS.send_queue_bytes + biggest)


def test_P3_pings_of_a_peer_that_does_not_read_end_its_connection() -> None:
    _, b = open_pair()
    for number in range(10_000):
        b.connection.feed(control(Ping(number)))
    assert b.connection.state is State.CLOSING
    assert "does not read" in str(b.connection.error)
