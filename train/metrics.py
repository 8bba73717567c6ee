"""Metrics of reports: what may be reported, what is filled in, and ``metrics.jsonl`` with one line for every consolidated report."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from runtime.errors import ArgumentError, ArgumentTypeError
from train.storage import LocalStorage, Storage, storage_access

__all__ = ["METRICS_FILE", "MetricsLog", "autofill", "encode_json", "parse_lines", "plain_metrics", "refuse_oversized"]

METRICS_FILE = "metrics.jsonl"
_ATOMS = (str, bytes, bool, int, float, type(None))


def plain_metrics(metrics: object) -> dict[str, Any]:
    """A copy of reported metrics with Python numbers for NumPy scalars and 0-dimensional tensors; NaN and infinities stay.

    Raises: ArgumentTypeError: no dict with text keys, or a value is an array, tensor or module; the text names its key.
    """
    if not isinstance(metrics, dict):
        raise ArgumentTypeError(f"report(metrics={metrics!r:.80}): got {type(metrics).__name__}; pass a dict such as {{'loss': 0.1}}.")
    for key in metrics:
        if not isinstance(key, str):
            raise ArgumentTypeError(f"report(metrics=...): the key {key!r:.80} is of type {type(key).__name__}; names are texts.")
    return {str(key): _plain(value, str(key)) for key, value in metrics.items()}


def _plain(value: Any, key: str) -> Any:
    if type(value) in _ATOMS:
        return value
    if isinstance(value, dict):
        return {_plain_key(k, key): _plain(v, f"{key}/{k}") for k, v in value.items()}
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(_plain(v, f"{key}[{i}]") for i, v in enumerate(value))
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None and isinstance(value, numpy.generic | numpy.ndarray):
        if value.ndim == 0:
            return value.item()
        raise ArgumentTypeError(f"report(metrics={{{key!r}: ...}}): a NumPy array of shape {value.shape} is no metric; report numbers "
                                f"(float(x.mean()), x.tolist()), or store it in the checkpoint.")
    if torch is not None and isinstance(value, torch.Tensor):
        if value.dim() == 0:
            return value.item()
        raise ArgumentTypeError(f"report(metrics={{{key!r}: ...}}): a tensor of shape {tuple(value.shape)} is no metric; report numbers "
                                f"(x.mean().item(), x.tolist()), or store it in the checkpoint.")
    if torch is not None and isinstance(value, torch.nn.Module):
        raise ArgumentTypeError(f"report(metrics={{{key!r}: ...}}): a module ({type(value).__name__}) is no metric; for a torchmetrics "
                                "object report its compute(), and store models in the checkpoint.")
    return value


def _plain_key(key: Any, parent: str) -> Any:
    plain = _plain(key, parent)
    return plain if isinstance(plain, str | int | float | None) else str(plain)  # what JSON can have as a key


def refuse_oversized(metrics: dict[str, Any], limit: int) -> None:
    """Raise if the metrics have more than ``limit`` bytes as JSON; the text names the biggest keys."""
    size = len(encode_json(metrics))
    if size <= limit:
        return
    sizes = sorted(((len(encode_json(value)), key) for key, value in metrics.items()), reverse=True)[:3]
    named = ", ".join(f"{key!r} about {bytes_ / 2**20:.1f} MiB" for bytes_, key in sizes)
    raise ArgumentError(f"report(): the metrics have {size / 2**20:.1f} MiB, allowed are {limit / 2**20:g} MiB ({named}). "
                        "Store big values in the checkpoint.")


def autofill(metrics: dict[str, Any], *, iteration: int, wall: float, this_iter_s: float, total_s: float, restored_s: float,
             checkpoint: str | None) -> dict[str, Any]:
    """The metrics with what Ray's first engine filled in; a key that the user reported is left alone.

    Args: wall: seconds since the epoch, for people. total_s: over all attempts and resumed runs. restored_s: since this ``fit()``.
    """
    filled = {
        "training_iteration": iteration,
        "timestamp": int(wall),
        "date": datetime.fromtimestamp(wall).strftime("%Y-%m-%d_%H-%M-%S"),
        "time_this_iter_s": this_iter_s,
        "time_total_s": total_s,
        "time_since_restore": restored_s,
        "checkpoint_dir_name": checkpoint,
    }
    return {**metrics, **{key: value for key, value in filled.items() if key not in metrics}}


def encode_json(value: Any) -> str:
    """One line of JSON; what JSON does not know becomes text, sets become lists. NaN and Infinity are written as Python writes them."""
    return json.dumps(value, default=_jsonable, separators=(",", ":"))


def _jsonable(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def parse_lines(data: bytes) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``; a line that was cut by a crash is left out."""
    records = []
    for line in data.split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


class MetricsLog:
    """Appends to ``metrics.jsonl``: in the run directory when that is local, else in a local file that ``upload`` copies there."""

    def __init__(self, storage: Storage, *, is_new: bool) -> None:
        self._storage = storage
        self._local = isinstance(storage, LocalStorage)
        data = b"" if is_new else storage.read(METRICS_FILE) or b""
        whole = data[: data.rfind(b"\n") + 1]  # a crash may have cut the last line
        self.last = next(iter(parse_lines(whole)[-1:]), None)  # the newest record, also one of an earlier fit() of this run
        self.count = whole.count(b"\n")
        with storage_access("write", storage.at(METRICS_FILE)):
            if self._local:
                self._path = storage.at(METRICS_FILE)
                if len(whole) < len(data):
                    os.truncate(self._path, len(whole))
                self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
            else:
                descriptor, self._path = tempfile.mkstemp(prefix="headway-metrics-", suffix=".jsonl")
                self._file = os.fdopen(descriptor, "wb", buffering=0)
                self._file.write(whole)
        self._uploaded = self.count

    def append(self, record: dict[str, Any]) -> None:
        """Add a line.

        Raises: StorageError.
        """
        with storage_access("append to", self._path):
            self._file.write(encode_json(record).encode() + b"\n")
        self.last = record
        self.count += 1

    def upload(self) -> None:
        """Make what was appended visible in the storage, durably."""
        if self._uploaded == self.count:
            return
        with storage_access("write", self._storage.at(METRICS_FILE)):
            if self._local:
                os.fsync(self._file.fileno())
            else:
                self._storage.put(self._path, METRICS_FILE)
        self._uploaded = self.count

    def close(self) -> None:
        """Close the file; ``upload`` comes first."""
        self._file.close()
        if not self._local:
            Path(self._path).unlink(missing_ok=True)
