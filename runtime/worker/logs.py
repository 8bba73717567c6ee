"""Output of actors: straight into files, from there to who listens.

An actor's stdout and stderr are its log file, so a stopped daemon never blocks it. While somebody listens, the files are tailed: inotify
says what was written (polling where there is none), and lines leave in batches, made harmless for terminals, at a limited rate; what is
over the rate is counted, not sent, and stays in the file.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from runtime.limits import Limits
from runtime.worker.inotify import watch_writes, written_names

__all__ = ["LogBatch", "LogTails", "printable", "tail_of"]

logger = logging.getLogger(__name__)

# Writes within this time travel as one batch: below what a person notices.
COALESCE_S = 0.02
POLL_S = 0.2
# Read at once. Even if each byte is a line of its own or has to be escaped, the batch is under the wire's 65,536 items and 1 MiB.
CHUNK_BYTES = 60 * 1024

# Of an exit's evidence: 50 lines of usual length. A gang's evidence travels in one message.
TAIL_BYTES = 12 * 1024

# Colours (SGR) pass. All other control characters could move the cursor, retitle the terminal or fake another rank's line.
_SGR = r"\x1b\[[0-9;:]*m"
_CONTROL = re.compile(rf"({_SGR})|[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class LogBatch:
    """Lines of one actor. ``dropped``: lines before these that were over the rate."""

    lines: tuple[str, ...]
    dropped: int


def printable(line: bytes) -> str:
    """A line as text that no terminal obeys; of what a carriage return would overwrite, the last state."""
    text = line.decode("utf-8", "backslashreplace").rstrip("\r").rpartition("\r")[2]
    if text.isprintable():
        return text
    return _CONTROL.sub(lambda match: match[1] or f"\\x{ord(match[0]):02x}", text)


def tail_of(path: str | os.PathLike[str], num_lines: int) -> tuple[str, ...]:
    """The last lines of a log file, at most TAIL_BYTES of them; empty if it can't be read."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            data = file.read()
    except OSError:
        return ()
    lines = data.rstrip(b"\n").split(b"\n")
    if size > TAIL_BYTES and len(lines) > 1:
        del lines[0]  # cut in the middle
    return tuple(printable(line) for line in lines[-num_lines:]) if data else ()


@dataclass(slots=True)
class _Tail:
    """One file that is being followed."""

    path: str
    file: BinaryIO
    send: Callable[[LogBatch], bool]
    partial: bytes = b""
    dropped: int = 0
    tokens: float = 0.0
    refilled: float = field(default_factory=time.monotonic)
    has_warned: bool = False


class LogTails:
    """Follows the log files of one folder. ``send`` of a file returns False when it could not take the batch."""

    def __init__(self, folder: Path, limits: Limits, *, use_inotify: bool = True) -> None:
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._tails: dict[str, _Tail] = {}  # by file name
        self._dirty: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._fd = watch_writes(str(folder)) if use_inotify else None
        if self._fd is not None:
            self._loop.add_reader(self._fd, self._on_writes)

    def follow(self, path: str, send: Callable[[LogBatch], bool], *, start: int = 0) -> None:
        """Send the lines of the file, from the byte ``start`` on, until ``finish``."""
        name = os.path.basename(path)
        file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by finish() or close()
        file.seek(start)
        self._tails[name] = _Tail(path, file, send, tokens=self._limits.log_stream_bytes_per_s)
        self._wake(name)

    async def finish(self, path: str) -> None:
        """Send what is left of a file that nobody writes any more, within ``log_flush_s``, and forget it."""
        name = os.path.basename(path)
        tail = self._tails.pop(name, None)
        if tail is None:
            return
        self._dirty.discard(name)
        deadline = time.monotonic() + self._limits.log_flush_s
        while self._read(tail) and time.monotonic() < deadline:  # noqa: ASYNC110 - a turn for the others, not a wait
            await asyncio.sleep(0)
        if tail.partial:
            self._send(tail, [tail.partial])
        elif tail.dropped:
            self._send(tail, [])
        tail.file.close()

    def close(self) -> None:
        """Stop following."""
        if self._timer is not None:
            self._timer.cancel()
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None
        for tail in self._tails.values():
            tail.file.close()
        self._tails.clear()

    def _on_writes(self) -> None:
        assert self._fd is not None
        for name in written_names(self._fd) & self._tails.keys():
            self._wake(name)

    def _wake(self, name: str) -> None:
        self._dirty.add(name)
        if self._timer is None:
            self._timer = self._loop.call_later(COALESCE_S if self._fd is not None else POLL_S, self._read_dirty)

    def _read_dirty(self) -> None:
        """One chunk of each file, then let the loop do other things."""
        self._timer = None
        dirty, self._dirty = self._dirty, set()
        more = {name for name in dirty if name in self._tails and self._read(self._tails[name])}
        if self._fd is None:
            more = set(self._tails)
        if more:
            self._dirty |= more
            self._timer = self._loop.call_later(0 if self._fd is not None else POLL_S, self._read_dirty)

    def _read(self, tail: _Tail) -> bool:
        """Read one chunk and send or count its lines. Returns: there may be more."""
        data = tail.file.read(CHUNK_BYTES)
        if not data:
            return False
        self._check_size(tail)
        now = time.monotonic()
        rate = self._limits.log_stream_bytes_per_s
        tail.tokens = min(rate, tail.tokens + (now - tail.refilled) * rate)
        tail.refilled = now
        if tail.tokens < len(data):
            tail.dropped += data.count(b"\n")
            tail.partial = b""
            return True
        tail.tokens -= len(data)
        lines = (tail.partial + data).split(b"\n")
        tail.partial = lines.pop()
        limit = self._limits.log_line_bytes
        while len(tail.partial) >= limit:
            lines.append(tail.partial[:limit])
            tail.partial = tail.partial[limit:]
        if lines:
            self._send(tail, lines)
        return len(data) == CHUNK_BYTES

    def _send(self, tail: _Tail, lines: list[bytes]) -> None:
        limit = self._limits.log_line_bytes
        texts = tuple(printable(line[i:i + limit]) for line in lines for i in range(0, len(line) or 1, limit))
        tail.dropped = 0 if tail.send(LogBatch(texts, tail.dropped)) else tail.dropped + len(lines)

    def _check_size(self, tail: _Tail) -> None:
        size = tail.file.tell()
        if size > self._limits.log_warn_bytes and not tail.has_warned:
            tail.has_warned = True
            logger.warning("the log file %s is over %d MiB and grows; it is not rotated. Print less.", tail.path, size >> 20)
