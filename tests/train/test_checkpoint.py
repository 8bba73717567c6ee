from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from runtime.errors import ArgumentTypeError
from train import Checkpoint

MakeDirectory = Callable[..., str]


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A checkpoint on a filesystem that is not local; downloads go below tmp_path."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    memory = fsspec.filesystem("memory")
    memory.pipe({"/ckpt/a": b"A", "/ckpt/sub/b": b"B", "/ckpt/COMMITTED": b"{}"})
    yield "memory://ckpt"
    memory.rm("/ckpt", recursive=True)


def test_a_local_checkpoint_is_used_in_place(make_directory: MakeDirectory):
    folder = make_directory(a="1")
    checkpoint = Checkpoint.from_directory(folder)
    with checkpoint.as_directory() as path:
        assert path == folder == checkpoint.path
    assert Path(folder, "a").read_text() == "1"
    assert repr(checkpoint) == f"Checkpoint(filesystem=local, path={folder})"
    assert checkpoint.filesystem.protocol[0] == "file"


def test_a_copy_leaves_the_commit_marker_out(make_directory: MakeDirectory, tmp_path: Path):
    checkpoint = Checkpoint(make_directory(COMMITTED="x", sub__COMMITTED="kept", a="1"))
    copy = checkpoint.to_directory(tmp_path / "copy")
    assert sorted(os.listdir(copy)) == ["a", "sub"]
    assert os.listdir(Path(copy, "sub")) == ["COMMITTED"]


def test_missing_and_wrong_directories_are_named_at_once(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="there is no such directory on this host"):
        Checkpoint.from_directory(tmp_path / "nope")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="it is a file"):
        Checkpoint.from_directory(tmp_path / "file")
    with pytest.raises(ArgumentTypeError, match="got int"):
        Checkpoint(5)


def test_a_remote_checkpoint_is_downloaded_once_and_removed_by_its_last_reader(remote: str, tmp_path: Path):
    checkpoint = Checkpoint(remote)
    other_process = pickle.loads(pickle.dumps(checkpoint))
    with checkpoint.as_directory() as first:
        assert sorted(os.listdir(first)) == ["a", "sub"]
        Path(first, "a").write_text("not downloaded again")
        with other_process.as_directory() as second:
            assert second == first
            assert Path(second, "a").read_text() == "not downloaded again"
        assert os.path.isdir(first)
    assert os.listdir(tmp_path) == []
    assert repr(checkpoint) == "Checkpoint(filesystem=memory, path=/ckpt)"


def test_metadata(make_directory: MakeDirectory, remote: str):
    for checkpoint in (Checkpoint(make_directory(a="1")), Checkpoint(remote)):
        assert checkpoint.get_metadata() == {}
        checkpoint.set_metadata({"a": 1})
        checkpoint.update_metadata({"b": [2]})
        assert checkpoint.get_metadata() == {"a": 1, "b": [2]}


def test_attributes_of_old_releases_have_a_recipe():
    with pytest.raises(AttributeError, match="use Checkpoint.from_directory"):
        Checkpoint.from_dict({})
    with pytest.raises(AttributeError, match="read the file that you wrote"):
        Checkpoint("/x").to_dict()
    with pytest.raises(AttributeError, match=r"Checkpoint has no 'nonsense'\.$"):
        _ = Checkpoint("/x").nonsense
    with pytest.raises(TypeError):
        os.fspath(Checkpoint("/x"))


def test_checkpoints_are_compared_by_identity():
    assert Checkpoint("/x") != Checkpoint("/x")
