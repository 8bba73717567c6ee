"""News of training runs for the head, which shows them to ``headway status``: at once when the state changes, else once a heartbeat."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from runtime.errors import HeadwayError
from runtime.limits import LIMITS
from runtime.wire.messages import RunStatus

if TYPE_CHECKING:
    from runtime.client.session import Session

__all__ = ["RunNews", "publish_run"]

SHOWN_METRICS = 6
MAX_VALUE_CHARS = 24


@dataclass(slots=True, eq=False)
class _Run:
    """The newest of a run; the text is made only when it is sent. ``timer``: until then nothing but a new state is sent."""

    status: RunStatus
    metrics: Mapping[str, Any] | None
    timer: asyncio.TimerHandle | None = None
    is_sent: bool = True


class RunNews:
    """What one session told of its runs."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._runs: dict[str, _Run] = {}

    def publish(self, status: RunStatus, metrics: Mapping[str, Any] | None) -> None:
        """From any thread: have it sent now if the state is another one, else when a heartbeat has passed since the last time."""
        run = self._runs.get(status.name)
        if run is None:
            run = self._runs[status.name] = _Run(status, metrics)
        elif (run.status.state, run.status.attempt) == (status.state, status.attempt):
            run.status, run.metrics, run.is_sent = status, metrics, False
            if run.timer is not None:
                return  # which sends it
        run.status, run.metrics = status, metrics
        with contextlib.suppress(HeadwayError):  # the session is over
            self._session.post(self._send, run)

    def _send(self, run: _Run) -> None:
        if run.timer is not None:
            run.timer.cancel()
        run.is_sent = True  # before the newest is read, which another thread may be writing
        text, status = describe(run.metrics), run.status
        run.timer = None if status.is_over else self._session.io.loop.call_later(LIMITS.heartbeat_s, self._on_time, run)
        if status.is_over:
            self._runs.pop(status.name, None)
        self._session.notify(replace(status, metrics=text))

    def _on_time(self, run: _Run) -> None:
        run.timer = None
        if not run.is_sent:
            self._send(run)


def publish_run(name: str, state: str, *, attempt: int = 0, world_size: int = 0, metrics: Mapping[str, Any] | None = None,
                checkpoint: str = "", directory: str = "", is_over: bool = False) -> None:
    """Have ``headway status`` show this of a run. Never waits, and does nothing in a process without a session."""
    from runtime.client import init

    session = init.open_session()
    if session is not None:
        session.runs.publish(RunStatus(name, state, attempt, world_size, "", checkpoint, directory, is_over), metrics)


def describe(metrics: Mapping[str, Any] | None) -> str:
    """``loss=0.25 epoch=3``: the first few numbers and texts."""
    shown = [f"{key}={f'{value:.6g}' if isinstance(value, float) else str(value)[:MAX_VALUE_CHARS]}"
             for key, value in (metrics or {}).items() if isinstance(value, bool | int | float | str)]
    return " ".join(shown[:SHOWN_METRICS]) + (" …" if len(shown) > SHOWN_METRICS else "")
