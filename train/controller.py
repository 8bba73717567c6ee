"""The shell of the controller: runs on the thread that called ``fit()``, performs what ``controller_state`` asks for, decides nothing.

It sleeps in one queue, which the runtime's callbacks fill, until an event or the next deadline; nothing is polled.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import runtime
from runtime.errors import HeadLostError, HeadwayError, PlacementError, SerializationError
from train.callback import RunContext
from train.checkpoint import Checkpoint
from train.checkpoint_manager import INDEX_FILE, CheckpointManager
from train.commit import remove_checkpoint, write_marker
from train.consolidator import History
from train.controller_events import (
    Action,
    AfterException,
    Begin,
    CallbackFailed,
    Commit,
    Consolidate,
    Event,
    GangFailed,
    GangReady,
    GangStopped,
    Interrupted,
    Operation,
    Remove,
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
from train.controller_state import ControllerState, State, Timing
from train.errors import StorageError
from train.failure_policy import FailurePolicy
from train.metrics import METRICS_FILE, MetricsLog
from train.rank_logs import keep_logs
from train.result import Result
from train.storage import Storage
from train.worker_group import Group, Incoming, incoming

__all__ = ["Controller", "RunSpec"]


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One ``fit()``: what the controller needs beside its ranks. ``resume_from``: what get_checkpoint() gives while the run has none."""

    world_size: int
    max_failures: int
    context: RunContext
    callbacks: tuple[Any, ...]
    storage: Storage
    is_new: bool
    manager: CheckpointManager
    resume_from: Checkpoint | None


