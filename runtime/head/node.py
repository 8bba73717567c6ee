"""A node: one incarnation of one host's worker daemon, and how it lives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

from runtime.errors import ArgumentError
from runtime.head.lifecycle import Table
from runtime.head.resources import GPU, UNIT, Ledger, to_floats, to_units
from runtime.limits import Limits
from runtime.wire.messages import NodeFacts, NodeStatus

if TYPE_CHECKING:
    from runtime.head.actor import Actor

__all__ = ["NODE_TABLE", "Node", "NodeState", "inventory"]


class NodeState(StrEnum):
    """States of a node."""

    JOINING = "JOINING"
    ALIVE = "ALIVE"
    SUSPECT = "SUSPECT"  # silent, or its connection is closed: nothing new is placed, nothing is killed
    DRAINING = "DRAINING"
    DEAD = "DEAD"  # final for this incarnation: who returns is a new node
    GONE = "GONE"


NODE_TABLE: Table[NodeState] = {
    NodeState.JOINING: frozenset({NodeState.ALIVE, NodeState.DEAD}),
    NodeState.ALIVE: frozenset({NodeState.SUSPECT, NodeState.DRAINING, NodeState.DEAD}),
    NodeState.SUSPECT: frozenset({NodeState.ALIVE, NodeState.DRAINING, NodeState.DEAD}),
    NodeState.DRAINING: frozenset({NodeState.GONE, NodeState.DEAD}),
    NodeState.DEAD: frozenset(),
    NodeState.GONE: frozenset(),
}


@dataclass(slots=True, eq=False)
class Node:
    """One incarnation of a worker daemon. ``last_seen`` and ``lost_at`` are monotonic; ``lost_at`` is when its connection closed."""

    table: ClassVar[Mapping[Any, frozenset[Any]]] = NODE_TABLE

    facts: NodeFacts
    incarnation: int
    ledger: Ledger
    conn: int | None
    last_seen: float
    lost_at: float | None = None
    state: NodeState = NodeState.JOINING
    actors: dict[str, Actor] = field(default_factory=dict)
    zygotes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"node {self.facts.name} ({self.facts.host or 'local'}, incarnation {self.incarnation})"

    @property
    def name(self) -> str:
        """Its name, for people."""
        return self.facts.name

    def dead_at(self, limits: Limits) -> float:
        """When this node is declared dead if nothing more is heard."""
        silent = self.last_seen + limits.dead_s
        return silent if self.lost_at is None else min(silent, self.lost_at + limits.reconnect_grace_s)

    def deadline(self, limits: Limits) -> float:
        """When its state changes next if nothing more is heard."""
        dead_at = self.dead_at(limits)
        return min(dead_at, self.last_seen + limits.suspect_s) if self.state is NodeState.ALIVE else dead_at

    def extend(self, late_s: float, now: float) -> None:
        """Move its deadlines by a time in which the head itself did not run, and so could not listen."""
        self.last_seen = min(now, self.last_seen + late_s)
        if self.lost_at is not None:
            self.lost_at = min(now, self.lost_at + late_s)

    def status(self) -> NodeStatus:
        """The node as messages show it."""
        return NodeStatus(self.facts, str(self.state), to_floats(self.ledger.free), self.zygotes)


def inventory(facts: NodeFacts) -> Ledger:
    """The ledger of a node that says these facts of itself.

    Raises: ArgumentError: an amount is impossible, or its GPUs and their count do not agree.
    """
    total = to_units(facts.resources, f"node {facts.name!r}")
    if total.get(GPU, 0) % UNIT:
        raise ArgumentError(f"node {facts.name!r} says that it has {facts.resources[GPU]} GPUs; a node has whole GPUs.")
    if facts.gpus and len(facts.gpus) != total.get(GPU, 0) // UNIT:
        raise ArgumentError(f"node {facts.name!r} lists {len(facts.gpus)} GPUs ({', '.join(facts.gpus)}) and says that it has "
                            f"{facts.resources.get(GPU, 0):g}; the two must agree.")
    return Ledger(total)
