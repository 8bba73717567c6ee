"""``prepare_trainer``: checks that a Lightning Trainer is set up for our ranks."""

from __future__ import annotations

from lightning_ext.environment import TrainLightningEnvironment
from lightning_ext.flavour import pl
from lightning_ext.strategies import TrainDDPStrategy

__all__ = ["prepare_trainer"]

STRATEGIES = (TrainDDPStrategy,)


def prepare_trainer(trainer: pl.Trainer) -> pl.Trainer:
    """The same trainer, once it is known to use one of our strategies and our environment.

    Raises: RuntimeError: it uses another strategy or cluster environment; the text names what it found and what is needed.
    """
    names = [strategy.__name__ for strategy in STRATEGIES]
    if not isinstance(trainer, pl.Trainer):
        raise RuntimeError(f"prepare_trainer: got a {type(trainer).__module__}.{type(trainer).__name__}, but lightning_ext was loaded for "
                           f"{pl.__name__}. Import the same one of the two everywhere, before lightning_ext.")
    if not isinstance(trainer.strategy, STRATEGIES):
        raise RuntimeError(f"Invalid strategy class: {type(trainer.strategy)}. To use PyTorch Lightning with Headway, the strategy object "
                           f"should be one of {names} class or its subclass: Trainer(strategy={names[0]}()).")
    environment = trainer.strategy.cluster_environment
    if not isinstance(environment, TrainLightningEnvironment):
        raise RuntimeError("Invalid cluster environment plugin. The expected class is `lightning_ext.TrainLightningEnvironment` "
                           f"or its subclass, but got {type(environment)}! Pass Trainer(plugins=[TrainLightningEnvironment()]).")
    return trainer
