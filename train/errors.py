"""Every exception of the training library, in one tree on the runtime's base.

::

    HeadwayError (runtime.errors)
    └── HeadwayTrainError
        ├── TrainingFailedError (RuntimeError)     fit() failed; __cause__ is the first failing rank's exception
        │   ├── WorkerGroupError                   ranks failed; .worker_failures is {rank: exception}
        │   ├── WorkerGroupStartError              the ranks could not be placed or started
        │   └── ControllerError                    a callback or the controller itself failed; .controller_failure
        ├── StorageError (OSError)                 the run's storage can't be reached, read or written
        ├── CheckpointError (RuntimeError)         a checkpoint can't be written, or is not whole
        ├── ReportError (RuntimeError)             ranks disagree about a report
        ├── RendezvousError (RuntimeError)         the ranks could not agree on rank 0's address
        ├── OutsideTrainingError (RuntimeError)    report() and its kin were called outside a training function
        └── RankError                              stands for a rank's exception that could not be pickled

Bad arguments are ``runtime.errors.ArgumentError`` (a ValueError) and ``ArgumentTypeError`` (a TypeError). All of them can be pickled.
"""

from __future__ import annotations

from runtime.errors import HeadwayError

__all__ = [
    "CheckpointError",
    "ControllerError",
    "HeadwayTrainError",
    "OutsideTrainingError",
    "RankError",
    "RendezvousError",
    "ReportError",
    "StorageError",
    "TrainingFailedError",
    "WorkerGroupError",
    "WorkerGroupStartError",
]


class HeadwayTrainError(HeadwayError):
    """Base of all errors that the training library raises on purpose."""


class TrainingFailedError(HeadwayTrainError, RuntimeError):
    """``fit()`` failed. ``__cause__`` is the exception of the rank that failed first (an ``ActorDiedError`` if its process died)."""


class WorkerGroupError(TrainingFailedError):
    """Ranks failed and no restart was left. ``worker_failures``: the exception of each rank that failed by itself."""

    def __init__(self, message: str, worker_failures: dict[int, BaseException] | None = None) -> None:
        super().__init__(message)
        self.worker_failures = worker_failures or {}


class WorkerGroupStartError(TrainingFailedError):
    """The ranks could not be placed or started; ``__cause__`` says why."""


class ControllerError(TrainingFailedError):
    """Something on the driver's side failed, such as a callback; ``controller_failure`` is its exception."""

    def __init__(self, message: str, controller_failure: BaseException | None = None) -> None:
        super().__init__(message)
        self.controller_failure = controller_failure


class StorageError(HeadwayTrainError, OSError):
    """The run's storage can't be reached, read or written."""


class CheckpointError(HeadwayTrainError, RuntimeError):
    """A checkpoint could not be written, or is not whole."""


class ReportError(HeadwayTrainError, RuntimeError):
    """The ranks' i-th reports do not fit together."""


class RendezvousError(HeadwayTrainError, RuntimeError):
    """The ranks could not agree on rank 0's address."""


class OutsideTrainingError(HeadwayTrainError, RuntimeError):
    """A function that belongs into a training function was called outside one."""


class RankError(HeadwayTrainError):
    """Stands for an exception of a rank that could not be pickled; the text has its class, text and traceback."""
