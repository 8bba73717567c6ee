from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import ActorDiedError, ActorStartError, HeadLostError, InfeasibleError
from train.checkpoint_manager import CheckpointManager, CheckpointRecord
from train.commit import FileEntry
from train.config import CheckpointConfig
from train.consolidator import History
from train.controller_events import (
    AfterException,
    Begin,
    CallbackFailed,
    ChannelEnded,
    Consolidate,
    FromRank,
    GangFailed,
    GangReady,
    GangStopped,
    Interrupted,
    RankDied,
    Remove,
    RunEnded,
    Say,
    Send,
    Start,
    StartGang,
    StopGang,
    Stored,
    Tick,
    Told,
)
from train.controller_state import TRANSITIONS, ControllerState, State, Timing
from train.errors import ControllerError, WorkerGroupError, WorkerGroupStartError
from train.failure_policy import FailurePolicy
from train.protocol import Ack, AskMaster, Entered, Failed, Master, Publish, Release, Report, Returned

BOOM = Failed(b"", "ValueError", "boom", "Traceback\nValueError: boom")


@dataclass
class FakeEvidence:
    kind: str = "signal"
    code: int = 0
    signal: str = "SIGKILL"
    detail: str = ""
    log_tail: tuple[str, ...] = ()
    wanted: bool = False
    first: bool = True


class Run:
    """A state, and what it asked for so far."""

    def __init__(self, max_failures: int = 0) -> None:
        self.manager = CheckpointManager(CheckpointConfig())
        self.state = ControllerState(world_size=2, run_name="run", policy=FailurePolicy(max_failures), manager=self.manager,
                                     history=History(0, 0.0, 0.0, 0.0), timing=Timing(collateral_s=0.2, drain_s=5.0, stop_grace_s=5.0))
        self.actions: list[Any] = []
        self.now = 0.0

    def feed(self, *events: Any) -> list[Any]:
        new: list[Any] = []
        for event in events:
            new += self.state.handle(event, self.now)
        self.actions += new
        return new

    def rank(self, rank: int, message: Any, attempt: int = 1, **fields: Any) -> list[Any]:
        return self.feed(FromRank(attempt, rank, message, **fields))

    def tick(self, after_s: float = 0.0) -> list[Any]:
        deadline = self.state.next_deadline()
        assert deadline is not None
        self.now = max(self.now + after_s, deadline)
        return self.feed(Tick())

    def all_gone(self, attempt: int = 1) -> list[Any]:
        return self.feed(GangStopped(attempt), *(ChannelEnded(attempt, rank, None) for rank in range(2)))


@pytest.fixture
def make_run(ready: Callable[..., GangReady]) -> Callable[..., Run]:
    def make(max_failures: int = 0) -> Run:
        run = Run(max_failures)
        run.feed(Start(), ready())
        return run

    return make


def of_type(actions: list[Any], cls: type) -> list[Any]:
    return [action for action in actions if isinstance(action, cls)]


def test_the_table_has_every_state_and_ends_are_final():
    assert set(TRANSITIONS) == set(State)
    assert {state for state, following in TRANSITIONS.items() if not following} == {State.FINISHED, State.ERRORED, State.ABORTED}


def test_a_run_that_goes_well(make_run: Callable[..., Run]):
    run = make_run()
    assert [type(action).__name__ for action in run.actions] == ["SaveIndex", "StartGang"]
    assert run.actions[1] == StartGang(1, None)
    assert run.state.state is State.RUNNING
    run.rank(0, Entered())
    run.rank(1, Returned(None))
    assert run.state.state is State.RUNNING
    assert run.rank(0, Returned(b"value")) == [Send(0, Release()), Send(1, Release())]
    assert run.state.state is State.SHUTTING_DOWN
    assert run.feed(RunEnded(1, 0)) == []
    assert run.feed(RunEnded(1, 1)) == [StopGang(5.0, "the run is over")]
    run.feed(GangStopped(1))
    assert run.state.state is State.FINISHED
    assert run.state.return_value == b"value"
    assert run.feed(Interrupted()) == []


def test_a_teardown_that_hangs_is_ended(make_run: Callable[..., Run]):
    run = make_run()
    run.rank(0, Returned(None))
    run.rank(1, Returned(None))
    run.feed(RunEnded(1, 0))
    assert run.tick() == [StopGang(5.0, "the run is over")]
    assert run.now == 5.0


def test_a_death_in_teardown_changes_nothing(make_run: Callable[..., Run]):
    run = make_run()
    run.rank(0, Returned(None))
    run.rank(1, Returned(None))
    run.feed(RankDied(1, 1, FakeEvidence()))
    assert run.feed(RunEnded(1, 0)) == [StopGang(5.0, "the run is over")]
    run.feed(GangStopped(1))
    assert run.state.state is State.FINISHED


