"""The devices of the calling rank."""

from __future__ import annotations

import torch

from train.backend import RankSetup
from train.context import current_ranks

__all__ = ["get_device", "get_devices"]


def get_device() -> torch.device:
    """The first device of this rank: its own GPU's index among the GPUs that it sees, else the CPU.

    Raises: RuntimeError: called outside a training function.
    """
    return get_devices()[0]


def get_devices() -> list[torch.device]:
    """All devices of this rank, ``[cpu]`` for a rank without GPUs.

    Raises: RuntimeError: called outside a training function.
    """
    return devices_of(current_ranks())


def devices_of(ranks: RankSetup) -> list[torch.device]:
    """The devices of a rank. Two ranks on halves of one GPU share an index."""
    if not (ranks.use_gpu and ranks.gpu_ids and torch.cuda.is_available()):
        return [torch.device("cpu")]
    return [torch.device("cuda", ranks.visible_gpu_ids.index(gpu)) for gpu in ranks.gpu_ids]
