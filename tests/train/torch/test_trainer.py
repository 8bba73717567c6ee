from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import ArgumentError, ArgumentTypeError
from train import DataParallelTrainer, ScalingConfig
from train.torch import TorchConfig, TorchTrainer

ROOT = Path(__file__).parents[3]


def loop() -> None:
    pass


def test_it_is_a_data_parallel_trainer() -> None:
    assert isinstance(TorchTrainer(loop, torch_config=TorchConfig(timeout_s=5)), DataParallelTrainer)


@pytest.mark.parametrize(("config", "advice"), [({"backend": "gloo"}, r"got dict, use TorchConfig\(\*\*cfg\)"), ("gloo", "TorchConfig")])
def test_torch_config_of_another_type(config: Any, advice: str) -> None:
    with pytest.raises(ArgumentTypeError, match=advice):
        TorchTrainer(loop, torch_config=config)


def test_nccl_without_gpus_is_refused_at_once() -> None:
    with pytest.raises(ArgumentError, match="use_gpu=True"):
        TorchTrainer(loop, torch_config=TorchConfig(backend="nccl"), scaling_config=ScalingConfig(num_workers=2))
    with pytest.raises(ArgumentError, match="use_gpu=True"):
        TorchTrainer(loop, torch_config=TorchConfig(backend="nccl"))


def test_unknown_arguments_name_the_closest() -> None:
    with pytest.raises(ArgumentTypeError, match="did you mean 'torch_config'"):
        TorchTrainer(loop, torch_cfg=TorchConfig())


def test_building_a_trainer_imports_no_torch() -> None:
    code = "import sys; from train.torch import TorchTrainer; TorchTrainer(lambda: None); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_unknown_names_of_the_package_are_attribute_errors() -> None:
    import train.torch

    assert "TorchTrainer" in dir(train.torch)
    with pytest.raises(AttributeError, match="no attribute 'Bogus'"):
        _ = train.torch.Bogus
