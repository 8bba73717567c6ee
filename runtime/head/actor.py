"""An actor as the head sees it, and how it lives; and the batch: the actors of one ``CreateActors``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

from runtime.head.events import Buffers
from runtime.head.lifecycle import Table
from runtime.head.resources import Amounts, Lease, Ledger
from runtime.wire.messages import ActorSpec, ActorStatus, CreateActors, ExitEvidence, StartSpec

if TYPE_CHECKING:
    from runtime.head.group import Group
    from runtime.head.job import Owner
    from runtime.head.node import Node

__all__ = ["ACTOR_TABLE", "Actor", "ActorState", "Batch", "Stop"]


class ActorState(StrEnum):
    """States of an actor."""

    PENDING = "PENDING"
    STARTING = "STARTING"
    READY = "READY"
    STOPPING = "STOPPING"
    DEAD = "DEAD"


ACTOR_TABLE: Table[ActorState] = {
    ActorState.PENDING: frozenset({ActorState.STARTING, ActorState.DEAD}),
    ActorState.STARTING: frozenset({ActorState.READY, ActorState.STOPPING, ActorState.DEAD}),
    ActorState.READY: frozenset({ActorState.STOPPING, ActorState.DEAD}),
    ActorState.STOPPING: frozenset({ActorState.DEAD}),
    ActorState.DEAD: frozenset({ActorState.PENDING}),  # the next incarnation, while restarts remain
}


@dataclass(frozen=True, slots=True)
class Stop:
    """Somebody's wish that an actor ends, as ``StopActors`` carries it."""

    grace_s: float
    reason: str
    kind: str = "killed"
    sigterm: bool = False


@dataclass(slots=True, eq=False)
class Batch:
    """The actors of one ``CreateActors``. ``buffers``, the user's class and arguments, are kept only until they were sent to the nodes."""

    message: CreateActors
    buffers: Buffers
    actors: list[Actor] = field(default_factory=list)
    first_death: Actor | None = None

    @property
    def gang(self) -> bool:
        """Whether its actors become ready and die together."""
        return self.message.gang


@dataclass(slots=True, eq=False)
class Actor:
    """One incarnation of an actor. ``up``: its constructor returned; a gang's members are READY only when all are up."""

    table: ClassVar[Mapping[Any, frozenset[Any]]] = ACTOR_TABLE

    spec: ActorSpec
    asked: Amounts
    group: Group
    batch: Batch
    namespace: str
    incarnation: int = 1
    state: ActorState = ActorState.PENDING
    node: Node | None = None
    lease: Lease | None = None
    source: Ledger | None = None  # what the lease was taken from
    visible_gpu_ids: tuple[int, ...] = ()
    up: bool = False
    pid: int = 0
    unix_path: str = ""
    log_path: str = ""
    stop: Stop | None = None
    evidence: ExitEvidence | None = None
    watchers: dict[Owner, None] = field(default_factory=dict)  # who asked by FindActor, in that order

    def __str__(self) -> str:
        return f"actor {self.spec.label} ({self.spec.actor_id[:8]}, incarnation {self.incarnation})"

    @property
    def id(self) -> str:
        """Its actor id."""
        return self.spec.actor_id

    @property
    def gpu_ids(self) -> tuple[int, ...]:
        """GPUs of its own."""
        return self.lease.gpu_ids if self.lease else ()

    def start_spec(self) -> StartSpec:
        """What its node has to know to start it."""
        spec = self.spec
        return StartSpec(spec.actor_id, self.incarnation, spec.name, spec.label, spec.class_name, spec.index, spec.resources, self.gpu_ids,
                         self.visible_gpu_ids)

    def status(self) -> ActorStatus:
        """The actor as messages show it."""
        return ActorStatus(self.id, self.incarnation, str(self.state), self.node.facts.node_id if self.node else "", self.pid,
                           self.unix_path, self.log_path, self.gpu_ids, self.visible_gpu_ids, self.evidence)

    def give_back(self) -> None:
        """Return what it drew from its bundle; called when its process is gone."""
        if self.lease is not None and self.source is not None:
            self.source.release(self.lease)
            self.source = None
