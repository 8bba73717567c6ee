"""Fixtures of all tests: every async test on uvloop and on asyncio in debug mode, and no test leaves anything behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

os.environ.setdefault("HEADWAY_TIME_SCALE", "0.3")  # before runtime.limits is imported: times of process tests
uvloop.new_event_loop().close()  # libuv opens a pipe for the whole process with its first loop

# A temporary directory of this run's own, so that what another run leaves is not taken for ours; short, for Unix sockets.
_TMP = tempfile.mkdtemp(prefix="hwp-", dir="/tmp")
os.environ["TMPDIR"] = tempfile.tempdir = _TMP


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what tests keep for a look after a failure."""
    shutil.rmtree(_TMP, ignore_errors=True)


def _debug_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 1.0  # a loaded machine is not a bug
    return loop


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run every async test twice."""
    return {"uvloop": uvloop.new_event_loop, "asyncio-debug": _debug_loop}


def _open_fds() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def _children() -> set[int]:
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found.update(int(pid) for pid in (task / "children").read_text().split())
    return found


def _describe(pid: int) -> str:
    with contextlib.suppress(OSError):
        return f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes().replace(bytes(1), b' ').decode(errors='replace')[:120]}"
    return str(pid)


def _leftovers(before: dict[str, Any]) -> list[str]:
    problems = []
    fds = {fd: target for fd, target in _open_fds().items()
           if fd not in before["fds"] and (target.startswith(("socket:", "anon_inode:[eventpoll]", "anon_inode:[pidfd]", "pipe:")))}
    if fds:
        problems.append(f"open descriptors: {fds}")
    children = _children() - before["children"]
    if children:
        problems.append(f"child processes: {[_describe(pid) for pid in children]}")
    threads = {t.name for t in threading.enumerate() if t.is_alive() and not t.daemon} - before["threads"]
    threads -= {name for name in threads if name.startswith(("asyncio_", "ThreadPoolExecutor"))}
    if threads:
        problems.append(f"threads: {threads}")
    shm = set(os.listdir("/dev/shm")) - before["shm"]
    if shm:
        problems.append(f"/dev/shm: {shm}")
    tmp = {name for name in os.listdir(before["tmp_root"]) if name.startswith("headway-")} - before["tmp"]
    if tmp:
        problems.append(f"temporary directories: {tmp}")
    return problems


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """No descriptor, process, thread, shared memory or session directory survives a test."""
    if request.node.get_closest_marker("asyncio") is not None:
        yield  # the loop of an async test owns descriptors beyond this fixture; its own check is no_stray_tasks
        return
    root = tempfile.gettempdir()
    before = {"fds": _open_fds(), "children": _children(), "threads": {t.name for t in threading.enumerate()},
              "shm": set(os.listdir("/dev/shm")), "tmp_root": root,
              "tmp": {name for name in os.listdir(root) if name.startswith("headway-")}}
    yield
    deadline = time.monotonic() + 10
    while (problems := _leftovers(before)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not problems, "left behind: " + "; ".join(problems)


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A directory whose path is short enough for Unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="hwt-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)
