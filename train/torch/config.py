"""``TorchConfig`` and its backend: one ``torch.distributed`` process group over all ranks, there before the training function starts.

Each attempt has a store of its own, and all keys in it are prefixed with run and attempt: a late rank of an old attempt can't meet the
new one. This module imports no torch until a rank calls ``setup``.
"""

from __future__ import annotations

import math
import os
import re
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from runtime.errors import ArgumentError, ArgumentTypeError, HeadwayError
from train.backend import Backend, BackendConfig, RankSetup, Rendezvous
from train.torch.store import open_store

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Store

__all__ = ["TorchConfig"]

BACKENDS = ("gloo", "nccl", "mpi", "ucc", "xccl")
INIT_METHODS = ("env", "tcp")


@dataclass
class TorchConfig(BackendConfig):
    """How ``torch.distributed`` is set up in the ranks.

    Args:
        backend: None: ``nccl`` if the ranks have GPUs, else ``gloo``. Else a name, or one per device: ``"cpu:gloo,cuda:nccl"``.
        init_method: accepted for compatibility (``"env"`` or ``"tcp"``); either way the ranks meet in Headway's own store.
        timeout_s: time-out of the process group's operations, and of the rendezvous.
    """

    backend: str | None = None
    init_method: str = "env"
    timeout_s: float = 1800

    def __post_init__(self) -> None:
        _check_backend(self.backend)
        if self.init_method not in INIT_METHODS:
            raise ArgumentError(f"TorchConfig(init_method={self.init_method!r}): must be one of {', '.join(INIT_METHODS)}.")
        if isinstance(self.timeout_s, bool) or not isinstance(self.timeout_s, int | float):
            raise ArgumentTypeError(f"TorchConfig(timeout_s={self.timeout_s!r}): must be a number of seconds, "
                                    f"not {type(self.timeout_s).__name__}.")
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise ArgumentError(f"TorchConfig(timeout_s={self.timeout_s!r}): must be > 0 seconds and finite.")

    @property
    def backend_cls(self) -> type[Backend]:
        """What runs in the ranks."""
        return _TorchBackend


def _check_backend(backend: object) -> None:
    if backend is None:
        return
    if not isinstance(backend, str):
        raise ArgumentTypeError(f"TorchConfig(backend={backend!r}): must be a string or None, not {type(backend).__name__}.")
    loaded = sys.modules.get("torch.distributed")  # a backend that the user registered is known only there
    known = {*BACKENDS, *(loaded.Backend.backend_list if loaded is not None else ())} - {"undefined"}
    for piece in backend.split(","):
        device, _, name = piece.rpartition(":")
        if name.lower() not in known or (":" in piece and not re.fullmatch(r"[a-z]+", device)):
            raise ArgumentError(f"TorchConfig(backend={backend!r}): {piece!r} is unknown. Choose one of {', '.join(sorted(known))}, or one "
                                "per device, as in 'cpu:gloo,cuda:nccl'.")


class _TorchBackend(Backend):
    """Runs in each rank: devices, threads and environment, then the process group."""

    # torch._dynamo: the first optimizer or DDP imports it (1.9 s); with both preloaded a forked rank imports nothing up to its first step.
    preload = ("torch", "torch._dynamo")

    _store: Store | None = None
    _group: ProcessGroup | None = None

    def setup(self, ranks: RankSetup, config: BackendConfig, rendezvous: Rendezvous) -> None:
        """Joins this rank to the process group of its attempt.

        Raises:
            HeadwayError: GPUs were given but torch has no CUDA; or the store could not be opened.
        """
        assert isinstance(config, TorchConfig)
        import torch
        import torch.distributed as dist

        backend = config.backend or ("nccl" if ranks.use_gpu else "gloo")
        torch.set_num_threads(num_threads(ranks))
        _select_device(ranks, backend)
        timeout = timedelta(seconds=config.timeout_s)
        self._store, host, port = open_store(ranks, rendezvous, timeout)
        _export(ranks, host, port)
        if "nccl" in backend:
            # A failed collective ends the process (pytorch's 1) instead of a wait for the time-out.
            os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
        dist.init_process_group(backend, store=dist.PrefixStore(rendezvous.key_prefix, self._store), rank=ranks.rank,
                                world_size=ranks.world_size, timeout=timeout)

    def teardown(self, ranks: RankSetup, config: BackendConfig) -> None:
        """Leaves the process group; every rank's training function has returned, so nobody waits in a collective any more.

        The store stays until the process ends: rank 0 holds the server, and its peers may still talk to it.
        """
        import torch.distributed as dist

        if dist.is_initialized():  # else the user has destroyed it
            # Letting go of the group joins gloo's threads, which look up every 10 ms: 20 ms for nothing, since the process ends now.
            self._group = dist.group.WORLD
            dist.destroy_process_group()


def num_threads(ranks: RankSetup) -> int:
    """Threads of torch in a rank: ``OMP_NUM_THREADS`` if the user set it, else its CPUs, else its share of the node's cores."""
    given = max(1, int(ranks.num_cpus))
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) not in (0, given):  # equal to `given` it may as well be the daemon's own setting
        return int(wanted)
    if ranks.num_cpus >= 1:
        return given
    return max(1, len(os.sched_getaffinity(0)) // ranks.local_world_size)


def _select_device(ranks: RankSetup, backend: str) -> None:
    import torch

    if not ranks.use_gpu:
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(ranks.device_index)
    elif "nccl" in backend:
        raise HeadwayError(f"rank {ranks.rank} on {ranks.host} was given GPU {', '.join(map(str, ranks.gpu_ids))}, but torch "
                           f"{torch.__version__} sees no CUDA device (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')!r}). "
                           "Install a CUDA build of torch there, or pass TorchConfig(backend='gloo') to go on without.")


def _export(ranks: RankSetup, host: str, port: int) -> None:
    for name in [name for name in os.environ if name.startswith("TORCHELASTIC_")]:
        del os.environ[name]  # a driver under torchrun: its agent's store is not ours, and libraries would take us for its workers
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port))
    if ranks.interface:  # gloo else takes the address of gethostname(), often 127.0.0.1; NCCL chooses well by itself
        os.environ.setdefault("GLOO_SOCKET_IFNAME", ranks.interface)
