"""Messages <-> msgpack bodies ``[code, call_id, epoch, buffers, *fields]``.

A decoder for each message class is compiled once, at its first use, from the annotations of the dataclass: one check a field. Whatever
the bytes are, ``decode`` returns a message or raises ProtocolError. Arrays decode to tuples: an empty one costs no memory, where msgpack's
lists expand 75-fold. Lone surrogates, ext types, integers beyond 64 bits signed and floats that are not finite are refused.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import threading
import types
import typing
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, Union, cast

import msgpack

from runtime.errors import ArgumentError, ProtocolError
from runtime.limits import LIMITS, Limits
from runtime.wire.messages import REGISTRY, Message

__all__ = ["Body", "decode", "encode", "unpacker"]

Check = Callable[[Any], Any]

MIN_INT, MAX_INT = -(2**63), 2**63 - 1


class Body(NamedTuple):
    """A decoded control frame. ``buffers``: bytes are the buffer itself, an int is the size of one that follows as bulk."""

    message: Message
    call_id: int
    epoch: int
    buffers: tuple[bytes | int, ...]


class _Local(threading.local):
    """A packer keeps its buffer between calls and must not be shared by threads."""

    def __init__(self) -> None:
        self.pack: Callable[[Any], bytes] = msgpack.Packer(default=_values_of, use_bin_type=True).pack


def encode(message: Message, call_id: int, epoch: int, buffers: Sequence[Any] = ()) -> bytes:
    """The control body of ``message``.

    Raises: ArgumentError: a field holds what can't travel.
    """
    cls = type(message)
    try:
        return _local.pack((cls.code, call_id, epoch, buffers, *_values_of(message)))
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:  # UnicodeEncodeError is a ValueError
        raise ArgumentError(f"{cls.__name__} can't be sent: {exc}.") from exc


def unpacker(limits: Limits = LIMITS) -> Callable[[Any], Any]:
    """Unpackb of msgpack with our limits bound to it."""
    return partial(msgpack.unpackb, use_list=False, raw=False, strict_map_key=True, max_array_len=limits.max_array_len,
                   max_map_len=limits.max_map_len, max_ext_len=0, ext_hook=_refuse_ext)


def decode(body: bytes | bytearray | memoryview, unpack: Callable[[Any], Any]) -> Body:
    """The message in a control body; nothing of ``body`` is referenced by it.

    Raises: ProtocolError: the bytes are no message, whatever is wrong with them.
    """
    try:
        head = unpack(body)
        code, call_id, epoch, buffers = head[:4]
    except (ValueError, TypeError, OverflowError, RecursionError, LookupError) as exc:  # msgpack's own are ValueErrors
        raise ProtocolError(f"{len(body)} bytes are no message: {exc or type(exc).__name__}.") from exc
    if type(head) is not tuple or type(code) is not int or code not in REGISTRY:
        raise ProtocolError(f"Unknown message code {_show(code)}.")
    if type(call_id) is not int or not MIN_INT < call_id <= MAX_INT or type(epoch) is not int or not 0 <= epoch <= MAX_INT:
        raise ProtocolError(f"{REGISTRY[code].__name__} has call id {_show(call_id)} and epoch {_show(epoch)}.")
    if type(buffers) is not tuple or not all(type(b) is bytes or (type(b) is int and 0 <= b <= MAX_INT) for b in buffers):
        raise ProtocolError(f"{REGISTRY[code].__name__} has a list of buffers that is none: {_show(buffers)}.")
    return Body(_decoder_of(code)(head[4:]), call_id, epoch, buffers)


@cache
def _decoder_of(code: int) -> Check:
    return _record_check(REGISTRY[code], REGISTRY[code].__name__)


def _record_check(cls: type[Any], where: str) -> Check:
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)
    checks = [_check_of(hints[f.name], f"{where}.{f.name}") for f in fields]
    missing = dataclasses.MISSING
    num_required = sum(f.default is missing and f.default_factory is missing for f in fields)

    def check(values: Any) -> Any:
        if type(values) is not tuple or len(values) < num_required:
            raise ProtocolError(f"{where} is {_show(values)}, not an array of at least {num_required} fields.")
        return cls(*[check_field(value) for check_field, value in zip(checks, values)])  # surplus fields: a newer peer's

    return check


def _check_of(annotation: Any, where: str) -> Check:
    """The check that values of a field annotated so must pass; it returns the value to put into the field."""
    if annotation in _SCALARS:
        return _SCALARS[annotation](where)
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType) and len(args) == 2 and args[1] is type(None):
        check_some = _check_of(args[0], where)
        return lambda value: None if value is None else check_some(value)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return _tuple_check(_check_of(args[0], f"{where}[]"), where)
    if origin is dict and args[0] is str:
        return _dict_check(_check_of(args[1], f"{where}[]"), where)
    if dataclasses.is_dataclass(annotation):
        return _record_check(cast("type[Any]", annotation), where)
    raise AssertionError(f"{where}: {annotation} is no type that messages.py allows")


def _exact_check(kind: type[Any]) -> Callable[[str], Check]:
    def compiled(where: str) -> Check:
        def check(value: Any) -> Any:
            if type(value) is kind:
                return value
            raise ProtocolError(f"{where} is {_show(value)}, not {kind.__name__}.")

        return check

    return compiled


def _int_check(where: str) -> Check:
    def check(value: Any) -> int:
        if type(value) is int and MIN_INT <= value <= MAX_INT:
            return value
        raise ProtocolError(f"{where} is {_show(value)}, not an int of 64 bits.")

    return check


def _float_check(where: str) -> Check:
    def check(value: Any) -> float:
        if (type(value) is float and math.isfinite(value)) or type(value) is int:
            return float(value)
        raise ProtocolError(f"{where} is {_show(value)}, not a finite float.")

    return check


def _tuple_check(check_item: Check, where: str) -> Check:
    def check(value: Any) -> tuple[Any, ...]:
        if type(value) is tuple:
            return tuple(map(check_item, value))
        raise ProtocolError(f"{where} is {_show(value)}, not an array.")

    return check


def _dict_check(check_item: Check, where: str) -> Check:
    def check(value: Any) -> dict[str, Any]:
        if type(value) is dict and all(type(key) is str for key in value):
            return {key: check_item(item) for key, item in value.items()}
        raise ProtocolError(f"{where} is {_show(value)}, not a map with str keys.")

    return check


_SCALARS: dict[Any, Callable[[str], Check]] = {bool: _exact_check(bool), str: _exact_check(str), bytes: _exact_check(bytes),
                                               int: _int_check, float: _float_check}


def _values_of(record: Any) -> tuple[Any, ...]:
    """The fields of a message or record; msgpack asks for those that are nested in others."""
    get = _getters.get(type(record))
    if get is None:
        if not dataclasses.is_dataclass(record):
            raise TypeError(f"{type(record).__name__} has no place in a message")
        get = _getters[type(record)] = _getter([f.name for f in dataclasses.fields(record)])
    return get(record)


def _getter(names: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    if len(names) > 1:
        return cast("Callable[[Any], tuple[Any, ...]]", operator.attrgetter(*names))
    return lambda record: tuple(getattr(record, name) for name in names)


def _refuse_ext(code: int, _data: bytes) -> Any:
    raise ValueError(f"ext type {code}")


def _show(value: Any) -> str:
    """Type and size or value, short and printable: what a peer sent never reaches a log at length."""
    if isinstance(value, (str, bytes, tuple, dict)):
        return f"{type(value).__name__} of length {len(value)}"
    return "None" if value is None else f"{type(value).__name__} {value!r:.30}"


_getters: dict[type[Any], Callable[[Any], tuple[Any, ...]]] = {}
_local = _Local()
