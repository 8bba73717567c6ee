"""When the head hears of a run, and how its metrics read."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import runtime
from runtime.client.run_news import RunNews, describe
from runtime.limits import LIMITS
from runtime.wire.messages import RunStatus


class FakeLoop:
    """Timers that a test fires."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, delay_s: float, callback: Callable[..., None], *args: Any) -> Any:
        entry = (delay_s, lambda: callback(*args))
        self.timers.append(entry)
        return SimpleNamespace(cancel=lambda: self.timers.remove(entry))

    def fire(self) -> None:
        timers, self.timers = self.timers, []
        for _, callback in timers:
            callback()


def make() -> tuple[RunNews, FakeLoop, list[RunStatus]]:
    loop, sent = FakeLoop(), list[RunStatus]()
    session: Any = SimpleNamespace(post=lambda callback, *args: callback(*args), notify=sent.append, io=SimpleNamespace(loop=loop))
    return RunNews(session), loop, sent


def status(state: str = "running", *, attempt: int = 1, is_over: bool = False) -> RunStatus:
    return RunStatus("r", state, attempt, 2, is_over=is_over)


def test_a_new_state_or_attempt_is_sent_at_once() -> None:
    news, loop, sent = make()
    for state, attempt in (("scheduling", 1), ("running", 1), ("running", 2), ("restarting", 2)):
        news.publish(status(state, attempt=attempt), None)
    assert [(s.state, s.attempt) for s in sent] == [("scheduling", 1), ("running", 1), ("running", 2), ("restarting", 2)]
    assert len(loop.timers) == 1


def test_metrics_are_sent_once_a_heartbeat_and_the_newest_is_not_lost() -> None:
    news, loop, sent = make()
    for i in range(1000):
        news.publish(status(), {"i": i})
    assert [s.metrics for s in sent] == ["i=0"]
    assert [delay_s for delay_s, _ in loop.timers] == [LIMITS.heartbeat_s]
    loop.fire()
    assert [s.metrics for s in sent] == ["i=0", "i=999"]
    loop.fire()
    assert len(sent) == 2  # nothing new
    news.publish(status(), {"i": 1000})
    assert [s.metrics for s in sent] == ["i=0", "i=999", "i=1000"]


def test_the_end_is_sent_at_once_and_leaves_no_timer() -> None:
    news, loop, sent = make()
    news.publish(status(), None)
    news.publish(status("finished", is_over=True), {"loss": 0.5})
    assert [(s.state, s.metrics, s.is_over) for s in sent] == [("running", "", False), ("finished", "loss=0.5", True)]
    assert not loop.timers


def test_metrics_as_short_text() -> None:
    assert describe(None) == ""
    metrics = {"loss": 0.123456789, "epoch": 3, "who": "x" * 99, "nested": {}, "ok": True}
    assert describe(metrics) == f"loss=0.123457 epoch=3 who={'x' * 24} ok=True"
    assert describe({str(i): i for i in range(9)}) == "0=0 1=1 2=2 3=3 4=4 5=5 …"


def test_publishing_without_a_session_does_nothing() -> None:
    runtime.publish_run("r", "running")
    assert not runtime.is_initialized()
