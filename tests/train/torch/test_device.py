from __future__ import annotations

from typing import Any

import pytest
import torch

from train.torch import get_device, get_devices


def test_cpu_ranks_have_the_cpu(as_rank: Any) -> None:
    as_rank()
    assert get_device() == torch.device("cpu")
    assert get_devices() == [torch.device("cpu")]


def test_a_gpu_is_named_by_its_place_among_the_visible_ones(as_rank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    as_rank(use_gpu=True, gpu_ids=(6,), visible_gpu_ids=(3, 6))
    assert get_device() == torch.device("cuda", 1)
    as_rank(use_gpu=True, gpu_ids=(3, 6), visible_gpu_ids=(3, 6))
    assert get_devices() == [torch.device("cuda", 0), torch.device("cuda", 1)]


def test_simulated_gpus_are_no_devices(as_rank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    as_rank(use_gpu=True, gpu_ids=(0,), visible_gpu_ids=(0,))
    assert get_device() == torch.device("cpu")


def test_outside_a_training_function_it_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="training function"):
        get_device()
