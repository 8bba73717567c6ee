"""Ray Train's API on Headway's runtime: the public names, loaded when first used (PEP 562), so that importing this costs nothing.

Inside a training function: ``report``, ``get_checkpoint``, ``get_context``. Around it: the configuration classes, ``Checkpoint``,
``Result`` and, for PyTorch, ``train.torch.TorchTrainer``.
"""

from __future__ import annotations

import importlib
import opcode
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

    from train.backend import Backend, BackendConfig
    from train.callback import RunContext, UserCallback
    from train.checkpoint import Checkpoint
    from train.config import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from train.context import TrainContext, get_context
    from train.data_parallel_trainer import DataParallelTrainer
    from train.errors import ControllerError, HeadwayTrainError, TrainingFailedError, WorkerGroupError
    from train.reporting import get_checkpoint, report
    from train.result import Result

__all__ = [
    "Backend",
    "BackendConfig",
    "Checkpoint",
    "CheckpointConfig",
    "ControllerError",
    "DataParallelTrainer",
    "FailureConfig",
    "HeadwayTrainError",
    "Result",
    "RunConfig",
    "RunContext",
    "ScalingConfig",
    "TrainContext",
    "TrainingFailedError",
    "UserCallback",
    "WorkerGroupError",
    "get_checkpoint",
    "get_context",
    "report",
]

_HOME = {
    "Backend": "backend", "BackendConfig": "backend",
    "RunContext": "callback", "UserCallback": "callback",
    "Checkpoint": "checkpoint",
    "CheckpointConfig": "config", "FailureConfig": "config", "RunConfig": "config", "ScalingConfig": "config",
    "TrainContext": "context", "get_context": "context",
    "DataParallelTrainer": "data_parallel_trainer",
    "ControllerError": "errors", "HeadwayTrainError": "errors", "TrainingFailedError": "errors", "WorkerGroupError": "errors",
    "get_checkpoint": "reporting", "report": "reporting",
    "Result": "result",
}  # public name: module of this package
_SUBPACKAGES = frozenset({"torch", "errors"})

__version__ = "0.1.0"


def _missing(what: str) -> str:
    return (f"{what}: this 'train' is Headway's ({__file__}), which has no such name. If you meant a train.py or a package 'train' of your "
            "own, Headway's hides it: give yours another name.")


def __getattr__(name: str) -> Any:
    module = _HOME.get(name)
    if module is not None:
        value = getattr(importlib.import_module(f"train.{module}"), name)
        globals()[name] = value
        return value
    if name in _SUBPACKAGES:
        return importlib.import_module(f"train.{name}")
    text = _missing(f"module 'train' has no attribute {name!r}")
    caller = sys._getframe(1)
    # `from train import x` turns an AttributeError into an ImportError with a text of its own; an ImportError passes.
    if caller.f_lasti >= 0 and caller.f_code.co_code[caller.f_lasti] == opcode.opmap["IMPORT_FROM"]:
        raise ImportError(text, name=__name__, path=__file__)
    raise AttributeError(text)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


class _ShadowHint:
    """Last of the finders: only asked for ``train.x`` when nobody has it."""

    @staticmethod
    def find_spec(fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        if fullname.startswith("train.") and sys.modules.get("train") is sys.modules.get(__name__) and path is not None:
            raise ModuleNotFoundError(_missing(f"No module named {fullname!r}"), name=fullname)


sys.meta_path.append(_ShadowHint)
