"""The life of a run: one table of states, and ``handle(event, now) -> actions``. Pure: no clock, no storage, no processes.

::

    INITIALIZING ─> SCHEDULING ─> RUNNING ─────> SHUTTING_DOWN ─> FINISHED   every rank returned
                     ^  │   │        │                ^    ├────> ERRORED    no restart is left, or a callback failed
                     │  │   └────────┼────────────────┤    └────> ABORTED    Ctrl-C
                     │  v            v                │
                     └─ RESTARTING <─┘ ───────────────┘

RESTARTING: an attempt has failed. Exceptions are held for the collateral window (a process that ended outranks them), the other ranks are
killed, what they had sent is consolidated to its end; only then the policy decides between the next attempt and the end.

The shell performs the actions of one call in order and feeds back what comes of them. StartGang leaves no process behind unless it is
answered by GangReady.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from runtime.errors import HeadLostError
from train.attempt import Attempt
from train.checkpoint_manager import CheckpointManager
from train.consolidator import WARN_S, Consolidator, History
from train.controller_events import (
    Action,
    AfterException,
    CallbackFailed,
    ChannelEnded,
    Event,
    FromRank,
    GangFailed,
    GangReady,
    GangStopped,
    Interrupted,
    RankDied,
    RankPlace,
    RunEnded,
    SaveIndex,
    Say,
    Send,
    Start,
    StartGang,
    StopGang,
    Stored,
    StoreFailed,
    Tick,
    Told,
)
from train.errors import ControllerError, TrainingFailedError, WorkerGroupError, WorkerGroupStartError
from train.failure import Failure, died, first_cause, group_text, lost, raised
from train.failure_policy import FailurePolicy
from train.protocol import (
    Ack,
    AskCheckpoint,
    AskMaster,
    Entered,
    Failed,
    Master,
    Publish,
    Release,
    Report,
    Returned,
    WriteFailed,
    Written,
)

__all__ = ["TRANSITIONS", "ControllerState", "State", "Timing"]


class State(enum.Enum):
    """Where a run is."""

    INITIALIZING = "initializing"
    SCHEDULING = "scheduling"
    RUNNING = "running"
    RESTARTING = "restarting"
    SHUTTING_DOWN = "shutting down"
    FINISHED = "finished"
    ERRORED = "errored"
    ABORTED = "aborted"


TRANSITIONS: dict[State, frozenset[State]] = {
    State.INITIALIZING: frozenset({State.SCHEDULING, State.SHUTTING_DOWN}),
    State.SCHEDULING: frozenset({State.RUNNING, State.RESTARTING, State.SHUTTING_DOWN}),
    State.RUNNING: frozenset({State.RESTARTING, State.SHUTTING_DOWN}),
    State.RESTARTING: frozenset({State.SCHEDULING, State.SHUTTING_DOWN}),
    State.SHUTTING_DOWN: frozenset({State.FINISHED, State.ERRORED, State.ABORTED}),
    State.FINISHED: frozenset(),
    State.ERRORED: frozenset(),
    State.ABORTED: frozenset(),
}
FINAL = frozenset({State.FINISHED, State.ERRORED, State.ABORTED})


@dataclass(frozen=True, slots=True)
class Timing:
    """Durations in seconds, from the runtime's limits."""

    collateral_s: float = 0.2
    drain_s: float = 5.0  # from the end of the processes to the end of what they had sent
    stop_grace_s: float = 5.0
    warn_s: float = WARN_S


