"""``prepare_model``: a module on the rank's device, wrapped for data-parallel training when there is more than one rank."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from runtime.errors import ArgumentError
from train.context import current_ranks
from train.torch.device import get_device

__all__ = ["prepare_model"]

STRATEGIES = ("ddp", "fsdp", None)

log = logging.getLogger(__name__)


def prepare_model(model: nn.Module, move_to_device: bool | torch.device = True, parallel_strategy: str | None = "ddp",
                  parallel_strategy_kwargs: dict[str, Any] | None = None) -> nn.Module:
    """The model, on this rank's device and wrapped for training with the other ranks.

    Args:
        move_to_device: True: to ``get_device()``; a device: to that one; False: it stays where it is.
        parallel_strategy: ``"ddp"``, ``"fsdp"`` (needs GPUs) or None; without effect in a run of one rank.
        parallel_strategy_kwargs: passed to ``DistributedDataParallel`` or ``FullyShardedDataParallel``; they win over ours.

    Raises:
        ArgumentError: ``parallel_strategy`` is none of the three.
        RuntimeError: ``"fsdp"`` on ranks without CUDA, or called outside a training function.
    """
    if parallel_strategy not in STRATEGIES:
        raise ArgumentError(f"prepare_model(parallel_strategy={parallel_strategy!r}): must be 'ddp', 'fsdp' or None.")
    ranks = current_ranks()
    device = move_to_device if isinstance(move_to_device, torch.device) else get_device()
    if move_to_device:
        model = model.to(device)
    if parallel_strategy is None or ranks.world_size == 1:
        return model
    kwargs = parallel_strategy_kwargs or {}
    if parallel_strategy == "fsdp":
        if not torch.cuda.is_available():
            raise RuntimeError("FSDP is only available with GPU-enabled training. Set `use_gpu=True` in your ScalingConfig to train "
                               "with GPUs.")
        from torch.distributed.fsdp import FullyShardedDataParallel

        wrapper: type[nn.Module] = FullyShardedDataParallel
    else:
        wrapper = nn.parallel.DistributedDataParallel
        if device.type == "cuda":
            kwargs = {"device_ids": [device], "output_device": device, **kwargs}
    if ranks.rank == 0:
        log.info("wrapping the model in %s.", wrapper.__name__)
    return wrapper(model, **kwargs)
