"""Logs and stacks of actors for who asks for them over the head: the end of a log, then what is written until its actor ends.

Stacks are written by the actor itself at SIGUSR2, by a handler that runs whatever holds the GIL, into a file beside its log.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

from runtime.limits import Limits
from runtime.wire.messages import LogEnd, LogLines, ReadLog
from runtime.worker.actor_process import ActorProcess
from runtime.worker.birth import stacks_path
from runtime.worker.logs import LogBatch, LogTails

__all__ = ["LogReaders"]

# What is looked through for the last lines: below what the rate limit lets pass at once.
TAIL_BYTES = 1 << 20
# Stacks are whole when their file has not grown for this long: they are written in one go, in some milliseconds.
QUIET_S = 0.1


class LogReaders:
    """All that read now. ``send`` takes the end of a reading, ``send_lines`` what may be lost (and then says False)."""

    def __init__(self, folder: Path, limits: Limits, node_name: Callable[[], str], find: Callable[[str], ActorProcess | None],
                 send_lines: Callable[[LogLines], bool], send: Callable[[LogEnd], None]) -> None:
        self._folder = folder
        self._limits = limits
        self._node_name = node_name
        self._find = find
        self._send_lines = send_lines
        self._send = send
        self._tasks: dict[asyncio.Task[None], int] = {}

    def read(self, message: ReadLog) -> None:
        """Begin to answer."""
        task = asyncio.create_task(self._read(message), name=f"read the log of {message.actor_id[:8]}")
        self._tasks[task] = message.reader
        task.add_done_callback(self._tasks.pop)

    def stop(self, reader: int) -> None:
        """Who read is gone."""
        for task in [task for task, of in self._tasks.items() if of == reader]:
            task.cancel()

    def stop_all(self) -> None:
        """Nobody reads any more."""
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        """Stop, and leave nothing open."""
        self.stop_all()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read(self, message: ReadLog) -> None:
        error, actor = "", self._find(message.actor_id)
        tails = LogTails(self._folder, self._limits)
        try:
            log = str(self._folder / Path(message.log_path or (actor.log_path if actor is not None else "")).name)
            path, start = (stacks_path(log), await self._write_stacks(actor, stacks_path(log))) if message.stacks else (
                log, _start_of_tail(log, message.num_lines))
            tails.follow(path, partial(self._on_lines, message, path), start=start)
            if message.follow and actor is not None and not message.stacks:
                await actor.gone.wait()
            await tails.finish(path)
        except (OSError, _NoStacksError) as exc:
            error = str(exc)
        finally:
            tails.close()
        self._send(LogEnd("", message.actor_id, message.reader, error))

    def _on_lines(self, message: ReadLog, path: str, batch: LogBatch) -> bool:
        return self._send_lines(LogLines("", message.actor_id, "", self._node_name(), batch.lines, batch.dropped, path, message.reader))

    async def _write_stacks(self, actor: ActorProcess | None, path: str) -> int:
        """Have the actor write its stacks. Returns: where in the file they begin."""
        if actor is None or not actor.is_running or not _catches(actor.pid, signal.SIGUSR2):
            raise _NoStacksError("it has no process, or one that has not got as far as its constructor")
        start = size = _size(path)
        os.kill(actor.pid, signal.SIGUSR2)
        deadline = asyncio.get_running_loop().time() + self._limits.log_flush_s
        while True:
            await asyncio.sleep(QUIET_S)
            seen, size = size, _size(path)
            if size == seen > start:
                return start
            if asyncio.get_running_loop().time() > deadline:
                raise _NoStacksError(f"pid {actor.pid} wrote no stacks within {self._limits.log_flush_s:g} s: it is stopped (state "
                                     f"{_state(actor.pid)}), hangs in the kernel, or uses SIGUSR2 for itself")


class _NoStacksError(Exception):
    """Why there are none."""


def _size(path: str) -> int:
    return os.stat(path).st_size


def _start_of_tail(path: str, num_lines: int) -> int:
    """Where the last ``num_lines`` lines begin, within TAIL_BYTES of the end."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = file.seek(max(0, size - TAIL_BYTES))
        data = file.read(size - start)
    if num_lines == 0:
        return size
    end = len(data) - data.endswith(b"\n")
    for _ in range(num_lines if num_lines > 0 else len(data)):
        end = data.rfind(b"\n", 0, end)
        if end < 0:
            return start + (data.find(b"\n") + 1 if start else 0)  # cut in the middle of a line
    return start + end + 1


def _catches(pid: int, number: int) -> bool:
    """Whether the process handles the signal: one that does not would die of it."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        return bool(int(next(line for line in lines if line.startswith("SigCgt:")).split()[1], 16) >> (number - 1) & 1)
    return False


def _state(pid: int) -> str:
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    return "gone"
