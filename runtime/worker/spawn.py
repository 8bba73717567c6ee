"""The only place where processes are created, watched and ended.

Created: by ``posix_spawn`` (exec, no code of ours between fork and exec) with exactly the descriptors that are named; the zygote alone
forks. Watched: a ``Watcher`` holds a pidfd for each child and reaps it with its peak memory. Ended: SIGKILL to the process group. The
portable second way of watching, a waiting thread, is used where pidfd is missing and can be switched on by tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Exit", "FIRST_FD", "Watcher", "become_subreaper", "die_with_parent", "kill_group", "outlive_parent", "set_process_name",
           "start_python"]

PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36

# The first descriptor given to a child of ours; 0 to 2 are /dev/null and its output.
FIRST_FD = 3
# Where ours are parked before they are moved to FIRST_FD and up, so that no move overwrites the source of another.
PARKING_FD = 64
# The folder that holds ``runtime``: a child finds our code there even when its working directory has a ``runtime`` of its own.
CODE_ROOT = str(Path(__file__).resolve().parents[2])
# ``-P`` keeps the working directory off sys.path until ours is imported; the entry for our code goes away again (subpackages
# are found through their package).
BOOT = "import sys; sys.path.insert(0, sys.argv[1]); import runtime; del sys.path[0]; from runtime.worker import zygote; zygote.{0}()"

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int | bytes) -> bool:
    """Whether the kernel took it: False off Linux and in sandboxes that forbid it."""
    try:
        return int(_libc.prctl(option, value, 0, 0, 0)) == 0
    except AttributeError:
        return False


def become_subreaper() -> bool:
    """Adopt the orphans among our descendants, so that we and not init reap them. Returns: False where that can't be had."""
    return _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent_pid: int) -> bool:
    """SIGKILL for this process when its parent ends. Call it with the pid that the parent told, before anything else can fork.

    Returns: False when the parent is gone already (or is another process): the signal would never come.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent_pid


def outlive_parent() -> None:
    """Undo ``die_with_parent``."""
    _prctl(PR_SET_PDEATHSIG, 0)


def set_process_name(name: str) -> None:
    """What ``top`` and ``ps -o comm`` show; the kernel keeps 15 bytes."""
    _prctl(PR_SET_NAME, name.encode(errors="replace")[:15])


def start_python(entry: str, arguments: Sequence[str], *, env: Mapping[str, str], fds: Sequence[int], output_fd: int) -> int:
    """Exec a Python process of its own session that runs ``runtime.worker.zygote.<entry>()``.

    It must be called on the main thread: the child's parent-death signal belongs to the thread that created it.
    Args: fds: become descriptors 3, 4, … of the child. output_fd: its stdout and stderr.
    Returns: its pid; the caller watches it.
    """
    parked = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, PARKING_FD) for fd in (output_fd, *fds)]
    try:
        actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
        actions += [(os.POSIX_SPAWN_DUP2, parked[0], fd) for fd in (1, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, fd, FIRST_FD + i) for i, fd in enumerate(parked[1:])]
        argv = [sys.executable, "-P", "-c", BOOT.format(entry), CODE_ROOT, *arguments]
        return os.posix_spawn(sys.executable, argv, dict(env), file_actions=actions, setsid=True)
    finally:
        for fd in parked:
            os.close(fd)


def kill_group(pid: int) -> None:
    """SIGKILL for a child that was not reaped yet, and for its process group if it got so far as to have one."""
    for kill in (os.kill, os.killpg):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Exit:
    """How a child ended: the status of wait(2) and the most memory that it ever had resident."""

    status: int
    peak_rss_bytes: int


class Watcher:
    """Children of this process: tells once, on the loop, when one ended."""

    def __init__(self, *, use_pidfd: bool = hasattr(os, "pidfd_open")) -> None:
        self._use_pidfd = use_pidfd
        self._loop = asyncio.get_running_loop()
        self._watched: dict[int, tuple[int, Callable[[Exit], None]]] = {}  # pid -> (pidfd or -1, callback)

    def watch(self, pid: int, on_exit: Callable[[Exit], None]) -> None:
        """Call ``on_exit`` once when child ``pid`` ended. Its process group is killed first, while the pid can't name another."""
        pidfd = -1
        if self._use_pidfd:
            pidfd = os.pidfd_open(pid)
            self._loop.add_reader(pidfd, self._ended, pid)
        else:
            threading.Thread(target=self._wait, args=(pid,), name=f"wait for {pid}", daemon=True).start()
        self._watched[pid] = (pidfd, on_exit)

    def has_ended(self, pid: int) -> bool:
        """True when the process is gone, also if nobody was told yet."""
        try:
            return pid not in self._watched or os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def reap_orphans(self) -> None:
        """Reap adopted processes that ended; every child of this process that is not watched counts as one."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if ended.si_pid in self._watched:
                    return  # its own event is on its way; the rest are reaped next time
                os.waitpid(ended.si_pid, os.WNOHANG)

    def close(self) -> None:
        """Stop watching; children that still run are left alone."""
        for pidfd, _ in self._watched.values():
            if pidfd >= 0:
                self._loop.remove_reader(pidfd)
                os.close(pidfd)
        self._watched.clear()

    def _wait(self, pid: int) -> None:
        with contextlib.suppress(ChildProcessError, RuntimeError):  # RuntimeError: the loop was closed meanwhile
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            self._loop.call_soon_threadsafe(self._ended, pid)

    def _ended(self, pid: int) -> None:
        if pid not in self._watched:
            return
        pidfd, on_exit = self._watched.pop(pid)
        if pidfd >= 0:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)
        kill_group(pid)
        _, status, usage = os.wait4(pid, 0)
        unit = 1 if sys.platform == "darwin" else 1024
        on_exit(Exit(status, usage.ru_maxrss * unit))
