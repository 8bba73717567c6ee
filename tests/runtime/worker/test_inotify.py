"""Which files of a folder were written to."""

from __future__ import annotations

import os
import select
from pathlib import Path

from runtime.worker.inotify import watch_writes, written_names


def test_names_of_written_files_are_told_once(tmp_path: Path) -> None:
    fd = watch_writes(str(tmp_path))
    assert fd is not None
    try:
        assert written_names(fd) == set()
        for name in ("a", "bb", "with space ü"):
            (tmp_path / name).write_text("x")
        assert select.select([fd], [], [], 10)[0] == [fd]
        assert written_names(fd) == {"a", "bb", "with space ü"}
        assert written_names(fd) == set()
    finally:
        os.close(fd)


def test_a_folder_that_is_not_there_can_not_be_watched(tmp_path: Path) -> None:
    assert watch_writes(str(tmp_path / "none")) is None
