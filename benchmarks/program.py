"""Programs that the benchmarks run: those that answer requests, those that are timed from start to exit; and their memory."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["PROGRAMS", "Bench", "FailedProgramError", "Program", "command_of", "descendants", "environment", "kill_session",
           "proportional_bytes", "seconds_to_exit"]

PROGRAMS = Path(__file__).parent / "programs"
ANSWER_S = 300.0
END_S = 30.0
STDERR_CHARS = 4000


class FailedProgramError(RuntimeError):
    """A program ended, or did not answer in time; has the end of what it wrote to stderr."""


@dataclass(frozen=True)
class Bench:
    """What all benchmarks are given. ``scale`` multiplies how much is done in a run: below 1 for a first look."""

    workspace: Path
    rounds: int
    scale: float
    ray_python: str  # empty: there is no Ray
    say: Callable[[str], None]

    @property
    def ray_missing(self) -> dict[str, str]:
        """Peers that can't be measured here."""
        return {} if self.ray_python else {"ray": "missing"}

    def count(self, number: int) -> int:
        """That many, scaled."""
        return max(1, round(self.scale * number))


def command_of(name: str, *arguments: str, python: str = sys.executable) -> list[str]:
    """The command line of a file of ``programs/``."""
    return [python, str(PROGRAMS / f"{name}.py"), *arguments]


def environment(**extra: str) -> dict[str, str]:
    """Ours without what would change a figure: another time scale, a cluster to join."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HEADWAY_", "RAY_", "TORCHELASTIC_"))}
    return kept | {"RAY_TRAIN_V2_ENABLED": "1", "RAY_DEDUP_LOGS": "0"} | extra


class Program:
    """A program that answers requests, one JSON line each. A context manager: at its end the program is gone."""

    def __init__(self, command: Sequence[str], workspace: Path, *, env: Mapping[str, str] | None = None) -> None:
        self._stderr = (workspace / f"{Path(command[1]).stem}-{time.monotonic_ns()}.log").open("w+b")
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, cwd=workspace,
                                         env=environment(**(env or {})), start_new_session=True)
        self._received = b""

    @property
    def pid(self) -> int:
        """Of the program's process."""
        return self._process.pid

    def ask(self, op: str, *, within_s: float = ANSWER_S, **arguments: Any) -> Any:
        """What the program answers. Raises: FailedProgramError."""
        self.send(op, **arguments)
        return self.answer(within_s)

    def send(self, op: str, **arguments: Any) -> None:
        """Ask without waiting for the answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"op": op, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as exc:
            raise self.failure("it ended") from exc

    def answer(self, within_s: float = ANSWER_S) -> Any:
        """The answer to what was sent. Raises: FailedProgramError."""
        assert self._process.stdout is not None
        fd, deadline = self._process.stdout.fileno(), time.monotonic() + within_s
        while b"\n" not in self._received:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([fd], [], [], left_s)[0]:
                raise self.failure(f"no answer within {within_s:g} s")
            part = os.read(fd, 65536)
            if not part:
                raise self.failure("it ended")
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def failure(self, what: str) -> FailedProgramError:
        """An error with the program's last words."""
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace")[-STDERR_CHARS:]
        return FailedProgramError(f"{self._process.args!r}: {what}. On stderr:\n{said}")

    def __enter__(self) -> Program:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S if kind is None else 1.0)
        kill_session(self._process)
        self._process.stdout.close()
        self._stderr.close()


def seconds_to_exit(command: Sequence[str], workspace: Path, *, env: Mapping[str, str] | None = None, within_s: float = ANSWER_S) -> float:
    """How long a program takes, start to exit. Raises: FailedProgramError: it failed, or took longer than ``within_s``."""
    with (workspace / "program.log").open("w+b") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=workspace,
                                   env=environment(**(env or {})), start_new_session=True)
        ended = _wait_end(process.pid, within_s)
        took_s = time.perf_counter() - start
        code = process.wait() if ended else None
        kill_session(process)
        if code != 0:
            output.seek(0)
            said = output.read().decode(errors="replace")[-STDERR_CHARS:]
            how = f"exit code {code}" if code is not None else f"ran for {within_s:g} s"
            raise FailedProgramError(f"{command!r}: {how}. It wrote:\n{said}")
        return took_s


def _wait_end(pid: int, within_s: float) -> bool:
    """Popen.wait with a time-out looks up to 50 ms late."""
    pidfd = os.pidfd_open(pid)
    try:
        return bool(select.select([pidfd], [], [], within_s)[0])
    finally:
        os.close(pidfd)


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """End a program that was started as its own session, and what it started, as far as it lives."""
    left = descendants(process.pid) if process.poll() is None else []
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for pid in left:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def descendants(pid: int) -> list[int]:
    """Children of a process, their children, and so on."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found


def proportional_bytes(pid: int) -> int:
    """The memory of a process, what it shares divided by those who share it (PSS). Raises: OSError: it is gone."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no Pss in /proc/{pid}/smaps_rollup")
