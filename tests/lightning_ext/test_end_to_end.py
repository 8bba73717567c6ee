"""lightning_ext on the real runtime: what is built on the driver arrives in the ranks and works there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_ext import RayDDPStrategy, RayLightningEnvironment, RayTrainReportCallback, prepare_trainer
from train import RunConfig, ScalingConfig
from train.torch import TorchTrainer


class Little(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).pow(2).mean()

    def on_train_epoch_end(self):
        self.log("rank", float(self.global_rank), sync_dist=True, reduce_fx="sum")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train_func(config):
    trainer = prepare_trainer(pl.Trainer(max_epochs=2, logger=False, enable_progress_bar=False, **config))
    trainer.fit(Little(), DataLoader(TensorDataset(torch.ones(8, 2)), batch_size=2))
    return trainer.world_size


config = {"strategy": RayDDPStrategy(), "plugins": [RayLightningEnvironment()], "callbacks": [RayTrainReportCallback()]}
result = TorchTrainer(train_func, train_loop_config=config, scaling_config=ScalingConfig(num_workers=2),
                      run_config=RunConfig(storage_path="runs")).fit()
print(result.return_value, result.metrics["rank"], result.metrics["epoch"])
with result.checkpoint.as_directory() as directory:
    print(Little.load_from_checkpoint(directory + "/checkpoint.ckpt").net(torch.ones(1, 2)).shape)
"""


@pytest.mark.process
def test_objects_from_the_driver_train_in_the_ranks(tmp_path: Path) -> None:
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    (cwd / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], cwd=cwd, capture_output=True, text=True, timeout=100,
                          env=os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == ["2 1.0 1", "torch.Size([1, 1])"]
    assert sorted(path.name for path in cwd.iterdir()) == ["runs", "script.py"], "no lightning_logs, no second checkpoint"
