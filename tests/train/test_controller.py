from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import runtime
from runtime.errors import ActorStartError, HeadLostError, InfeasibleError
from train import Checkpoint, Result, UserCallback
from train.commit import FileEntry, verify
from train.controller import Controller, RunSpec
from train.controller_events import ChannelEnded, RankDied, RunEnded
from train.errors import ControllerError, TrainingFailedError, WorkerGroupError, WorkerGroupStartError
from train.protocol import Committed, Failed, Place, Refused, Release, Report, Returned, Written
from train.storage import LocalStorage
from train.worker_group import Incoming

MakeSpec = Callable[..., RunSpec]


class FakeEvidence:
    kind, code, signal, detail, log_tail, wanted, first = "signal", 0, "SIGKILL", "", (), False, True


def say_all(group: Any, attempt: int, *messages: Any) -> None:
    for rank in range(2):
        for message in messages:
            group.post(Incoming(attempt, rank, message, time.time()))


def end_all(group: Any, attempt: int) -> None:
    for rank in range(2):
        group.post(ChannelEnded(attempt, rank, None))


def report(index: int, manifest: Any = None, **metrics: Any) -> Report:
    return Report(index, runtime.dumps_function(metrics, "metrics"), manifest)


def returned(group: Any, attempt: int) -> None:
    """Both ranks return, and tear down when they are released."""
    value = runtime.dumps_function({"answer": 42}, "value")
    group.on_send = lambda rank, message: group.post(RunEnded(attempt, rank)) if isinstance(message, Release) else None
    say_all(group, attempt, Returned(value))


@pytest.fixture
def run(make_spec: MakeSpec, fake_group: Any, said: list[str]) -> Callable[..., Any]:
    """Run a controller over fake ranks; returns the ranks, and the result or what was raised."""

    def make(script: Callable[[Any, int], None], prepare: Callable[[Any], None] = lambda group: None, **spec: Any) -> tuple[Any, Any]:
        groups: list[Any] = []

        def make_group(post: Callable[[Any], None]) -> Any:
            groups.append(fake_group(post, script))
            prepare(groups[0])
            return groups[0]

        controller = Controller(make_spec(**spec), make_group, said.append)
        try:
            return groups[0], controller.run()
        except BaseException as exc:
            return groups[0], exc

    return make


def test_a_run_ends_with_the_last_metrics_and_the_return_value(run: Any, storage: LocalStorage):
    def script(group: Any, attempt: int) -> None:
        say_all(group, attempt, report(1, loss=1), report(2, loss=0.5))
        returned(group, attempt)

    group, result = run(script)
    assert isinstance(result, Result)
    assert result.metrics is not None
    assert (result.metrics["loss"], result.metrics["training_iteration"], result.return_value) == (0.5, 2, {"answer": 42})
    assert result.checkpoint is None
    assert result.path == storage.path
    assert [stop[0] for stop in group.stops] == [runtime.LIMITS.stop_grace_s]
    assert len((storage.read("metrics.jsonl") or b"").splitlines()) == 2


def write_as_told(group: Any, attempt: int, storage: LocalStorage, source: str) -> None:
    """Ranks that store what they are given, as a session does."""

    def on_send(rank: int, message: Any) -> None:
        if isinstance(message, Place):
            files = {name: storage.put(f"{source}/{name}", f"{message.name}/{name}") for name in message.files}
            group.post(Incoming(attempt, rank, Written(1, files), time.time()))
        elif isinstance(message, Committed | Refused):
            group.post(Incoming(attempt, rank, Returned(None), time.time()))
        elif isinstance(message, Release):
            group.post(RunEnded(attempt, rank))

    group.on_send = on_send


def test_a_checkpoint_is_committed_and_the_callbacks_hear_of_it(run: Any, storage: LocalStorage, make_directory: Callable[..., str]):
    folder = make_directory(model="abc")
    heard: list[Any] = []
    threads: list[Any] = []

    class Listener(UserCallback):
        def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
            threads.append(threading.current_thread())
            heard.append((run_context.run_name, metrics, checkpoint.path))

    def script(group: Any, attempt: int) -> None:
        write_as_told(group, attempt, storage, folder)
        say_all(group, attempt, report(1, (FileEntry("model", 3),), loss=1))

    _, result = run(script, callbacks=(Listener(),))
    assert isinstance(result, Result)
    assert result.checkpoint is not None
    name = os.path.basename(result.checkpoint.path)
    assert verify(storage, name).files["model"]["size"] == 3
    assert heard == [("run", [{"loss": 1}, {"loss": 1}], result.checkpoint.path)]
    assert threads == [threading.current_thread()]
    assert [(checkpoint.path, metrics["loss"]) for checkpoint, metrics in result.best_checkpoints] == [(result.checkpoint.path, 1)]


def test_a_foreign_directory_in_the_way_fails_the_checkpoint_and_stays(run: Any, storage: LocalStorage, make_directory: Callable[..., str]):
    storage.make_dir("mine")

    def script(group: Any, attempt: int) -> None:
        write_as_told(group, attempt, storage, make_directory(model="abc"))
        say_all(group, attempt, Report(1, runtime.dumps_function({}, "m"), (), "mine"))

    group, result = run(script)
    assert isinstance(result, Result)
    refusals = [message for _, message in group.sent if isinstance(message, Refused)]
    assert len(refusals) == 2
    assert "'" + storage.at("mine") + "' exists already and is none of this run's" in refusals[0].text
    assert storage.exists("mine")


