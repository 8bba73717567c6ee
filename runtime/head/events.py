"""What comes into the brain, and what it orders. A connection is an int that the shell gives out; a time is a monotonic float."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from runtime.errors import HeadwayError
from runtime.wire.messages import Hello, Message

__all__ = [
    "Buffers", "Close", "Command", "DriverGone", "Event", "Log", "MessageReceived", "PeerJoined", "PeerLost", "Reply", "ReplyError", "Send",
    "ShutDown", "Tick", "UnwatchPid", "WatchPid",
]

Buffers: TypeAlias = Sequence[bytes | memoryview]
"""User bytes that travel beside a message; never looked into here."""


@dataclass(frozen=True, slots=True)
class PeerJoined:
    """A connection finished its handshake."""

    conn: int
    hello: Hello


@dataclass(frozen=True, slots=True)
class PeerLost:
    """A connection ended."""

    conn: int
    reason: str


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """A message; ``call_id`` > 0 wants an answer, ``epoch`` is the sender's fencing number."""

    conn: int
    message: Message
    buffers: Buffers = ()
    call_id: int = 0
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class DriverGone:
    """The watched process of a job's driver ended."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Tick:
    """The time that ``next_deadline()`` named has come."""


@dataclass(frozen=True, slots=True)
class ShutDown:
    """The head is asked to end: close all jobs, take no new ones."""

    reason: str


Event: TypeAlias = PeerJoined | PeerLost | MessageReceived | DriverGone | Tick | ShutDown


@dataclass(frozen=True, slots=True)
class Send:
    """Send a one-way message."""

    conn: int
    message: Message
    buffers: Buffers = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer a request."""

    conn: int
    call_id: int
    message: Message
    buffers: Buffers = ()


@dataclass(frozen=True, slots=True)
class ReplyError:
    """Answer a request with an error."""

    conn: int
    call_id: int
    error: HeadwayError


@dataclass(frozen=True, slots=True)
class Close:
    """Close a connection."""

    conn: int
    reason: str


@dataclass(frozen=True, slots=True)
class WatchPid:
    """Watch a process of this host; ``DriverGone`` when it ends."""

    job_id: str
    pid: int


@dataclass(frozen=True, slots=True)
class UnwatchPid:
    """The job's driver needs no watching any more."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Log:
    """A line for the head's log; ``level`` is one of debug, info, warning, error."""

    level: str
    text: str


Command: TypeAlias = Send | Reply | ReplyError | Close | WatchPid | UnwatchPid | Log
