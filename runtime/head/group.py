"""A placement group: bundles that are reserved together, the actors in them, and how it lives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

from runtime.head.actor import Actor, ActorState, Batch
from runtime.head.lifecycle import Table
from runtime.head.resources import Amounts, Lease, Ledger
from runtime.wire.messages import GroupChanged

if TYPE_CHECKING:
    from runtime.head.job import Job, Owner
    from runtime.head.node import Node

__all__ = ["GROUP_TABLE", "Bundle", "Group", "GroupState"]


class GroupState(StrEnum):
    """States of a placement group."""

    PENDING = "PENDING"  # nothing is reserved, and there is a reason
    RESERVED = "RESERVED"  # everything is reserved
    BROKEN = "BROKEN"  # a node or a member of its gang was lost: what is left is being stopped or waits for its end
    RELEASED = "RELEASED"


GROUP_TABLE: Table[GroupState] = {
    GroupState.PENDING: frozenset({GroupState.RESERVED, GroupState.RELEASED}),
    GroupState.RESERVED: frozenset({GroupState.BROKEN, GroupState.RELEASED}),
    GroupState.BROKEN: frozenset({GroupState.PENDING, GroupState.RELEASED}),
    GroupState.RELEASED: frozenset(),
}


@dataclass(slots=True, eq=False)
class Bundle:
    """One bundle; ``node``, ``lease`` and the ``ledger`` that actors draw from exist while it is reserved."""

    asked: Amounts
    node: Node | None = None
    lease: Lease | None = None
    ledger: Ledger | None = None


@dataclass(slots=True, eq=False)
class Group:
    """A placement group. ``lasting``: made by ``CreateGroup``, lives until it is removed; else it goes with its last actor."""

    table: ClassVar[Mapping[Any, frozenset[Any]]] = GROUP_TABLE

    group_id: str
    name: str
    owner: Owner
    bundles: list[Bundle]
    strategy: str
    lasting: bool
    timeout_s: float
    state: GroupState = GroupState.PENDING
    reason: str = ""
    since: float = 0.0  # when it became pending
    infeasible_since: float | None = None
    judged: int = -1  # the version of the cluster's inventory that feasibility was judged on
    removing: bool = False
    batches: list[Batch] = field(default_factory=list)
    actors: dict[str, Actor] = field(default_factory=dict)  # of a lasting group the living ones, else all
    waiters: list[tuple[int, int]] = field(default_factory=list)  # (connection, call id) of RemoveGroup

    def __str__(self) -> str:
        return f"group {self.name or self.group_id[:8]} of {self.job}"

    @property
    def job(self) -> Job:
        """The job that it belongs to."""
        return self.owner.job

    @property
    def amounts(self) -> list[Amounts]:
        """What each bundle asks for."""
        return [bundle.asked for bundle in self.bundles]

    @property
    def living(self) -> list[Actor]:
        """Its actors that are not dead, PENDING ones too."""
        return [actor for actor in self.actors.values() if actor.state is not ActorState.DEAD]

    @property
    def label(self) -> str:
        """What it is, for who waits for its resources."""
        labels = [actor.spec.label for actor in self.actors.values()]
        shown = ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")
        return shown or f"placement group {self.name or self.group_id[:8]}"

    def changed(self, error: str = "") -> GroupChanged:
        """The news of its state for its owner."""
        nodes = tuple(bundle.node.facts.node_id for bundle in self.bundles if bundle.node is not None)
        return GroupChanged(self.group_id, str(self.state), self.reason, nodes, error)
