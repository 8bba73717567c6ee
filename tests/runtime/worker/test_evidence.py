"""What is made of the end of a process."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.limits import LIMITS
from runtime.wire.messages import ExitEvidence, InitFailed, NodeFacts, StopActors
from runtime.worker.evidence import MemoryKills, exit_evidence, start_error
from runtime.worker.spawn import Exit

NODE = NodeFacts("n", "alpha", "h", 1, "10.0.0.5", 7, "eth0", {}, {})
SIGKILL, SIGSEGV, CODE_3 = 9, 11 | 0x80, 3 << 8


class _Memory(MemoryKills):
    def __init__(self, *, killed: bool) -> None:
        super().__init__()
        self._killed = killed

    def since_last_look(self) -> bool:
        return self._killed

    def limit_bytes(self) -> int:
        return 48 << 30


def _evidence(status: int, *, was_up: bool = True, stop: StopActors | None = None, is_wanted: bool = False,
              init_failed: InitFailed | None = None, killed: bool = False) -> ExitEvidence:
    return exit_evidence(Exit(status, 41 << 30), pid=5, label="rank 1", log_path="/none", node=NODE, was_up=was_up, stop=stop,
                         is_wanted=is_wanted, init_failed=init_failed, memory=_Memory(killed=killed), limits=LIMITS)


@pytest.mark.parametrize(("status", "was_up", "killed", "expected"), [
    (CODE_3, True, False, ("exit code", 3, "", "exited with code 3")),
    (CODE_3, False, False, ("exit code", 3, "", "exited with code 3 before its constructor returned")),
    (0, True, False, ("exit code", 0, "", "exited with code 0")),
    (SIGKILL, True, False, ("signal", 0, "SIGKILL", "killed by SIGKILL")),
    (SIGSEGV, True, True, ("signal", 0, "SIGSEGV", "killed by SIGSEGV")),
    (SIGKILL, True, True, ("out of memory", 0, "SIGKILL", "likely killed by the kernel for memory: at most 41.0 GiB resident of 48.0 GiB")),
    (40, True, False, ("signal", 0, "signal 40", "killed by signal 40")),
])
def test_A4_every_end_has_a_cause(status: int, was_up: bool, killed: bool, expected: tuple[str, int, str, str]) -> None:
    found = _evidence(status, was_up=was_up, killed=killed)
    assert (found.kind, found.code, found.signal, found.detail) == expected
    assert (found.pid, found.label, found.node_name, found.host, found.wanted) == (5, "rank 1", "alpha", "10.0.0.5", False)


def test_who_was_stopped_says_why() -> None:
    stop = StopActors(("a",), 0.0, "rank 0 died first", "killed")
    found = _evidence(SIGKILL, stop=stop, is_wanted=True, killed=True)
    assert (found.kind, found.detail, found.signal, found.wanted) == ("killed", "rank 0 died first", "SIGKILL", True)


def test_a_constructors_error_is_a_start_error() -> None:
    failed = InitFailed("a", b"pickle", "Traceback …\n  in f\nValueError: no\n")
    found = _evidence(1 << 8, was_up=False, init_failed=failed)
    assert (found.kind, found.detail, found.error) == ("start error", "ValueError: no", b"pickle")


def test_who_never_was_has_a_cause_too() -> None:
    found = start_error("fork failed", label="rank 1", log_path="", node=NODE, stop=None)
    assert (found.kind, found.detail, found.wanted) == ("start error", "fork failed", False)


def test_memory_kills_are_counted_from_the_last_look(tmp_path: Path) -> None:
    counter, limit = tmp_path / "memory.events", tmp_path / "memory.max"
    counter.write_text("low 0\noom 2\noom_kill 1\n")
    limit.write_text("max\n")
    memory = MemoryKills()
    memory._counters = [(counter, limit)]
    memory._seen = memory._count()
    assert not memory.since_last_look()
    counter.write_text("low 0\noom 3\noom_kill 2\n")
    assert memory.since_last_look()
    assert not memory.since_last_look()
    assert memory.limit_bytes() > 1 << 28  # no limit of the group: what the host has
    limit.write_text(f"{3 << 30}\n")
    assert memory.limit_bytes() == 3 << 30
