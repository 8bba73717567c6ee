"""What a framework does in each rank around the training function, and what it is told about the rank.

A backend is a pair, as in Ray: a ``BackendConfig`` made on the driver and a ``Backend`` whose hooks run in the rank processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Backend", "BackendConfig", "RankSetup", "Rendezvous"]


@dataclass(frozen=True, slots=True)
class RankSetup:
    """Who a rank is in one attempt.

    ``gpu_ids`` are its own, ``visible_gpu_ids`` all that its CUDA_VISIBLE_DEVICES shows, in that order; both are ids of the node.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    num_nodes: int
    host: str
    interface: str
    host_id: str
    gpu_ids: tuple[int, ...]
    visible_gpu_ids: tuple[int, ...]
    num_cpus: float
    attempt: int
    run_name: str
    use_gpu: bool

    @property
    def device_index(self) -> int | None:
        """Place of the rank's first GPU among the visible ones; None without a GPU."""
        return self.visible_gpu_ids.index(self.gpu_ids[0]) if self.gpu_ids else None


class Rendezvous(Protocol):
    """How the ranks of one attempt learn rank 0's address; ranks of another attempt can't get it."""

    @property
    def key_prefix(self) -> str:
        """``run/attempt``: prefix of every key in a store, so that no attempt sees a key of another one."""
        ...

    def publish(self, host: str, port: int) -> None:
        """Rank 0: make the address known to the others."""
        ...

    def lookup(self, timeout_s: float) -> tuple[str, int]:
        """Other ranks: wait for the address.

        Raises: RendezvousError: rank 0 did not publish in time.
        """
        ...


class Backend:
    """Hooks in the rank processes, on the main thread. This one does nothing."""

    preload: tuple[str, ...] = ()  # installed modules that the ranks' processes shall have imported before they are needed

    def setup(self, ranks: RankSetup, config: BackendConfig, rendezvous: Rendezvous) -> None:
        """Before the training function; an exception fails the attempt."""

    def teardown(self, ranks: RankSetup, config: BackendConfig) -> None:
        """After the training functions of all ranks returned; not called after a failure."""


class BackendConfig:
    """Base of the configurations of backends; picklable."""

    @property
    def backend_cls(self) -> type[Backend]:
        """The class whose hooks run in the ranks."""
        return Backend
