from __future__ import annotations

import pickle
from typing import Any

import pytest

from lightning_ext import RayLightningEnvironment, TrainLightningEnvironment


def test_built_on_the_driver_it_knows_nothing_and_says_so() -> None:
    assert RayLightningEnvironment is TrainLightningEnvironment
    environment = pickle.loads(pickle.dumps(TrainLightningEnvironment()))
    assert environment.creates_processes_externally
    assert not TrainLightningEnvironment.detect()
    with pytest.raises(RuntimeError, match="training function"):
        environment.world_size()


def test_values_are_the_contexts_and_lightning_cannot_change_them(as_rank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    as_rank(rank=5, world_size=6, num_nodes=2)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.7")
    monkeypatch.setenv("MASTER_PORT", "4711")
    environment = TrainLightningEnvironment()
    environment.set_world_size(1)
    environment.set_global_rank(0)
    environment.teardown()
    assert (environment.world_size(), environment.global_rank(), environment.local_rank(), environment.node_rank()) == (6, 5, 2, 1)
    assert (environment.main_address, environment.main_port) == ("10.0.0.7", 4711)
    assert environment.detect()
