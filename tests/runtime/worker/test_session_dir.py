"""Where sockets and logs of a session go."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from runtime.worker.session_dir import make_session_dir


def test_it_is_private_and_where_the_user_keeps_such(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_tmp))
    path = make_session_dir()
    assert path.parent == short_tmp
    assert path.name.startswith("headway-")
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_path_too_long_for_sockets_is_not_taken(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = short_tmp / ("x" * 60)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    path = make_session_dir()
    assert path.parent == Path("/tmp")
    assert list(long.iterdir()) == []
    shutil.rmtree(path)


def test_a_place_that_is_not_there_is_passed_over(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/does/not/exist")
    monkeypatch.setattr(tempfile, "tempdir", str(short_tmp))
    path = make_session_dir()
    assert path.parent == short_tmp
    assert os.access(path, os.W_OK)


def test_what_a_killed_session_left_goes_at_the_next_start_and_a_living_one_stays(monkeypatch: pytest.MonkeyPatch, short_tmp: Path) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(short_tmp))
    living = make_session_dir()
    foreign = short_tmp / "headway-foreign"  # without a lock: nobody knows whose
    foreign.mkdir()
    code = "import sys; from runtime.worker.session_dir import make_session_dir; print(make_session_dir())"
    environment = os.environ | {"TMPDIR": str(short_tmp)}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert Path(killed.stdout.strip()).is_dir()
    assert living.is_dir(), "another session's start leaves it"
    newest = make_session_dir()
    assert sorted(path.name for path in short_tmp.iterdir()) == sorted([living.name, foreign.name, newest.name])
