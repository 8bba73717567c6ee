"""Pairs the i-th report of every rank. Pure.

A round is complete when each rank has reported, or has returned and so never will. Reports without a checkpoint do not wait for each
other: ``if rank == 0: report(...)`` is fine, and its rounds are complete when the other ranks have returned, or when rank 0 is too far
ahead to be kept waiting for. A report with a checkpoint needs all ranks: a rank that has returned without it is an error.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from train.commit import FileEntry

__all__ = ["MAX_LEAD", "ReportBook", "Round"]

# Records that one rank may be ahead of another before the oldest are taken without the other's half. Bounds the controller's memory for
# scripts in which only rank 0 reports; far above what ranks that report in step ever differ by.
MAX_LEAD = 10_000


@dataclass(slots=True)
class Round:
    """The i-th reports, by rank."""

    index: int
    since: float  # when its first report arrived, on the monotonic clock
    wall: float  # the same for people: names the directory, and is the record's timestamp
    metrics: dict[int, dict[str, Any]] = field(default_factory=dict)
    manifests: dict[int, tuple[FileEntry, ...]] = field(default_factory=dict)
    dir_names: dict[int, str] = field(default_factory=dict)
    warned: bool = False

    @property
    def has_checkpoint(self) -> bool:
        """Whether a rank offers a checkpoint, and so waits."""
        return bool(self.manifests)


class ReportBook:
    """The rounds of one attempt that are not consolidated yet, oldest first."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.rounds: deque[Round] = deque()
        self.returned: set[int] = set()
        self.consolidated = 0  # index of the last round that was popped
        self._counts = [0] * world_size
        self._warned = False

    def add(self, rank: int, metrics: dict[str, Any], manifest: tuple[FileEntry, ...] | None, dir_name: str | None,
            now: float, wall: float) -> int:
        """Enter the next report of a rank; returns its index, from 1."""
        self._counts[rank] += 1
        index = self._counts[rank]
        if index <= self.consolidated:
            return index  # its round was taken without it
        while not self.rounds or self.rounds[-1].index < index:
            self.rounds.append(Round((self.rounds[-1].index if self.rounds else self.consolidated) + 1, now, wall))
        entry = self.rounds[index - self.rounds[0].index]
        entry.metrics[rank] = metrics
        if manifest is not None:
            entry.manifests[rank] = manifest
            if dir_name is not None:
                entry.dir_names[rank] = dir_name
        return index

    def count(self, rank: int) -> int:
        """How many reports of this rank have arrived."""
        return self._counts[rank]

    def missing(self, entry: Round) -> list[int]:
        """Ranks that have not reported in this round."""
        return [rank for rank in range(self.world_size) if rank not in entry.metrics]

    def ready(self) -> Round | None:
        """The oldest round if it is complete. It stays until ``pop``."""
        if not self.rounds:
            return None
        oldest = self.rounds[0]
        if all(rank in self.returned for rank in self.missing(oldest)):
            return oldest
        if len(self.rounds) > MAX_LEAD and not oldest.has_checkpoint:
            return oldest
        return None

    def pop(self) -> Round:
        """Take the oldest round: it is consolidated."""
        taken = self.rounds.popleft()
        self.consolidated = taken.index
        return taken

    def next_warning(self, after_s: float) -> float | None:
        """When the oldest round has waited for ``after_s`` and is worth a warning: one a checkpoint, one an attempt for metrics alone."""
        if not self.rounds or self.rounds[0].warned or (self._warned and not self.rounds[0].has_checkpoint):
            return None
        return self.rounds[0].since + after_s

    def warn(self) -> Round:
        """The round that ``next_warning`` is about; it is not warned about again."""
        self._warned = self.rounds[0].warned = True
        return self.rounds[0]
