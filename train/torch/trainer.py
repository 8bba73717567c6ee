"""``TorchTrainer``: a training function, run by all ranks in one ``torch.distributed`` process group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runtime.errors import ArgumentError
from train.checkpoint import Checkpoint
from train.config import RunConfig, ScalingConfig, check_config
from train.data_parallel_trainer import DataParallelTrainer
from train.torch.config import TorchConfig

__all__ = ["TorchTrainer"]


class TorchTrainer(DataParallelTrainer):
    """Runs ``train_loop_per_worker`` on every rank, with ``torch.distributed`` initialised and the rank's device selected.

    Args:
        torch_config: backend and time-out of the process group. All other arguments are ``DataParallelTrainer``'s.
    """

    def __init__(
        self,
        train_loop_per_worker: Callable[[], Any] | Callable[[dict[str, Any]], Any],
        *,
        train_loop_config: dict[str, Any] | None = None,
        torch_config: TorchConfig | None = None,
        scaling_config: ScalingConfig | None = None,
        run_config: RunConfig | None = None,
        datasets: dict[str, Any] | None = None,
        dataset_config: Any = None,
        validation_config: Any = None,
        metadata: dict[str, Any] | None = None,
        resume_from_checkpoint: Checkpoint | None = None,
        **unknown: Any,
    ) -> None:
        torch_config = TorchConfig() if torch_config is None else torch_config
        check_config(type(self).__name__, "torch_config", torch_config, TorchConfig)
        super().__init__(
            train_loop_per_worker, train_loop_config=train_loop_config, backend_config=torch_config, scaling_config=scaling_config,
            run_config=run_config, datasets=datasets, dataset_config=dataset_config, validation_config=validation_config,
            metadata=metadata, resume_from_checkpoint=resume_from_checkpoint, **unknown)
        if torch_config.backend == "nccl" and not self.scaling_config.use_gpu:
            raise ArgumentError("TorchConfig(backend='nccl') needs GPUs: set ScalingConfig(use_gpu=True), or leave the backend out.")
