from __future__ import annotations

import functools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import runtime
import train
from runtime.errors import ActorDiedError, ArgumentError, ArgumentTypeError, HeadwayError, InfeasibleError, SerializationError
from train import (
    Backend,
    BackendConfig,
    Checkpoint,
    CheckpointConfig,
    DataParallelTrainer,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
)
from train.errors import StorageError, WorkerGroupError, WorkerGroupStartError

# ---- arguments ----


def no_argument() -> None: ...


def one_argument(config: dict[str, Any]) -> None: ...


def one_optional(config: Any = None) -> None: ...


def two_arguments(a: Any, b: Any) -> None: ...


def keyword_only(*, config: Any) -> None: ...


@pytest.mark.parametrize("function", [
    no_argument, one_argument, one_optional, lambda *args, **kwargs: None, functools.partial(two_arguments, 1), print])
def test_functions_with_at_most_one_required_argument_are_fine(function: Callable[..., Any]):
    assert DataParallelTrainer(function).train_loop_per_worker is function


@pytest.mark.parametrize(("function", "error", "text"), [
    (None, ArgumentTypeError, "got NoneType; pass a function"), ("f", ArgumentTypeError, "got str; pass a function"),
    (two_arguments, ArgumentError, r"two_arguments\(a: 'Any', b: 'Any'\).*requires 2: a, b"),
    (keyword_only, ArgumentError, "requires 1: config")])
def test_other_functions_are_refused_with_their_signature(function: Any, error: type[Exception], text: str):
    with pytest.raises(error, match=text):
        DataParallelTrainer(function)


@pytest.mark.parametrize(("arguments", "error", "text"), [
    ({"scaling_config": {"num_workers": 1}}, ArgumentTypeError, r"got dict, use ScalingConfig\(\*\*cfg\)"),
    ({"run_config": ScalingConfig()}, ArgumentTypeError, "pass a train.RunConfig"),
    ({"backend_config": "gloo"}, ArgumentTypeError, "pass a train.BackendConfig"),
    ({"train_loop_config": [1]}, ArgumentTypeError, "it must be a dict"),
    ({"resume_from_checkpoint": "/x"}, ArgumentTypeError, "pass a train.Checkpoint"),
    ({"metadata": 1}, ArgumentTypeError, "pass a dict"),
    ({"datasets": {"train": object()}}, ArgumentError, "not supported here: build data sets"),
    ({"scaling_cfg": 1}, ArgumentTypeError, "did you mean 'scaling_config'"),
    ({"preprocessor": 1}, ArgumentTypeError, "unexpected argument 'preprocessor'")])
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], text: str):
    with pytest.raises(error, match=text):
        DataParallelTrainer(no_argument, **arguments)


def test_a_config_that_nobody_takes_is_warned_about():
    with pytest.warns(UserWarning, match="takes no argument"):
        DataParallelTrainer(no_argument, train_loop_config={"lr": 1})


def test_nothing_is_started_for_bad_input(tmp_path: Path):
    lock = threading.Lock()

    def function() -> None:
        print(lock)

    with pytest.raises(SerializationError, match=r"captures 'lock' \(_thread\.lock\)"):
        DataParallelTrainer(function, run_config=RunConfig(storage_path=tmp_path)).fit()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot create run directory"):
        DataParallelTrainer(no_argument, run_config=RunConfig(storage_path=tmp_path / "file")).fit()
    assert not runtime.is_initialized()
    assert os.listdir(tmp_path) == ["file"]


def test_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with pytest.raises(HeadwayError, match="was started by torchrun"):
        DataParallelTrainer(no_argument, run_config=RunConfig(storage_path=tmp_path)).fit()


# ---- on a cluster ----

