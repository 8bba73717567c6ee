"""Frames survive any split of the stream; limits hold before anything is allocated; bulk goes straight to its place."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import ProtocolError
from runtime.wire.framing import BULK, CONTROL, HEADER, RECEIVE_BYTES, Buffer, FrameDecoder, Outbox, control_frame

MAX_CONTROL, MAX_BULK = 100_000, 70_000


class Sink:
    """Notes the frames, bulk into memory of its own."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, int, bytes]] = []
        self.on_control: Callable[[], None] = lambda: None
        self._memory = bytearray()
        self._stream = 0

    def control(self, body: memoryview, stream: int) -> None:
        self.frames.append((CONTROL, stream, bytes(body)))
        self.on_control()

    def bulk(self, stream: int, num_bytes: int) -> memoryview:
        self._memory, self._stream = bytearray(num_bytes), stream
        return memoryview(self._memory)

    def bulk_end(self) -> None:
        self.frames.append((BULK, self._stream, bytes(self._memory)))


def decoder(sink: Sink) -> FrameDecoder:
    return FrameDecoder(sink, max_control_bytes=MAX_CONTROL, max_bulk_bytes=MAX_BULK)


def frame(kind: int, stream: int, body: bytes) -> bytes:
    return HEADER.pack(len(body), kind, stream) + body


bodies = st.integers(0, 200) | st.sampled_from([RECEIVE_BYTES - 13, RECEIVE_BYTES - 12, RECEIVE_BYTES, 2 * RECEIVE_BYTES + 5, MAX_BULK])
frames = st.tuples(st.sampled_from([CONTROL, BULK]), st.integers(0, 2**32 - 1), bodies.map(lambda n: bytes(i & 0xFF for i in range(n))))