class Controller:
    """One ``fit()``. ``make_group`` makes the ranks' group and is given where events go."""

    def __init__(self, spec: RunSpec, make_group: Callable[[Callable[[Incoming | Event], None]], Group],
                 say: Callable[[str], None]) -> None:
        self._spec = spec
        self._storage = spec.storage
        self._say = say
        self._queue: queue.SimpleQueue[Incoming | Event] = queue.SimpleQueue()
        self._group = make_group(self._queue.put)
        self._log = MetricsLog(spec.storage, is_new=spec.is_new)
        self._metrics: dict[str, Any] | None = self._log.last
        latest, last, now = spec.manager.latest, self._log.last or {}, time.monotonic()
        earlier_s = last.get("time_total_s", 0.0)
        history = History(max(self._log.count, latest.report_index if latest else 0),
                          earlier_s if isinstance(earlier_s, int | float) else 0.0, now, now)
        limits = runtime.LIMITS
        timing = Timing(collateral_s=limits.collateral_s, drain_s=limits.death_notice_s, stop_grace_s=limits.stop_grace_s)
        self._state = ControllerState(world_size=spec.world_size, run_name=spec.storage.run_name, policy=FailurePolicy(spec.max_failures),
                                      manager=spec.manager, history=history, timing=timing)
        self._attempt = 0
        self._has_ranks = False  # or may have: Ctrl-C can come between a start and the news of it
        self._num_interrupts = 0
        self._saved_index = b""

    def run(self) -> Result:
        """Until the end.

        Raises: TrainingFailedError: as ``controller_state`` decided. KeyboardInterrupt: Ctrl-C; no process of the run is left.
        """
        with self.closing():
            event: Incoming | Event = Start()
            while True:
                try:
                    self.feed(event)
                    if self._state.is_final:
                        break
                    event = self._next_event()
                except KeyboardInterrupt:
                    event = self._interrupted()
        return self.result()

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """Whatever happens inside: no process is left, logs and metrics are kept."""
        try:
            yield
        finally:
            try:
                if self._has_ranks:
                    with contextlib.suppress(HeadwayError, TimeoutError):
                        self._group.stop(0.0, "fit() was left")
                with contextlib.suppress(HeadLostError):
                    keep_logs(self._storage, self._group.logs(), self._say)
                with self._warned():
                    self._log.upload()
            finally:
                self._log.close()

    def feed(self, event: Incoming | Event) -> None:
        """Handle an event, perform what follows, and so on until nothing does."""
        todo: deque[Event] = deque([incoming(event) if isinstance(event, Incoming) else event])
        while todo:
            actions = self._state.handle(todo.popleft(), time.monotonic())
            self._publish()
            for action in actions:
                todo += self._perform(action)

    def _publish(self) -> None:
        """What ``headway status`` shows of this run."""
        spec, latest = self._spec, self._spec.manager.latest
        runtime.publish_run(self._storage.run_name, self._state.state.value, is_over=self._state.is_final, attempt=spec.manager.attempt,
                            world_size=spec.world_size, metrics=self._metrics, checkpoint=latest.name if latest else "",
                            directory=self._storage.path)

    def result(self) -> Result:
        """What the run ended with, or its error."""
        if self._state.state is State.ABORTED:
            raise KeyboardInterrupt
        if isinstance(self._state.cause, HeadLostError):
            raise self._state.cause  # not a failure of the training: what was committed is whole, and the run can be continued
        if self._state.error is not None:
            raise self._state.error from self._state.cause
        value = self._state.return_value
        return Result.of_run(self._storage, self._spec.manager, self._metrics, runtime.loads(value) if value is not None else None)

    def _next_event(self) -> Incoming | Event:
        deadline = self._state.next_deadline()
        try:
            return self._queue.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return Tick()

    def _interrupted(self) -> Event:
        """Ctrl-C. A second one does not wait for the ranks' grace."""
        self._num_interrupts += 1
        if self._num_interrupts > 1:
            self._say("interrupted again: killing the ranks.")
            self._group.stop(0.0, "interrupted twice by Ctrl-C")
            return GangStopped(self._attempt)
        self._say(f"interrupted: asking the ranks to stop, killing them after {runtime.LIMITS.stop_grace_s:g} s.")
        return Interrupted()

    # ---- actions ----

    def _perform(self, action: Action) -> list[Event]:
        match action:
            case StartGang():
                return self._start(action)
            case StopGang():
                return self._stop(action)
            case Send():
                self._group.send(action.rank, action.message)
            case SaveIndex() | Begin() | Commit() | Remove():
                return self._store(action)
            case Consolidate():
                return self._consolidate(action)
            case AfterException():
                failed = self._call_back("after_exception", worker_exceptions=action.failures)
                return [failed] if failed else [Told()]
            case Say():
                self._say(action.text)
        return []

    def _start(self, action: StartGang) -> list[Event]:
        self._attempt = action.attempt
        checkpoint = self._storage.checkpoint(action.checkpoint) if action.checkpoint is not None else self._spec.resume_from
        self._has_ranks = True
        try:
            return [GangReady(action.attempt, self._group.start(action.attempt, checkpoint))]
        except KeyboardInterrupt:
            return [Interrupted()]
        except HeadwayError as exc:
            self._has_ranks = False
            return [GangFailed(action.attempt, exc, retriable=not isinstance(exc, HeadLostError | PlacementError | SerializationError))]

    def _stop(self, action: StopGang) -> list[Event]:
        try:
            self._group.stop(action.grace_s, action.reason)
        except KeyboardInterrupt:
            self._group.stop(0.0, "interrupted by Ctrl-C")
            self._has_ranks = False
            return [Interrupted(), GangStopped(self._attempt)]
        except (HeadwayError, TimeoutError) as exc:  # the head is lost, or a node does not answer; they see to their processes themselves
            self._say(f"warning: the end of the ranks was not confirmed: {exc}")
        self._has_ranks = False
        return [GangStopped(self._attempt)]

    def _store(self, action: SaveIndex | Begin | Commit | Remove) -> list[Event]:
        operation: Operation = "index"
        name = INDEX_FILE
        try:
            match action:
                case SaveIndex():
                    if action.data != self._saved_index:
                        self._storage.replace(INDEX_FILE, action.data)
                        self._saved_index = action.data
                case Begin():
                    operation, name = "begin", action.name
                    self._storage.replace(INDEX_FILE, action.index)
                    self._saved_index = action.index
                    if action.leftover:
                        remove_checkpoint(self._storage, name)
                    self._storage.make_dir(name)
                case Commit():
                    operation, name = "commit", action.name
                    write_marker(self._storage, name, action.marker)
                case Remove():
                    operation, name = "remove", action.name
                    remove_checkpoint(self._storage, name)
        except FileExistsError:
            return [StoreFailed(operation, name, StorageError(f"{self._storage.at(name)!r} exists already and is none of this run's."))]
        except StorageError as exc:
            return [StoreFailed(operation, name, exc)]
        return [Stored(operation, name)]

    def _consolidate(self, action: Consolidate) -> list[Event]:
        self._metrics = action.record
        with self._warned():
            self._log.append(action.record)
            if action.checkpoint is not None:
                self._log.upload()
        checkpoint = self._storage.checkpoint(action.checkpoint) if action.checkpoint is not None else None
        failed = self._call_back("after_report", metrics=action.metrics, checkpoint=checkpoint)
        return [failed] if failed else []

    def _call_back(self, name: str, **arguments: Any) -> CallbackFailed | None:
        for callback in self._spec.callbacks:
            function = getattr(callback, name, None)
            if function is None:
                continue
            try:
                function(run_context=self._spec.context, **arguments)
            except Exception as exc:  # noqa: BLE001 - the user's code; its exception ends the run as a ControllerError
                return CallbackFailed(f"the callback {type(callback).__name__}.{name}", exc)
        return None

    @contextlib.contextmanager
    def _warned(self) -> Iterator[None]:
        """Metrics that can't be stored are no reason to end a training."""
        try:
            yield
        except StorageError as exc:
            self._say(f"warning: {METRICS_FILE} is not complete: {exc}")
