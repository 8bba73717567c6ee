"""What ``fit()`` returns, and how it is read back from a run directory: ours, and those of both of Ray's engines."""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from runtime.errors import ArgumentError
from train.checkpoint import Checkpoint
from train.checkpoint_manager import INDEX_FILE, CheckpointManager, CheckpointRecord, lookup
from train.config import CheckpointConfig
from train.metrics import METRICS_FILE, parse_lines
from train.storage import Storage, open_existing

__all__ = ["Result"]

_RAY_V2_INDEX = "checkpoint_manager_snapshot.json"
_RAY_V1_METRICS = "result.json"


@dataclass
class Result:
    """The end of a run.

    ``metrics``: of the last report, with or without a checkpoint. ``checkpoint``: the latest one. ``best_checkpoints``: (checkpoint,
    metrics) of those that were kept, best last. ``return_value``: what rank 0's training function returned.
    """

    metrics: dict[str, Any] | None
    checkpoint: Checkpoint | None
    error: Exception | None
    path: str
    best_checkpoints: list[tuple[Checkpoint, dict[str, Any]]] = field(default_factory=list)
    return_value: Any = None
    _storage: Storage | None = field(default=None, repr=False, compare=False)
    _metrics_file: str = field(default=METRICS_FILE, repr=False, compare=False)

    @property
    def filesystem(self) -> Any:
        """The filesystem that ``path`` is a path of."""
        return Checkpoint(self.path, self._storage.user_filesystem if self._storage is not None else None).filesystem

    @property
    def metrics_dataframe(self) -> Any:
        """All records of the run as a pandas DataFrame, one row a report; None without pandas."""
        try:
            pandas = importlib.import_module("pandas")
        except ImportError:
            return None
        data = self._storage.read(self._metrics_file) if self._storage is not None else None
        return pandas.DataFrame(parse_lines(data or b""))

    def get_best_checkpoint(self, metric: str, mode: str) -> Checkpoint | None:
        """The kept checkpoint with the highest (``mode="max"``) or lowest (``"min"``) value; ``a/b`` reaches into nested metrics.

        Raises: ArgumentError: another mode. RuntimeError: no checkpoints, or none has this metric.
        """
        if mode not in ("max", "min"):
            raise ArgumentError(f"get_best_checkpoint(mode={mode!r}): must be 'max' or 'min'.")
        if not self.best_checkpoints:
            raise RuntimeError("No checkpoint exists in the result: report one by train.report(metrics, checkpoint=...).")
        config = CheckpointConfig(checkpoint_score_attribute=metric, checkpoint_score_order=mode)
        manager = CheckpointManager(config)
        scored = [(checkpoint, metrics) for checkpoint, metrics in self.best_checkpoints if lookup(metrics, metric) is not None]
        if not scored:
            names = sorted({str(key) for _, metrics in self.best_checkpoints for key in metrics})
            raise RuntimeError(f"Invalid metric name {metric!r}! You may choose from the following metrics: {names}.")
        for number, (_, metrics) in enumerate(scored):
            manager.commit(CheckpointRecord(str(number), number, 0, metrics))
        return scored[int(manager.best[-1].name)][0]

    @classmethod
    def from_path(cls, path: str | os.PathLike[str], storage_filesystem: Any = None) -> Result:
        """The result of a finished or broken-off run, from its directory.

        Raises: RuntimeError: there is no such directory, or it is no run's.
        """
        storage = open_existing(os.fspath(path), storage_filesystem)
        if not storage.exists(""):
            raise RuntimeError(f"Experiment folder {storage.path} doesn't exist.")
        if (index := storage.read(INDEX_FILE)) is not None:
            return _from_ours(storage, index)
        if (index := storage.read(_RAY_V2_INDEX)) is not None:
            return _from_ray_v2(storage, index)
        if storage.read(_RAY_V1_METRICS) is not None:
            return _from_ray_v1(storage)
        raise RuntimeError(f"{storage.path} is no run directory: it has none of {INDEX_FILE}, {_RAY_V2_INDEX} (Ray 2.51 and later) and "
                           f"{_RAY_V1_METRICS} (a trial directory of earlier Ray).")

    @classmethod
    def of_run(cls, storage: Storage, manager: CheckpointManager, metrics: dict[str, Any] | None, return_value: Any = None) -> Result:
        """The result of a run that has just ended."""
        latest = manager.latest
        return cls(metrics, storage.checkpoint(latest.name) if latest else None, None, storage.path,
                   [(storage.checkpoint(record.name), record.metrics) for record in manager.best], return_value, storage)


def _from_ours(storage: Storage, index: bytes) -> Result:
    manager = CheckpointManager(CheckpointConfig())
    try:
        manager.load(index)
    except ValueError as exc:
        raise RuntimeError(f"{storage.at(INDEX_FILE)} can't be read: {exc}.") from exc
    records = parse_lines(storage.read(METRICS_FILE) or b"")
    return Result.of_run(storage, manager, records[-1] if records else None)


def _from_ray_v2(storage: Storage, index: bytes) -> Result:
    entries = json.loads(index).get("checkpoint_results", [])
    found = [(storage.checkpoint(entry["checkpoint_dir_name"]), entry["metrics"]) for entry in entries]
    latest = (json.loads(index).get("latest_checkpoint_result") or {}).get("checkpoint_dir_name")
    last = next((pair for pair in found if PurePosixPath(pair[0].path).name == latest), found[-1] if found else None)
    return Result(last[1] if last else None, last[0] if last else None, None, storage.path, found, None, storage, "")


def _from_ray_v1(storage: Storage) -> Result:
    records = parse_lines(storage.read(_RAY_V1_METRICS) or b"")
    by_name = {record["checkpoint_dir_name"]: record for record in records if record.get("checkpoint_dir_name")}
    names = sorted({name.split("/")[0] for name in storage.files("") if name.startswith("checkpoint_")})
    found = [(storage.checkpoint(name), by_name.get(name, {})) for name in names]
    text = storage.read("error.txt")
    error = RuntimeError(text.decode(errors="replace")) if text else None
    return Result(records[-1] if records else None, found[-1][0] if found else None, error, storage.path, found, None, storage,
                  _RAY_V1_METRICS)
