"""One start of the whole group, as the controller keeps it in mind."""

from __future__ import annotations

from dataclasses import dataclass, field

from train.consolidator import Consolidator
from train.controller_events import RankPlace
from train.failure import Failure
from train.protocol import Master

__all__ = ["Attempt"]


@dataclass(slots=True)
class Attempt:
    """What the controller knows of one start of the whole group. Times are on the monotonic clock."""

    number: int
    reports: Consolidator
    places: tuple[RankPlace, ...]
    entered: bool = False
    retriable: bool = True
    stop_asked: bool = False
    stopped: bool = False
    decide_at: float | None = None  # RESTARTING: end of the collateral window. SHUTTING_DOWN: end of the time to tear down
    drained_at: float | None = None  # when to stop waiting for the channels' ends
    lost_at: float | None = None  # when to stop waiting for the reason of a channel's end
    ended: dict[int, BaseException | None] = field(default_factory=dict)
    torn_down: set[int] = field(default_factory=set)
    returned: set[int] = field(default_factory=set)
    failures: list[Failure] = field(default_factory=list)
    master: Master | None = None
    asking_master: list[int] = field(default_factory=list)
