"""The trainer: checks what it is given, opens the run's storage, and runs the training function in every rank."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

import runtime
from runtime.errors import ArgumentError, ArgumentTypeError
from train.arguments import check_type, reject_unknown, warn_once
from train.backend import BackendConfig
from train.callback import RunContext
from train.checkpoint import Checkpoint
from train.config import RunConfig, ScalingConfig, check_config
from train.console import say
from train.context import in_training_function
from train.controller import Controller, RunSpec
from train.errors import HeadwayTrainError
from train.local_mode import run_locally
from train.preload import modules_of
from train.protocol import JobSpec, dump
from train.result import Result
from train.run_directory import open_checkpoints
from train.storage import OpenedRun, open_run
from train.worker_group import WorkerGroup

__all__ = ["DataParallelTrainer"]


class DataParallelTrainer:
    """Runs one function in many processes.

    Args:
        train_loop_per_worker: takes nothing, or ``train_loop_config`` (``{}`` if there is none).
        backend_config: what connects the ranks; by default nothing does.
        metadata: a dict that ``get_context().get_metadata()`` returns.
        resume_from_checkpoint: what ``get_checkpoint()`` returns while the run has no checkpoint of its own.
    """

    def __init__(
        self,
        train_loop_per_worker: Callable[[], Any] | Callable[[dict[str, Any]], Any],
        *,
        train_loop_config: dict[str, Any] | None = None,
        backend_config: BackendConfig | None = None,
        scaling_config: ScalingConfig | None = None,
        run_config: RunConfig | None = None,
        datasets: dict[str, Any] | None = None,
        dataset_config: Any = None,
        validation_config: Any = None,
        metadata: dict[str, Any] | None = None,
        resume_from_checkpoint: Checkpoint | None = None,
        **unknown: Any,
    ) -> None:
        owner = type(self).__name__
        reject_unknown(owner, unknown, (name for name in inspect.signature(type(self)).parameters if name != "unknown"))
        if train_loop_config is not None:
            check_type(owner, "train_loop_config", train_loop_config, dict, "it must be a dict, which the training function gets.")
        self._takes_config = _takes_config(owner, train_loop_per_worker, train_loop_config)
        self.train_loop_per_worker = train_loop_per_worker
        for name, value in (("datasets", datasets), ("dataset_config", dataset_config), ("validation_config", validation_config)):
            if value:
                raise ArgumentError(f"{owner}({name}=...) is accepted by Ray and not supported here: build data sets and run validation in "
                                    "the training function.")
        if metadata is not None:
            check_type(owner, "metadata", metadata, dict, "pass a dict.")
        if resume_from_checkpoint is not None:
            check_type(owner, "resume_from_checkpoint", resume_from_checkpoint, Checkpoint, "pass a train.Checkpoint.")
        self.train_loop_config = train_loop_config
        self.backend_config = backend_config if backend_config is not None else BackendConfig()
        self.scaling_config = scaling_config if scaling_config is not None else ScalingConfig()
        self.run_config = run_config if run_config is not None else RunConfig()
        check_config(owner, "backend_config", self.backend_config, BackendConfig)
        check_config(owner, "scaling_config", self.scaling_config, ScalingConfig)
        check_config(owner, "run_config", self.run_config, RunConfig)
        self.metadata = metadata
        self.resume_from_checkpoint = resume_from_checkpoint

    def fit(self) -> Result:
        """Train, and return when all ranks have; blocks.

        Raises:
            TrainingFailedError: a rank failed and no restart is left; ``__cause__`` is the exception of the first to fail.
            StorageError: the run's storage can't be used. SerializationError: the training function can't be sent; says what it captures.
            KeyboardInterrupt: Ctrl-C; the ranks are gone.
        """
        self._refuse_nesting()
        num_workers = self.scaling_config.num_workers
        is_local = num_workers == 0
        function = b"" if is_local else dump(self.train_loop_per_worker, "train_loop_per_worker")
        config: bytes | None = None
        if self._takes_config and not is_local:
            config = dump(self.train_loop_config or {}, "train_loop_config")
        opened = open_run(self.run_config.name, self.run_config.storage_path, self.run_config.storage_filesystem)
        spec = self._run_spec(opened)
        job = JobSpec(function, config, self.backend_config.backend_cls, self.backend_config, opened.storage, self.metadata,
                      runtime.LIMITS.report_max_bytes)
        if is_local:
            say("num_workers=0: running in this process without a cluster.")
            return run_locally(spec, job, self._bound_function(), use_gpu=self.scaling_config.use_gpu, say=say)
        if not runtime.is_initialized():
            runtime.init()
        preload = tuple(dict.fromkeys((*job.backend.preload, *modules_of(self.train_loop_per_worker))))
        return Controller(spec, lambda post: WorkerGroup(
            job, self.scaling_config, run_name=opened.storage.run_name, env=self.run_config.env_vars, preload=preload, post=post, say=say,
        ), say).run()

    def _run_spec(self, opened: OpenedRun) -> RunSpec:
        run_config, storage = self.run_config, opened.storage
        assert run_config.checkpoint_config is not None  # RunConfig fills them in
        assert run_config.failure_config is not None
        manager = open_checkpoints(storage, run_config.checkpoint_config, is_new=opened.is_new, say=say)
        return RunSpec(
            world_size=max(1, self.scaling_config.num_workers), max_failures=run_config.failure_config.max_failures,
            context=RunContext(storage.run_name, storage.path, run_config, self.scaling_config),
            callbacks=tuple(run_config.callbacks or ()), storage=storage, is_new=opened.is_new, manager=manager,
            resume_from=self.resume_from_checkpoint)

    def _bound_function(self) -> Callable[[], Any]:
        function: Callable[..., Any] = self.train_loop_per_worker
        return (lambda: function(self.train_loop_config or {})) if self._takes_config else function

    def _refuse_nesting(self) -> None:
        owner = type(self).__name__
        if in_training_function():
            raise HeadwayTrainError(f"{owner}.fit() was called in a training function: call it in the driver's script only.")
        if self.scaling_config.num_workers > 0 and "TORCHELASTIC_RUN_ID" in os.environ:
            raise HeadwayTrainError(f"{owner}.fit() with num_workers={self.scaling_config.num_workers} was started by torchrun, whose "
                                    "processes would each start a run of their own: start the script with python instead.")


def _takes_config(owner: str, function: object, config: object) -> bool:
    """Whether the training function is called with the config.

    Raises: ArgumentTypeError: no function. ArgumentError: it requires more than one argument.
    """
    if not callable(function):
        raise ArgumentTypeError(f"{owner}(train_loop_per_worker={function!r:.80}): got {type(function).__name__}; pass a function that "
                                "takes nothing, or the config dict.")
    if any(test(function) for test in (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)):
        raise ArgumentTypeError(f"{owner}(train_loop_per_worker={function!r:.80}): calling it would only make a coroutine or generator; "
                                "pass a plain function. One that needs an event loop can call asyncio.run() inside.")
    try:
        signature = inspect.signature(function)
    except ValueError:  # a builtin without a signature
        return config is not None
    positional = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in signature.parameters.values() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(required) > 1 or any(p.kind is p.KEYWORD_ONLY for p in required):
        name = getattr(function, "__name__", type(function).__name__)
        raise ArgumentError(f"{owner}(train_loop_per_worker={name}{signature}): it must be callable with no argument or with the config, "
                            f"but requires {len(required)}: {', '.join(p.name for p in required)}. Put them into train_loop_config.")
    if required:
        return True
    if config is not None and not positional:
        warn_once(f"{owner}(train_loop_config=...) is not used: the training function takes no argument.")
    return config is not None and bool(positional)
