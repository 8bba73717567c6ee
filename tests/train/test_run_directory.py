from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train import Checkpoint, CheckpointConfig, get_checkpoint, report
from train.backend import Backend, BackendConfig
from train.checkpoint_manager import INDEX_FILE, CheckpointManager
from train.commit import verify
from train.controller import RunSpec
from train.errors import StorageError
from train.local_mode import run_locally
from train.protocol import JobSpec
from train.run_directory import open_checkpoints
from train.storage import LocalStorage

MakeSpec = Callable[..., RunSpec]
NUM_TO_KEEP = 2


class Crash(BaseException):
    """The power goes off."""


class CrashingStorage(LocalStorage):
    """Stops for ever before or after its n-th change of the disk."""

    def __init__(self, root: str, name: str, at: int, *, after: bool) -> None:
        super().__init__(root, name)
        self.left = at
        self.after = after
        self.is_down = False

    def _step(self, change: Callable[[], Any]) -> Any:
        if self.is_down:
            raise Crash
        self.left -= 1
        if self.left:
            return change()
        self.is_down = True
        if self.after:
            change()
        raise Crash

    def make_dir(self, name: str) -> None:
        self._step(lambda: LocalStorage.make_dir(self, name))

    def replace(self, name: str, data: bytes) -> None:
        self._step(lambda: LocalStorage.replace(self, name, data))

    def put(self, source: str, name: str) -> Any:
        return self._step(lambda: LocalStorage.put(self, source, name))

    def sync(self, name: str) -> None:
        self._step(lambda: LocalStorage.sync(self, name))

    def remove(self, name: str) -> None:
        self._step(lambda: LocalStorage.remove(self, name))


def open_manager(storage: LocalStorage, said: list[str]) -> CheckpointManager:
    return open_checkpoints(storage, CheckpointConfig(NUM_TO_KEEP), is_new=False, say=said.append)


def train_four_epochs(spec: RunSpec, make_directory: Callable[..., str], acknowledged: list[int]) -> None:
    def function() -> None:
        found = get_checkpoint()
        start = int(Path(found.path, "epoch").read_text()) + 1 if found else 0
        for epoch in range(start, 4):
            report({"epoch": epoch}, Checkpoint(make_directory(epoch=str(epoch), sub__weights=f"weights of {epoch}")))
            acknowledged.append(epoch)

    job = JobSpec(b"", None, Backend, BackendConfig(), spec.storage, None, 1 << 20)
    run_locally(spec, job, function, use_gpu=False, say=lambda text: None)


@pytest.mark.parametrize("after", [False, True])
def test_whatever_the_crash_the_committed_stays_and_the_rest_is_swept(
        make_spec: MakeSpec, storage: LocalStorage, make_directory: Callable[..., str], after: bool):
    steps = 0
    while True:
        steps += 1
        run = LocalStorage(storage.root, f"run-{steps}-{after}")
        run.make_run(exclusive=True)
        crashing = CrashingStorage(run.root, run.run_name, steps, after=after)
        acknowledged: list[int] = []
        try:
            train_four_epochs(make_spec(world_size=1, storage=crashing, manager=CheckpointManager(CheckpointConfig(NUM_TO_KEEP))),
                              make_directory, acknowledged)
        except Crash:
            pass
        check_and_finish(run, make_spec, make_directory, acknowledged)
        if not crashing.is_down:
            break
    assert steps > 20  # the whole protocol was walked through


def check_and_finish(run: LocalStorage, make_spec: MakeSpec, make_directory: Callable[..., str], acknowledged: list[int]) -> None:
    said: list[str] = []
    manager = open_manager(run, said)
    kept = [record.name for record in manager.records]
    assert sorted(name for name in os.listdir(run.path) if name.startswith("checkpoint_2")) == sorted(kept)
    for record in manager.records:
        verify(run, record.name)
        assert Path(run.at(record.name), "epoch").read_text() == str(record.metrics["epoch"])
    latest = manager.latest.metrics["epoch"] if manager.latest else -1
    assert latest >= max(acknowledged, default=-1)
    again: list[int] = []
    train_four_epochs(make_spec(world_size=1, storage=run, manager=manager, is_new=False), make_directory, again)
    assert again == list(range(latest + 1, 4))
    assert [r.metrics["epoch"] for r in open_manager(run, said).records] == [2, 3]


def commit_some(make_spec: MakeSpec, storage: LocalStorage, make_directory: Callable[..., str]) -> list[str]:
    train_four_epochs(make_spec(world_size=1, manager=CheckpointManager(CheckpointConfig(NUM_TO_KEEP))), make_directory, [])
    return [record.name for record in open_manager(storage, []).records]


def test_a_run_that_is_continued_says_so(make_spec: MakeSpec, storage: LocalStorage, make_directory: Callable[..., str], said: list[str]):
    _, latest = commit_some(make_spec, storage, make_directory)
    open_manager(storage, said)
    assert said == [f"continuing run 'run' in {storage.path}: its latest checkpoint is {latest} (report 4)."]


def test_a_broken_latest_checkpoint_is_passed_over(
        make_spec: MakeSpec, storage: LocalStorage, make_directory: Callable[..., str], said: list[str]):
    older, latest = commit_some(make_spec, storage, make_directory)
    os.unlink(storage.at(f"{latest}/epoch"))
    manager = open_manager(storage, said)
    assert manager.latest is not None
    assert manager.latest.name == older
    assert said[0] == f"warning: {latest} is incomplete ('epoch' of rank 0 is missing). Using {older}."
    assert storage.exists(latest)


def test_no_whole_checkpoint_at_all(make_spec: MakeSpec, storage: LocalStorage, make_directory: Callable[..., str], said: list[str]):
    for name in commit_some(make_spec, storage, make_directory):
        storage.remove(f"{name}/COMMITTED")
    assert open_manager(storage, said).latest is None
    assert "There is no older one: starting over" in said[1]


def test_only_what_the_index_lists_is_swept(
        make_spec: MakeSpec, storage: LocalStorage, make_directory: Callable[..., str], said: list[str]):
    commit_some(make_spec, storage, make_directory)
    storage.make_dir("checkpoint_of_somebody_else")
    open_manager(storage, said)
    assert storage.exists("checkpoint_of_somebody_else")


def test_a_damaged_index_is_a_clear_error(storage: LocalStorage, said: list[str]):
    storage.replace(INDEX_FILE, b"{")
    with pytest.raises(StorageError, match=r"corrupted run directory .*checkpoint_index\.json can't be read"):
        open_manager(storage, said)


def test_a_directory_without_index_is_a_new_run(storage: LocalStorage, said: list[str]):
    assert open_manager(storage, said).latest is None
    assert said == []
