"""PyTorch for the trainer: ``TorchTrainer``, its config, and what a training function calls.

Names are imported at first use (PEP 562), so that a driver which only builds a ``TorchTrainer`` never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.torch.config import TorchConfig
    from train.torch.data import prepare_data_loader
    from train.torch.device import get_device, get_devices
    from train.torch.model import prepare_model
    from train.torch.reproducibility import enable_reproducibility
    from train.torch.trainer import TorchTrainer

__all__ = [
    "TorchConfig",
    "TorchTrainer",
    "enable_reproducibility",
    "get_device",
    "get_devices",
    "prepare_data_loader",
    "prepare_model",
]

_HOMES = {
    "TorchConfig": "config",
    "TorchTrainer": "trainer",
    "enable_reproducibility": "reproducibility",
    "get_device": "device",
    "get_devices": "device",
    "prepare_data_loader": "data",
    "prepare_model": "model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
