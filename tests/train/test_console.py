from __future__ import annotations

import io

import pytest

from train.console import say


class CountingStream(io.StringIO):
    writes = flushes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        return super().write(text)

    def flush(self) -> None:
        self.flushes += 1


def test_lines_are_one_write_to_stderr_and_flushed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    stream = CountingStream()
    monkeypatch.setattr("sys.stderr", stream)
    say("hello\n  more")
    assert (stream.getvalue(), stream.writes, stream.flushes) == ("[headway] hello\n  more\n", 1, 1)
    assert capfd.readouterr().out == ""
