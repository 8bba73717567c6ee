"""Any message survives the codec; any other bytes are one ProtocolError, in bounded memory."""

from __future__ import annotations

import dataclasses
import tracemalloc
import types
import typing
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import ArgumentError, ProtocolError
from runtime.limits import LIMITS
from runtime.wire.codec import decode, encode, unpacker
from runtime.wire.messages import (
    REGISTRY,
    ActorExited,
    ActorInfo,
    ActorStatus,
    Call,
    Credit,
    ExitEvidence,
    Heartbeat,
    LogLines,
    Message,
    NodeFacts,
    NodeList,
    NodeStatus,
    Ok,
    StopActors,
    StopRequested,
)

UNPACK = unpacker()
INTS = st.integers(-(2**63), 2**63 - 1)


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of a field with this annotation."""
    scalars = {bool: st.booleans(), int: INTS, float: st.floats(allow_nan=False, allow_infinity=False), str: st.text(max_size=20),
               bytes: st.binary(max_size=20)}
    if annotation in scalars:
        return scalars[annotation]
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is types.UnionType:
        return st.none() | values(args[0])
    if origin is tuple:
        return st.lists(values(args[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(st.text(max_size=5), values(args[1]), max_size=3)
    return records(annotation)


def records(cls: type[Any]) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{f.name: values(hints[f.name]) for f in dataclasses.fields(cls)})


messages = st.sampled_from(sorted(REGISTRY)).flatmap(lambda code: records(REGISTRY[code]))
atoms = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8) | st.binary(max_size=8)
junk = st.recursive(atoms, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3))


def raw(message: Message) -> list[Any]:
    """The message as plain lists, to be damaged."""
    return list(msgpack.unpackb(encode(message, 1, 1, [b"x"])))


def outcome(body: bytes) -> Any:
    """A message, or the one error that is allowed."""
    try:
        return decode(body, UNPACK)
    except ProtocolError as exc:
        return exc


@given(messages, INTS.filter(lambda i: i > -(2**63)), st.integers(0, 2**63 - 1), st.lists(st.binary(max_size=9), max_size=3))
@settings(deadline=None, max_examples=300)
def test_P1_every_message_round_trips(message: Message, call_id: int, epoch: int, buffers: list[bytes]) -> None:
    body = decode(encode(message, call_id, epoch, buffers), UNPACK)
    assert body == (message, call_id, epoch, tuple(buffers))
    assert type(body.message) is type(message)


@pytest.mark.parametrize("code", sorted(REGISTRY))
def test_every_class_has_a_decoder(code: int) -> None:
    assert isinstance(outcome(msgpack.packb([code, 0, 0, []])), (tuple, ProtocolError))


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=500)
def test_P2_any_bytes_are_a_message_or_a_protocol_error(data: bytes) -> None:
    outcome(data)


@given(junk)
@settings(deadline=None, max_examples=300)
def test_P2_any_msgpack_value_is_a_message_or_a_protocol_error(value: Any) -> None:
    outcome(msgpack.packb(value))


@given(st.sampled_from(sorted(REGISTRY)), junk, junk, junk, st.lists(junk, max_size=8))
@settings(deadline=None, max_examples=500)
def test_P2_any_fields_are_a_message_or_a_protocol_error(code: int, call_id: Any, epoch: Any, buffers: Any, fields: list[Any]) -> None:
    outcome(msgpack.packb([code, call_id, epoch, buffers, *fields]))
    outcome(msgpack.packb([code, 1, 1, [], *fields]))


@given(messages, st.data())
@settings(deadline=None, max_examples=500)
def test_P2_a_mutated_byte_is_a_message_or_a_protocol_error(message: Message, data: st.DataObject) -> None:
    body = bytearray(encode(message, 7, 3))
    index = data.draw(st.integers(0, len(body) - 1))
    body[index] ^= data.draw(st.integers(1, 255))
    outcome(bytes(body))
    outcome(bytes(body[:index]))


@given(messages.filter(lambda m: dataclasses.fields(m)), st.data())
@settings(deadline=None, max_examples=300)
def test_P2_a_field_of_another_type_is_a_protocol_error(message: Message, data: st.DataObject) -> None:
    fields = raw(message)
    index = data.draw(st.integers(4, len(fields) - 1))
    annotation = typing.get_type_hints(type(message))[dataclasses.fields(message)[index - 4].name]
    wrong = data.draw(st.sampled_from([None, True, 1, 1.5, "x", b"x", 2**64 - 1, float("nan"), float("inf"), [1], {"x": None}, [[]]]))
    fields[index] = wrong
    result = outcome(msgpack.packb(fields))
    right = {bool: (bool,), int: (int,), float: (int, float), str: (str,), bytes: (bytes,)}.get(annotation)
    if right is not None and (type(wrong) not in right or wrong in (2**64 - 1, float("inf")) and annotation is int or wrong != wrong):
        assert isinstance(result, ProtocolError)
        assert dataclasses.fields(message)[index - 4].name in str(result)


@pytest.mark.parametrize(("damaged", "what"), [
    ([70, 1, 0, [], 5], "Call.method is int 5, not str"),
    ([70, 1, 0, [], None], "Call.method is None"),
    ([70, 1, 0, []], "at least 1 fields"),
    ([22, 0, 0, [], 2**63], "Heartbeat.seq"),
    ([22, 0, 0, [], True], "Heartbeat.seq is bool"),
    ([22, 0, 0, [], 1.0], "Heartbeat.seq is float"),
    ([43, 0, 0, [], "x", float("nan")], "StopRequested.grace_s is float nan"),
    ([43, 0, 0, [], "x", float("inf")], "StopRequested.grace_s is float inf"),
    ([33, 0, 0, [], ["a", 1], 0.0, ""], r"StopActors.actor_ids\[\] is int 1"),
    ([33, 0, 0, [], "ab", 0.0, ""], "StopActors.actor_ids is str of length 2, not an array"),
    ([27, 0, 0, [], [[1, "ALIVE", {}]]], r"NodeList.nodes\[\].facts"),
    ([999, 0, 0, []], "Unknown message code int 999"),
    ([True, 0, 0, []], "Unknown message code bool"),
    ([10, 0, 0], "no message"),
    ([10, 2**64 - 1, 0, []], "call id"),
    ([10, 0, -1, []], "epoch"),
    ([10, 0, None, []], "epoch"),
    ([10, 0, 0, [-1]], "buffers"),
    ([10, 0, 0, ["text"]], "buffers"),
    ([10, 0, 0, {}], "buffers"),
    ({"code": 10}, "no message"),
    ("text", "Unknown message code"),
    (7, "no message"),
])
def test_P2_what_is_wrong_is_named(damaged: Any, what: str) -> None:
    with pytest.raises(ProtocolError, match=what):
        decode(msgpack.packb(damaged), UNPACK)


@pytest.mark.parametrize("body", [
    msgpack.packb([10, 0, 0, [], msgpack.ExtType(5, b"x")]),
    msgpack.packb([10, 0, 0, [], msgpack.Timestamp(1)]),
    msgpack.packb([10, 0, 0, [], {1: 2}]),
    msgpack.packb([10, 0, 0, [], {"x": {b"y": {3: 4}}}]),
    msgpack.packb([10, 0, 0, []]) + b"\x00",
    msgpack.packb([10, 0, 0, [], b"\xff"], use_bin_type=False),
    b"\x91" * 5000 + b"\x90",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xdc\xff\xff",
    b"",
], ids=["ext", "timestamp", "int key", "nested int key", "extra data", "invalid utf-8", "deep", "array of 4G", "map of 4G", "cut", "empty"])
def test_P2_crafted_bodies_are_protocol_errors(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(body, UNPACK)


def test_too_long_an_array_is_refused() -> None:
    with pytest.raises(ProtocolError, match="max_array_len"):
        decode(msgpack.packb([10, 0, 0, [], [0] * (LIMITS.max_array_len + 1)]), UNPACK)


@pytest.mark.parametrize("item", [b"\x90", b"\x80", b"\x91\x90", b"\xc0", b"\xa0"], ids=["arrays", "maps", "nested", "nil", "str"])
def test_P2_bombs_stay_within_bounded_memory(item: bytes) -> None:
    """1 MiB of the densest containers: 8 bytes each for arrays; a map costs 64 bytes, the worst case."""
    inner = b"\xdc\xff\xff" + item * 0xFFFF
    count = LIMITS.max_control_bytes // len(inner)
    body = b"\x95\x0a\x00\x00\x90\xdc" + count.to_bytes(2, "big") + inner * count
    assert len(body) <= LIMITS.max_control_bytes + 100
    tracemalloc.start()
    try:
        outcome(body)
        assert tracemalloc.get_traced_memory()[1] < 100 * LIMITS.max_control_bytes
    finally:
        tracemalloc.stop()


def test_missing_trailing_fields_take_their_defaults() -> None:
    body = decode(msgpack.packb([33, 0, 0, [], ["a"], 1, "why"]), UNPACK)
    assert body.message == StopActors(actor_ids=("a",), grace_s=1.0, reason="why")


def test_surplus_fields_of_a_newer_peer_are_ignored() -> None:
    assert decode(msgpack.packb([22, 0, 0, [], 3, ["a"], "new", {"x": [1]}]), UNPACK).message == Heartbeat(3, ("a",))


def test_an_int_is_accepted_for_a_float() -> None:
    message = decode(msgpack.packb([43, 0, 0, [], "x", 5]), UNPACK).message
    assert isinstance(message, StopRequested)
    assert type(message.grace_s) is float


def test_nested_records_and_options_round_trip() -> None:
    facts = NodeFacts("n", "node", "host", 1, "::1", 2, "lo", {"CPU": 2.0}, {"zone": "a"}, ("u",))
    for message in (NodeList((NodeStatus(facts, "ALIVE", {"CPU": 0.5}),)), ActorExited("a", 1, ExitEvidence("signal", error=b"\x80")),
                    ActorInfo(ActorStatus("a", 1, "DEAD", evidence=ExitEvidence("killed", log_tail=("x",))), "C", None)):
        assert decode(encode(message, 0, 0), UNPACK).message == message


@pytest.mark.parametrize("message", [
    Call(object()), Call({1, 2}), Credit(2**64, 1), LogLines("j", "a", "l", "n", ("\udc80",)), Heartbeat(1 + 2j),  # type: ignore[arg-type]
])
def test_what_cannot_travel_is_the_callers_error(message: Message) -> None:
    with pytest.raises(ArgumentError, match=type(message).__name__):
        encode(message, 0, 0)
    assert decode(encode(Ok(), 0, 0), UNPACK).message == Ok()  # and leaves the packer usable


def test_buffers_decode_to_bytes_of_their_own() -> None:
    body = bytearray(encode(Ok(), 1, 0, [b"abc", memoryview(b"def"), bytearray(b"ghi"), 5]))
    decoded = decode(memoryview(body), UNPACK)
    body[:] = bytes(len(body))
    assert decoded.buffers == (b"abc", b"def", b"ghi", 5)
