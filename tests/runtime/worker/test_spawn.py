"""Watching and ending of children, by pidfd and by the portable second way."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import pytest

from runtime.worker.spawn import Exit, Watcher, kill_group

pytestmark = pytest.mark.process


def _spawn(code: str, *, new_session: bool = True) -> int:
    """A child that nobody else waits for."""
    return os.posix_spawn(sys.executable, [sys.executable, "-c", code], dict(os.environ), setsid=new_session)


async def _watch(watcher: Watcher, pid: int) -> Exit:
    ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
    watcher.watch(pid, ended.set_result)
    async with asyncio.timeout(20):
        return await ended


@pytest.mark.parametrize("use_pidfd", [True, False])
@pytest.mark.parametrize(("code", "expected"), [("import os; os._exit(7)", 7), ("import os; os.kill(os.getpid(), 9)", -9), ("", 0)])
@pytest.mark.asyncio
async def test_the_end_of_a_child_is_told_with_its_status_and_memory(use_pidfd: bool, code: str, expected: int) -> None:
    watcher = Watcher(use_pidfd=use_pidfd)
    pid = _spawn(code)
    ended = await _watch(watcher, pid)
    assert os.waitstatus_to_exitcode(ended.status) == expected
    assert ended.peak_rss_bytes > 1 << 20
    assert watcher.has_ended(pid)
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)  # it was reaped
    watcher.close()


@pytest.mark.parametrize("use_pidfd", [True, False])
@pytest.mark.asyncio
async def test_the_group_of_a_child_ends_with_it(use_pidfd: bool) -> None:
    watcher = Watcher(use_pidfd=use_pidfd)
    read_fd, write_fd = os.pipe()
    code = f"import os, time\nif os.fork() == 0:\n    time.sleep(1000)\nos.write({write_fd}, b'x')\nos._exit(0)"
    os.set_inheritable(write_fd, True)
    pid = _spawn(code)
    os.close(write_fd)
    await _watch(watcher, pid)
    # The pipe ends when the last process of the group is gone.
    assert await asyncio.to_thread(lambda: (os.read(read_fd, 1), os.read(read_fd, 1))) == (b"x", b"")
    os.close(read_fd)
    watcher.close()


@pytest.mark.asyncio
async def test_a_child_that_ended_is_known_to_before_it_is_told() -> None:
    watcher = Watcher()
    pid = _spawn("import time; time.sleep(1000)")
    told: list[Exit] = []
    watcher.watch(pid, told.append)
    assert not watcher.has_ended(pid)
    kill_group(pid)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert watcher.has_ended(pid)
    assert told == []
    async with asyncio.timeout(20):
        while not told:
            await asyncio.sleep(0.005)
    watcher.close()


def _run(code: str, *arguments: str) -> Sequence[str]:
    """Lines printed by a process of its own, so that a subreaper's orphans are not the tests' children."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_orphans_are_adopted_and_reaped_but_watched_children_are_left_to_their_watcher() -> None:
    code = """
import asyncio, os, time
from runtime.worker.spawn import Watcher, become_subreaper

def orphan(status):
    between = os.fork()
    if between == 0:
        if os.fork() == 0:
            time.sleep(0.05)
            os._exit(status)
        os._exit(0)
    os.waitpid(between, 0)

async def main():
    assert become_subreaper()
    watcher, told = Watcher(), []
    for _ in range(3):
        orphan(3)
    watched = os.fork()
    if watched == 0:
        os._exit(5)
    watcher.watch(watched, told.append)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        watcher.reap_orphans()
        await asyncio.sleep(0.01)
        children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
        if not children:
            break
    print(len(children), os.waitstatus_to_exitcode(told[0].status))
    watcher.close()

asyncio.run(main())
"""
    assert _run(code) == ["0", "5"]


def test_a_process_dies_with_its_parent_unless_it_changed_its_mind() -> None:
    code = """
import os, sys, time
from runtime.worker.spawn import die_with_parent, outlive_parent

read_fd, write_fd = os.pipe()
parent = os.fork()
if parent == 0:
    for stays in (False, True):
        if os.fork() == 0:
            os.close(read_fd)
            assert die_with_parent(os.getppid())
            if stays:
                outlive_parent()
            os.write(write_fd, b".")
            time.sleep(1.0)
            os.write(write_fd, b"!")
            os._exit(0)
    os.close(write_fd)
    os.read(read_fd, 1), os.read(read_fd, 1)
    os.kill(os.getpid(), 9)
os.close(write_fd)
os.waitpid(parent, 0)
print(os.read(read_fd, 10).decode())
assert not die_with_parent(1 << 30)
"""
    assert _run(code) == ["!"]


def test_exec_gets_exactly_the_descriptors_that_are_named() -> None:
    code = """
import json, os, sys
from runtime.worker import spawn

if len(sys.argv) > 1:
    read_fd, write_fd = os.pipe()
    extra = os.open("/dev/null", os.O_RDONLY)
    spawn.BOOT = ("import os, sys; fds = sorted(int(fd) for fd in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + fd));"
                  "os.write(4, (' '.join(map(str, fds)) + ' ' + os.readlink('/proc/self/fd/3') + ' '"
                  " + str(os.getsid(0) == os.getpid())).encode())")
    pid = spawn.start_python("unused", [], env=dict(os.environ), fds=[extra, write_fd], output_fd=2)
    os.close(write_fd)
    print(open(read_fd).read())
    os.waitpid(pid, 0)
"""
    assert _run(code, "x") == ["0", "1", "2", "3", "4", "/dev/null", "True"]


def test_killing_who_is_gone_is_no_error() -> None:
    pid = _spawn("")
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    kill_group(pid)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert signal.SIGKILL == 9
