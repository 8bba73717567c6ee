"""Where the last lines of a log begin, and whom SIGUSR2 may be sent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.worker import log_readers
from runtime.worker.log_readers import _catches, _start_of_tail, _state


def tail(path: Path, num_lines: int) -> bytes:
    return path.read_bytes()[_start_of_tail(str(path), num_lines):]


@pytest.mark.parametrize(("content", "num_lines", "expected"), [
    (b"", 3, b""), (b"a\nb\nc\n", 2, b"b\nc\n"), (b"a\nb\nc", 2, b"b\nc"), (b"a\nb\n", 9, b"a\nb\n"), (b"a\nb\n", 0, b""),
    (b"a\n\n\n", 2, b"\n\n"), (b"a\nb\n", -1, b"a\nb\n"), (b"one", 1, b"one"),
])
def test_the_last_lines_begin_where_a_line_begins(tmp_path: Path, content: bytes, num_lines: int, expected: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)
    assert tail(path, num_lines) == expected


def test_of_a_long_log_only_whole_lines_of_its_end_are_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_readers, "TAIL_BYTES", 10)
    path = tmp_path / "log"
    path.write_bytes(b"aaaa\nbbbb\ncccc\ndddd\n")
    assert tail(path, 99) == b"dddd\n"
    assert tail(path, 1) == b"dddd\n"


def test_a_process_that_does_not_handle_the_signal_is_not_sent_it() -> None:
    assert not _catches(1 << 30, signal.SIGUSR2)
    assert _state(1 << 30) == "gone"
    code = "import faulthandler, signal, sys; faulthandler.register(signal.SIGUSR2); print(1, flush=True); sys.stdin.read()"
    for source, expected in ((code, True), ("import sys; print(1, flush=True); sys.stdin.read()", False)):
        with subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"1\n"
            assert _catches(process.pid, signal.SIGUSR2) is expected
            assert _state(process.pid) in "RS"
            process.communicate()
    assert _state(os.getpid()) == "R"
