"""``train.report()`` and ``train.get_checkpoint()``. (A module called like the function would hide it as an attribute of the package.)"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from runtime.errors import ArgumentError, ArgumentTypeError
from train.arguments import check_name
from train.checkpoint import Checkpoint
from train.context import current_session

if TYPE_CHECKING:
    from train.session import Session

__all__ = ["get_checkpoint", "report"]


def report(
    metrics: dict[str, Any],
    checkpoint: Checkpoint | None = None,
    checkpoint_dir_name: str | None = None,
    checkpoint_upload_mode: Any = None,
    delete_local_checkpoint_after_upload: bool | None = None,
    checkpoint_upload_fn: Callable[..., Any] | None = None,
    validation: Any = False,
) -> None:
    """Report metrics, and a checkpoint if there is one.

    Metrics alone: returns at once. With a checkpoint it waits until every rank has made its report of the same number, the files of all
    ranks are stored and the checkpoint is committed; ranks without files of their own may leave ``checkpoint`` out. Rank 0's metrics count.

    Args:
        metrics: numbers, texts and containers of them; NumPy scalars and 0-dimensional tensors become numbers.
        checkpoint_dir_name: name of its directory; by default ``checkpoint_<date>_<time>``. The same on all ranks that give one.
        delete_local_checkpoint_after_upload: delete the local directory when the checkpoint is committed.

    Raises:
        OutsideTrainingError: called outside a training function.
        ArgumentError, ArgumentTypeError: a metric is no metric (its key is named), or the metrics are too big.
        CheckpointError: the checkpoint could not be stored; earlier ones are untouched, and training may go on.
        ReportError: the ranks' reports do not fit together.
    """
    session: Session = current_session("report()")
    if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
        raise ArgumentTypeError(f"report(checkpoint={checkpoint!r:.80}): got {type(checkpoint).__name__}; pass a train.Checkpoint, such as "
                                "Checkpoint.from_directory(directory).")
    if checkpoint_dir_name is not None:
        check_name("report", "checkpoint_dir_name", checkpoint_dir_name)
    if getattr(checkpoint_upload_mode, "value", checkpoint_upload_mode) not in (None, "SYNC", "sync"):
        raise ArgumentError(f"report(checkpoint_upload_mode={checkpoint_upload_mode!r}) is accepted by Ray and not supported here: "
                            "checkpoints are stored before report() returns; leave it out.")
    for name, value in (("checkpoint_upload_fn", checkpoint_upload_fn), ("validation", validation)):
        if value:
            raise ArgumentError(f"report({name}=...) is accepted by Ray and not supported here; leave it out.")
    session.report(metrics, checkpoint, checkpoint_dir_name, delete=bool(delete_local_checkpoint_after_upload))


def get_checkpoint() -> Checkpoint | None:
    """The latest committed checkpoint of the run, the same on all ranks; at first the one to go on from, None if there is none.

    Waits until the caller's last report is consolidated.

    Raises: OutsideTrainingError: called outside a training function.
    """
    return current_session("get_checkpoint()").latest_checkpoint()
