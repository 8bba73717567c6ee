"""Errors of remote methods: both a TaskError and what the user raised."""

from __future__ import annotations

import json
import pickle
import subprocess
from typing import Any

import pytest

from runtime.client.serialization import dumps_error
from runtime.client.task_error import from_call_error, make_task_error
from runtime.errors import GetTimeoutError, TaskError
from runtime.wire.messages import CallError


class Custom(ValueError):
    def __init__(self, code: int, hint: str) -> None:
        super().__init__(f"{code}: {hint}")
        self.code = code

    def __str__(self) -> str:
        raise AssertionError("the remote text is used")


def remote(error: BaseException | None, **changes: Any) -> TaskError:
    parts: dict[str, Any] = {"class_name": type(error).__name__, "text": "the text", "traceback": "Traceback…\n  line", "where": "A.f"}
    return make_task_error(dumps_error(error) if error is not None else b"", **{**parts, **changes})


def test_is_both_and_shows_the_remote_traceback() -> None:
    error = remote(Custom(3, "no"))
    assert isinstance(error, TaskError)
    assert isinstance(error, Custom)
    assert error.code == 3
    assert str(error) == "A.f raised Custom: the text\n\nRemote traceback:\nTraceback…\n  line"
    assert isinstance(error.__cause__, Custom)
    assert error.cause is error.__cause__  # type: ignore[attr-defined]
    assert type(error).__name__ == "TaskError(Custom)"
    assert error.remote_traceback.startswith("Traceback")


def test_pickles() -> None:
    error = pickle.loads(pickle.dumps(remote(Custom(3, "no"))))
    assert isinstance(error, Custom)
    assert isinstance(error, TaskError)
    assert str(error).startswith("A.f raised Custom")
    assert isinstance(error.__cause__, Custom)


@pytest.mark.parametrize("original", [
    OSError(2, "gone", "/x"), KeyError("k"), UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), ExceptionGroup("two", [ValueError("a")]),
    json.JSONDecodeError("m", "doc", 1), subprocess.CalledProcessError(3, "cmd"), ImportError("no x", name="x"), GetTimeoutError("late"),
])
def test_builtin_and_library_classes_keep_their_fields(original: Exception) -> None:
    error = remote(original)
    assert isinstance(error, type(original))
    for name in ("errno", "strerror", "reason", "exceptions", "lineno", "returncode"):
        if hasattr(original, name):
            assert repr(getattr(error, name)) == repr(getattr(original, name))


@pytest.mark.parametrize("original", [KeyboardInterrupt(), SystemExit(3), StopIteration(1), GeneratorExit(), None])
def test_what_cannot_be_combined_is_a_plain_task_error(original: BaseException | None) -> None:
    error = remote(original, class_name="X")
    assert isinstance(error, TaskError)
    assert not isinstance(error, (KeyboardInterrupt, SystemExit, StopIteration, GeneratorExit))
    assert type(error.__cause__) is type(original)
    assert type(error).__name__ == "TaskError"
    assert str(error).startswith("A.f raised X")


def test_a_class_that_refuses_subclasses_falls_back() -> None:
    class Final(Exception):
        def __init_subclass__(cls) -> None:
            raise TypeError("final")

    error = remote(Final("x"))
    assert type(error).__name__ == "TaskError"
    assert type(error.__cause__).__name__ == "Final"


def test_an_error_passed_on_by_another_actor_stays_the_users() -> None:
    inner = remote(Custom(3, "no"), where="B.g")
    outer = make_task_error(dumps_error(inner), "TaskError(Custom)", str(inner), "outer traceback", "A.f")
    assert isinstance(outer, Custom)
    assert isinstance(outer.__cause__, Custom)
    assert not isinstance(outer.__cause__, TaskError)
    assert "B.g raised Custom" in str(outer)


def test_from_an_answer_whose_exception_is_absent_or_unknown() -> None:
    failure = CallError("Strange", "text", "tb")
    for buffers in ([], [b"garbage"]):
        error = from_call_error(failure, buffers, "A.f")
        assert str(error) == "A.f raised Strange: text\n\nRemote traceback:\ntb"
        assert error.__cause__ is None