process = pytest.mark.process


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One embedded cluster for all; each test checks that it leaves nothing on it."""
    runtime.init(num_cpus=4)
    yield
    runtime.shutdown()


@pytest.fixture
def fit(cluster: None, tmp_path: Path) -> Iterator[Callable[..., Result]]:
    def run(function: Callable[..., Any], *, num_workers: int = 2, max_failures: int = 0, num_to_keep: int | None = None,
            name: str | None = None, callbacks: list[Any] | None = None, resources: dict[str, float] | None = None,
            **options: Any) -> Result:
        return DataParallelTrainer(
            function, scaling_config=ScalingConfig(num_workers=num_workers, resources_per_worker=resources),
            run_config=RunConfig(name=name, storage_path=tmp_path, failure_config=FailureConfig(max_failures), callbacks=callbacks,
                                 checkpoint_config=CheckpointConfig(num_to_keep=num_to_keep)), **options).fit()

    yield run
    assert runtime.available_resources() == runtime.cluster_resources()


def train_with_resume(epochs: int, disturb: Callable[[int, int, bool], None] = lambda epoch, rank, resumed: None) -> Callable[[], int]:
    """A training function that stores a file a rank each epoch, and goes on from the last checkpoint; returns where it began."""

    def function() -> int:
        import tempfile

        rank, found, start = train.get_context().get_world_rank(), train.get_checkpoint(), 0
        if found is not None:
            with found.as_directory() as folder:
                start = int(Path(folder, "epoch").read_text()) + 1
        for epoch in range(start, epochs):
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "epoch").write_text(str(epoch))
                Path(folder, f"rank-{rank}").write_text(f"state of rank {rank}")
                train.report({"epoch": epoch, "rank": rank}, Checkpoint.from_directory(folder))
            disturb(epoch, rank, found is not None)
        return start

    return function


@process
def test_two_ranks_run_the_function(fit: Callable[..., Result], capfd: pytest.CaptureFixture[str]):
    def function(config: dict[str, Any]) -> dict[str, Any]:
        context = train.get_context()
        print("rank", context.get_world_rank(), "says hello")
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # only possible on the main thread
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "ACCELERATE_USE_CPU")
        return {"environment": {name: os.environ[name] for name in names}, "cwd": os.getcwd(), "pid": os.getpid(), **config}

    result = fit(function, train_loop_config={"x": 1})
    assert result.return_value["environment"] == {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "NODE_RANK": "0", "ACCELERATE_USE_CPU": "true"}
    assert (result.return_value["cwd"], result.return_value["x"]) == (os.getcwd(), 1)
    assert result.return_value["pid"] != os.getpid()
    assert (result.metrics, result.checkpoint, result.best_checkpoints) == (None, None, [])
    captured = capfd.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if "says hello" in line]
    assert sorted(lines) == [f"[rank {rank} {socket.gethostname()}] rank {rank} says hello" for rank in (0, 1)]
    for rank in (0, 1):
        assert Path(result.path, "logs", f"rank_{rank}.log").read_text() == f"rank {rank} says hello\n"


@process
def test_reports_are_consolidated_and_checkpoints_kept(fit: Callable[..., Result]):
    heard: list[Any] = []

    class Listener(UserCallback):
        def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
            heard.append((metrics[0]["rank"], metrics[1]["rank"], checkpoint.path))

    result = fit(train_with_resume(4), num_to_keep=2, callbacks=[Listener()])
    assert result.metrics is not None
    assert (result.metrics["epoch"], result.metrics["rank"], result.metrics["training_iteration"]) == (3, 0, 4)
    assert result.checkpoint is not None
    assert sorted(os.listdir(result.checkpoint.path)) == ["COMMITTED", "epoch", "rank-0", "rank-1"]
    assert [Path(checkpoint.path, "epoch").read_text() for checkpoint, _ in result.best_checkpoints] == ["2", "3"]
    assert sorted(name for name in os.listdir(result.path) if name.startswith("checkpoint_2")) == sorted(
        Path(checkpoint.path).name for checkpoint, _ in result.best_checkpoints)
    assert [ranks for *ranks, _ in heard] == [[0, 1]] * 4
    assert heard[-1][2] == result.checkpoint.path


@process
def test_a_run_of_the_same_name_goes_on(fit: Callable[..., Result], capfd: pytest.CaptureFixture[str]):
    assert fit(train_with_resume(2), name="mine").return_value == 0
    result = fit(train_with_resume(3), name="mine")
    assert result.return_value == 2
    assert "continuing run 'mine'" in capfd.readouterr().err
    assert [metrics["training_iteration"] for _, metrics in result.best_checkpoints] == [1, 2, 3]


@process
def test_a_rank_that_is_killed_is_followed_by_an_attempt_from_the_last_checkpoint(
        fit: Callable[..., Result], capfd: pytest.CaptureFixture[str]):
    def kill(epoch: int, rank: int, resumed: bool) -> None:
        if epoch == 1 and rank == 1 and not resumed:
            os.kill(os.getpid(), signal.SIGKILL)

    result = fit(train_with_resume(4, kill), max_failures=1)
    assert result.return_value == 2
    assert result.metrics is not None
    assert result.metrics["epoch"] == 3
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "attempt 2" in line]
    assert f"attempt 2: rank 1 on {socket.gethostname()} (pid " in line
    assert ") was killed by SIGKILL; resuming from checkpoint_" in line
    assert line.endswith("(restart 1 of 1)")
    assert "==== attempt 2 ====" in Path(result.path, "logs", "rank_0.log").read_text()


@process
def test_A4_a_rank_that_dies_is_the_cause_also_when_its_peers_complain_first(fit: Callable[..., Result]):
    def function() -> None:
        if train.get_context().get_world_rank() == 0:
            print("the last words", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        raise ConnectionResetError("collateral")

    with pytest.raises(WorkerGroupError) as caught:
        fit(function)
    assert isinstance(caught.value.__cause__, ActorDiedError)
    text = str(caught.value)
    assert text.index("was killed by SIGKILL") < text.index("the last words")
    if "collateral" in text:
        assert text.index("was killed by SIGKILL") < text.index("collateral")
    assert isinstance(caught.value, RuntimeError)


class OddError(Exception):
    """Can be pickled and not loaded the plain way."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code


