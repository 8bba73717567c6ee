"""Lines of actors on the driver's stderr."""

from __future__ import annotations

import sys

import pytest

from runtime.client.logs import show
from runtime.client.notice import say
from runtime.wire.messages import LogLines


def test_lines_have_a_prefix_and_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    show(LogLines("j", "a", "rank 1", "host-b", ("one", "two")))
    captured = capsys.readouterr()
    assert captured.err == "[rank 1 host-b] one\n[rank 1 host-b] two\n"
    assert captured.out == ""


def test_dropped_lines_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    show(LogLines("j", "a", "rank 1", "host-b", ("x",), dropped=7, log_path="/logs/1"))
    assert capsys.readouterr().err == "[rank 1 host-b] 7 lines dropped, full log at /logs/1\n[rank 1 host-b] x\n"


def test_a_driver_without_stderr_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    show(LogLines("j", "a", "rank 1", "host-b", ("x",)))
    say("x")
