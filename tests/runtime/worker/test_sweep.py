"""Finding and killing what is left of actors and daemons, by the marker in /proc."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.worker.sweep import MARKER, NO_ACTOR, Lineage, _birth_time, find, sweep, sweep_dead_daemons

pytestmark = pytest.mark.process

FIRST, SECOND = "a" * 32, "b" * 32
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """A process with the marker given, that ran ``code`` and then waits."""
    processes: list[subprocess.Popen[str]] = []

    def started(marker: str, code: str = "") -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", f"import os, sys\n{code}\nprint('ready', flush=True)\nsys.stdin.read()"],
                                   env={**os.environ, MARKER: marker}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        processes.append(process)
        return process

    yield started
    for process in processes:
        process.kill()
        process.communicate()


def test_a_lineage_survives_its_marker() -> None:
    lineage = Lineage.of_this_process()
    assert Lineage.parse(lineage.marker(FIRST)) == (lineage, FIRST)
    assert lineage.is_alive()
    assert not Lineage(lineage.namespace, lineage.pid, lineage.started - 1).is_alive()  # its pid is another process's now
    with pytest.raises(ValueError):
        Lineage.parse("x.y")


def test_a_zombie_is_no_living_daemon() -> None:
    code = "from runtime.worker.sweep import Lineage; print(Lineage.of_this_process().marker())"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lineage, _ = Lineage.parse(process.stdout.read().strip())
    process.stdout.close()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not lineage.is_alive()
    process.wait()
    assert not lineage.is_alive()


def test_processes_are_found_by_daemon_and_actor(start: Start) -> None:
    ours = Lineage.of_this_process()
    other = Lineage(ours.namespace, os.getppid(), _birth_time(os.getppid()))
    first, second, zygote = start(ours.marker(FIRST)), start(ours.marker(SECOND)), start(ours.marker(NO_ACTOR))
    foreign = start(other.marker(FIRST))
    assert find(ours, {FIRST}) == [first.pid]
    assert set(find(ours)) == {first.pid, second.pid}
    assert zygote.pid not in find(ours)
    assert find(other) == [foreign.pid]


def test_a_fork_writes_its_own_id_over_the_zygotes(start: Start) -> None:
    ours = Lineage.of_this_process()
    code = (f"from runtime.worker.sweep import rewrite_marker\nassert rewrite_marker({ours.marker(SECOND)!r})\n"
            "assert not rewrite_marker('short')")
    process = start(ours.marker(NO_ACTOR), code)
    assert find(ours, {SECOND}) == [process.pid]
    assert len(Path(f"/proc/{process.pid}/environ").read_bytes()) > 0


@pytest.mark.asyncio
async def test_a_sweep_ends_children_that_hide_and_spares_the_rest(start: Start) -> None:
    ours = Lineage.of_this_process()
    hiding = ("if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
              "        sys.stdin.close(); time.sleep(1000)\n    os._exit(0)\nos.wait()")
    leaving = await asyncio.to_thread(start, ours.marker(FIRST), f"import signal, time\n{hiding}")
    staying = await asyncio.to_thread(start, ours.marker(SECOND))
    async with asyncio.timeout(10):
        while len(find(ours, {FIRST})) < 2:
            await asyncio.sleep(0.01)
    assert await sweep(ours, {FIRST}, limit_s=10)
    assert find(ours, {FIRST}) == []
    assert find(ours) == [staying.pid]
    assert await asyncio.to_thread(leaving.wait) == -signal.SIGKILL


def test_what_a_dead_daemon_left_is_swept_by_the_next_one(start: Start) -> None:
    ours = Lineage.of_this_process()
    left = start(Lineage(ours.namespace, 1 << 25, 1).marker(FIRST))
    elsewhere = start(Lineage(ours.namespace + 1, 1 << 25, 1).marker(FIRST))  # of another pid namespace: not ours to judge
    living = start(ours.marker(FIRST))
    zygote = start(Lineage(ours.namespace, 1 << 25, 1).marker(NO_ACTOR))  # it may be cleaning up: it ends by itself
    sweep_dead_daemons()  # a daemon that starts on this host meanwhile may have been faster
    assert left.wait() == -signal.SIGKILL
    assert elsewhere.poll() is None
    assert zygote.poll() is None
    assert living.poll() is None