@process
def test_an_exception_of_a_rank_is_the_cause_and_ends_the_others_at_once(fit: Callable[..., Result]):
    def function() -> None:
        if train.get_context().get_world_rank() == 1:
            raise OddError(3, "why")
        time.sleep(1000)

    with pytest.raises(TrainingFailedError, match=r"\[Rank 1 Error Snippet\]:") as caught:
        fit(function)
    assert isinstance(caught.value.__cause__, OddError)
    assert caught.value.__cause__.code == 3
    assert "OddError: 3: why" in str(caught.value)
    assert "train_worker.py" not in str(caught.value)


@process
@pytest.mark.parametrize(("end", "text"), [(lambda: os._exit(7), "exited with code 7"), (lambda: exit(3), "SystemExit: 3")])
def test_a_rank_that_exits_is_a_failure_with_its_code(fit: Callable[..., Result], end: Callable[[], None], text: str):
    with pytest.raises(TrainingFailedError, match=text):
        fit(end)


@process
def test_a_rank_that_exits_well_has_returned(fit: Callable[..., Result]):
    assert fit(lambda: exit(0)).return_value is None


@process
def test_a_checkpoint_that_a_rank_never_joins_is_an_error_at_the_others(fit: Callable[..., Result], make_directory: Callable[..., str]):
    folder = make_directory(model="x")

    def function() -> None:
        if train.get_context().get_world_rank() == 0:
            train.report({}, Checkpoint(folder))

    with pytest.raises(TrainingFailedError, match=r"training functions have returned \(rank 1 after 0 reports\)"):
        fit(function)


@process
def test_reports_of_rank_0_alone_never_block(fit: Callable[..., Result]):
    def function() -> None:
        if train.get_context().get_world_rank() == 0:
            for i in range(300):
                train.report({"i": i})

    result = fit(function)
    assert result.metrics is not None
    assert (result.metrics["i"], result.metrics["training_iteration"]) == (299, 300)


@process
def test_all_ranks_see_the_same_checkpoint(fit: Callable[..., Result], make_directory: Callable[..., str]):
    folder = make_directory(model="x")

    def function() -> list[str | None]:
        seen = []
        for i in range(3):
            is_first = train.get_context().get_world_rank() == 0
            train.report({"i": i}, Checkpoint(folder) if is_first else None, checkpoint_dir_name=f"c{i}" if is_first else None)
            found = train.get_checkpoint()
            seen.append(Path(found.path).name if found else None)
        if not is_first and seen != ["c0", "c1", "c2"]:
            raise AssertionError(f"rank 1 saw {seen}")
        return seen

    assert fit(function).return_value == ["c0", "c1", "c2"]


class Meeting(Backend):
    def setup(self, ranks: Any, config: Any, rendezvous: Any) -> None:
        if ranks.rank == 0:
            rendezvous.publish("10.1.2.3", 4711)
        else:
            os.environ["MEETING"] = f"{rendezvous.lookup(60.0)} {rendezvous.key_prefix}"

    def teardown(self, ranks: Any, config: Any) -> None:
        print(f"torn down rank {ranks.rank}", flush=True)


class MeetingConfig(BackendConfig):
    @property
    def backend_cls(self) -> type[Backend]:
        return Meeting


@process
def test_R1_the_ranks_meet_before_the_function_and_part_after_it(fit: Callable[..., Result], capfd: pytest.CaptureFixture[str]):
    def function() -> None:
        if train.get_context().get_world_rank() == 1:
            raise RuntimeError(os.environ["MEETING"])

    with pytest.raises(TrainingFailedError, match=r"\('10\.1\.2\.3', 4711\) met/1"):
        fit(function, name="met", backend_config=MeetingConfig())
    assert "torn down" not in capfd.readouterr().err
    fit(lambda: None, backend_config=MeetingConfig())
    assert sorted(line[-6:] for line in capfd.readouterr().err.splitlines() if "torn down" in line) == ["rank 0", "rank 1"]


@process
def test_what_no_node_has_is_an_error_at_once(fit: Callable[..., Result]):
    with pytest.raises(WorkerGroupStartError) as caught:
        fit(lambda: None, max_failures=3, resources={"CPU": 1, "unobtainium": 1})
    assert isinstance(caught.value.__cause__, InfeasibleError)
    assert "unobtainium" in str(caught.value)


@process
def test_ctrl_c_reaches_the_training_functions_and_leaves_nothing(fit: Callable[..., Result], tmp_path: Path):
    def function() -> None:
        train.report({"i": 1})
        Path(config_path, f"started-{train.get_context().get_world_rank()}").touch()
        try:
            time.sleep(1000)
        except KeyboardInterrupt:
            Path(config_path, f"interrupted-{train.get_context().get_world_rank()}").touch()
            raise

    config_path = str(tmp_path / "notes")
    os.mkdir(config_path)
    threading.Thread(target=interrupt_when, args=(lambda: len(os.listdir(config_path)) == 2,), daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        fit(function, name="interrupted")
    assert sorted(os.listdir(config_path)) == ["interrupted-0", "interrupted-1", "started-0", "started-1"]
    kept = Result.from_path(tmp_path / "interrupted")
    assert kept.metrics is not None
    assert kept.metrics["i"] == 1


def interrupt_when(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


@process
def test_many_fits_in_one_driver(fit: Callable[..., Result]):
    assert [fit(lambda: "again").return_value for _ in range(5)] == ["again"] * 5
