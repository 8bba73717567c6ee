"""What users configure a run with: Ray Train's classes, checked completely in the constructor, before any node is touched."""

from __future__ import annotations

import math
import os
from typing import Any

from runtime.errors import ArgumentError, ArgumentTypeError
from train.arguments import check_bool, check_int, check_name, check_type, config_class, warn_once
from train.storage import check_storage_path

__all__ = ["STRATEGIES", "CheckpointConfig", "FailureConfig", "RunConfig", "ScalingConfig"]

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")


@config_class(
    trainer_resources="the controller runs in the driver and reserves nothing.",
    elastic_resize_monitor_interval_s="the number of ranks is fixed.",
)
class ScalingConfig:
    """How many ranks, and what each of them gets.

    Args:
        num_workers: ranks; 0 runs the training function in this process, without a cluster.
        use_gpu: one GPU a rank, unless ``resources_per_worker`` has another number.
        resources_per_worker: by default ``{"CPU": 1}``, with ``use_gpu`` ``{"GPU": 1}`` and no CPU.
        placement_strategy: PACK, SPREAD, STRICT_PACK or STRICT_SPREAD over nodes.
        accelerator_type: adds 0.001 of the node resource ``accelerator_type:<this>`` to each rank.
    """

    num_workers: int = 1
    use_gpu: bool = False
    resources_per_worker: dict[str, float] | None = None
    placement_strategy: str = "PACK"
    accelerator_type: str | None = None
    label_selector: Any = None
    use_tpu: bool = False
    topology: str | None = None

    def __post_init__(self) -> None:
        self._check_num_workers()
        check_bool("ScalingConfig", "use_gpu", self.use_gpu)
        if self.resources_per_worker is not None:
            self._check_resources(self.resources_per_worker)
        check_type("ScalingConfig", "placement_strategy", self.placement_strategy, str, f"pass one of {', '.join(STRATEGIES)}.")
        if self.placement_strategy not in STRATEGIES:
            raise ArgumentError(f"ScalingConfig(placement_strategy={self.placement_strategy!r}): must be one of {', '.join(STRATEGIES)}.")
        if self.accelerator_type is not None:
            check_type("ScalingConfig", "accelerator_type", self.accelerator_type, str, "pass the type's name, such as 'A100'.")
        for name in ("label_selector", "use_tpu", "topology"):
            if getattr(self, name):
                raise ArgumentError(f"ScalingConfig({name}={getattr(self, name)!r}) is accepted by Ray and not supported here: "
                                    "leave it out; nodes are chosen by resources_per_worker.")

    def _check_num_workers(self) -> None:
        if isinstance(self.num_workers, tuple | list):
            raise ArgumentTypeError(f"ScalingConfig(num_workers={self.num_workers!r}): a range of workers (elastic training) is accepted "
                                    "by Ray and not supported here; pass one int.")
        if isinstance(self.num_workers, bool):
            raise ArgumentTypeError(f"ScalingConfig(num_workers={self.num_workers!r}): a bool is not a worker count; "
                                    f"did you mean {int(self.num_workers)}?")
        check_int("ScalingConfig", "num_workers", self.num_workers, 0, meaning="1 or more ranks; 0 = run locally")

    def _check_resources(self, resources: object) -> None:
        hint = "pass a dict such as {'CPU': 2}."
        check_type("ScalingConfig", "resources_per_worker", resources, dict, hint)
        assert isinstance(resources, dict)
        for key, value in resources.items():
            shown = f"ScalingConfig(resources_per_worker={{{key!r}: {value!r:.80}}})"
            if not isinstance(key, str) or not key:
                raise ArgumentTypeError(f"{shown}: names of resources are texts; {hint}")
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ArgumentTypeError(f"{shown}: the amount must be a number, got {type(value).__name__}.")
            if not math.isfinite(value) or value < 0:
                raise ArgumentError(f"{shown}: the amount must be a finite number >= 0.")
        if not self.use_gpu and resources.get("GPU", 0) > 0:
            raise ArgumentError("`use_gpu` is False but `GPU` was found in `resources_per_worker`. Either set `use_gpu` to True or "
                                "remove `GPU` from `resources_per_worker`.")
        if self.use_gpu and resources.get("GPU", 1) == 0:
            raise ArgumentError("`use_gpu` is True but `GPU` is set to 0 in `resources_per_worker`. Either set `use_gpu` to False or "
                                "request a positive number of `GPU` in `resources_per_worker`.")

    @property
    def resources_of_rank(self) -> dict[str, float]:
        """The bundle that each rank reserves."""
        if self.resources_per_worker is None:
            resources: dict[str, float] = {"GPU": 1.0} if self.use_gpu else {"CPU": 1.0}
        else:
            resources = {key: float(value) for key, value in self.resources_per_worker.items()}
            if self.use_gpu:
                resources.setdefault("GPU", 1.0)
        if self.accelerator_type is not None:
            resources.setdefault(f"accelerator_type:{self.accelerator_type}", 0.001)
        return {key: value for key, value in resources.items() if value > 0}

    @property
    def num_cpus_per_worker(self) -> float:
        """CPUs of a rank."""
        return self.resources_of_rank.get("CPU", 0.0)

    @property
    def num_gpus_per_worker(self) -> float:
        """GPUs of a rank."""
        return self.resources_of_rank.get("GPU", 0.0)

    @property
    def additional_resources_per_worker(self) -> dict[str, float]:
        """What a rank reserves beside CPUs and GPUs."""
        return {key: value for key, value in self.resources_of_rank.items() if key not in ("CPU", "GPU")}

    @property
    def total_resources(self) -> dict[str, float]:
        """What all ranks together reserve."""
        return {key: value * self.num_workers for key, value in self.resources_of_rank.items()}


