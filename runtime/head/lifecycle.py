"""What all life cycles of the head share: a record has a state, and its class one table of the transitions that are legal."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar

__all__ = ["IllegalTransitionError", "Record", "Table", "move"]

S = TypeVar("S", bound=StrEnum)
Table: TypeAlias = Mapping[S, frozenset[S]]


class IllegalTransitionError(AssertionError):
    """The brain tried a transition that its table does not have: a bug of ours, never a peer's fault."""


class Record(Protocol):
    """A thing with a life cycle: a node, an actor, a group or a job."""

    table: ClassVar[Mapping[Any, frozenset[Any]]]
    state: Any  # of the enumeration that the table is about


def move(record: Record, state: StrEnum) -> None:
    """Have the record enter ``state``.

    Raises: IllegalTransitionError: its table does not have this transition; the state is left as it was.
    """
    if state not in record.table[record.state]:
        raise IllegalTransitionError(f"{record}: {record.state} -> {state} is not in the table of {type(record).__name__.lower()}s.")
    record.state = state
