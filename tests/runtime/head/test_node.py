"""The life cycle of a node."""

from __future__ import annotations

import dataclasses

import pytest

from runtime.head.node import NODE_TABLE, Node, NodeState, inventory
from runtime.head.resources import UNIT
from runtime.limits import Limits
from runtime.wire.messages import NodeFacts

FACTS = NodeFacts("id", "a", "h", 1, "10.0.0.1", 2, "eth0", {"CPU": 4.0, "GPU": 2.0}, {}, ("u0", "u1"))
LIMITS = Limits()


def test_table() -> None:
    assert {f"{old} -> {new}" for old, targets in NODE_TABLE.items() for new in targets} == {
        "JOINING -> ALIVE", "ALIVE -> SUSPECT", "SUSPECT -> ALIVE", "ALIVE -> DRAINING", "SUSPECT -> DRAINING", "DRAINING -> GONE",
        "JOINING -> DEAD", "ALIVE -> DEAD", "SUSPECT -> DEAD", "DRAINING -> DEAD"}


def test_deadlines() -> None:
    node = Node(FACTS, 1, inventory(FACTS), 5, last_seen=100.0, state=NodeState.ALIVE)
    assert (node.deadline(LIMITS), node.dead_at(LIMITS)) == (105.0, 115.0)
    node.state = NodeState.SUSPECT
    assert node.deadline(LIMITS) == 115.0
    node.lost_at = 101.0
    assert node.deadline(LIMITS) == node.dead_at(LIMITS) == 104.0
    node.extend(10.0, 200.0)
    assert node.dead_at(LIMITS) == 114.0
    node.extend(10.0, 115.0)
    assert (node.last_seen, node.lost_at) == (115.0, 115.0)


def test_inventory_has_whole_gpus_by_index() -> None:
    ledger = inventory(FACTS)
    assert ledger.total == {"CPU": 4 * UNIT, "GPU": 2 * UNIT}
    assert ledger.free_gpus == {0: UNIT, 1: UNIT}
    assert inventory(dataclasses.replace(FACTS, gpus=())).free_gpus == ledger.free_gpus  # it need not name them


@pytest.mark.parametrize("state", list(NodeState))
def test_status_uses_the_words_of_the_wire(state: NodeState) -> None:
    node = Node(FACTS, 1, inventory(FACTS), 5, last_seen=0.0, state=state)
    assert (node.status().state, node.status().available) == (state.name, {"CPU": 4.0, "GPU": 2.0})
    assert str(node) == "node a (10.0.0.1, incarnation 1)"
