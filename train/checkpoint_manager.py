"""Which checkpoints a run has, which of them are kept, and the index file that says so. Pure: the controller carries the answers out.

Kept are the newest ``num_to_keep``, or with a score attribute the best ones, and the latest in any case: K + 1 directories can exist. A
score that is missing or no number ranks worst (Ray 2.60 keeps such a checkpoint as the best for ever when the order is "min"); among equal
scores the later report is better.

The index lists a checkpoint as *begun* before its directory is made and as *removing* before anything of it is deleted, so that whatever a
crash leaves behind is known at the next start, and nothing else is ever swept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from train.config import CheckpointConfig
from train.metrics import encode_json

__all__ = ["INDEX_FILE", "CheckpointManager", "CheckpointRecord", "lookup"]

INDEX_FILE = "checkpoint_index.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """A committed checkpoint: its directory's name, and the report that it came with."""

    name: str
    report_index: int
    attempt: int
    metrics: dict[str, Any] = field(default_factory=dict)


def lookup(metrics: Mapping[str, Any], key: str) -> Any:
    """The metric of this key; ``a/b`` also finds ``{"a": {"b": ...}}``. None if there is none."""
    if key in metrics:
        return metrics[key]
    found: Any = metrics
    for part in key.split("/"):
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    return found


class CheckpointManager:
    """The index of a run's checkpoints. Methods that change it return what to do; ``encode`` is what to write."""

    def __init__(self, config: CheckpointConfig) -> None:
        self._config = config
        self._committed: list[CheckpointRecord] = []  # in the order of their reports
        self.begun: set[str] = set()
        self.removing: set[str] = set()
        self.attempt = 0  # the last attempt number that was given out; never given out again in this run
        self._warned = False

    @property
    def latest(self) -> CheckpointRecord | None:
        """The newest committed checkpoint."""
        return self._committed[-1] if self._committed else None

    @property
    def records(self) -> tuple[CheckpointRecord, ...]:
        """All committed checkpoints that exist, in the order of their reports."""
        return tuple(self._committed)

    @property
    def best(self) -> list[CheckpointRecord]:
        """The ``num_to_keep`` best, best last; without a score attribute the newest, newest last."""
        ranked = self._ranked()
        return ranked[-self._config.num_to_keep:] if self._config.num_to_keep is not None else ranked

    def knows(self, name: str) -> bool:
        """Whether a committed checkpoint has this name."""
        return any(record.name == name for record in self._committed)

    def begin(self, name: str) -> None:
        """A directory of this name is about to be made."""
        self.begun.add(name)

    def abandon(self, name: str) -> None:
        """What was begun will not be committed: it is to be removed, then ``removed`` called."""
        self.begun.discard(name)
        self.removing.add(name)

    def commit(self, record: CheckpointRecord) -> list[str]:
        """Register a checkpoint whose marker is written. Returns the names that are to be removed, after the index is written."""
        self.begun.discard(record.name)
        self._committed.append(record)
        num_to_keep = self._config.num_to_keep
        doomed = [] if num_to_keep is None else [r for r in self._ranked()[:-num_to_keep] if r is not self.latest]
        for dropped in doomed:
            self._committed.remove(dropped)
            self.removing.add(dropped.name)
        return [dropped.name for dropped in doomed]

    def removed(self, name: str) -> None:
        """Nothing is left of this directory."""
        self.begun.discard(name)
        self.removing.discard(name)

    def drop(self, name: str) -> None:
        """A checkpoint that was committed is no longer whole; its directory is left alone."""
        self._committed = [record for record in self._committed if record.name != name]

    def score_warning(self, metrics: Mapping[str, Any]) -> str | None:
        """Once a run: the text to warn with when these metrics of a checkpoint have no usable score."""
        key = self._config.checkpoint_score_attribute
        if key is None or self._warned or not math.isnan(self._score(metrics)):
            return None
        self._warned = True
        value = lookup(metrics, key)
        if value is None:
            return (f"checkpoint_score_attribute={key!r} is not in the reported metrics {sorted(map(str, metrics))}; this checkpoint ranks "
                    "worst. Report it, or change CheckpointConfig.")
        return f"checkpoint_score_attribute={key!r} is {value!r:.80}; this checkpoint ranks worst."

    def _score(self, metrics: Mapping[str, Any]) -> float:
        """Higher is better; NaN is worst of all."""
        value = lookup(metrics, self._config.checkpoint_score_attribute or "")
        try:
            score = float(value) if isinstance(value, int | float) else math.nan
        except OverflowError:  # an int beyond all floats
            score = math.inf if value > 0 else -math.inf
        return score if self._config.checkpoint_score_order == "max" else -score

    def _ranked(self) -> list[CheckpointRecord]:
        if self._config.checkpoint_score_attribute is None:
            return list(self._committed)

        def key(record: CheckpointRecord) -> tuple[bool, float]:
            score = self._score(record.metrics)
            return (False, 0.0) if math.isnan(score) else (True, score)

        return sorted(self._committed, key=key)  # stable: of equal ones the later report is the better

    def encode(self) -> bytes:
        """The index file."""
        latest = self.latest
        return (encode_json({
            "format": FORMAT,
            "attempt": self.attempt,
            "latest": latest.name if latest else None,
            "checkpoints": [asdict(record) for record in self._committed],
            "begun": sorted(self.begun),
            "removing": sorted(self.removing),
        }) + "\n").encode()

    def load(self, data: bytes) -> None:
        """Take over an index file.

        Raises: ValueError: it is damaged, or of another version.
        """
        try:
            found = json.loads(data)
            if found["format"] != FORMAT:
                raise ValueError(f"format {found['format']!r} is not {FORMAT}: it was written by another version")
            self._committed = [CheckpointRecord(**entry) for entry in found["checkpoints"]]
            self.begun, self.removing = set(found["begun"]), set(found["removing"])
            self.attempt = int(found["attempt"])
        except (KeyError, TypeError) as exc:
            raise ValueError(f"it is no index ({type(exc).__name__}: {exc})") from exc