def test_a_failure_is_raised_with_the_ranks_exception_as_cause(run: Any, said: list[str]):
    def script(group: Any, attempt: int) -> None:
        group.on_stop = lambda grace_s: end_all(group, attempt)
        group.post(Incoming(attempt, 1, Failed(runtime.dumps_function(KeyError("k"), "e"), "KeyError", "'k'", "Traceback"), 0.0))

    _, error = run(script)
    assert isinstance(error, WorkerGroupError)
    assert isinstance(error.__cause__, KeyError)
    assert list(error.worker_failures) == [1]


def test_a_death_is_followed_by_another_attempt(run: Any, said: list[str]):
    def script(group: Any, attempt: int) -> None:
        if attempt == 1:
            group.on_stop = lambda grace_s: end_all(group, attempt)
            group.post(RankDied(attempt, 1, FakeEvidence()))  # type: ignore[arg-type]
        else:
            group.on_stop = None
            returned(group, attempt)

    resume = Checkpoint("/given")
    failures: list[Any] = []

    class Listener(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: Any) -> None:
            failures.append(worker_exceptions)

    group, result = run(script, max_failures=1, resume_from=resume, callbacks=(Listener(),))
    assert isinstance(result, Result)
    assert group.attempts == [1, 2]
    assert group.checkpoints == [resume, resume]
    assert [list(failure) for failure in failures] == [[1]]
    assert said == ["attempt 2: rank 1 on node-a (pid 101) was killed by SIGKILL; starting over, for there is no checkpoint yet "
                    "(restart 1 of 1)"]


@pytest.mark.parametrize("method", ["after_report", "after_exception"])
def test_a_callback_that_raises_ends_the_run(run: Any, method: str):
    def fail(**arguments: Any) -> None:
        raise ValueError("in the callback")

    callback = type("Bad", (), {method: staticmethod(fail)})()

    def script(group: Any, attempt: int) -> None:
        group.on_stop = lambda grace_s: end_all(group, attempt)
        if method == "after_report":
            say_all(group, attempt, report(1))
        else:
            group.post(RankDied(attempt, 1, FakeEvidence()))  # type: ignore[arg-type]

    group, error = run(script, callbacks=(callback,), max_failures=3)
    assert isinstance(error, ControllerError)
    assert str(error) == f"the callback Bad.{method} failed: ValueError: in the callback"
    assert isinstance(error.__cause__, ValueError)
    assert group.attempts == [1]


def test_infeasible_is_not_tried_again(run: Any):
    def script(group: Any, attempt: int) -> None: ...

    group, error = run(script, lambda group: group.start_errors.append(InfeasibleError("2 x 8 GPUs; nodes: a(0)")), max_failures=3)
    assert isinstance(error, WorkerGroupStartError)
    assert isinstance(error.__cause__, InfeasibleError)
    assert "2 x 8 GPUs; nodes: a(0)" in str(error)
    assert group.attempts == [1]
    assert isinstance(error, TrainingFailedError)


def test_a_start_that_failed_is_tried_again(run: Any, said: list[str]):
    group, result = run(returned, lambda group: group.start_errors.append(ActorStartError("exited with code 1")), max_failures=1)
    assert isinstance(result, Result)
    assert group.attempts == [1, 2]
    assert "the ranks did not start: exited with code 1" in said[0]


def test_a_lost_head_is_raised_as_such(run: Any):
    _, error = run(returned, lambda group: group.start_errors.append(HeadLostError("gone")), max_failures=3)
    assert isinstance(error, HeadLostError)


def test_ctrl_c_stops_the_ranks_with_grace(run: Any, said: list[str]):
    def script(group: Any, attempt: int) -> None:
        group.on_stop = lambda grace_s: end_all(group, attempt)
        threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()

    group, error = run(script)
    assert isinstance(error, KeyboardInterrupt)
    assert group.stops == [(runtime.LIMITS.stop_grace_s, "interrupted by Ctrl-C")]
    assert said[0].startswith("interrupted: asking the ranks to stop")


def test_a_second_ctrl_c_does_not_wait_for_the_grace(run: Any):
    def script(group: Any, attempt: int) -> None:
        def on_stop(grace_s: float) -> None:
            end_all(group, attempt)
            if grace_s:
                raise KeyboardInterrupt

        group.on_stop = on_stop
        threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()

    group, error = run(script)
    assert isinstance(error, KeyboardInterrupt)
    assert [grace_s for grace_s, _ in group.stops] == [runtime.LIMITS.stop_grace_s, 0.0]


def test_ctrl_c_while_the_ranks_start(run: Any):
    group, error = run(returned, lambda group: group.start_errors.append(KeyboardInterrupt()))
    assert isinstance(error, KeyboardInterrupt)
    assert group.stops == [(0.0, "fit() was left")]  # a second Ctrl-C may have cut the group's own cleaning short


def test_metrics_that_cannot_be_stored_do_not_end_the_training(run: Any, said: list[str], storage: LocalStorage):
    def script(group: Any, attempt: int) -> None:
        say_all(group, attempt, report(1))
        returned(group, attempt)

    def break_file(group: Any) -> None:
        target = Path(storage.at("metrics.jsonl"))
        assert not target.exists()
        target.symlink_to("/dev/full")

    _, result = run(script, break_file)
    assert isinstance(result, Result)
    assert said[0].startswith("warning: metrics.jsonl is not complete: cannot append to")


def test_the_count_of_reports_goes_on_in_a_continued_run(run: Any):
    def script(group: Any, attempt: int) -> None:
        say_all(group, attempt, report(1))
        returned(group, attempt)

    run(script)
    _, result = run(script, is_new=False)
    assert result.metrics["training_iteration"] == 2
    assert result.metrics["time_total_s"] >= result.metrics["time_since_restore"]
