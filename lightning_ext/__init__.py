"""PyTorch Lightning under Headway: environment, strategy, report callback and ``prepare_trainer``.

Works with ``pytorch_lightning`` and with ``lightning.pytorch``. The ``Ray...`` names are aliases, so a script that comes from Ray changes
its import lines only. Names are imported at first use (PEP 562), Lightning with them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_ext.callback import TrainReportCallback
    from lightning_ext.environment import TrainLightningEnvironment
    from lightning_ext.prepare import prepare_trainer
    from lightning_ext.strategies import TrainDDPStrategy

    RayDDPStrategy = TrainDDPStrategy
    RayLightningEnvironment = TrainLightningEnvironment
    RayTrainReportCallback = TrainReportCallback

__all__ = [
    "RayDDPStrategy",
    "RayLightningEnvironment",
    "RayTrainReportCallback",
    "TrainDDPStrategy",
    "TrainLightningEnvironment",
    "TrainReportCallback",
    "prepare_trainer",
]

_HOMES = {
    "TrainDDPStrategy": "strategies",
    "TrainLightningEnvironment": "environment",
    "TrainReportCallback": "callback",
    "prepare_trainer": "prepare",
}
_ALIASES = {
    "RayDDPStrategy": "TrainDDPStrategy",
    "RayLightningEnvironment": "TrainLightningEnvironment",
    "RayTrainReportCallback": "TrainReportCallback",
}


def __getattr__(name: str) -> Any:
    primary = _ALIASES.get(name, name)
    if primary not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_HOMES[primary]}")
    except AttributeError as exc:  # `from lightning_ext import X` would hide it behind "cannot import name"
        raise ImportError(f"{__name__}.{_HOMES[primary]} does not fit the installed Lightning: {exc}", name=__name__) from exc
    value = getattr(module, primary)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
