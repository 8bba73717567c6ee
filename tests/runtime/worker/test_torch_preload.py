"""A zygote that has imported torch: its forks train together, compute in threads, and load data in workers of their own."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.wire.messages import ActorExited

pytestmark = [pytest.mark.process, pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")]

AnyCluster = Callable[..., Any]
PRELOAD = ("torch", "torch._dynamo")


def _rank() -> type:
    class Rank:
        def was_preloaded(self) -> bool:
            import sys

            return "torch" in sys.modules

        def num_threads(self) -> int:
            import torch

            return torch.get_num_threads()

        def all_reduce(self, path: str, rank: int) -> list[float]:
            import torch
            import torch.distributed as dist

            dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
            value = torch.full((4,), float(rank + 1))
            dist.all_reduce(value)
            dist.destroy_process_group()
            return value.tolist()

        def multiply(self) -> float:
            import torch

            return float((torch.ones(600, 600) @ torch.ones(600, 600)).sum())

        def load(self) -> int:
            import torch
            from torch.utils.data import DataLoader, TensorDataset

            data = DataLoader(TensorDataset(torch.arange(32)), batch_size=4, num_workers=2)
            return sum(int(batch.sum()) for (batch,) in data)

        def load_for_ever(self) -> None:
            import time

            import torch
            from torch.utils.data import DataLoader, TensorDataset

            data = iter(DataLoader(TensorDataset(torch.arange(32)), batch_size=4, num_workers=2, persistent_workers=True))
            next(data)
            time.sleep(1000)

    return Rank


@pytest.mark.asyncio
async def test_two_forks_reduce_together_and_a_third_generation_of_processes_loads_data(worker_cluster: AnyCluster) -> None:
    async with worker_cluster(preload=",".join(PRELOAD)) as cluster:
        actors = await cluster.start(_rank(), count=2, preload=PRELOAD, resources={"CPU": 2.0})
        ranks = [await cluster.connect(actor) for actor in actors]
        assert "discarded" not in cluster.output
        assert await ranks[0].call("was_preloaded")
        assert await ranks[0].call("num_threads") == 2
        path = str(cluster.tmp / "store")
        reduced = await asyncio.gather(*(rank.call("all_reduce", path, i) for i, rank in enumerate(ranks)))
        assert reduced == [[3.0] * 4] * 2
        assert await ranks[0].call("multiply") == 600.0 ** 3  # a parallel region after the fork
        assert await ranks[1].call("load") == sum(range(32))
        assert await ranks[1].call("load") == sum(range(32))


@pytest.mark.asyncio
async def test_data_loader_workers_end_with_their_rank(worker_cluster: AnyCluster) -> None:
    async with worker_cluster(preload="torch") as cluster:
        (actor,) = await cluster.start(_rank(), preload=("torch",))
        caller = await cluster.connect(actor)
        loading = asyncio.ensure_future(caller.call("load_for_ever"))
        async with asyncio.timeout(30):
            while len(cluster.descendants()) < 3:
                await asyncio.sleep(0.02)
        cluster.stop(actor)
        await cluster.head.expect(ActorExited)
        assert cluster.descendants() == []
        assert not Path(f"/proc/{actor.pid}").exists()
        with pytest.raises(Exception, match="connection|closed|broke"):
            await loading
