from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.errors import ArgumentError
from train import Checkpoint, Result
from train.checkpoint_manager import INDEX_FILE, CheckpointManager, CheckpointRecord
from train.config import CheckpointConfig
from train.storage import LocalStorage


@pytest.fixture
def result(storage: LocalStorage) -> Result:
    manager = CheckpointManager(CheckpointConfig(2, "acc"))
    for index, acc in enumerate([0.9, 0.5, 0.7]):
        manager.commit(CheckpointRecord(f"c{index}", index, 1, {"acc": acc, "nested": {"loss": -acc}}))
    storage.replace(INDEX_FILE, manager.encode())
    storage.replace("metrics.jsonl", b'{"acc":0.9}\n{"acc":0.5}\n{"acc":0.7,"last":true}\n')
    return Result.of_run(storage, manager, {"acc": 0.7, "last": True})


def names(result: Result) -> list[str]:
    return [Path(checkpoint.path).name for checkpoint, _ in result.best_checkpoints]


def test_the_latest_and_the_best(result: Result, storage: LocalStorage):
    assert result.checkpoint is not None
    assert result.checkpoint.path == storage.at("c2")
    assert names(result) == ["c2", "c0"]
    assert result.error is None
    assert result.filesystem.exists(result.path)


def test_the_best_by_another_metric(result: Result):
    best = result.get_best_checkpoint("acc", "max")
    assert best is not None
    assert best.path.endswith("c0")
    assert result.get_best_checkpoint("nested/loss", "max").path.endswith("c2")  # type: ignore[union-attr]
    with pytest.raises(ArgumentError, match="must be 'max' or 'min'"):
        result.get_best_checkpoint("acc", "best")
    with pytest.raises(RuntimeError, match=r"Invalid metric name 'f1'! You may choose from the following metrics: \['acc', 'nested'\]"):
        result.get_best_checkpoint("f1", "max")
    with pytest.raises(RuntimeError, match="No checkpoint exists"):
        Result(None, None, None, "/x").get_best_checkpoint("acc", "max")


def test_it_is_read_back_from_its_directory(result: Result):
    again = Result.from_path(result.path)
    assert again.metrics == result.metrics
    assert again.checkpoint is not None
    assert again.checkpoint.path.endswith("c2")
    assert sorted(names(again)) == ["c0", "c2"]


def test_the_dataframe_has_every_report(result: Result, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=list))
    assert result.metrics_dataframe == [{"acc": 0.9}, {"acc": 0.5}, {"acc": 0.7, "last": True}]


def test_without_pandas_there_is_no_dataframe(result: Result, monkeypatch: pytest.MonkeyPatch):
    plain = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", plain)
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert result.metrics_dataframe is None


def test_a_directory_that_is_no_run(tmp_path: Path):
    with pytest.raises(RuntimeError, match=r"Experiment folder .*nope doesn't exist"):
        Result.from_path(tmp_path / "nope")
    with pytest.raises(RuntimeError, match="is no run directory: it has none of"):
        Result.from_path(tmp_path)


def test_rays_current_layout(tmp_path: Path):
    entries = [{"checkpoint_dir_name": f"checkpoint_{i}", "metrics": {"loss": loss}, "version": 1} for i, loss in ((1, 0.5), (0, 0.9))]
    snapshot: dict[str, Any] = {"checkpoint_results": entries, "latest_checkpoint_result": entries[1], "ray_version": "2.60.0"}
    (tmp_path / "checkpoint_manager_snapshot.json").write_text(json.dumps(snapshot))
    found = Result.from_path(tmp_path)
    assert found.metrics == {"loss": 0.9}
    assert isinstance(found.checkpoint, Checkpoint)
    assert found.checkpoint.path == f"{tmp_path}/checkpoint_0"
    assert names(found) == ["checkpoint_1", "checkpoint_0"]


def test_the_layout_of_rays_first_engine(tmp_path: Path):
    for i in range(2):
        (tmp_path / f"checkpoint_00000{i}").mkdir()
        (tmp_path / f"checkpoint_00000{i}" / "model").write_text("x")
    lines = [{"loss": 1 - i, "checkpoint_dir_name": f"checkpoint_00000{i}"} for i in range(2)]
    (tmp_path / "result.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "error.txt").write_text("it broke")
    found = Result.from_path(tmp_path)
    assert found.metrics == lines[1]
    assert names(found) == ["checkpoint_000000", "checkpoint_000001"]
    assert str(found.error) == "it broke"
