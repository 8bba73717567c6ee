"""Which zygote serves which set of modules."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from runtime.limits import LIMITS
from runtime.worker.spawn import Watcher
from runtime.worker.sweep import Lineage
from runtime.worker.zygote_pool import ZygotePool

pytestmark = pytest.mark.process


def _pool(session_dir: Path, *, enabled: bool = True) -> tuple[ZygotePool, Watcher]:
    watcher = Watcher()
    return ZygotePool(watcher, Lineage.of_this_process(), session_dir, LIMITS, enabled=enabled), watcher


@pytest.mark.asyncio
async def test_a_set_is_served_by_the_smallest_zygote_that_has_it(short_tmp: Path) -> None:
    pool, watcher = _pool(short_tmp)
    pool.preload(())
    pool.preload(("json", "csv"))
    assert len(pool.pids) == 2
    for modules in ((), ("csv",), ("csv", "json")):
        pool.preload(modules)
    assert len(pool.pids) == 2
    pool.preload(("csv", "bz2"))
    assert len(pool.pids) == 3
    for modules in ((), ("json",), ("bz2",)):
        await pool.wait_ready(modules, unless=asyncio.Event())
        assert await pool.fork(modules, [], []) == []
    pids = pool.pids
    await pool.close()
    assert pool.pids == []
    for pid in pids:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, 0)
    watcher.close()


@pytest.mark.asyncio
async def test_without_zygotes_every_set_goes_by_exec(short_tmp: Path) -> None:
    pool, watcher = _pool(short_tmp, enabled=False)
    pool.preload(("json",))
    await pool.wait_ready(("json",), unless=asyncio.Event())
    assert await pool.fork(("json",), [], []) is None
    assert pool.pids == []
    await pool.close()
    watcher.close()


@pytest.mark.asyncio
async def test_who_gave_up_does_not_wait_for_a_preload(short_tmp: Path) -> None:
    pool, watcher = _pool(short_tmp)
    given_up = asyncio.Event()
    given_up.set()
    await pool.wait_ready(("json",), unless=given_up)
    await pool.close()
    watcher.close()


@pytest.mark.asyncio
async def test_an_unfit_set_is_refused_for_good(short_tmp: Path, caplog: pytest.LogCaptureFixture) -> None:
    pool, watcher = _pool(short_tmp)
    for _ in range(2):
        await pool.wait_ready(("no_such_module_at_all",), unless=asyncio.Event())
        assert await pool.fork(("no_such_module_at_all",), [], []) is None
    assert caplog.text.count("is discarded: importing 'no_such_module_at_all' failed with ModuleNotFoundError") == 1
    await pool.close()
    watcher.close()