def test_an_exception_is_acknowledged_held_and_then_ends_the_attempt(make_run: Callable[..., Run]):
    run = make_run()
    error = ValueError("boom")
    assert run.rank(1, BOOM, error=error) == [Send(1, Ack())]
    assert run.state.state is State.RESTARTING
    assert run.state.next_deadline() == pytest.approx(0.2)
    assert run.tick() == [StopGang(0.0, "rank 1 on node-a (pid 1) failed: ValueError: boom")]
    assert run.all_gone() == [AfterException({1: error})]
    run.feed(Told())
    assert run.state.state is State.ERRORED
    assert run.state.cause is error
    assert isinstance(run.state.error, WorkerGroupError)
    assert run.state.error.worker_failures == {1: error}
    assert str(run.state.error) == ("Training failed due to worker errors:\n[Rank 1 Error Snippet]:\nTraceback\nValueError: boom\n"
                                    "(no restart: FailureConfig(max_failures=0))")


def test_A4_a_death_within_the_collateral_window_is_the_cause(make_run: Callable[..., Run]):
    run = make_run()
    collateral = ConnectionResetError("peer")
    run.rank(0, BOOM, error=collateral)
    run.now = 0.1
    assert run.feed(RankDied(1, 1, FakeEvidence())) == [StopGang(0.0, "rank 0 on node-a (pid 0) failed: ValueError: boom")]
    run.all_gone()
    run.feed(Told())
    assert isinstance(run.state.cause, ActorDiedError)
    assert "worker errors:\n[Rank 1 Error Snippet]:\nrank 1 on node-a (pid 1) was killed by SIGKILL" in str(run.state.error)
    assert isinstance(run.state.error, WorkerGroupError)
    assert list(run.state.error.worker_failures) == [0, 1]


def test_a_death_after_the_window_is_no_cause(make_run: Callable[..., Run]):
    run = make_run()
    error = ValueError("first")
    run.rank(0, BOOM, error=error)
    run.tick()
    run.feed(RankDied(1, 1, FakeEvidence(wanted=True)))
    run.all_gone()
    run.feed(Told())
    assert run.state.cause is error


def test_collateral_deaths_are_no_failures(make_run: Callable[..., Run]):
    run = make_run(1)
    run.feed(RankDied(1, 1, FakeEvidence()), RankDied(1, 0, FakeEvidence(wanted=True)))
    run.all_gone()
    (told,) = of_type(run.actions, AfterException)
    assert list(told.failures) == [1]


def test_a_restart_goes_on_from_the_last_committed_checkpoint(make_run: Callable[..., Run], ready: Callable[..., GangReady]):
    run = make_run(1)
    run.manager.commit(CheckpointRecord("ckpt", 1, 1))
    run.feed(RankDied(1, 1, FakeEvidence()))
    run.all_gone()
    say, _, start = run.feed(Told())
    assert say.text == ("attempt 2: rank 1 on node-a (pid 1) was killed by SIGKILL; resuming from ckpt (restart 1 of 1)")
    assert start == StartGang(2, "ckpt")
    run.feed(ready(2))
    assert run.state.state is State.RUNNING
    run.feed(RankDied(2, 0, FakeEvidence()))
    run.all_gone(2)
    run.feed(Told())
    assert run.state.state is State.ERRORED
    assert "all 1 restarts of FailureConfig(max_failures=1) are used up" in str(run.state.error)


def test_F1_events_of_an_old_attempt_are_ignored(make_run: Callable[..., Run], ready: Callable[..., GangReady]):
    run = make_run(1)
    run.feed(RankDied(1, 1, FakeEvidence()))
    run.all_gone()
    run.feed(Told(), ready(2))
    before = len(run.actions)
    run.rank(0, Report(1, b""), attempt=1, metrics={"x": 1})
    run.rank(0, BOOM, attempt=1)
    run.feed(RankDied(1, 0, FakeEvidence()), ChannelEnded(1, 0, None), GangStopped(1))
    assert len(run.actions) == before
    assert run.state.state is State.RUNNING


def test_attempt_numbers_go_on_where_an_earlier_fit_ended():
    run = Run()
    run.manager.attempt = 7
    assert run.feed(Start())[1] == StartGang(8, None)


