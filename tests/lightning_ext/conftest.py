"""Lightning in the calling process as a rank of a run, and in real forked ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import train
from train.backend import RankSetup

ROOT = Path(__file__).parents[2]
RUNNER = ROOT / "tests/train/torch/forked_ranks.py"
# A module, its data and a Trainer without files or progress bar; both the tests' own process and forked ranks use it.
LITTLE = '''
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset


class Little(pl.LightningModule):
    """Logs the epoch's number everywhere, so that a stale metric is seen."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        loss = self.net(batch[0]).pow(2).mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("in_validation", float(self.current_epoch))

    def on_train_epoch_end(self):
        self.log("at_epoch_end", float(self.current_epoch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.arange(16.0).reshape(8, 2)), batch_size=2)

    val_dataloader = train_dataloader


def make_trainer(**kwargs):
    return pl.Trainer(**({"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
                          "enable_model_summary": False} | kwargs))
'''

GROUP = """

def scenario(ranks, rendezvous, backend, config):
    backend.setup(ranks, config, rendezvous)
    result = body(ranks)
    torch.distributed.barrier()
    backend.teardown(ranks, config)
    return result
"""


@pytest.fixture
def little() -> SimpleNamespace:
    """``Little`` and ``make_trainer``."""
    names: dict[str, Any] = {"__name__": "little"}
    exec(LITTLE, names)
    return SimpleNamespace(**names)


def _setups(world_size: int) -> list[dict[str, Any]]:
    return [{"rank": rank, "world_size": world_size, "local_rank": rank, "local_world_size": world_size, "node_rank": 0, "num_nodes": 1,
             "host": "127.0.0.1", "interface": "lo", "host_id": "test", "gpu_ids": (), "visible_gpu_ids": (), "num_cpus": 1.0, "attempt": 1,
             "run_name": "run", "use_gpu": False} for rank in range(world_size)]


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the calling process that rank of a run; ``num_nodes`` divides the ranks evenly."""

    def become(rank: int = 0, world_size: int = 1, num_nodes: int = 1) -> None:
        import lightning_ext.environment
        import lightning_ext.strategies
        import train.torch.device

        local = world_size // num_nodes
        ranks = RankSetup(**(_setups(world_size)[rank] | {"local_rank": rank % local, "local_world_size": local, "node_rank": rank // local,
                                                          "num_nodes": num_nodes}))
        context = SimpleNamespace(get_world_size=lambda: ranks.world_size, get_world_rank=lambda: ranks.rank,
                                  get_local_rank=lambda: ranks.local_rank, get_node_rank=lambda: ranks.node_rank)
        for module in (lightning_ext.environment, lightning_ext.strategies, train.torch.device):
            for name, value in {"current_ranks": ranks, "get_context": context, "in_training_function": True}.items():
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, lambda value=value: value)

    return become


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], list[str]]]:
    """What was reported: metrics, and the files of the checkpoint's directory."""
    found: list[tuple[dict[str, Any], list[str]]] = []

    def report(metrics: dict[str, Any], checkpoint: Any = None) -> None:
        found.append((metrics, sorted(os.listdir(checkpoint.path)) if checkpoint else []))

    monkeypatch.setattr(train, "report", report)
    monkeypatch.setattr(train, "get_checkpoint", lambda: None)
    return found


@pytest.fixture
def run_ranks(tmp_path: Path) -> Callable[..., list[Any]]:
    """Runs ``scenario(ranks)`` of the given source in forked ranks with a process group; what each returned, by rank."""

    def run(source: str, *, world_size: int = 2, env: dict[str, str] | None = None) -> list[Any]:
        script = tmp_path / "scenario.py"
        body = textwrap.dedent(source).replace("def scenario(ranks):", "def body(ranks):")
        script.write_text("import os\nimport train\n" + LITTLE + body + GROUP)
        done = subprocess.run([sys.executable, str(RUNNER), str(script), json.dumps(_setups(world_size))], capture_output=True, text=True,
                              timeout=100, env=os.environ | {"PYTHONPATH": str(ROOT)} | (env or {}), cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads((tmp_path / f"result_{rank}").read_text()) for rank in range(world_size)]

    return run