@given(st.lists(frames, max_size=6), st.data())
@settings(deadline=None, max_examples=100)
def test_P1_frames_survive_any_split(expected: list[tuple[int, int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(frame(*one) for one in expected)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    sink = Sink()
    dec = decoder(sink)
    for start, end in zip([0, *cuts], [*cuts, len(stream)]):
        dec.feed(stream[start:end])
    assert sink.frames == expected
    assert dec.missing == ""


def test_P1_byte_by_byte() -> None:
    sink = Sink()
    dec = decoder(sink)
    for byte in frame(CONTROL, 1, b"abc") + frame(BULK, 2, b"") + frame(BULK, 2, b"xyz") + frame(CONTROL, 0, b""):
        dec.feed(bytes((byte,)))
    assert sink.frames == [(CONTROL, 1, b"abc"), (BULK, 2, b""), (BULK, 2, b"xyz"), (CONTROL, 0, b"")]


@given(st.binary(max_size=400))
@settings(deadline=None, max_examples=300)
def test_P2_any_bytes_are_frames_or_a_protocol_error(data: bytes) -> None:
    dec = decoder(Sink())
    try:
        dec.feed(data)
    except ProtocolError:
        pass
    dec.stop()
    dec.feed(data)  # ignored
    assert len(dec.get_buffer()) <= max(RECEIVE_BYTES, MAX_CONTROL) + HEADER.size


@pytest.mark.parametrize(("kind", "size"), [(CONTROL, MAX_CONTROL + 1), (CONTROL, 2**32 - 1), (BULK, MAX_BULK + 1), (2, 0), (255, 5)])
def test_P2_a_header_over_the_limit_is_refused_before_allocating(kind: int, size: int) -> None:
    dec = decoder(Sink())
    with pytest.raises(ProtocolError, match=f"kind {kind} with {size} bytes"):
        dec.feed(HEADER.pack(size, kind, 0))
    assert len(dec.get_buffer()) <= RECEIVE_BYTES


def test_memory_grows_for_one_big_control_frame_and_shrinks_after_it() -> None:
    sink = Sink()
    dec = decoder(sink)
    dec.feed(HEADER.pack(MAX_CONTROL, CONTROL, 0))
    assert len(dec.get_buffer()) == MAX_CONTROL
    dec.feed(bytes(MAX_CONTROL))
    assert len(dec.get_buffer()) == RECEIVE_BYTES
    assert sink.frames == [(CONTROL, 0, bytes(MAX_CONTROL))]


def test_bulk_is_received_in_place() -> None:
    sink = Sink()
    dec = decoder(sink)
    dec.feed(HEADER.pack(MAX_BULK, BULK, 1))
    place = dec.get_buffer()
    assert len(place) == MAX_BULK
    place[:] = bytes((7,)) * MAX_BULK
    dec.received(MAX_BULK)
    assert sink.frames == [(BULK, 1, bytes((7,)) * MAX_BULK)]


def test_what_is_missing_at_the_end_is_said() -> None:
    dec = decoder(Sink())
    dec.feed(b"\0\0")
    assert dec.missing == "mid-frame, 2 of 12 bytes of a header"
    dec = decoder(Sink())
    dec.feed(frame(CONTROL, 0, bytes(4096))[:132])
    assert dec.missing == "mid-frame, 120 of 4096 bytes"
    dec = decoder(Sink())
    dec.feed(frame(BULK, 1, bytes(100))[:50])
    assert dec.missing == "mid-frame, 62 bytes of a bulk chunk missing"


def test_a_sink_may_stop_the_decoder_from_inside() -> None:
    sink = Sink()
    dec = decoder(sink)
    sink.on_control = dec.stop
    dec.feed(frame(CONTROL, 0, b"one") + frame(CONTROL, 0, b"two"))
    dec.feed(frame(CONTROL, 0, b"three"))
    assert sink.frames == [(CONTROL, 0, b"one")]


def test_limits_can_be_raised_from_inside_a_frame() -> None:
    sink = Sink()
    dec = FrameDecoder(sink, max_control_bytes=10, max_bulk_bytes=0)
    sink.on_control = lambda: dec.set_limits(max_control_bytes=MAX_CONTROL, max_bulk_bytes=MAX_BULK)
    dec.feed(frame(CONTROL, 0, b"small") + frame(CONTROL, 0, bytes(50)) + frame(BULK, 3, b"b"))
    assert [len(body) for _, _, body in sink.frames] == [5, 50, 1]


def take_all(outbox: Outbox, step: int) -> bytes:
    taken: list[Buffer] = []
    while outbox.queued_bytes:
        before = outbox.queued_bytes
        taken += outbox.take(step)
        assert outbox.queued_bytes < before
    return b"".join(taken)


@given(st.lists(st.tuples(st.binary(max_size=30), st.lists(st.integers(0, 3000), max_size=3)), max_size=5), st.integers(1, 5000))
@settings(deadline=None, max_examples=100)
def test_P1_outbox_sends_all_in_order(messages: list[tuple[bytes, list[int]]], step: int) -> None:
    outbox, sink = Outbox(max_bulk_bytes=1000), Sink()
    for number, (body, sizes) in enumerate(messages):
        outbox.push(control_frame(body, number), number, [bytes((number,)) * size for size in sizes])
    decoder(sink).feed(take_all(outbox, step))
    position = 0
    for number, (body, sizes) in enumerate(messages):
        assert sink.frames[position] == (CONTROL, number, body)
        chunks = [bytes((number,)) * min(1000, size - start) for size in sizes for start in range(0, size, 1000)]
        position += 1
        assert sink.frames[position:position + len(chunks)] == [(BULK, number, chunk) for chunk in chunks]
        position += len(chunks)
    assert position == len(sink.frames)


def test_urgent_frames_go_between_the_chunks_of_a_big_message() -> None:
    outbox, sink = Outbox(max_bulk_bytes=1000), Sink()
    outbox.push(control_frame(b"big", 1), 1, [bytes(5000)])
    taken = b"".join(outbox.take(1500))
    outbox.push(control_frame(b"later"))
    outbox.push(control_frame(b"now"), urgent=True)
    decoder(sink).feed(taken + take_all(outbox, 1000))
    assert [body for kind, _, body in sink.frames if kind == CONTROL] == [b"big", b"now", b"later"]
    assert sink.frames.index((CONTROL, 0, b"now")) < len(sink.frames) - 2


def test_urgent_frames_never_overtake_a_small_message() -> None:
    outbox, sink = Outbox(max_bulk_bytes=1000), Sink()
    for number in range(3):
        outbox.push(control_frame(b"small %d" % number))
        outbox.push(control_frame(b"urgent %d" % number), urgent=True)
    outbox.push(control_frame(b"big", 1), 1, [bytes(5000)])
    outbox.push(control_frame(b"urgent 3"), urgent=True)
    decoder(sink).feed(take_all(outbox, 1000))
    controls = [body for kind, _, body in sink.frames if kind == CONTROL]
    assert controls == [b"small 0", b"urgent 0", b"small 1", b"urgent 1", b"small 2", b"urgent 2", b"big", b"urgent 3"]


def test_buffers_are_let_go_once_taken() -> None:
    class Memory(bytearray):
        """Can be referenced weakly."""

    outbox, buffer = Outbox(max_bulk_bytes=1000), Memory(5000)
    alive = weakref.ref(buffer)
    outbox.push(control_frame(b"big", 1), 1, [buffer])
    del buffer
    take_all(outbox, 1 << 20)
    assert alive() is None


def test_buffers_are_not_copied_on_their_way_out() -> None:
    outbox, big = Outbox(max_bulk_bytes=1000), bytearray(2500)
    outbox.push(control_frame(b"big", 1), 1, [big])
    big[:] = b"x" * 2500
    assert take_all(outbox, 10_000).count(b"x") == 2500


def test_cleared_outbox_counts_from_zero() -> None:
    outbox = Outbox(max_bulk_bytes=1000)
    outbox.push(control_frame(b"big", 1), 1, [bytes(5000)])
    outbox.take(1)
    outbox.clear()
    outbox.push(control_frame(b"bye"))
    assert (outbox.queued_bytes, outbox.max_message_bytes) == (15, 15)
    assert outbox.take(1) == [control_frame(b"bye")]
