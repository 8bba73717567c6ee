"""Finds and kills what an actor leaves behind: DataLoader workers, double-forked and ``setsid`` grandchildren.

Every process below a daemon carries a marker in its environment block, which ``/proc/<pid>/environ`` shows:
``HEADWAY_LINEAGE=<pid namespace>.<daemon pid>.<daemon start>.<actor id>``. ``fork`` copies the block and ``exec`` hands it on, so neither
``setsid`` nor a new parent hides a process; only who executes a program with an emptied environment escapes (its process group is killed
all the same). A forked actor has the block of its zygote: it writes its own id over the zygote's, in place (``rewrite_marker``).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MARKER", "NO_ACTOR", "Lineage", "find", "rewrite_marker", "sweep", "sweep_dead_daemons"]

MARKER = "HEADWAY_LINEAGE"
NO_ACTOR = "0" * 32  # a zygote's; as long as an actor id, which is written over it

# Pause between two passes that found something: SIGKILL takes effect in well under a millisecond unless the process is in the kernel.
PASS_S = 0.005

_libc = ctypes.CDLL(None)
_libc.getenv.restype = ctypes.c_void_p


@dataclass(frozen=True, slots=True)
class Lineage:
    """The daemon that a process descends from: its pid, when it started (clock ticks since boot), and the namespace of that pid."""

    namespace: int
    pid: int
    started: int

    @classmethod
    def of_this_process(cls) -> Lineage:
        """Ourselves as a daemon."""
        return cls(os.stat("/proc/self/ns/pid").st_ino, os.getpid(), _birth_time(os.getpid()))

    @classmethod
    def parse(cls, marker: str) -> tuple[Lineage, str]:
        """The daemon and the actor id that ``marker()`` made it from.

        Raises: ValueError: it is no marker.
        """
        namespace, pid, started, actor_id = marker.split(".")
        return cls(int(namespace), int(pid), int(started)), actor_id

    def marker(self, actor_id: str = NO_ACTOR) -> str:
        """The value of the variable."""
        return f"{self.namespace}.{self.pid}.{self.started}.{actor_id}"

    def is_alive(self) -> bool:
        """True while the daemon runs; its pid may have been given to another process since."""
        try:
            return _birth_time(self.pid) == self.started
        except OSError:
            return False


def rewrite_marker(marker: str) -> bool:
    """Write this process's own marker over the inherited one of equal length, where /proc shows it, before the environment changes.

    Returns: False when there is none of that length: then the process is found by its process group alone.
    """
    address = _libc.getenv(MARKER.encode())
    value = marker.encode()
    if not address or len(ctypes.string_at(address)) != len(value):
        return False
    ctypes.memmove(address, value, len(value))
    return True


def find(lineage: Lineage, actor_ids: Collection[str] | None = None) -> list[int]:
    """Processes of this user that descend from the given actors of the daemon; None: from any of its actors."""
    return [pid for pid, owner, actor_id in _marked() if owner == lineage and _is_wanted(actor_id, actor_ids)]


def kill_pass(lineage: Lineage, actor_ids: Collection[str] | None = None) -> int:
    """One look through /proc, SIGKILL for what was found. Returns: how many."""
    found = find(lineage, actor_ids)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(found)


async def sweep(lineage: Lineage, actor_ids: Collection[str], *, limit_s: float) -> bool:
    """Kill what is left of the actors, in a thread, until a look through /proc finds nothing.

    Returns: False when something was still there after ``limit_s`` (a process stuck in the kernel).
    """
    deadline = time.monotonic() + limit_s
    while await asyncio.to_thread(kill_pass, lineage, actor_ids):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(PASS_S)
    return True


def sweep_dead_daemons() -> list[int]:
    """Kill what daemons of this host and user left behind that are gone; their zygotes end by themselves. Returns: the pids."""
    namespace = os.stat("/proc/self/ns/pid").st_ino
    found = [pid for pid, owner, actor_id in _marked() if actor_id != NO_ACTOR and owner.namespace == namespace and not owner.is_alive()]
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return found


def _is_wanted(actor_id: str, actor_ids: Collection[str] | None) -> bool:
    return actor_id != NO_ACTOR if actor_ids is None else actor_id in actor_ids


def _marked() -> list[tuple[int, Lineage, str]]:
    """Every other process of this user with a marker: pid, daemon, actor id."""
    found = []
    key = f"{MARKER}=".encode()
    own_pid, uid = os.getpid(), os.geteuid()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == own_pid:
            continue
        try:
            block = Path(f"/proc/{name}/environ").read_bytes()
            start = 0 if block.startswith(key) else block.find(b"\0" + key) + 1
            if (start == 0 and not block.startswith(key)) or os.stat(f"/proc/{name}").st_uid != uid:
                continue
            owner, actor_id = Lineage.parse(block[start + len(key):].split(b"\0", 1)[0].decode("ascii"))
            found.append((int(name), owner, actor_id))
        except (OSError, ValueError):  # gone meanwhile, another user's, or no marker of ours
            continue
    return found


def _birth_time(pid: int) -> int:
    """When the process was started, in clock ticks since boot: with the pid it names a process for good.

    Raises: ProcessLookupError: it is gone, or a zombie.
    """
    try:
        # The name in parentheses may hold anything, spaces and parentheses too; field 3 is the first after it, field 22 the 20th.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except FileNotFoundError as exc:
        raise ProcessLookupError(f"There is no process {pid}.") from exc
    if fields[0] in (b"Z", b"X"):
        raise ProcessLookupError(f"Process {pid} ended and was not reaped yet.")
    return int(fields[19])
