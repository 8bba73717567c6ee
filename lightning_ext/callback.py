"""``TrainReportCallback``: at the end of each training epoch, Lightning's metrics and a checkpoint go to the trainer.

Lightning runs a plain callback's ``on_train_epoch_end`` before the module's own, where a metric logged there is an epoch old or missing;
``Checkpoint`` callbacks run after it. But a ``Checkpoint`` in ``Trainer(callbacks=...)`` is refused with ``enable_checkpointing=False``.
So the callback is a plain one, and when fitting starts it puts a ``Checkpoint`` of its own into the list, in the place of the
``ModelCheckpoint`` that ``Trainer`` adds by default and which would write every file a second time.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from typing import Any

import torch

import train
from lightning_ext.flavour import pl

__all__ = ["CHECKPOINT_NAME", "TrainReportCallback"]

CHECKPOINT_NAME = "checkpoint.ckpt"  # Ray's name, at the root of the checkpoint's directory

log = logging.getLogger(__name__)


class TrainReportCallback(pl.Callback):
    """Reports metrics and a checkpoint at the end of each training epoch, after all metrics of that epoch are there.

    Metrics are ``trainer.callback_metrics`` as floats, with ``epoch`` and ``step`` added unless the module logs metrics of these names.
    The checkpoint is a directory with ``checkpoint.ckpt``: pass that file to ``Trainer.fit(ckpt_path=...)`` or ``load_from_checkpoint``.
    Global rank 0 reports it; the other ranks report their metrics only.

    May be built on the driver; it looks at its rank only when fitting starts.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Installs the part that reports, once per Trainer.

        Raises: RuntimeError: the Trainer writes checkpoints in the background, so no file is complete when it is reported.
        """
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if stage != "fit" or any(isinstance(callback, _EpochEnd) for callback in callbacks):
            return
        if isinstance(trainer.strategy.checkpoint_io, pl.plugins.AsyncCheckpointIO):
            raise RuntimeError("TrainReportCallback cannot report what AsyncCheckpointIO writes later: remove that plugin.")
        # In place: Trainer is iterating over this list and goes on to set up the new member.
        defaults = [index for index, callback in enumerate(callbacks) if _is_default(callback)]
        if defaults:
            callbacks[defaults[0]] = _EpochEnd(self)
            log.info("Trainer's default ModelCheckpoint is off, since TrainReportCallback saves each epoch; give it a dirpath, filename or "
                     "monitor to have both.")
        else:
            callbacks.append(_EpochEnd(self))

    def report_epoch(self, trainer: pl.Trainer) -> None:
        """Saves the checkpoint and reports it with this epoch's metrics; called on all ranks."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        metrics.setdefault("epoch", trainer.current_epoch)
        metrics.setdefault("step", trainer.global_step)
        directory = tempfile.mkdtemp(prefix="headway-lightning-") if trainer.is_global_zero else ""
        try:
            # One path on all ranks: strategies that write shards put theirs beside rank 0's.
            path = os.path.join(trainer.strategy.broadcast(directory), CHECKPOINT_NAME)
            trainer.save_checkpoint(path, weights_only=False)  # False is the default, which a line in every rank's log would say
            train.report(metrics, checkpoint=train.Checkpoint.from_directory(directory) if directory else None)
        finally:
            if directory:
                shutil.rmtree(directory)


class _EpochEnd(pl.callbacks.Checkpoint):
    """The member of ``trainer.callbacks`` that Lightning calls after the module's ``on_train_epoch_end``."""

    def __init__(self, callback: TrainReportCallback) -> None:
        super().__init__()
        self._callback = callback

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._callback.report_epoch(trainer)

    @property
    def best_model_path(self) -> str:
        """The latest checkpoint's file: what the default ModelCheckpoint offers to ``trainer.test(ckpt_path="best")``."""
        checkpoint = train.get_checkpoint()
        if checkpoint is None:
            return ""
        path = os.path.join(checkpoint.path, CHECKPOINT_NAME)
        return path if os.path.exists(path) else str(checkpoint.filesystem.unstrip_protocol(path))


def _is_default(callback: Any) -> bool:
    """Whether it is a ``ModelCheckpoint()`` without a single argument, as ``Trainer`` adds it."""
    if type(callback) is not pl.callbacks.ModelCheckpoint:
        return False
    settings = {name: value for name, value in vars(pl.callbacks.ModelCheckpoint()).items() if not isinstance(value, torch.Tensor)}
    return all(vars(callback).get(name) == value for name, value in settings.items())
