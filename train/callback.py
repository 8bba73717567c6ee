"""Hooks of the user that run in the driver, on the thread that called ``fit()``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.checkpoint import Checkpoint
    from train.config import RunConfig, ScalingConfig

__all__ = ["RunContext", "UserCallback"]


@dataclass(frozen=True, slots=True)
class RunContext:
    """What a callback may know of its run."""

    run_name: str
    run_path: str
    run_config: RunConfig
    scaling_config: ScalingConfig


class UserCallback:
    """Derive from this and pass objects of it in ``RunConfig(callbacks=[...])``. An exception in one ends the run (``ControllerError``)."""

    def after_report(self, run_context: RunContext, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """Called once for each consolidated report.

        Args: metrics: one dict a rank, by rank; empty for a rank that had returned before. checkpoint: the committed one, if any.
        """

    def after_exception(self, run_context: RunContext, worker_exceptions: dict[int, BaseException]) -> None:
        """Called when an attempt failed, before it is decided whether another one follows."""
