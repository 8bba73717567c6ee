"""Checks of what users pass to constructors: one sentence with the value, why, and what to do.

``config_class`` gives a dataclass Ray's tolerance: arguments that only Ray has are taken with one warning each, unknown ones are refused
with the closest known name.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast, dataclass_transform

from runtime.errors import ArgumentError, ArgumentTypeError

__all__ = ["NAME_RULE", "check_bool", "check_int", "check_name", "check_number", "check_type", "config_class", "reject_unknown",
           "warn_once"]

NAME_RULE = "1 to 128 characters of A-Z a-z 0-9 . _ - that begin with a letter or digit"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_warned: set[str] = set()
_Class = TypeVar("_Class", bound=type)


def warn_once(text: str) -> None:
    """Warn with this text, at most once in this process."""
    if text not in _warned:
        _warned.add(text)
        warnings.warn(text, UserWarning, stacklevel=4)


def reject_unknown(owner: str, unknown: Iterable[str], known: Iterable[str]) -> None:
    """Raise for the first argument that is not known, naming the closest one."""
    names = sorted(known)
    for name in unknown:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(names)}."
        raise ArgumentTypeError(f"{owner}() got an unexpected argument {name!r}; {hint}")


@dataclass_transform()
def config_class(**ray_only: str) -> Callable[[_Class], _Class]:
    """Make a class a dataclass that also takes ``ray_only`` arguments (name: what happens instead), with one warning each."""

    def decorate(cls: _Class) -> _Class:
        made: Any = dataclasses.dataclass(repr=False)(cls)
        fields = {f.name for f in dataclasses.fields(made) if f.init}
        plain_init = made.__init__

        @functools.wraps(plain_init)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            for name in [n for n in kwargs if n in ray_only]:
                if kwargs.pop(name) is not None:
                    warn_once(f"{cls.__name__}({name}=...) is accepted for Ray's sake and has no effect here: {ray_only[name]}")
            reject_unknown(cls.__name__, (n for n in kwargs if n not in fields), fields)
            plain_init(self, *args, **kwargs)

        made.__init__ = __init__
        made.__repr__ = _repr
        return cast(_Class, made)

    return decorate


def _repr(self: Any) -> str:
    """Only what differs from the defaults, as Ray prints it."""
    shown = [f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if f.repr and getattr(self, f.name) != f.default]
    return f"{type(self).__name__}({', '.join(shown)})"


def check_type(owner: str, name: str, value: object, expected: type | tuple[type, ...], hint: str) -> None:
    """Raise unless ``value`` is an instance; ``hint`` says what to pass."""
    if not isinstance(value, expected):
        raise ArgumentTypeError(f"{owner}({name}={value!r:.80}): got {type(value).__name__}; {hint}")


def check_bool(owner: str, name: str, value: object) -> None:
    """Raise unless ``value`` is True or False."""
    check_type(owner, name, value, bool, "pass True or False.")


def check_int(owner: str, name: str, value: object, minimum: int, *, meaning: str) -> None:
    """Raise unless ``value`` is an int (no bool, no float, no text) and at least ``minimum``; ``meaning`` ends the sentence."""
    if isinstance(value, bool):
        raise ArgumentTypeError(f"{owner}({name}={value!r}): a bool is not a count; pass an int, {meaning}.")
    if not isinstance(value, int):
        guess = _as_int(value)
        raise ArgumentTypeError(f"{owner}({name}={value!r:.80}): must be an int, got {type(value).__name__}"
                                + (f"; did you mean {guess}?" if guess is not None else f", {meaning}."))
    if value < minimum:
        raise ArgumentError(f"{owner}({name}={value}): must be >= {minimum} ({meaning}).")


def check_number(owner: str, name: str, value: object, *, minimum: float = 0.0, above: bool = False) -> None:
    """Raise unless ``value`` is a finite int or float that is at least (``above``: more than) ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ArgumentTypeError(f"{owner}({name}={value!r:.80}): must be a number, got {type(value).__name__}.")
    if not math.isfinite(value) or value < minimum or (above and value == minimum):
        raise ArgumentError(f"{owner}({name}={value!r}): must be a finite number {'>' if above else '>='} {minimum:g}.")


def check_name(owner: str, name: str, value: object) -> None:
    """Raise unless ``value`` is safe as one component of a path."""
    check_type(owner, name, value, str, f"pass {NAME_RULE}.")
    if not _NAME.fullmatch(str(value)):
        raise ArgumentError(f"{owner}({name}={value!r:.80}): allowed are {NAME_RULE}.")


def _as_int(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.strip().isdigit():
        return int(value)
    return None
