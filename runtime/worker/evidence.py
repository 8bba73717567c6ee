"""How an actor ended, put together from what is left: exit status, memory, log, what was asked of it, what it said last."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from runtime.limits import Limits
from runtime.wire.messages import ExitEvidence, InitFailed, NodeFacts, StopActors
from runtime.worker.logs import tail_of
from runtime.worker.spawn import Exit

__all__ = ["MemoryKills", "exit_evidence", "start_error"]

CGROUP_ROOT = Path("/sys/fs/cgroup")
GIB = 1 << 30


class MemoryKills:
    """Tells whether the kernel killed somebody for memory since the last look: in our cgroup, or on the host if there is none."""

    def __init__(self) -> None:
        self._counters = list(_counter_files())
        self._seen = self._count()

    def since_last_look(self) -> bool:
        """True if so."""
        seen, self._seen = self._seen, self._count()
        return self._seen > seen

    def limit_bytes(self) -> int:
        """The memory that we may have; 0 if unknown."""
        for _, limit_file in self._counters:
            with contextlib.suppress(OSError, ValueError):  # "max": no limit
                limit = int(limit_file.read_text(encoding="ascii"))
                if limit < 1 << 60:
                    return limit
        with contextlib.suppress(OSError, ValueError):
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return 0

    def _count(self) -> int:
        for counter_file, _ in self._counters:
            with contextlib.suppress(OSError, ValueError):
                for line in counter_file.read_text(encoding="ascii").splitlines():
                    name, _, value = line.partition(" ")
                    if name == "oom_kill":
                        return int(value)
        return 0


def _counter_files() -> Iterator[tuple[Path, Path]]:
    """Files with the counter ``oom_kill`` and with the limit, best first: cgroup v2, v1, the whole host."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                yield CGROUP_ROOT / path.lstrip("/") / "memory.events", CGROUP_ROOT / path.lstrip("/") / "memory.max"
            elif "memory" in controllers.split(","):
                folder = CGROUP_ROOT / "memory" / path.lstrip("/")
                yield folder / "memory.oom_control", folder / "memory.limit_in_bytes"
    yield Path("/proc/vmstat"), Path("/nonexistent")


def exit_evidence(ended: Exit, *, pid: int, label: str, log_path: str, node: NodeFacts, was_up: bool, stop: StopActors | None,
                  is_wanted: bool, init_failed: InitFailed | None, memory: MemoryKills, limits: Limits) -> ExitEvidence:
    """What is known of the end of one actor process."""
    code = os.waitstatus_to_exitcode(ended.status)
    signal_name = _signal_name(-code) if code < 0 else ""
    early = "" if was_up else " before its constructor returned"
    killed_for_memory = memory.since_last_look()
    if stop is not None:
        kind, detail = stop.kind, stop.reason
    elif init_failed is not None:
        kind, detail = "start error", init_failed.text.rstrip().rpartition("\n")[2]
    elif code < 0 and signal_name == "SIGKILL" and killed_for_memory:
        limit = memory.limit_bytes()
        kind = "out of memory"
        detail = f"likely killed by the kernel for memory: at most {ended.peak_rss_bytes / GIB:.1f} GiB resident" \
                 f"{f' of {limit / GIB:.1f} GiB' if limit else ''}"
    elif code < 0:
        kind, detail = "signal", f"killed by {signal_name}{early}"
    else:
        kind, detail = "exit code", f"exited with code {code}{early}"
    return ExitEvidence(
        kind=kind, code=max(code, 0), signal=signal_name, detail=detail, log_tail=tail_of(log_path, limits.log_tail_lines),
        log_path=log_path, peak_rss_bytes=ended.peak_rss_bytes, pid=pid, label=label, node_name=node.name, host=node.host,
        wanted=is_wanted, error=init_failed.error if init_failed is not None and stop is None else b"")


def start_error(detail: str, *, label: str, log_path: str, node: NodeFacts, stop: StopActors | None) -> ExitEvidence:
    """Of an actor that never became a process."""
    kind, detail = ("start error", detail) if stop is None else (stop.kind, stop.reason)
    return ExitEvidence(kind=kind, detail=detail, log_path=log_path, label=label, node_name=node.name, host=node.host,
                        wanted=stop is not None)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal between SIGRTMIN and SIGRTMAX
        return f"signal {number}"
