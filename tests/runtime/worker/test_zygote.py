"""Zygotes under a real daemon: preloading, their death, what makes them unfit, and the way without them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.wire.messages import ActorExited, ActorsReady, Preload

pytestmark = pytest.mark.process

AnyCluster = Callable[..., Any]


def _probe() -> type:
    class Probe:
        def is_loaded(self, module: str) -> bool:
            import sys

            return module in sys.modules

        def command(self) -> str:
            import os

            with open(f"/proc/{os.getpid()}/cmdline") as file:
                return file.read().replace("\0", " ")

        def draw(self) -> list[float]:
            import random

            import numpy

            return [random.random(), float(numpy.random.random())]

        def spawned_child_knows_no_main(self) -> int:
            import multiprocessing

            child = multiprocessing.get_context("spawn").Process(target=len, args=("x",))
            child.start()
            child.join(60)
            return child.exitcode or 0

    return Probe


def _zygotes(cluster: Any) -> list[int]:
    children = Path(f"/proc/{cluster.process.pid}/task/{cluster.process.pid}/children").read_text().split()
    return [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text() in ("hw zygote\n", "python\n")
            and b"zygote.main()" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def _package(folder: Path, name: str, source: str) -> dict[str, str]:
    """An installed module, as far as a zygote can tell. Returns: the environment that finds it."""
    (folder / f"{name}.py").write_text(source)
    return {"PYTHONPATH": str(folder)}


@pytest.mark.asyncio
async def test_actors_survive_the_zygotes_death_and_the_next_start_makes_a_new_one(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (before,) = await cluster.start(_probe())
        caller = await cluster.connect(before)
        (zygote,) = _zygotes(cluster)
        os.kill(zygote, signal.SIGKILL)
        (after,) = await cluster.start(_probe())
        assert "zygote.main()" in await (await cluster.connect(after)).call("command")
        assert _zygotes(cluster) != [zygote]
        assert await caller.call("is_loaded", "runtime.actor.host")
        assert not any(isinstance(message, ActorExited) for message in cluster.head.received)


@pytest.mark.asyncio
async def test_a_zygote_that_dies_under_an_order_is_replaced(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        await cluster.start(_probe())
        (zygote,) = _zygotes(cluster)
        os.kill(zygote, signal.SIGSTOP)
        order = cluster.order(_probe(), count=2)
        await cluster.head.peer.flush()
        os.kill(zygote, signal.SIGKILL)
        ready = await cluster.head.expect(ActorsReady, lambda message: message.group_id == order.group_id)
        assert len({actor.pid for actor in ready.actors}) == 2
        assert len(cluster.descendants()) == 3


@pytest.mark.asyncio
async def test_the_preload_set_is_imported_before_the_fork(worker_cluster: AnyCluster, short_tmp: Path) -> None:
    env = _package(short_tmp, "preloaded_here", "import os\npid = os.getpid()\n")
    async with worker_cluster(env=env) as cluster:
        cluster.head.send(Preload(("preloaded_here",)))
        (actor,) = await cluster.start(_probe(), preload=("preloaded_here",))
        assert await (await cluster.connect(actor)).call("is_loaded", "preloaded_here")
        (plain,) = await cluster.start(_probe())
        assert not await (await cluster.connect(plain)).call("is_loaded", "preloaded_here")  # the smallest zygote that has what it asks for
        assert len(_zygotes(cluster)) == 2


@pytest.mark.asyncio
async def test_a_preload_that_starts_a_thread_is_discarded_and_actors_are_executed(worker_cluster: AnyCluster, short_tmp: Path) -> None:
    env = _package(short_tmp, "thready", "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n")
    async with worker_cluster(env=env) as cluster:
        for _ in range(2):
            actors = await cluster.start(_probe(), count=2, preload=("thready",))
            for actor in actors:
                assert "zygote.main_exec()" in await (await cluster.connect(actor)).call("command")
        assert cluster.output.count("is discarded: it has 2 threads") == 1
        (plain,) = await cluster.start(_probe())
        assert "zygote.main()" in await (await cluster.connect(plain)).call("command")


@pytest.mark.parametrize(("source", "reason"), [
    ("raise RuntimeError('not today')", "importing 'broken' failed with RuntimeError: not today"),
    ("raise SystemExit(1)", "importing 'broken' failed with SystemExit: 1"),
    ("import os; os._exit(5)", "ended while it was to start 1 actors"),
])
@pytest.mark.asyncio
async def test_a_preload_that_fails_is_discarded(worker_cluster: AnyCluster, short_tmp: Path, source: str, reason: str) -> None:
    async with worker_cluster(env=_package(short_tmp, "broken", source)) as cluster:
        (actor,) = await cluster.start(_probe(), preload=("broken",))
        assert "zygote.main_exec()" in await (await cluster.connect(actor)).call("command")
        assert reason in cluster.output


@pytest.mark.asyncio
async def test_a_preload_that_hangs_is_discarded_within_the_start_time_out(worker_cluster: AnyCluster, short_tmp: Path) -> None:
    env = _package(short_tmp, "hanging", "import time\ntime.sleep(1000)\n")
    async with worker_cluster(env=env, limits={"start_s": 1.0}) as cluster:
        order = cluster.order(_probe(), preload=("hanging",))
        exited = await cluster.head.expect(ActorExited)
        assert (exited.actor_id, exited.evidence.kind) == (order.actors[0].actor_id, "start time-out")
        async with asyncio.timeout(10):
            while "was not ready within 1 s" not in cluster.output:
                await asyncio.sleep(0.02)


@pytest.mark.asyncio
async def test_a_daemon_without_zygotes_executes_its_actors(worker_cluster: AnyCluster) -> None:
    async with worker_cluster("--no-zygote") as cluster:
        first, second = await cluster.start(_probe(), count=2)
        assert _zygotes(cluster) == []
        for actor in (first, second):
            assert "zygote.main_exec()" in await (await cluster.connect(actor, by_tcp=True)).call("command")
        os.kill(first.pid, signal.SIGKILL)
        assert (await cluster.head.expect(ActorExited)).evidence.signal == "SIGKILL"


@pytest.mark.parametrize("option", [(), ("--no-zygote",)])
@pytest.mark.asyncio
async def test_an_environment_that_no_system_takes_is_an_error_of_the_actor(worker_cluster: AnyCluster, option: tuple[str, ...]) -> None:
    async with worker_cluster(*option) as cluster:
        order = cluster.order(_probe(), env={"BAD": "a\0b"})
        exited = await cluster.head.expect(ActorExited)
        assert exited.actor_id == order.actors[0].actor_id
        assert "embedded null byte" in exited.evidence.detail + "".join(exited.evidence.log_tail)
        await cluster.start(_probe())


@pytest.mark.asyncio
async def test_N2_executed_actors_of_a_killed_daemon_are_gone(worker_cluster: AnyCluster) -> None:
    async with worker_cluster("--no-zygote") as cluster:
        await cluster.start(_probe(), count=2)
        cluster.process.kill()
        await cluster.wait_ended()
        import shutil

        for folder in (cluster.tmp / "run").iterdir():  # without a zygote nobody is left to remove it
            shutil.rmtree(folder)


@pytest.mark.asyncio
async def test_forks_do_not_draw_the_same_numbers(worker_cluster: AnyCluster) -> None:
    async with worker_cluster(preload="numpy.random") as cluster:
        drawn = [await (await cluster.connect(actor)).call("draw") for actor in await cluster.start(_probe(), count=3)]
        for column in zip(*drawn, strict=True):
            assert len(set(column)) == 3


@pytest.mark.asyncio
async def test_children_that_multiprocessing_spawns_do_not_run_our_main(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_probe())
        assert await (await cluster.connect(actor)).call("spawned_child_knows_no_main") == 0
