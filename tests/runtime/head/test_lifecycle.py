"""A record moves along its table, and nowhere else. The tables themselves: test_node, test_actor, test_group, test_job."""

from __future__ import annotations

from enum import StrEnum
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.head.actor import Actor, ActorState
from runtime.head.group import Group, GroupState
from runtime.head.job import Job, JobState
from runtime.head.lifecycle import IllegalTransitionError, move
from runtime.head.node import Node, NodeState

RECORDS: list[tuple[type[StrEnum], Any]] = [(NodeState, Node), (ActorState, Actor), (GroupState, Group), (JobState, Job)]


@pytest.mark.parametrize(("states", "record"), RECORDS)
def test_every_state_has_its_row(states: type[StrEnum], record: Any) -> None:
    assert set(record.table) == set(states)
    assert all(str(state) == state.name for state in states)  # the words of the wire


@pytest.mark.parametrize(("states", "record"), RECORDS)
def test_legal_moves_move_and_illegal_ones_raise_and_change_nothing(states: type[StrEnum], record: Any) -> None:
    for old in states:
        for new in states:
            thing = SimpleNamespace(state=old, table=record.table)
            if new in record.table[old]:
                move(thing, new)
                assert thing.state is new
            else:
                with pytest.raises(IllegalTransitionError, match=f"{old} -> {new}"):
                    move(thing, new)
                assert thing.state is old
