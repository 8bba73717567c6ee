"""What the controller's state is told (events), and what it asks of its shell (actions)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from train.commit import Marker
from train.protocol import ToController, ToRank

if TYPE_CHECKING:
    from runtime import ExitEvidence

__all__ = [
    "Action", "AfterException", "Begin", "CallbackFailed", "ChannelEnded", "Commit", "Consolidate", "Event", "FromRank", "GangFailed",
    "GangReady", "GangStopped", "Interrupted", "RankDied", "RankPlace", "Remove", "RunEnded", "SaveIndex", "Say", "Send", "Start",
    "StartGang", "StopGang", "StoreFailed", "Stored", "Tick", "Told",
]

Operation = Literal["begin", "commit", "remove", "index", "metrics"]


# ---- events; those with an attempt are ignored unless it is the current one (F1) ----


@dataclass(frozen=True, slots=True)
class Start:
    """The storage is open; begin."""


@dataclass(frozen=True, slots=True)
class RankPlace:
    """A rank for people: "rank 0 on node-a (pid 4711)", and where its output can be read when the run is over."""

    who: str
    log_path: str = ""


@dataclass(frozen=True, slots=True)
class GangReady:
    """All ranks run; their places by rank."""

    attempt: int
    places: tuple[RankPlace, ...]


@dataclass(frozen=True, slots=True)
class GangFailed:
    """The ranks could not be placed or started; none is left. ``retriable``: another try could succeed."""

    attempt: int
    error: BaseException
    retriable: bool


@dataclass(frozen=True, slots=True)
class FromRank:
    """A message of a rank. ``metrics``: those of a Report, unpickled. ``wall``: the time of its arrival, for people."""

    attempt: int
    rank: int
    message: ToController
    metrics: dict[str, Any] | None = None
    error: BaseException | None = None  # of Failed, unpickled
    wall: float = 0.0


@dataclass(frozen=True, slots=True)
class RankDied:
    """The process of a rank is gone."""

    attempt: int
    rank: int
    evidence: ExitEvidence


@dataclass(frozen=True, slots=True)
class ChannelEnded:
    """Nothing more will come from this rank; all it sent was told before."""

    attempt: int
    rank: int
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The rank has torn down (or the call of its run failed)."""

    attempt: int
    rank: int


@dataclass(frozen=True, slots=True)
class GangStopped:
    """No process of the attempt is left."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Stored:
    """An action on the storage is done."""

    operation: Operation
    name: str


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """An action on the storage failed."""

    operation: Operation
    name: str
    error: BaseException


@dataclass(frozen=True, slots=True)
class CallbackFailed:
    """A callback of the user raised."""

    name: str
    error: BaseException


@dataclass(frozen=True, slots=True)
class Told:
    """The callbacks have heard of the failures."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Ctrl-C."""


@dataclass(frozen=True, slots=True)
class Tick:
    """``next_deadline`` has passed."""


Event = (Start | GangReady | GangFailed | FromRank | RankDied | ChannelEnded | RunEnded | GangStopped | Stored | StoreFailed
         | CallbackFailed | Told | Interrupted | Tick)


# ---- actions ----


@dataclass(frozen=True, slots=True)
class StartGang:
    """Place and start the ranks. ``checkpoint``: name of the one to go on from; None: what the user gave, if anything."""

    attempt: int
    checkpoint: str | None


@dataclass(frozen=True, slots=True)
class StopGang:
    """End all ranks: a message, ``grace_s``, SIGKILL."""

    grace_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Send:
    """To one rank."""

    rank: int
    message: ToRank


@dataclass(frozen=True, slots=True)
class SaveIndex:
    """Write the index file."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Begin:
    """Make the directory of a checkpoint, after writing the index that lists it as begun.

    ``leftover``: what is there of this name is ours and was never committed; it is replaced.
    """

    name: str
    index: bytes
    leftover: bool = False


@dataclass(frozen=True, slots=True)
class Commit:
    """Write the marker."""

    name: str
    marker: Marker


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete the directory of a checkpoint."""

    name: str


@dataclass(frozen=True, slots=True)
class Consolidate:
    """Append the record and call the callbacks. ``metrics``: as reported, by rank."""

    record: dict[str, Any]
    metrics: list[dict[str, Any]]
    checkpoint: str | None


@dataclass(frozen=True, slots=True)
class AfterException:
    """Call the callbacks; answered with Told."""

    failures: dict[int, BaseException]


@dataclass(frozen=True, slots=True)
class Say:
    """A line for the user."""

    text: str


Action = StartGang | StopGang | Send | SaveIndex | Begin | Commit | Remove | Consolidate | AfterException | Say