def test_R1_all_ranks_get_the_address_of_rank_0_whether_they_ask_before_or_after(make_run: Callable[..., Run]):
    run = make_run()
    assert run.rank(1, AskMaster()) == []
    assert run.rank(0, Publish("10.0.0.1", 4711)) == [Send(1, Master("10.0.0.1", 4711))]
    assert run.rank(1, AskMaster()) == [Send(1, Master("10.0.0.1", 4711))]


def test_R1_a_new_attempt_knows_no_address_of_the_old_one(make_run: Callable[..., Run], ready: Callable[..., GangReady]):
    run = make_run(1)
    run.rank(0, Publish("10.0.0.1", 4711))
    run.feed(RankDied(1, 1, FakeEvidence()))
    run.all_gone()
    run.feed(Told(), ready(2))
    assert run.rank(1, AskMaster(), attempt=2) == []


def test_what_was_received_is_consolidated_before_the_decision(make_run: Callable[..., Run]):
    run = make_run()
    run.feed(RankDied(1, 1, FakeEvidence()), GangStopped(1))
    run.rank(0, Report(1, b""), metrics={"i": 1})
    run.rank(1, Report(1, b""), metrics={"i": 1})
    run.rank(0, Report(2, b""), metrics={"i": 2})
    assert not of_type(run.actions, AfterException)
    run.feed(ChannelEnded(1, 0, None), ChannelEnded(1, 1, None))
    assert [action.record["i"] for action in of_type(run.actions, Consolidate)] == [1, 2]
    assert isinstance(run.actions[-1], AfterException)


def test_a_checkpoint_on_its_way_is_removed_when_its_attempt_fails(make_run: Callable[..., Run]):
    run = make_run()
    run.rank(0, Report(1, b"", (FileEntry("a", 1),), "ckpt"), metrics={})
    (begin,) = run.rank(1, Report(1, b"", ()), metrics={})
    assert isinstance(begin, Begin)
    run.feed(Stored("begin", "ckpt"))
    run.feed(RankDied(1, 1, FakeEvidence()))
    run.all_gone()
    assert of_type(run.actions, Remove) == [Remove("ckpt")]


def test_a_channel_that_never_ends_holds_nothing_up_for_ever(make_run: Callable[..., Run]):
    run = make_run()
    run.feed(RankDied(1, 1, FakeEvidence()), GangStopped(1), ChannelEnded(1, 1, None))
    assert isinstance(run.tick()[-1], AfterException)
    assert run.now == 5.0


def test_a_lost_connection_waits_for_the_news_of_the_death(make_run: Callable[..., Run]):
    run = make_run()
    run.feed(ChannelEnded(1, 1, ConnectionError("reset")))
    assert run.state.state is State.RUNNING
    run.feed(RankDied(1, 1, FakeEvidence()))
    assert run.state.state is State.RESTARTING
    assert run.actions[-1] == StopGang(0.0, "rank 1 on node-a (pid 1) was killed by SIGKILL")


def test_a_connection_that_stays_lost_fails_the_attempt(make_run: Callable[..., Run]):
    run = make_run()
    run.feed(ChannelEnded(1, 1, ConnectionError("reset")))
    run.tick()
    run.tick()
    assert run.actions[-1] == StopGang(0.0, "rank 1 on node-a (pid 1) was lost: reset")


def test_a_gang_that_cannot_be_placed_is_not_tried_again():
    run = Run(3)
    error = InfeasibleError("no node has 8 GPUs")
    run.feed(Start(), GangFailed(1, error, retriable=False))
    assert run.state.state is State.ERRORED
    assert run.state.cause is error
    assert isinstance(run.state.error, WorkerGroupStartError)
    assert "no node has 8 GPUs" in str(run.state.error)
    assert not of_type(run.actions, StopGang)


def test_a_gang_that_does_not_start_is_tried_again():
    run = Run(1)
    run.feed(Start())
    say, _, start = run.feed(GangFailed(1, ActorStartError("actor 'rank 0' exited with code 1.\nmore"), retriable=True))
    assert say.text == ("attempt 2: the ranks did not start: actor 'rank 0' exited with code 1; starting over, for there is no checkpoint "
                        "yet (restart 1 of 1)")
    assert start == StartGang(2, None)
    run.feed(GangFailed(2, ActorStartError("again"), retriable=True))
    assert run.state.state is State.ERRORED


def test_only_deaths_before_the_training_function_count_for_the_restart_intensity(ready: Callable[..., GangReady]):
    run = Run(-1)
    run.feed(Start())
    for attempt in range(1, 8):
        run.feed(ready(attempt))
        run.rank(0, Entered(), attempt=attempt)
        run.feed(RankDied(attempt, 1, FakeEvidence()))
        run.all_gone(attempt)
        run.feed(Told())
        assert run.state.state is State.SCHEDULING
    for attempt in range(8, 11):
        run.feed(ready(attempt), RankDied(attempt, 1, FakeEvidence()))
        run.all_gone(attempt)
        run.feed(Told())
    assert run.state.state is State.ERRORED
    assert "3 attempts in 60 s failed before the training function began" in str(run.state.error)


