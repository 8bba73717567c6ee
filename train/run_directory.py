"""Finds a run directory as an earlier ``fit()`` left it, whole or not, and makes it fit to go on.

What the index lists as begun is committed if its marker says so (the crash came between marker and index), else swept; what it lists as
removing is removed. Nothing else is ever deleted.
"""

from __future__ import annotations

from collections.abc import Callable

from train.checkpoint_manager import INDEX_FILE, CheckpointManager, CheckpointRecord
from train.commit import remove_checkpoint, verify
from train.config import CheckpointConfig
from train.errors import CheckpointError, StorageError
from train.storage import Storage

__all__ = ["open_checkpoints"]


def open_checkpoints(storage: Storage, config: CheckpointConfig, *, is_new: bool, say: Callable[[str], None]) -> CheckpointManager:
    """The checkpoints of a run, the latest of which is whole. The index on disk is not changed yet.

    Raises: StorageError: the storage failed, or the index is damaged.
    """
    manager = CheckpointManager(config)
    data = None if is_new else storage.read(INDEX_FILE)
    if data is None:
        return manager
    try:
        manager.load(data)
    except ValueError as exc:
        raise StorageError(f"corrupted run directory {storage.path!r}: {INDEX_FILE} can't be read ({exc}). Use another RunConfig(name=...) "
                           "or delete that file, to start without the checkpoints it lists.") from exc
    _settle(storage, manager, say)
    _drop_broken(storage, manager, say)
    latest = manager.latest
    found = f"its latest checkpoint is {latest.name} (report {latest.report_index})" if latest else "it has no committed checkpoint"
    say(f"continuing run {storage.run_name!r} in {storage.path}: {found}.")
    return manager


def _settle(storage: Storage, manager: CheckpointManager, say: Callable[[str], None]) -> None:
    for name in sorted(manager.begun):
        try:
            marker = verify(storage, name)
        except CheckpointError:
            say(f"removing {name}, which was begun and never committed.")
            manager.abandon(name)
        else:
            manager.commit(CheckpointRecord(name, marker.report_index, marker.attempt, marker.metrics))
    for name in sorted(manager.removing):
        remove_checkpoint(storage, name)
        manager.removed(name)


def _drop_broken(storage: Storage, manager: CheckpointManager, say: Callable[[str], None]) -> None:
    while (latest := manager.latest) is not None:
        try:
            verify(storage, latest.name)
        except CheckpointError as exc:
            manager.drop(latest.name)
            older = manager.latest
            say(f"warning: {exc} {'Using ' + older.name if older else 'There is no older one: starting over'}.")
        else:
            return