@config_class(
    controller_failure_limit="starts that fail count against max_failures.",
    max_preemption_failures="preemption is not told apart from other failures.",
    relax_collectives_on_preemption="preemption is not told apart from other failures.",
    preemption_grace_s="preemption is not told apart from other failures.",
    fail_fast="the first failing rank always ends the attempt; max_failures=0 ends the run.",
)
class FailureConfig:
    """``max_failures``: how often the whole group is restarted from the last committed checkpoint; -1 is without limit."""

    max_failures: int = 0

    def __post_init__(self) -> None:
        check_int("FailureConfig", "max_failures", self.max_failures, -1, meaning="use -1 for unlimited")


@config_class(
    checkpoint_frequency="call train.report(metrics, checkpoint=...) when a checkpoint is due.",
    checkpoint_at_end="call train.report(metrics, checkpoint=...) at the end of the training function.",
)
class CheckpointConfig:
    """Which checkpoints are kept.

    Args:
        num_to_keep: the newest, or the best if a score attribute is given; None keeps all. The latest one is always kept.
        checkpoint_score_attribute: key of the reported metrics; ``a/b`` also reaches into nested ones. Missing or NaN ranks worst.
        checkpoint_score_order: "max" or "min" is best.
    """

    num_to_keep: int | None = None
    checkpoint_score_attribute: str | None = None
    checkpoint_score_order: str = "max"

    def __post_init__(self) -> None:
        if self.num_to_keep is not None:
            check_int("CheckpointConfig", "num_to_keep", self.num_to_keep, 1, meaning="None keeps all checkpoints")
        if self.checkpoint_score_attribute is not None:
            check_type("CheckpointConfig", "checkpoint_score_attribute", self.checkpoint_score_attribute, str,
                       "pass the name of a reported metric.")
            if not self.checkpoint_score_attribute:
                raise ArgumentError("CheckpointConfig(checkpoint_score_attribute=''): pass the name of a reported metric, or None.")
        if self.checkpoint_score_order not in ("max", "min"):
            raise ArgumentError(f"CheckpointConfig(checkpoint_score_order={self.checkpoint_score_order!r}): must be 'max' or 'min'.")


