"""``TrainLightningEnvironment``: tells Lightning which rank it is, from the training function's context."""

from __future__ import annotations

import logging
import os

from lightning_ext.flavour import environments
from train import get_context
from train.context import in_training_function

__all__ = ["TrainLightningEnvironment"]

log = logging.getLogger(__name__)


class TrainLightningEnvironment(environments.ClusterEnvironment):  # type: ignore[name-defined, misc]
    """The ranks as Headway started them. May be built anywhere; its values exist only inside a training function.

    Raises: RuntimeError: a rank or size is asked for outside a training function.
    """

    @property
    def creates_processes_externally(self) -> bool:
        """True: Lightning starts no processes of its own."""
        return True

    @property
    def main_address(self) -> str:
        """Numeric address of rank 0's store."""
        return os.environ["MASTER_ADDR"]

    @property
    def main_port(self) -> int:
        """Port of rank 0's store."""
        return int(os.environ["MASTER_PORT"])

    @staticmethod
    def detect() -> bool:
        """Whether this process runs a training function."""
        return in_training_function()

    def world_size(self) -> int:
        """Number of all ranks."""
        return get_context().get_world_size()

    def global_rank(self) -> int:
        """Rank among all ranks."""
        return get_context().get_world_rank()

    def local_rank(self) -> int:
        """Rank among those of this node."""
        return get_context().get_local_rank()

    def node_rank(self) -> int:
        """Index of this node."""
        return get_context().get_node_rank()

    def set_world_size(self, size: int) -> None:
        """Without effect: Lightning computes it from ``devices`` and ``num_nodes``, which say nothing about our ranks."""
        log.debug("set_world_size(%d) ignored: the world size is set by ScalingConfig.", size)

    def set_global_rank(self, rank: int) -> None:
        """Without effect, for the same reason."""
        log.debug("set_global_rank(%d) ignored: the rank is set by the trainer.", rank)
