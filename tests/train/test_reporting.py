from __future__ import annotations

import enum
from typing import Any

import pytest

from runtime.errors import ArgumentError, ArgumentTypeError
from train import Checkpoint, context, report


class FakeSession:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def report(self, metrics: Any, checkpoint: Any, dir_name: Any, *, delete: bool) -> None:
        self.calls.append((metrics, checkpoint, dir_name, delete))


class Mode(enum.Enum):
    SYNC = "SYNC"
    ASYNC = "ASYNC"


@pytest.fixture
def session() -> Any:
    made = FakeSession()
    context.activate(made)  # type: ignore[arg-type]
    yield made
    context.activate(None)


def test_rays_arguments_in_any_form(session: FakeSession):
    checkpoint = Checkpoint("/x")
    report({"a": 1})
    report({"a": 2}, checkpoint=checkpoint, checkpoint_dir_name="c", checkpoint_upload_mode=Mode.SYNC)
    report({"a": 3}, checkpoint, delete_local_checkpoint_after_upload=True, validation=False)
    assert session.calls == [({"a": 1}, None, None, False), ({"a": 2}, checkpoint, "c", False), ({"a": 3}, checkpoint, None, True)]


@pytest.mark.parametrize(("arguments", "error", "text"), [
    ({"checkpoint": "/x"}, ArgumentTypeError, "got str; pass a train.Checkpoint"),
    ({"checkpoint_dir_name": "../x"}, ArgumentError, "allowed are"),
    ({"checkpoint_upload_mode": Mode.ASYNC}, ArgumentError, "not supported here"),
    ({"validation": True}, ArgumentError, "not supported here"),
    ({"checkpoint_upload_fn": print}, ArgumentError, "not supported here")])
def test_what_cannot_be_done_is_refused(session: FakeSession, arguments: dict[str, Any], error: type[Exception], text: str):
    with pytest.raises(error, match=text):
        report({"a": 1}, **arguments)
    assert session.calls == []
