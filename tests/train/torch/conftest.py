"""Ranks for tests of train.torch: as values, as the calling process, and as real forked processes."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from train.backend import RankSetup

RUNNER = Path(__file__).parent / "forked_ranks.py"


def _make_ranks(**changes: Any) -> RankSetup:
    values: dict[str, Any] = {"rank": 0, "world_size": 2, "local_rank": 0, "local_world_size": 2, "node_rank": 0, "num_nodes": 1,
                              "host": "127.0.0.1", "interface": "lo", "host_id": "test", "gpu_ids": (), "visible_gpu_ids": (),
                              "num_cpus": 1.0, "attempt": 1, "run_name": "run", "use_gpu": False}
    if "rank" in changes:
        values["local_rank"] = changes["rank"]
    if "world_size" in changes:
        values["local_world_size"] = changes["world_size"]
    return RankSetup(**(values | changes))


@pytest.fixture
def make_ranks() -> Callable[..., RankSetup]:
    """Rank 0 of 2 on one node without GPUs, with the given fields changed."""
    return _make_ranks


class FakeRendezvous:
    """One process is all ranks: what was published is found."""

    key_prefix = "run/1"

    def __init__(self) -> None:
        self.address: tuple[str, int] | None = None

    def publish(self, host: str, port: int) -> None:
        self.address = (host, port)

    def lookup(self, timeout_s: float) -> tuple[str, int]:
        assert self.address is not None, "rank 0 has not published"
        return self.address


@pytest.fixture
def rendezvous() -> FakeRendezvous:
    return FakeRendezvous()


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A loopback port that nobody listens on, and nobody else gets."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> Callable[..., RankSetup]:
    """Makes the calling process that rank of a run, as far as train.torch asks."""

    def become(**changes: Any) -> RankSetup:
        ranks = _make_ranks(**changes)
        for module in ("data", "device", "model"):
            monkeypatch.setattr(f"train.torch.{module}.current_ranks", lambda: ranks, raising=False)
        return ranks

    return become


@pytest.fixture
def run_ranks(tmp_path: Path) -> Callable[..., list[Any]]:
    """Runs ``scenario(ranks, rendezvous, backend, config)`` of the given source in forked ranks; what each returned, by rank."""

    def run(source: str, *, world_size: int = 2, env: dict[str, str] | None = None) -> list[Any]:
        script = tmp_path / "scenario.py"
        script.write_text("import os\n" + textwrap.dedent(source))
        setups = [dataclasses.asdict(_make_ranks(rank=rank, world_size=world_size)) for rank in range(world_size)]
        done = subprocess.run([sys.executable, str(RUNNER), str(script), json.dumps(setups)], capture_output=True, text=True, timeout=100,
                              env=os.environ | {"PYTHONPATH": str(RUNNER.parents[3])} | (env or {}))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "C++" not in done.stderr, done.stderr
        return [json.loads((tmp_path / f"result_{rank}").read_text()) for rank in range(world_size)]

    return run