def test_ctrl_c_stops_with_grace_and_keeps_what_was_reported(make_run: Callable[..., Run]):
    run = make_run()
    assert run.feed(Interrupted()) == [StopGang(5.0, "interrupted by Ctrl-C")]
    run.feed(GangStopped(1))
    run.rank(0, Report(1, b""), metrics={"i": 1})
    run.feed(RankDied(1, 0, FakeEvidence(wanted=True)), ChannelEnded(1, 0, None), ChannelEnded(1, 1, None))
    assert run.state.state is State.ABORTED
    assert [action.record["i"] for action in of_type(run.actions, Consolidate)] == [1]


def test_ctrl_c_while_ranks_are_placed_or_restarted(make_run: Callable[..., Run]):
    run = Run()
    run.feed(Start(), Interrupted())
    assert run.state.state is State.ABORTED
    run = make_run(1)
    run.feed(RankDied(1, 1, FakeEvidence()))
    assert run.feed(Interrupted()) == []
    run.all_gone()
    assert run.state.state is State.ABORTED
    run = Run()
    run.feed(Interrupted())
    assert run.state.state is State.ABORTED


def test_a_callback_that_fails_ends_the_run(make_run: Callable[..., Run]):
    run = make_run(5)
    error = KeyError("x")
    assert run.feed(CallbackFailed("the callback C.after_report", error)) == [StopGang(0.0, "a callback failed")]
    run.all_gone()
    assert run.state.state is State.ERRORED
    assert isinstance(run.state.error, ControllerError)
    assert run.state.error.controller_failure is run.state.cause is error


def test_a_callback_that_fails_about_a_failure_ends_the_run(make_run: Callable[..., Run]):
    run = make_run(5)
    run.feed(RankDied(1, 1, FakeEvidence()))
    run.all_gone()
    run.feed(CallbackFailed("the callback C.after_exception", KeyError("x")))
    assert run.state.state is State.ERRORED


def test_a_lost_head_is_the_end_and_its_error_the_cause(make_run: Callable[..., Run]):
    run = make_run(5)
    error = HeadLostError("the head is gone")
    run.feed(RankDied(1, 0, FakeEvidence("node dead")), GangStopped(1), ChannelEnded(1, 0, error), ChannelEnded(1, 1, error))
    run.feed(Told())
    assert run.state.state is State.ERRORED
    assert run.state.cause is error


def test_missing_ranks_are_named_while_the_run_goes_on(make_run: Callable[..., Run]):
    run = make_run()
    run.rank(0, Report(1, b"", (FileEntry("a", 1),)), metrics={})
    (say,) = run.tick()
    assert isinstance(say, Say)
    assert "lacks ranks 1 since 60 s" in say.text
    assert run.state.state is State.RUNNING


EVENTS = st.sampled_from([
    GangReady(1, ()), GangFailed(1, ActorStartError("x"), True), GangStopped(1), Interrupted(), Told(), Tick(), Stored("begin", "ckpt"),
    Stored("commit", "ckpt"), CallbackFailed("c", KeyError()), *(event for rank in range(2) for event in (
        FromRank(1, rank, Entered()), FromRank(1, rank, Report(1, b"", (), "ckpt"), {}), FromRank(1, rank, Report(1, b""), {}),
        FromRank(1, rank, Returned(None)), FromRank(1, rank, BOOM), RankDied(1, rank, FakeEvidence()),
        RankDied(1, rank, FakeEvidence(wanted=True)), ChannelEnded(1, rank, None), RunEnded(1, rank)))])


@given(st.lists(st.tuples(EVENTS, st.floats(0, 10)), max_size=30))
def test_any_order_of_events_ends_when_the_processes_are_gone(events: list[tuple[Any, float]]):
    """Nothing raises, no illegal transition, and when no process is left and time passes, the run ends."""
    run = Run()
    places = GangReady(1, tuple(type("Place", (), {"who": f"rank {rank}", "log_path": ""})() for rank in range(2)))
    run.feed(Start(), places)
    for event, seconds in events:
        if isinstance(event, GangReady | GangFailed):
            continue  # the shell gives one answer to one StartGang
        run.now += seconds
        run.feed(event)
    run.feed(Interrupted(), GangStopped(1))
    run.now += 100
    run.feed(Tick(), Told(), Tick())
    assert run.state.is_final