@config_class(
    sync_config="checkpoints are written straight to storage_path.",
    verbose="our own lines are few and go to stderr.",
    progress_reporter="our own lines are few and go to stderr.",
    log_to_file="each rank's output is always kept, in <run dir>/logs.",
    logging_config="our own lines are few and go to stderr.",
    stop="stop in the training function itself.",
)
class RunConfig:
    """Name, storage and policies of a run.

    Args:
        name: a run of the same name under the same ``storage_path`` is continued; None makes a new name (``run-<date>_<time>``).
        storage_path: a path or a URL of any scheme that fsspec knows; by default ``~/headway_results``.
        storage_filesystem: an fsspec (or pyarrow) filesystem that ``storage_path`` is a path of.
        callbacks: objects with ``after_report`` and/or ``after_exception`` (``train.UserCallback``).
        worker_runtime_env: ``{"env_vars": {...}}`` for the ranks.
    """

    name: str | None = None
    storage_path: str | os.PathLike[str] | None = None
    storage_filesystem: Any = None
    failure_config: FailureConfig | None = None
    checkpoint_config: CheckpointConfig | None = None
    callbacks: list[Any] | None = None
    worker_runtime_env: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.name is not None:
            check_name("RunConfig", "name", self.name)
        check_storage_path(self.storage_path, self.storage_filesystem)
        for name, cls in (("failure_config", FailureConfig), ("checkpoint_config", CheckpointConfig)):
            if getattr(self, name) is None:
                setattr(self, name, cls())
            check_config("RunConfig", name, getattr(self, name), cls)
        if self.callbacks is not None:
            check_type("RunConfig", "callbacks", self.callbacks, (list, tuple), "pass a list of train.UserCallback objects.")
            self._check_callbacks()
        if self.worker_runtime_env is not None:
            self._check_runtime_env(self.worker_runtime_env)

    def _check_callbacks(self) -> None:
        for callback in self.callbacks or ():
            if isinstance(callback, type):
                raise ArgumentTypeError(f"RunConfig(callbacks=[{callback.__name__}]): pass an object of it, not the class.")
            if not (hasattr(callback, "after_report") or hasattr(callback, "after_exception")):
                warn_once(f"RunConfig(callbacks=[{type(callback).__name__}]) has neither after_report nor after_exception and is never "
                          "called; derive it from train.UserCallback.")

    def _check_runtime_env(self, runtime_env: object) -> None:
        check_type("RunConfig", "worker_runtime_env", runtime_env, dict, "pass {'env_vars': {...}}.")
        assert isinstance(runtime_env, dict)
        for key in runtime_env:
            if key != "env_vars":
                raise ArgumentError(f"RunConfig(worker_runtime_env={{{key!r}: ...}}) is accepted by Ray and not supported here: only "
                                    "'env_vars' is; install packages on the nodes beforehand.")
        variables = runtime_env.get("env_vars", {})
        if not isinstance(variables, dict) or not all(isinstance(k, str) and isinstance(v, str) for k, v in variables.items()):
            raise ArgumentTypeError("RunConfig(worker_runtime_env={'env_vars': ...}): names and values must be texts, such as "
                                    "{'NCCL_DEBUG': 'INFO'}.")

    @property
    def env_vars(self) -> dict[str, str]:
        """Environment variables that every rank gets."""
        return dict((self.worker_runtime_env or {}).get("env_vars", {}))


def check_config(owner: str, name: str, value: object, cls: type) -> None:
    """Raise unless ``value`` is of that configuration class; a dict is what people pass instead."""
    if isinstance(value, dict):
        raise ArgumentTypeError(f"{owner}({name}={value!r:.80}): got dict, use {cls.__name__}(**cfg).")
    check_type(owner, name, value, cls, f"pass a train.{cls.__name__}.")
