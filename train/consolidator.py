"""From the reports of one attempt's ranks to records and committed checkpoints. Pure: messages in, actions out.

A round without a checkpoint becomes a record at once. A round with one goes: directory named and begun; each file given to one rank; all
ranks have written; marker; index; retention; the ranks go on. Whatever fails on the way is removed again and the ranks' report() raises;
the metrics of the round are kept in any case.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from train.checkpoint_manager import CheckpointManager, CheckpointRecord
from train.commit import Marker, assign_files, marked_files
from train.consolidation import ReportBook, Round
from train.controller_events import Action, Begin, Commit, Consolidate, Operation, Remove, SaveIndex, Say, Send
from train.errors import ReportError
from train.metrics import autofill
from train.protocol import AskCheckpoint, Committed, Latest, Place, Refused, Report, WriteFailed, Written
from train.storage import RESERVED_NAMES, FileFacts

__all__ = ["Consolidator", "History"]

# How long a round may lack a half before the user is told which ranks it lacks.
WARN_S = 60.0


@dataclass(slots=True)
class History:
    """What records need to know of those before them; spans the attempts of one ``fit()``.

    Args: iteration: of the last record, also of earlier fits of this run. earlier_s: training time of earlier fits.
    """

    iteration: int
    earlier_s: float
    started: float
    previous: float

    def record(self, metrics: dict[str, Any], checkpoint: str | None, now: float, wall: float) -> dict[str, Any]:
        """The record that would come next."""
        since = now - self.started
        return autofill(metrics, iteration=self.iteration + 1, wall=wall, this_iter_s=now - self.previous,
                        total_s=self.earlier_s + since, restored_s=since, checkpoint=checkpoint)

    def advance(self, now: float) -> None:
        """That record was taken."""
        self.iteration += 1
        self.previous = now


@dataclass(slots=True)
class _Pending:
    """A checkpoint on its way."""

    round: Round
    name: str
    files: dict[int, tuple[str, ...]]
    written: dict[int, dict[str, FileFacts]] = field(default_factory=dict)
    problem: str = ""  # the first rank that could not write, and why
    completed: float = 0.0


class Consolidator:
    """One attempt's reports. ``stopping``: its ranks are being ended, so that no new checkpoint can be written."""

    def __init__(self, *, world_size: int, attempt: int, run_name: str, manager: CheckpointManager, history: History,
                 warn_s: float = WARN_S) -> None:
        self._book = ReportBook(world_size)
        self._attempt = attempt
        self._run_name = run_name
        self._manager = manager
        self._history = history
        self._warn_s = warn_s
        self._pending: _Pending | None = None
        self._asking: dict[int, int] = {}
        self._said_unrecorded = False
        self.stopping = False

    # ---- what ranks say ----

    def report(self, rank: int, report: Report, metrics: dict[str, Any], now: float, wall: float) -> list[Action]:
        """A report has arrived."""
        index = self._book.add(rank, metrics, report.manifest, report.dir_name, now, wall)
        if index <= self._book.consolidated and report.manifest is not None:
            return [Send(rank, Refused("ReportError", f"rank {rank}'s report {index} comes too late: the other ranks are at report "
                                                      f"{self._book.consolidated}, and it has a checkpoint."))]
        return self._advance(now)

    def written(self, rank: int, message: Written, now: float) -> list[Action]:
        """A rank has stored its files."""
        return self._answered(rank, message.files, "", now)

    def write_failed(self, rank: int, message: WriteFailed, now: float) -> list[Action]:
        """A rank could not store its files."""
        return self._answered(rank, {}, message.text, now)

    def ask(self, rank: int, message: AskCheckpoint) -> list[Action]:
        """A rank wants to know the latest checkpoint after one of its reports."""
        self._asking[rank] = message.index
        return self._answers()

    def returned(self, rank: int, now: float) -> list[Action]:
        """A rank will not report any more."""
        self._book.returned.add(rank)
        return self._advance(now)

    # ---- what the storage says ----

    def stored(self, operation: Operation, name: str, now: float) -> list[Action]:
        """An action of ours is done."""
        if operation == "remove":
            self._manager.removed(name)
        pending = self._pending
        if pending is None or pending.name != name:
            return []
        if operation == "begin":
            return [Send(rank, Place(name, files)) for rank, files in pending.files.items()]
        return self._committed(pending) + self._advance(now) if operation == "commit" else []

    def store_failed(self, operation: Operation, name: str, error: BaseException, now: float) -> list[Action]:
        """An action of ours failed."""
        pending = self._pending
        if pending is None or pending.name != name or operation not in ("begin", "commit"):
            return [Say(f"warning: {name} was not {'removed' if operation == 'remove' else 'written'}: {error}")]
        text = f"the checkpoint {name} could not be stored: {error}"
        if operation == "begin":
            self._manager.removed(name)  # nothing of ours is there
            return self._refuse(pending.round, "CheckpointError", text, now) + self._advance(now)
        self._manager.abandon(name)
        return [Remove(name), *self._refuse(pending.round, "CheckpointError", text, now), *self._advance(now)]

    # ---- time ----

    def next_deadline(self) -> float | None:
        """When ``warn`` has something to say."""
        return self._book.next_warning(self._warn_s)

    def warn(self, now: float) -> list[Action]:
        """Name the ranks that a round has been lacking for long."""
        due = self._book.next_warning(self._warn_s)
        if due is None or due > now:
            return []
        entry = self._book.warn()
        here, missing = sorted(entry.metrics), self._book.missing(entry)
        if not missing:
            return [Say(f"ranks {_list(sorted(entry.manifests))} have been storing the checkpoint of report {entry.index} for "
                        f"{now - entry.since:.0f} s.")]
        waiting = "which wait for them in report(checkpoint=...)" if entry.has_checkpoint else "whose records wait for theirs"
        return [Say(f"report {entry.index} lacks ranks {_list(missing)} since {now - entry.since:.0f} s; it came from ranks {_list(here)}, "
                    f"{waiting}. Every rank must call report() equally often.")]

    def close(self, now: float) -> list[Action]:
        """The attempt is over: remove the checkpoint on its way, and keep the metrics that arrived (as many as rank 0's)."""
        actions: list[Action] = []
        if self._pending is not None:
            self._manager.abandon(self._pending.name)
            actions.append(Remove(self._pending.name))
            self._pending = None
        while self._book.rounds:
            actions += self._take(self._book.pop(), None, now)
        return actions

    # ---- rounds ----

    def _advance(self, now: float) -> list[Action]:
        actions: list[Action] = []
        while self._pending is None and (entry := self._book.ready()) is not None:
            missing = self._book.missing(entry)
            if not entry.has_checkpoint:
                actions += self._take(self._book.pop(), None, now)
            elif self.stopping:
                actions += self._refuse(entry, "CheckpointError", "the ranks are being stopped", now)
            elif missing:
                actions += self._refuse(entry, "ReportError", self._returned_early(entry, missing), now)
            else:
                actions += self._begin(entry, now)
        return actions + self._answers()

    def _returned_early(self, entry: Round, missing: list[int]) -> str:
        counts = ", ".join(f"rank {rank} after {self._book.count(rank)}" for rank in missing)
        return (f"report {entry.index} of ranks {_list(sorted(entry.manifests))} has a checkpoint, which needs a report of every rank, but "
                f"training functions have returned ({counts} reports). Call report() equally often on every rank.")

    def _begin(self, entry: Round, now: float) -> list[Action]:
        asked = sorted(set(entry.dir_names.values()))
        if len(asked) > 1:
            return self._refuse(entry, "ReportError", f"the ranks gave report {entry.index} different checkpoint_dir_names: {asked}.", now)
        name = asked[0] if asked else self._new_name(entry.wall)
        if self._manager.knows(name) or name in RESERVED_NAMES:
            why = "is the name of a committed checkpoint" if self._manager.knows(name) else "is a name that the run directory needs"
            return self._refuse(entry, "CheckpointError", f"checkpoint_dir_name={name!r} {why}; choose another one.", now)
        try:
            files = assign_files(entry.manifests)
        except ReportError as exc:
            return self._refuse(entry, "ReportError", str(exc), now)
        leftover = name in self._manager.begun or name in self._manager.removing
        self._manager.begin(name)
        self._pending = _Pending(entry, name, files)
        return [Begin(name, self._manager.encode(), leftover)]

    def _new_name(self, wall: float) -> str:
        moment = round(wall * 1e6)
        while True:
            name = datetime.fromtimestamp(moment // 10**6).replace(microsecond=moment % 10**6).strftime("checkpoint_%Y-%m-%d_%H-%M-%S.%f")
            if not (self._manager.knows(name) or name in self._manager.begun or name in self._manager.removing):
                return name
            moment += 1

    def _answered(self, rank: int, files: dict[str, FileFacts], problem: str, now: float) -> list[Action]:
        pending = self._pending
        if pending is None or rank not in pending.files:
            return []
        pending.written[rank] = files
        if problem and not pending.problem:
            pending.problem = f"rank {rank} could not store its part of the checkpoint {pending.name}: {problem}"
        if len(pending.written) < len(pending.files):
            return []
        if pending.problem:
            self._manager.abandon(pending.name)
            return [Remove(pending.name), *self._refuse(pending.round, "CheckpointError", pending.problem, now), *self._advance(now)]
        pending.completed = now
        return [Commit(pending.name, Marker(run=self._run_name, attempt=self._attempt, report_index=self._history.iteration + 1,
                                            metrics=self._record(pending), files=marked_files(pending.written)))]

    def _record(self, pending: _Pending) -> dict[str, Any]:
        return self._history.record(pending.round.metrics.get(0, {}), pending.name, pending.completed, pending.round.wall)

    def _committed(self, pending: _Pending) -> list[Action]:
        record = self._record(pending)
        doomed = self._manager.commit(CheckpointRecord(pending.name, self._history.iteration + 1, self._attempt, record))
        actions: list[Action] = [SaveIndex(self._manager.encode()), *(Remove(name) for name in doomed)]
        actions += [Send(rank, Committed(pending.name)) for rank in pending.files]
        actions += self._take(self._book.pop(), pending.name, pending.completed)
        warning = self._manager.score_warning(record)
        if warning is None and not any(pending.files.values()):
            warning = f"the checkpoint {pending.name} has no files: each rank's directory was empty."
        self._pending = None
        return [*actions, Say(warning)] if warning else actions

    def _refuse(self, entry: Round, error: str, text: str, now: float) -> list[Action]:
        self._pending = None
        self._book.pop()
        return [*(Send(rank, Refused(error, text)) for rank in sorted(entry.manifests)), *self._take(entry, None, now)]

    def _take(self, entry: Round, checkpoint: str | None, now: float) -> list[Action]:
        """The record of a round that is out of the book. Rank 0's metrics are the record's."""
        if 0 not in entry.metrics:
            if self._said_unrecorded:
                return []
            self._said_unrecorded = True
            return [Say(f"rank 0 made {self._book.count(0)} reports, ranks {_list(sorted(entry.metrics))} more; these are not recorded.")]
        record = self._history.record(entry.metrics[0], checkpoint, now, entry.wall)
        self._history.advance(now)
        return [Consolidate(record, [entry.metrics.get(rank, {}) for rank in range(self._book.world_size)], checkpoint)]

    def _answers(self) -> list[Action]:
        latest = self._manager.latest
        ready = [rank for rank, index in self._asking.items() if index <= self._book.consolidated]
        for rank in ready:
            del self._asking[rank]
        return [Send(rank, Latest(latest.name if latest else None)) for rank in ready]


def _list(ranks: list[int]) -> str:
    """``0, 1, 2 … 127`` when there are many."""
    return ", ".join(map(str, ranks)) if len(ranks) <= 8 else f"{', '.join(map(str, ranks[:7]))} … {ranks[-1]} ({len(ranks)} of them)"
