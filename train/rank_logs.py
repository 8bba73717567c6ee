"""The output of ranks, kept in ``<run dir>/logs/rank_N.log`` when a run ends: all attempts, one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import runtime
from train.errors import StorageError
from train.storage import Storage, log_name
from train.worker_group import RankLog

__all__ = ["keep_logs"]


def keep_logs(storage: Storage, logs: Sequence[RankLog], say: Callable[[str], None]) -> None:
    """Append each log to its rank's file. Those of other hosts stay where they are, which is said."""
    here = runtime.get_runtime_context().host_id if logs else ""
    elsewhere = []
    for log in logs:
        if log.host_id != here or not os.path.exists(log.path):
            elsewhere.append(log)
            continue
        try:
            storage.append(log_name(log.rank), log.path, f"==== attempt {log.attempt} ====\n" if log.attempt > 1 else "")
        except StorageError as exc:
            say(f"warning: the log of rank {log.rank} was not kept: {exc}")
    if elsewhere:
        say(f"logs of {len(elsewhere)} ranks stay on their hosts, such as {elsewhere[0].path} of rank {elsewhere[0].rank}.")
