"""A job: one driver and everything that it and its actors made, how it lives, and who owns what in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

from runtime.head.lifecycle import Table
from runtime.wire.messages import Message, OpenJob

if TYPE_CHECKING:
    from runtime.head.group import Group

__all__ = ["DRIVER", "JOB_TABLE", "Job", "JobState", "Owner"]

DRIVER = ""  # the id that the driver has as an owner


class JobState(StrEnum):
    """States of a job."""

    OPEN = "OPEN"
    CLOSING = "CLOSING"  # its groups are being removed, then the nodes sweep
    CLOSED = "CLOSED"


JOB_TABLE: Table[JobState] = {
    JobState.OPEN: frozenset({JobState.CLOSING}),
    JobState.CLOSING: frozenset({JobState.CLOSED}),
    JobState.CLOSED: frozenset(),
}


@dataclass(slots=True, eq=False)
class Owner:
    """A client of the head within a job, its driver or one of its actors, over all its connections.

    ``missed``: last news of actors and groups from while it had none. ``ended``: why nothing is taken from it any more.
    """

    job: Job
    actor_id: str
    conn: int | None = None
    missed: list[Message] = field(default_factory=list)
    watching: set[str] = field(default_factory=set)  # actor ids that it asked for by FindActor
    ended: str = ""


@dataclass(slots=True, eq=False)
class Job:
    """One driver's work. ``owners``: by actor id, DRIVER being the driver."""

    table: ClassVar[Mapping[Any, frozenset[Any]]] = JOB_TABLE

    opened: OpenJob
    same_host: bool
    state: JobState = JobState.OPEN
    owners: dict[str, Owner] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    preload: tuple[str, ...] = ()
    lost_at: float | None = None  # when the driver's connection closed
    lease_s: float = 0.0  # how long it may stay closed
    close_by: float | None = None  # while CLOSING: when who waits is answered at the latest
    sweeping: set[str] | None = None  # node ids that have not yet swept; None before that
    waiters: list[tuple[int, int]] = field(default_factory=list)  # (connection, call id) of CloseJob

    def __str__(self) -> str:
        return f"job {self.job_id[:8]} (driver pid {self.opened.pid})"

    @property
    def job_id(self) -> str:
        """Its id."""
        return self.opened.job_id

    @property
    def namespace(self) -> str:
        """Where its actors' names live: without one the job is its own, as in Ray."""
        return self.opened.namespace or self.job_id

    def deadline(self) -> float | None:
        """When the lease of its lost driver, or the wait for its end, is over."""
        if self.state is JobState.CLOSING:
            return self.close_by
        return None if self.lost_at is None else self.lost_at + self.lease_s
