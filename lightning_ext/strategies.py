"""Lightning's strategies on ranks that Headway started; ``strategy="train_ddp"`` names the first.

Lightning derives world, ranks and device from ``devices`` and ``num_nodes`` and starts processes itself. Here they come from the training
function's context, the process group exists already, and nothing is started.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from lightning_ext.environment import TrainLightningEnvironment
from lightning_ext.flavour import environments, pl
from train.context import current_ranks, in_training_function
from train.torch.device import get_device

__all__ = ["TrainDDPStrategy"]

log = logging.getLogger(__name__)
# What Trainer chooses by itself when the plugin was forgotten, by what it finds in the environment. Inside our ranks each is wrong.
GUESSED = (environments.LightningEnvironment, environments.TorchElasticEnvironment, environments.SLURMEnvironment,
           environments.LSFEnvironment, environments.MPIEnvironment)

_Base: Any = pl.strategies.ParallelStrategy if TYPE_CHECKING else object


class _TrainStrategyMixin(_Base):  # type: ignore[misc]
    """What all our strategies share; to be named before one of Lightning's parallel strategies."""

    @property
    def root_device(self) -> torch.device:
        """The rank's device; the CPU if the Trainer was told to stay on it."""
        if self.parallel_devices and self.parallel_devices[0].type == "cpu":
            return torch.device("cpu")
        return get_device()

    @property
    def num_processes(self) -> int:
        """Ranks of this node (Lightning's own: the length of ``devices``)."""
        return current_ranks().local_world_size if in_training_function() else super().num_processes

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """World size and rank for the samplers that Lightning installs."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    @property
    def cluster_environment(self) -> Any:
        """Ours inside a training function, even if the plugin was forgotten."""
        return self._cluster_environment

    @cluster_environment.setter
    def cluster_environment(self, environment: Any) -> None:
        if isinstance(environment, GUESSED) and in_training_function():
            log.debug("%s replaced by TrainLightningEnvironment.", type(environment).__name__)
            environment = TrainLightningEnvironment()
        self._cluster_environment = environment

    def _configure_launcher(self) -> None:
        self._launcher = None  # Trainer then calls its loops directly, in interactive parents too

    def setup_environment(self) -> None:
        """Checks that the process group is the run's, and tells Lightning how many nodes there are."""
        ranks = current_ranks()
        if dist.is_initialized() and dist.get_world_size() != ranks.world_size:
            raise RuntimeError(f"the process group has {dist.get_world_size()} ranks, the run {ranks.world_size}. Use the group that the "
                               "trainer made, or destroy yours before Trainer.fit().")
        self.num_nodes = ranks.num_nodes
        super().setup_environment()


class TrainDDPStrategy(_TrainStrategyMixin, pl.strategies.DDPStrategy):
    """``DDPStrategy`` over the run's ranks. ``process_group_backend`` and ``timeout`` have no effect: see ``TorchConfig``."""

    strategy_name = "train_ddp"


pl.strategies.StrategyRegistry.register(TrainDDPStrategy.strategy_name, TrainDDPStrategy, override=True,
                                        description="DDP over the ranks of a Headway run")
