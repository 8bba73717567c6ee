from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

import train
from train import Checkpoint, CheckpointConfig, DataParallelTrainer, Result, RunConfig, ScalingConfig

LOCAL = ScalingConfig(num_workers=0)


def test_it_runs_here_with_real_storage_and_retention(
        tmp_path: Path, make_directory: Callable[..., str], capfd: pytest.CaptureFixture[str]):
    seen = []

    def function(config: dict[str, int]) -> str:
        context = train.get_context()
        seen.append((threading.current_thread(), os.getpid(), context.get_world_size(), context.get_world_rank()))
        for i in range(3):
            train.report({"i": i, "x": config["x"]}, Checkpoint(make_directory(model=str(i))))
        return "done"

    result = DataParallelTrainer(function, train_loop_config={"x": 5}, scaling_config=LOCAL, run_config=RunConfig(
        storage_path=tmp_path, checkpoint_config=CheckpointConfig(num_to_keep=2))).fit()
    assert seen == [(threading.current_thread(), os.getpid(), 1, 0)]
    assert result.return_value == "done"
    assert result.checkpoint is not None
    assert Path(result.checkpoint.path, "model").read_text() == "2"
    assert [metrics["i"] for _, metrics in result.best_checkpoints] == [1, 2]
    assert not train.context.in_training_function()
    captured = capfd.readouterr()
    assert captured.err == "[headway] num_workers=0: running in this process without a cluster.\n"
    assert captured.out == ""


def test_exceptions_leave_as_they_are_and_what_was_reported_stays(tmp_path: Path, make_directory: Callable[..., str]):
    def function() -> None:
        train.report({"i": 1}, Checkpoint(make_directory(model="1")))
        raise KeyError("mine")

    run_config = RunConfig(name="run", storage_path=tmp_path)
    with pytest.raises(KeyError, match="mine"):
        DataParallelTrainer(function, scaling_config=LOCAL, run_config=run_config).fit()
    assert not train.context.in_training_function()
    kept = Result.from_path(tmp_path / "run")
    assert kept.metrics is not None
    assert kept.metrics["i"] == 1
    assert kept.checkpoint is not None


def test_a_named_run_is_continued(tmp_path: Path, make_directory: Callable[..., str], capfd: pytest.CaptureFixture[str]):
    starts = []

    def function() -> None:
        found = train.get_checkpoint()
        start = int(Path(found.path, "i").read_text()) + 1 if found else 0
        starts.append(start)
        train.report({"i": start}, Checkpoint(make_directory(i=str(start))))

    for _ in range(2):
        DataParallelTrainer(function, scaling_config=LOCAL, run_config=RunConfig(name="run", storage_path=tmp_path)).fit()
    assert starts == [0, 1]
    assert "continuing run 'run'" in capfd.readouterr().err


def test_a_given_checkpoint_seeds_a_run_without_its_own(tmp_path: Path, make_directory: Callable[..., str]):
    given = Checkpoint(make_directory(i="7"))
    found = []
    DataParallelTrainer(lambda: found.append(train.get_checkpoint()), scaling_config=LOCAL, resume_from_checkpoint=given,
                        run_config=RunConfig(storage_path=tmp_path)).fit()
    assert found == [given]


def test_any_scheme_of_fsspec_can_hold_a_run(make_directory: Callable[..., str]):
    def function() -> None:
        train.report({"i": 1}, Checkpoint(make_directory(model="abc")), checkpoint_dir_name="first")
        found = train.get_checkpoint()
        assert found is not None
        with found.as_directory() as folder:
            assert Path(folder, "model").read_text() == "abc"
            assert os.listdir(folder) == ["model"]

    result = DataParallelTrainer(function, scaling_config=LOCAL, run_config=RunConfig(name="run", storage_path="memory://local-mode")).fit()
    assert result.path == "/local-mode/run"
    memory = fsspec.filesystem("memory")
    assert sorted(memory.ls("/local-mode/run", detail=False)) == [
        "/local-mode/run/checkpoint_index.json", "/local-mode/run/first", "/local-mode/run/metrics.jsonl"]
    again = Result.from_path("memory://local-mode/run")
    assert again.metrics == result.metrics
    memory.rm("/local-mode", recursive=True)


def test_fit_inside_a_training_function_is_refused(tmp_path: Path):
    inner = DataParallelTrainer(lambda: None, scaling_config=LOCAL, run_config=RunConfig(storage_path=tmp_path))
    with pytest.raises(train.HeadwayTrainError, match="was called in a training function"):
        DataParallelTrainer(inner.fit, scaling_config=LOCAL, run_config=RunConfig(storage_path=tmp_path)).fit()