class ControllerState:
    """The controller of one ``fit()``.

    ``state`` ends in FINISHED, ERRORED (``error`` is what to raise, ``cause`` its ``__cause__``) or ABORTED. ``return_value`` is the pickle
    of what rank 0 returned.
    """

    def __init__(self, *, world_size: int, run_name: str, policy: FailurePolicy, manager: CheckpointManager, history: History,
                 timing: Timing | None = None) -> None:
        self.state = State.INITIALIZING
        self.error: TrainingFailedError | None = None
        self.cause: BaseException | None = None
        self.return_value: bytes | None = None
        self.manager = manager
        self._world_size = world_size
        self._run_name = run_name
        self._policy = policy
        self._history = history
        self._timing = timing or Timing()
        self._attempt: Attempt | None = None
        self._outcome = State.FINISHED

    @property
    def is_final(self) -> bool:
        """Whether the run has ended."""
        return self.state in FINAL

    def handle(self, event: Event, now: float) -> list[Action]:
        """What to do about an event."""
        if self.is_final:
            return []
        attempt = self._attempt
        number = getattr(event, "attempt", None)
        if number is not None and (attempt is None or number != attempt.number):
            return []
        match event:
            case Start():
                return self._start_attempt()
            case GangReady():
                self._current.places = event.places
                return self._move(State.RUNNING) if self.state is State.SCHEDULING else []
            case GangFailed():
                return self._gang_failed(event, now)
            case FromRank():
                return self._from_rank(event, now)
            case RankDied() | ChannelEnded() | RunEnded() | GangStopped():
                return self._process_event(event, now)
            case Stored() | StoreFailed():
                return self._storage_event(event, now)
            case CallbackFailed():
                error = ControllerError(f"{event.name} failed: {type(event.error).__name__}: {event.error}", event.error)
                return self._shut_down(now, State.ERRORED, 0.0, "a callback failed", error, event.error)
            case Interrupted():
                return self._shut_down(now, State.ABORTED, self._timing.stop_grace_s, "interrupted by Ctrl-C")
            case Told():
                return self._decide(now) if self.state is State.RESTARTING else []
            case Tick():
                return self._tick(now)

    def next_deadline(self) -> float | None:
        """When the next Tick is due; None: only an event changes anything."""
        attempt = self._attempt
        if attempt is None:
            return None
        times = [attempt.decide_at, attempt.drained_at, attempt.lost_at]
        if self.state is State.RUNNING:
            times.append(attempt.reports.next_deadline())
        return min((time for time in times if time is not None), default=None)

    # ---- attempts ----

    @property
    def _current(self) -> Attempt:
        assert self._attempt is not None
        return self._attempt

    def _move(self, state: State) -> list[Action]:
        assert state in TRANSITIONS[self.state], f"illegal transition {self.state.name} -> {state.name}"
        self.state = state
        return []

    def _start_attempt(self) -> list[Action]:
        self._move(State.SCHEDULING)
        self.manager.attempt += 1
        number = self.manager.attempt
        reports = Consolidator(world_size=self._world_size, attempt=number, run_name=self._run_name, manager=self.manager,
                               history=self._history, warn_s=self._timing.warn_s)
        self._attempt = Attempt(number, reports, tuple(RankPlace(f"rank {rank}") for rank in range(self._world_size)))
        latest = self.manager.latest
        return [SaveIndex(self.manager.encode()), StartGang(number, latest.name if latest else None)]

    def _gang_failed(self, event: GangFailed, now: float) -> list[Action]:
        attempt = self._current
        attempt.stop_asked = attempt.stopped = True
        attempt.ended = dict.fromkeys(range(self._world_size))
        self._move(State.RESTARTING)
        attempt.retriable = event.retriable
        lines = str(event.error).splitlines() or [type(event.error).__name__]
        attempt.failures.append(Failure(-1, event.error, f"the ranks did not start: {lines[0].rstrip('.')}", "\n".join(lines), now))
        return self._decide(now)

    def _storage_event(self, event: Stored | StoreFailed, now: float) -> list[Action]:
        if self._attempt is None:
            return []
        if isinstance(event, Stored):
            return self._attempt.reports.stored(event.operation, event.name, now)
        return self._attempt.reports.store_failed(event.operation, event.name, event.error, now)

    # ---- what ranks say ----

    def _from_rank(self, event: FromRank, now: float) -> list[Action]:
        attempt, rank, message = self._current, event.rank, event.message
        match message:
            case Entered():
                attempt.entered = True
                return []
            case Report():
                return attempt.reports.report(rank, message, event.metrics or {}, now, event.wall)
            case Written():
                return attempt.reports.written(rank, message, now)
            case WriteFailed():
                return attempt.reports.write_failed(rank, message, now)
            case AskCheckpoint():
                return attempt.reports.ask(rank, message)
            case Publish() | AskMaster():
                return self._rendezvous(rank, message)
            case Returned():
                return self._returned(rank, message, now)
            case Failed():
                failure = raised(rank, attempt.places[rank].who, event.error, message.class_name, message.text, message.traceback, now)
                return [Send(rank, Ack()), *self._fail(failure, now)]

    def _rendezvous(self, rank: int, message: Publish | AskMaster) -> list[Action]:
        attempt = self._current
        if isinstance(message, Publish):
            attempt.master = Master(message.host, message.port)
        else:
            attempt.asking_master.append(rank)
        if attempt.master is None:
            return []
        asking, attempt.asking_master = attempt.asking_master, []
        return [Send(other, attempt.master) for other in asking]

    def _returned(self, rank: int, message: Returned, now: float) -> list[Action]:
        attempt = self._current
        attempt.returned.add(rank)
        actions = attempt.reports.returned(rank, now)
        if rank == 0:
            self.return_value = message.value
            if message.problem:
                actions.append(Say(f"Result.return_value is None: {message.problem}"))
        if len(attempt.returned) < self._world_size or self.state is not State.RUNNING:
            return actions
        self._move(State.SHUTTING_DOWN)
        attempt.decide_at = now + self._timing.stop_grace_s
        return [*actions, *attempt.reports.close(now), *(Send(other, Release()) for other in range(self._world_size))]

    # ---- what becomes of processes ----

    def _process_event(self, event: RankDied | ChannelEnded | RunEnded | GangStopped, now: float) -> list[Action]:
        attempt = self._current
        match event:
            case RankDied():
                attempt.torn_down.add(event.rank)
                if not event.evidence.wanted:
                    place = attempt.places[event.rank]
                    return self._fail(died(event.rank, place.who, event.evidence, place.log_path, now), now)
            case ChannelEnded():
                attempt.ended.setdefault(event.rank, event.error)
                if self.state is State.RUNNING and event.rank not in attempt.returned and attempt.lost_at is None:
                    attempt.lost_at = now + self._timing.drain_s  # the news of its death is on its way; if not, it counts as lost
            case RunEnded():
                attempt.torn_down.add(event.rank)
            case GangStopped():
                attempt.stopped = True
                attempt.drained_at = now + self._timing.drain_s
        return self._continue(now)

    def _fail(self, failure: Failure, now: float) -> list[Action]:
        attempt = self._current
        if failure.rank in {f.rank for f in attempt.failures}:
            return self._continue(now)
        if self.state is State.RUNNING:
            self._move(State.RESTARTING)
            attempt.lost_at = None
        elif self.state is not State.RESTARTING or attempt.stop_asked:
            return self._continue(now)  # it was being stopped, or had returned
        attempt.failures.append(failure)
        attempt.reports.stopping = attempt.reports.stopping or failure.is_death
        if failure.is_death or attempt.decide_at is None:
            attempt.decide_at = now if failure.is_death else now + self._timing.collateral_s
        return self._continue(now)

    def _tick(self, now: float) -> list[Action]:
        attempt = self._attempt
        if attempt is None:
            return []
        if self.state is State.RUNNING and attempt.lost_at is not None and attempt.lost_at <= now:
            rank, error = next((r, e) for r, e in attempt.ended.items() if r not in attempt.returned)
            return self._fail(lost(rank, attempt.places[rank].who, error, now), now)
        return (attempt.reports.warn(now) if self.state is State.RUNNING else []) + self._continue(now)

    def _continue(self, now: float) -> list[Action]:
        """Whatever is due in RESTARTING and SHUTTING_DOWN."""
        attempt = self._current
        if self.state not in (State.RESTARTING, State.SHUTTING_DOWN):
            return []
        if not attempt.stop_asked:
            torn_down = self.state is State.SHUTTING_DOWN and len(attempt.torn_down) == self._world_size
            if not torn_down and attempt.decide_at is not None and now < attempt.decide_at:
                return []
            grace_s = self._timing.stop_grace_s if self.state is State.SHUTTING_DOWN else 0.0
            return self._stop(grace_s, "the run is over" if self.state is State.SHUTTING_DOWN else f"{attempt.failures[0].what}")
        drained = len(attempt.ended) == self._world_size or (attempt.drained_at is not None and attempt.drained_at <= now)
        if not attempt.stopped or not (drained or self._is_finished):
            return []
        return self._conclude(now) if self.state is State.RESTARTING else self._end(now)

    @property
    def _is_finished(self) -> bool:
        return self.state is State.SHUTTING_DOWN and self._outcome is State.FINISHED  # every rank has said its last word

    def _stop(self, grace_s: float, reason: str) -> list[Action]:
        attempt = self._current
        attempt.stop_asked = attempt.reports.stopping = True
        attempt.decide_at = None
        return [StopGang(grace_s, reason)]

    # ---- ends ----

    def _conclude(self, now: float) -> list[Action]:
        """RESTARTING, and nothing is left of the attempt: keep what it had sent, tell the callbacks, then decide."""
        attempt = self._current
        attempt.drained_at = None
        return [*attempt.reports.close(now), AfterException({f.rank: f.error for f in attempt.failures})]

    def _decide(self, now: float) -> list[Action]:
        attempt = self._current
        first = first_cause(attempt.failures, self._timing.collateral_s)
        head_lost = next((error for error in attempt.ended.values() if isinstance(error, HeadLostError)), None)
        if head_lost is not None:
            return self._shut_down(now, State.ERRORED, 0.0, "", TrainingFailedError(str(head_lost)), head_lost)
        verdict = self._policy.decide(entered=attempt.entered, retriable=attempt.retriable, now=now)
        if verdict.retry:
            latest = self.manager.latest
            resuming = f"resuming from {latest.name}" if latest else "starting over, for there is no checkpoint yet"
            text = f"attempt {self.manager.attempt + 1}: {first.what}; {resuming} ({verdict.text})"
            return [Say(text), *self._start_attempt()]
        self.cause = first.error
        if first.rank < 0:
            self.error = WorkerGroupStartError(f"the ranks did not start ({verdict.text}): {first.detail}")
        else:
            failures = {f.rank: f.error for f in sorted(attempt.failures, key=lambda f: f.rank)}
            self.error = WorkerGroupError(f"{group_text(attempt.failures, first)}\n({verdict.text})", failures)
        self._outcome = State.ERRORED
        self._move(State.SHUTTING_DOWN)
        return self._end(now)

    def _shut_down(self, now: float, outcome: State, grace_s: float, reason: str, error: TrainingFailedError | None = None,
                   cause: BaseException | None = None) -> list[Action]:
        """An end that was asked for from outside, in any state."""
        self._outcome, self.error, self.cause = outcome, error, cause
        attempt = self._attempt
        is_empty = attempt is None or attempt.stopped or self.state is State.SCHEDULING
        if self.state is not State.SHUTTING_DOWN:
            self._move(State.SHUTTING_DOWN)
        if attempt is None or is_empty:
            return self._end(now)
        return [] if attempt.stop_asked else self._stop(grace_s, reason)

    def _end(self, now: float) -> list[Action]:
        """SHUTTING_DOWN, and no process is left."""
        actions = self._attempt.reports.close(now) if self._attempt is not None else []
        self._move(self._outcome)
        return [*actions, SaveIndex(self.manager.encode())]
