"""``TorchTrainer``: a training function, run by all ranks in one ``torch.distributed`` process group."""

from __future__ import annotations

from typing import Any

from runtime.errors import ArgumentError, ArgumentTypeError
from train.data_parallel_trainer import DataParallelTrainer
from train.torch.config import TorchConfig

__all__ = ["TorchTrainer"]


class TorchTrainer(DataParallelTrainer):
    """Runs ``train_loop_per_worker`` on every rank, with ``torch.distributed`` initialised and the rank's device selected.

    Args:
        torch_config: backend and time-out of the process group. All other arguments are ``DataParallelTrainer``'s.
    """

    def __init__(self, train_loop_per_worker: Any, *, torch_config: TorchConfig | None = None, **kwargs: Any) -> None:
        if torch_config is None:
            torch_config = TorchConfig()
        if not isinstance(torch_config, TorchConfig):
            advice = "use TorchConfig(**cfg)" if isinstance(torch_config, dict) else "use TorchConfig(...)"
            raise ArgumentTypeError(f"TorchTrainer(torch_config=...): got {type(torch_config).__name__}, {advice}.")
        super().__init__(train_loop_per_worker, backend_config=torch_config, **kwargs)
        scaling_config = kwargs.get("scaling_config")
        if torch_config.backend == "nccl" and not getattr(scaling_config, "use_gpu", False):
            raise ArgumentError("TorchConfig(backend='nccl') needs GPUs: set ScalingConfig(use_gpu=True), or leave the backend out.")
