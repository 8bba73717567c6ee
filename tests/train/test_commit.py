from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from train.commit import (
    FileEntry,
    Marker,
    assign_files,
    manifest_of,
    marked_files,
    remove_checkpoint,
    verify,
    write_files,
    write_marker,
)
from train.errors import CheckpointError, ReportError
from train.storage import LocalStorage

MakeDirectory = Callable[..., str]


def commit(storage: LocalStorage, folder: str, name: str = "ckpt") -> Marker:
    manifest = manifest_of(folder)
    storage.make_dir(name)
    written = write_files(storage, name, folder, manifest, tuple(entry.name for entry in manifest))
    marker = Marker("run", 1, 3, {"loss": 0.5}, marked_files({0: written}))
    write_marker(storage, name, marker)
    return marker


def test_what_is_committed_is_whole(storage: LocalStorage, make_directory: MakeDirectory):
    marker = commit(storage, make_directory(a="1", sub__b="22"))
    assert verify(storage, "ckpt") == marker
    assert {name: facts["size"] for name, facts in marker.files.items()} == {"a": 1, "sub/b": 2}
    assert sorted(os.listdir(storage.at("ckpt"))) == ["COMMITTED", "a", "sub"]


@pytest.mark.parametrize(("damage", "text"), [
    (lambda path: os.unlink(path / "COMMITTED"), r"ckpt is incomplete \(no COMMITTED marker\)"),
    (lambda path: os.unlink(path / "a"), r"ckpt is incomplete \('a' of rank 0 is missing\)"),
    (lambda path: (path / "a").write_text("longer"), r"ckpt is damaged \('a' of rank 0 has 6 of 1 bytes\)"),
    (lambda path: (path / "COMMITTED").write_text("{"), r"ckpt is damaged \(COMMITTED: "),
    (lambda path: (path / "COMMITTED").write_text((path / "COMMITTED").read_text().replace("0.5", "0.6")), "its digest does not fit"),
])
def test_what_is_not_whole_is_told(storage: LocalStorage, make_directory: MakeDirectory, damage: Callable[[Path], object], text: str):
    commit(storage, make_directory(a="1"))
    damage(Path(storage.at("ckpt")))
    with pytest.raises(CheckpointError, match=text):
        verify(storage, "ckpt")


def test_metadata_may_change_after_the_commit(storage: LocalStorage, make_directory: MakeDirectory):
    folder = make_directory(a="1")
    Path(folder, ".metadata.json").write_text("{}")
    assert list(commit(storage, folder).files) == ["a"]
    storage.checkpoint("ckpt").set_metadata({"longer": "than before"})
    verify(storage, "ckpt")


def test_a_marker_round_trips_with_whatever_metrics():
    metrics = {"nan": math.inf, "nested": {1: "a"}, "set": {2, 1}, "text": "ü\n"}
    again = Marker.decode(Marker("r", 1, 2, metrics).encode())
    assert again.metrics == {"nan": math.inf, "nested": {"1": "a"}, "set": [1, 2], "text": "ü\n"}
    assert Marker.decode(again.encode()) == again


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{}", b'{"marker": {}, "sha256": ""}', b"\xff"])
def test_other_bytes_are_no_marker(data: bytes):
    with pytest.raises(ValueError):
        Marker.decode(data)


def test_a_marker_of_another_version_is_refused():
    marker = Marker("r", 1, 2, {}, format=99)
    with pytest.raises(ValueError, match="written by another version"):
        Marker.decode(marker.encode())


def test_a_manifest_lists_regular_files_and_follows_links(make_directory: MakeDirectory, tmp_path: Path):
    folder = make_directory(a="1", sub__b="22")
    (tmp_path / "target").write_text("333")
    os.symlink(tmp_path / "target", Path(folder, "link"))
    assert manifest_of(folder) == (FileEntry("a", 1), FileEntry("link", 3), FileEntry("sub/b", 2))


def test_a_manifest_refuses_what_cannot_be_stored(make_directory: MakeDirectory):
    folder = make_directory(a="1")
    os.mkfifo(Path(folder, "pipe"))
    with pytest.raises(CheckpointError, match="is a socket, pipe or device"):
        manifest_of(folder)
    os.unlink(Path(folder, "pipe"))
    os.symlink("nowhere", Path(folder, "dangling"))
    with pytest.raises(CheckpointError, match="dangling"):
        manifest_of(folder)
    with pytest.raises(CheckpointError, match="cannot list"):
        manifest_of(folder + "-gone")


def test_a_manifest_of_a_loop_of_links_ends(make_directory: MakeDirectory):
    folder = make_directory(a="1")
    os.symlink(folder, Path(folder, "loop"))
    with pytest.raises(CheckpointError):
        manifest_of(folder)


def test_an_old_marker_of_ours_is_left_out_and_a_users_file_of_that_name_is_not(storage: LocalStorage, make_directory: MakeDirectory):
    commit(storage, make_directory(a="1"))
    assert manifest_of(storage.at("ckpt")) == (FileEntry("a", 1),)
    with pytest.raises(CheckpointError, match="Give your file another name"):
        manifest_of(make_directory(COMMITTED="mine"))


def test_each_name_goes_to_the_lowest_rank_that_offers_it():
    manifests = {0: (FileEntry("model", 1),), 1: (FileEntry("model", 2), FileEntry("shard-1", 1)), 2: ()}
    assert assign_files(manifests) == {0: ("model",), 1: ("shard-1",), 2: ()}


@pytest.mark.parametrize("name", ["../x", "/x", "a/../b", "", "COMMITTED", "a\0b"])
def test_unsafe_names_are_refused(name: str):
    with pytest.raises(ReportError, match="rank 1 reported a checkpoint with the file name"):
        assign_files({0: (), 1: (FileEntry(name, 1),)})


def test_a_file_that_is_a_directory_elsewhere_is_refused():
    with pytest.raises(ReportError, match=r"rank 1 .* the file 'a', which is a directory at rank 0 \(with 'a/b/c'\)"):
        assign_files({0: (FileEntry("a/b/c", 1),), 1: (FileEntry("a", 1),)})


def test_a_file_that_changes_while_it_is_stored_is_told(storage: LocalStorage, make_directory: MakeDirectory):
    folder = make_directory(a="1")
    manifest = manifest_of(folder)
    Path(folder, "a").write_text("22")
    with pytest.raises(CheckpointError, match="'a' had 1 bytes when it was reported and 2 when it was stored"):
        write_files(storage, "ckpt", folder, manifest, ("a",))


def test_a_checkpoint_is_removed_marker_first(storage: LocalStorage, make_directory: MakeDirectory, monkeypatch: pytest.MonkeyPatch):
    commit(storage, make_directory(a="1"))
    removed: list[str] = []
    plain = storage.remove
    monkeypatch.setattr(storage, "remove", lambda name: (removed.append(name), plain(name)))
    remove_checkpoint(storage, "ckpt")
    assert removed == ["ckpt/COMMITTED", "ckpt"]
    assert not storage.exists("ckpt")


def test_the_marker_is_readable_by_people(storage: LocalStorage, make_directory: MakeDirectory):
    commit(storage, make_directory(a="1"))
    marker = json.loads(Path(storage.at("ckpt/COMMITTED")).read_text())["marker"]
    assert (marker["attempt"], marker["report_index"], marker["metrics"]) == (1, 3, {"loss": 0.5})
