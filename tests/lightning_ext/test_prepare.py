from __future__ import annotations

from typing import Any

import pytest
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy

from lightning_ext import TrainDDPStrategy, TrainLightningEnvironment, prepare_trainer


@pytest.fixture(autouse=True)
def rank_of_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 0)


def test_a_trainer_that_is_set_up_comes_back_unchanged(as_rank: Any, little: Any) -> None:
    as_rank()
    trainer = little.make_trainer(strategy=TrainDDPStrategy(), plugins=[TrainLightningEnvironment()])
    assert prepare_trainer(trainer) is trainer


@pytest.mark.parametrize("strategy", ["auto", DDPStrategy])
def test_another_strategy_is_named(as_rank: Any, little: Any, strategy: Any) -> None:
    as_rank()
    trainer = little.make_trainer(strategy=strategy if isinstance(strategy, str) else strategy(), devices=1)
    with pytest.raises(RuntimeError, match="Invalid strategy class: .*the strategy object should be one of .*TrainDDPStrategy"):
        prepare_trainer(trainer)


def test_another_environment_is_named(as_rank: Any, little: Any) -> None:
    class Own(LightningEnvironment):
        pass

    as_rank()
    trainer = little.make_trainer(strategy=TrainDDPStrategy(), plugins=[TrainLightningEnvironment()])
    trainer.strategy._cluster_environment = Own()
    with pytest.raises(RuntimeError, match="Invalid cluster environment plugin.*TrainLightningEnvironment.*but got .*Own"):
        prepare_trainer(trainer)


def test_a_trainer_of_the_other_lightning_is_named() -> None:
    with pytest.raises(RuntimeError, match="lightning_ext was loaded for pytorch_lightning"):
        prepare_trainer(object())
