from __future__ import annotations

import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from train.torch import enable_reproducibility


@pytest.fixture
def torch_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


@pytest.mark.usefixtures("torch_settings")
def test_seeds_all_generators_and_asks_for_determinism() -> None:
    def draw(seed: int) -> tuple[float, float, float]:
        enable_reproducibility(seed)
        return random.random(), float(np.random.rand()), torch.rand(1).item()

    assert draw(3) == draw(3) != draw(4)
    assert torch.are_deterministic_algorithms_enabled()
