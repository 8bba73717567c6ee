"""What a training function may ask about itself: ``train.get_context()``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from train.arguments import warn_once
from train.errors import OutsideTrainingError

if TYPE_CHECKING:
    from train.backend import RankSetup
    from train.session import Session
    from train.storage import Storage

__all__ = ["StorageContext", "TrainContext", "activate", "current_ranks", "current_session", "get_context", "in_training_function"]

_Value = TypeVar("_Value")
_session: Session | None = None  # of this process; there is at most one


def activate(session: Session | None) -> None:
    """Make this the session of the process; None: the training function is over."""
    global _session
    _session = session


def in_training_function() -> bool:
    """Whether this process is running a training function."""
    return _session is not None


def current_session(caller: str = "this") -> Session:
    """The session of the running training function.

    Raises: OutsideTrainingError: there is none; ``caller`` names what was called.
    """
    if _session is None:
        raise OutsideTrainingError(f"{caller} cannot be used outside of a training function: call it in the function that you pass as "
                                   "train_loop_per_worker, which fit() runs in every rank.")
    return _session


def current_ranks() -> RankSetup:
    """Who this rank is.

    Raises: OutsideTrainingError.
    """
    return current_session("current_ranks()").ranks


def get_context() -> TrainContext:
    """Rank, sizes and names of the running training function.

    Raises: OutsideTrainingError: called outside one.
    """
    return TrainContext(current_session("get_context()"))


class StorageContext:
    """Where the run is stored, in Ray's words."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.experiment_dir_name = storage.run_name
        self.experiment_fs_path = storage.path
        self.storage_fs_path = storage.root

    @property
    def storage_filesystem(self) -> Any:
        """The filesystem that the paths are paths of."""
        return self._storage.checkpoint("").filesystem

    @property
    def local_working_directory(self) -> str:
        """The current directory: ranks keep the driver's on its host."""
        import os

        return os.getcwd()

    def build_checkpoint_path_from_name(self, checkpoint_name: str) -> str:
        """The path of the checkpoint of this name."""
        return self._storage.at(checkpoint_name)


class TrainContext:
    """Of one rank in one attempt."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._ranks = session.ranks

    def get_world_size(self) -> int:
        """How many ranks there are."""
        return self._ranks.world_size

    def get_world_rank(self) -> int:
        """The rank, from 0; ranks of one node are neighbours."""
        return self._ranks.rank

    def get_local_rank(self) -> int:
        """The rank's place among those of its node, from 0."""
        return self._ranks.local_rank

    def get_local_world_size(self) -> int:
        """How many ranks the node has."""
        return self._ranks.local_world_size

    def get_node_rank(self) -> int:
        """The node's place, from 0."""
        return self._ranks.node_rank

    def get_experiment_name(self) -> str:
        """The run's name."""
        return self._ranks.run_name

    def get_storage(self) -> StorageContext:
        """Where the run is stored."""
        return StorageContext(self._session.storage)

    def get_metadata(self) -> dict[str, Any]:
        """What was passed to the trainer as ``metadata``."""
        return self._old("get_metadata", dict(self._session.metadata))

    def get_trial_name(self) -> str:
        """The run's name."""
        return self._old("get_trial_name", self._ranks.run_name)

    def get_trial_id(self) -> str:
        """The run's name."""
        return self._old("get_trial_id", self._ranks.run_name)

    def get_trial_dir(self) -> str:
        """The run's directory."""
        return self._old("get_trial_dir", self._session.storage.path)

    def get_trial_resources(self) -> dict[str, float]:
        """CPUs and GPUs of this rank."""
        return self._old("get_trial_resources", {"CPU": self._ranks.num_cpus, "GPU": float(len(self._ranks.gpu_ids))})

    def _old(self, name: str, value: _Value) -> _Value:
        warn_once(f"TrainContext.{name}() is deprecated in Ray; it returns {value!r:.80} here.")
        return value
