from __future__ import annotations

import errno
import hashlib
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from train.errors import StorageError
from train.storage import LocalStorage, open_existing, open_run, split_scheme, storage_access


def test_put_copies_and_tells_size_and_digest(storage: LocalStorage, make_directory: Callable[..., str]):
    source = Path(make_directory(a="x" * 10_000), "a")
    facts = storage.put(str(source), "ckpt/sub/a")
    assert (facts.size, facts.sha256) == (10_000, hashlib.sha256(b"x" * 10_000).hexdigest())
    stored = Path(storage.at("ckpt/sub/a"))
    source.write_text("changed")
    assert stored.read_bytes() == b"x" * 10_000
    assert stored.stat().st_nlink == 1
    assert storage.files("ckpt") == {"sub/a": 10_000}


def test_replace_is_atomic_and_leaves_no_temporary_file(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch):
    storage.replace("index", b"old")

    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StorageError, match=r"cannot write '.*index' \(No space left on device, \d+ bytes free\)"):
        storage.replace("index", b"new")
    assert storage.read("index") == b"old"
    assert os.listdir(storage.path) == ["index"]


def test_reading_and_removing_what_is_not_there(storage: LocalStorage):
    assert storage.read("nothing") is None
    assert storage.files("nothing") == {}
    storage.remove("nothing")
    assert not storage.exists("nothing")


def test_remove_never_follows_links(storage: LocalStorage, tmp_path: Path):
    outside = tmp_path / "precious"
    outside.mkdir()
    (outside / "file").write_text("x")
    storage.make_dir("ckpt")
    os.symlink(outside, storage.at("ckpt/link"))
    os.symlink(outside, storage.at("link"))
    storage.remove("ckpt")
    storage.remove("link")
    assert (outside / "file").read_text() == "x"
    assert os.listdir(storage.path) == []


def test_append_makes_the_file_and_its_directory(storage: LocalStorage, make_directory: Callable[..., str]):
    source = str(Path(make_directory(a="one\n"), "a"))
    storage.append("logs/rank_0.log", source, "")
    storage.append("logs/rank_0.log", source, "==== attempt 2 ====\n")
    assert storage.read("logs/rank_0.log") == b"one\n==== attempt 2 ====\none\n"


def test_a_checkpoint_directory_is_made_exclusively(storage: LocalStorage):
    storage.make_dir("ckpt")
    with pytest.raises(FileExistsError):
        storage.make_dir("ckpt")


def test_a_storage_is_picklable(storage: LocalStorage):
    assert pickle.loads(pickle.dumps(storage)).path == storage.path


def test_default_names_never_meet(tmp_path: Path):
    opened = [open_run(None, tmp_path) for _ in range(3)]
    names = [run.storage.run_name for run in opened]
    assert len(set(names)) == 3
    assert all(run.is_new for run in opened)
    assert all(re.fullmatch(r"run-\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(-\d)?", name) for name in names)


def test_a_given_name_is_opened_again(tmp_path: Path):
    first, second = open_run("mine", tmp_path), open_run("mine", str(tmp_path))
    assert first.storage.path == second.storage.path == f"{tmp_path}/mine"
    assert not second.is_new
    assert os.listdir(second.storage.path) == []


def test_the_default_storage_is_in_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_run("mine", None).storage.path == f"{tmp_path}/headway_results/mine"


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert open_run("mine", "results").storage.path == f"{tmp_path}/results/mine"


def test_a_storage_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot create run directory '.*file/sub/mine' \(Not a directory\)"):
        open_run("mine", tmp_path / "file" / "sub")
    with pytest.raises(StorageError, match=r"is no directory: choose another RunConfig\(name=\.\.\.\)"):
        open_run("file", tmp_path)


def test_permission_errors_name_the_user(tmp_path: Path):
    with pytest.raises(StorageError, match=rf"cannot write '/x' \(Permission denied, uid {os.getuid()}\)"), storage_access("write", "/x"):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_the_probe_says_what_to_do(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch):
    storage.probe()
    assert os.listdir(storage.path) == []
    monkeypatch.setattr(storage, "read", lambda name: b"other")
    with pytest.raises(StorageError, match="reads back differently"):
        storage.probe()
    Path(storage.path).rmdir()
    with pytest.raises(StorageError, match=r"checkpoints could not be stored there\. Choose another RunConfig\(storage_path"):
        storage.probe()


def test_open_existing_makes_nothing(tmp_path: Path):
    assert open_existing(f"{tmp_path}/a/b/").path == f"{tmp_path}/a/b"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("url", "expected"), [
    ("/a/b", ("", "/a/b")), ("s3://b/x", ("s3", "b/x")), ("file:///a", ("file", "/a")),
    ("simplecache::s3://b/x", ("simplecache", "simplecache::s3://b/x"))])
def test_split_scheme(url: str, expected: tuple[str, str]):
    assert split_scheme(url) == expected
