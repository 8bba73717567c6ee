from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

import runtime
from train.rank_logs import keep_logs
from train.storage import LocalStorage
from train.worker_group import RankLog


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "get_runtime_context", lambda: SimpleNamespace(host_id="here"))


def test_the_logs_of_all_attempts_are_kept(storage: LocalStorage, tmp_path: Path, said: list[str]):
    logs = []
    for attempt in (1, 2):
        for rank in (0, 1):
            path = tmp_path / f"{rank}-{attempt}.log"
            path.write_text(f"rank {rank} in attempt {attempt}\n")
            logs.append(RankLog(rank, attempt, "here", str(path)))
    keep_logs(storage, logs, said.append)
    assert storage.read("logs/rank_1.log") == b"rank 1 in attempt 1\n==== attempt 2 ====\nrank 1 in attempt 2\n"
    assert said == []


def test_logs_of_other_hosts_are_named(storage: LocalStorage, said: list[str]):
    keep_logs(storage, [RankLog(0, 1, "there", "/var/x.log"), RankLog(1, 1, "here", "/no/such.log")], said.append)
    assert said == ["logs of 2 ranks stay on their hosts, such as /var/x.log of rank 0."]
    assert not storage.exists("logs")


def test_a_log_that_cannot_be_kept_is_no_failure(storage: LocalStorage, tmp_path: Path, said: list[str]):
    (tmp_path / "x.log").write_text("x")
    storage.replace("logs", b"a file in the way")
    keep_logs(storage, [RankLog(0, 1, "here", str(tmp_path / "x.log"))], said.append)
    assert said[0].startswith("warning: the log of rank 0 was not kept: cannot append to")


def test_nothing_to_keep_asks_nobody(storage: LocalStorage, said: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runtime, "get_runtime_context", lambda: 1 / 0)
    keep_logs(storage, [], said.append)
