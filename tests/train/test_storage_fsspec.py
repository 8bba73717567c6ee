from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from runtime.errors import ArgumentTypeError
from train.errors import StorageError
from train.storage import open_run
from train.storage_fsspec import FsspecStorage, as_fsspec


@pytest.fixture
def memory() -> Iterator[FsspecStorage]:
    opened = open_run("run", "memory://results").storage
    assert isinstance(opened, FsspecStorage)
    yield opened
    fsspec.filesystem("memory").rm("/results", recursive=True)


def test_it_keeps_files_as_a_local_directory_does(memory: FsspecStorage, make_directory: Callable[..., str]):
    memory.make_dir("ckpt")
    with pytest.raises(FileExistsError):
        memory.make_dir("ckpt")
    facts = memory.put(str(Path(make_directory(a="abc"), "a")), "ckpt/sub/a")
    assert facts.size == 3
    memory.replace("ckpt/COMMITTED", b"marker")
    memory.sync("ckpt")
    assert memory.files("ckpt") == {"sub/a": 3, "COMMITTED": 6}
    assert memory.read("ckpt/sub/a") == b"abc"
    assert memory.read("nothing") is None
    memory.remove("ckpt")
    memory.remove("ckpt")
    assert not memory.exists("ckpt")
    assert memory.files("ckpt") == {}


def test_append_writes_anew(memory: FsspecStorage, make_directory: Callable[..., str]):
    source = str(Path(make_directory(a="x\n"), "a"))
    memory.append("logs/rank_0.log", source, "")
    memory.append("logs/rank_0.log", source, "--\n")
    assert memory.read("logs/rank_0.log") == b"x\n--\nx\n"


def test_unnamed_runs_never_meet(memory: FsspecStorage):
    assert len({open_run(None, "memory://results").storage.run_name for _ in range(3)}) == 3


def test_the_users_filesystem_is_used_and_given_back(tmp_path: Path):
    mine = fsspec.filesystem("file")
    opened = open_run("run", f"{tmp_path}/results", mine).storage
    assert isinstance(opened, FsspecStorage)
    assert opened.path == f"{tmp_path}/results/run"
    assert opened.user_filesystem is mine
    assert opened.checkpoint("c").filesystem is mine
    assert (tmp_path / "results" / "run").is_dir()


def test_what_is_no_filesystem_is_refused():
    with pytest.raises(ArgumentTypeError, match="got dict as a filesystem"):
        as_fsspec({})


def test_errors_of_the_filesystem_become_storage_errors(memory: FsspecStorage, monkeypatch: pytest.MonkeyPatch):
    class ClientError(Exception):
        pass

    def fail(*args: object, **kwargs: object) -> None:
        raise ClientError("403 Forbidden")

    monkeypatch.setattr(memory.filesystem, "pipe_file", fail)
    with pytest.raises(StorageError, match=r"cannot write '.*/run/x' \(ClientError: 403 Forbidden\)"):
        memory.replace("x", b"")
