"""What tests of the training library share: a run directory, spoken lines, fake ranks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train import arguments
from train.callback import RunContext
from train.checkpoint_manager import CheckpointManager
from train.config import CheckpointConfig, RunConfig, ScalingConfig
from train.controller import RunSpec
from train.controller_events import GangReady, RankPlace
from train.storage import LocalStorage


@pytest.fixture(autouse=True)
def warn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """``warn_once`` warns once a test."""
    monkeypatch.setattr(arguments, "_warned", set())


@pytest.fixture
def said() -> list[str]:
    """Lines for the user; pass ``said.append`` as ``say``."""
    return []


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    """A run directory that exists."""
    made = LocalStorage(str(tmp_path), "run")
    made.make_run(exclusive=True)
    return made


@pytest.fixture
def make_directory(tmp_path: Path) -> Callable[..., str]:
    """A directory with these files, as a training function would fill it."""
    count = 0

    def make(**files: str) -> str:
        nonlocal count
        count += 1
        folder = tmp_path / f"local-{count}"
        folder.mkdir()
        for name, text in files.items():
            path = folder / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return str(folder)

    return make


@pytest.fixture
def make_spec(storage: LocalStorage) -> Callable[..., RunSpec]:
    """A RunSpec of the run directory."""

    def make(**changes: Any) -> RunSpec:
        run_config = RunConfig(checkpoint_config=CheckpointConfig(num_to_keep=changes.pop("num_to_keep", None)))
        used = changes.pop("storage", storage)
        spec: dict[str, Any] = {
            "world_size": 2, "max_failures": 0, "context": RunContext(used.run_name, used.path, run_config, ScalingConfig(num_workers=2)),
            "callbacks": (), "storage": used, "is_new": True, "manager": CheckpointManager(run_config.checkpoint_config),
            "resume_from": None, **changes}
        return RunSpec(**spec)

    return make


class FakeGroup:
    """Ranks that do what ``script(group, attempt)`` posts; ``sent`` is what they were told."""

    def __init__(self, post: Callable[[Any], None], script: Callable[[FakeGroup, int], None]) -> None:
        self.post = post
        self.sent: list[tuple[int, Any]] = []
        self.stops: list[tuple[float, str]] = []
        self.on_send: Callable[[int, Any], None] | None = None
        self.on_stop: Callable[[float], None] | None = None
        self.checkpoints: list[Any] = []
        self.attempts: list[int] = []
        self.start_errors: deque[BaseException] = deque()
        self._script = script

    def start(self, attempt: int, checkpoint: Any) -> tuple[RankPlace, ...]:
        self.attempts.append(attempt)
        self.checkpoints.append(checkpoint)
        if self.start_errors:
            raise self.start_errors.popleft()
        self._script(self, attempt)
        return tuple(RankPlace(f"rank {rank} on node-a (pid {100 * attempt + rank})") for rank in range(2))

    def send(self, rank: int, message: Any) -> None:
        self.sent.append((rank, message))
        if self.on_send is not None:
            self.on_send(rank, message)

    def stop(self, grace_s: float, reason: str) -> None:
        self.stops.append((grace_s, reason))
        if self.on_stop is not None:
            self.on_stop(grace_s)

    def logs(self) -> list[Any]:
        return []


@pytest.fixture
def fake_group() -> type[FakeGroup]:
    """The class of fake ranks."""
    return FakeGroup


@pytest.fixture
def ready() -> Callable[..., GangReady]:
    """The event that two ranks run."""
    places = tuple(RankPlace(f"rank {rank} on node-a (pid {rank})", f"/logs/{rank}") for rank in range(2))
    return lambda attempt=1: GangReady(attempt, places)
