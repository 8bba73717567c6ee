"""train.torch on the real runtime."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

EARLY = """
import time
import torch, torch.distributed as dist
from train import RunConfig, ScalingConfig, get_context, report
from train.torch import TorchConfig, TorchTrainer, get_device

def train_func():
    total = torch.ones(1, device=get_device())
    dist.all_reduce(total)
    if get_context().get_world_rank() == 0:
        report({"total": total.item()})
        return "rank 0 is done"
    time.sleep(0.5)  # long enough for rank 0 to be gone, if it did not wait for us
    report({"total": total.item()})
    store = dist.distributed_c10d._get_default_store()
    store.set("late", "yes")
    print("late:", store.get("late").decode(), flush=True)

result = TorchTrainer(train_func, scaling_config=ScalingConfig(num_workers=2), torch_config=TorchConfig(timeout_s=60),
                      run_config=RunConfig(storage_path="runs")).fit()
print(result.metrics["total"], result.return_value)
"""


@pytest.mark.process
def test_a_rank_that_returns_early_does_not_break_its_peers(tmp_path: Path) -> None:
    (tmp_path / "early.py").write_text(EARLY)
    done = subprocess.run([sys.executable, "early.py"], cwd=tmp_path, capture_output=True, text=True, timeout=100,
                          env=os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "2.0 rank 0 is done\n"
    assert "late: yes" in done.stderr
