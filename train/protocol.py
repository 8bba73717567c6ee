"""What a rank and the controller say to each other on the channel ``report``.

A rank asks and waits for the answer where it says so; everything else is one-way. There is at most one question open per rank, so answers
need no number. Messages of one attempt travel on the channels of that attempt's own processes: no other attempt can send or get them (F1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import runtime
from train.backend import Backend, BackendConfig, RankSetup
from train.checkpoint import Checkpoint
from train.commit import FileEntry
from train.storage import FileFacts, Storage

__all__ = [
    "CHANNEL", "Ack", "AskCheckpoint", "AskMaster", "Committed", "Entered", "Failed", "JobSpec", "Latest", "Master", "Place",
    "Publish", "RankStart", "Refused", "Release", "Report", "Returned", "ToController", "ToRank", "WriteFailed", "Written",
    "dump",
]

CHANNEL = "report"


def dump(value: Any, what: str) -> bytes:
    """An object of the user as bytes, which only the thread that needs it opens (``runtime.loads``).

    Raises: SerializationError: it can't be pickled; the text names ``what``, and the variable to blame.
    """
    return runtime.dumps_function(value, what)


# ---- given to the ranks at their start ----


@dataclass(frozen=True, slots=True)
class JobSpec:
    """The same for all ranks and attempts, sent once a node. ``function`` and ``config`` are pickles of the user's objects."""

    function: bytes
    config: bytes | None  # None: the function takes no argument
    backend: type[Backend]
    backend_config: BackendConfig
    storage: Storage
    metadata: dict[str, Any] | None
    report_max_bytes: int


@dataclass(frozen=True, slots=True)
class RankStart:
    """One rank's part of an attempt. ``checkpoint``: what get_checkpoint() returns at first."""

    ranks: RankSetup
    checkpoint: Checkpoint | None


# ---- rank to controller ----


@dataclass(frozen=True, slots=True)
class Entered:
    """The training function begins: rendezvous and set-up are done."""


@dataclass(frozen=True, slots=True)
class Report:
    """The rank's ``index``-th report, from 1. ``metrics`` is pickled. With a manifest the rank waits for Place or Refused."""

    index: int
    metrics: bytes
    manifest: tuple[FileEntry, ...] | None = None
    dir_name: str | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """All files that Place gave to this rank are stored. The rank waits for Committed or Refused."""

    index: int
    files: dict[str, FileFacts]


@dataclass(frozen=True, slots=True)
class WriteFailed:
    """The rank could not store its files. It waits for Refused."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class AskCheckpoint:
    """What is the latest checkpoint, once report ``index`` of this rank is consolidated? The rank waits for Latest."""

    index: int


@dataclass(frozen=True, slots=True)
class Publish:
    """Rank 0's address for the rendezvous."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class AskMaster:
    """Where is rank 0? The rank waits for Master."""


@dataclass(frozen=True, slots=True)
class Returned:
    """The training function returned ``value`` (pickled, rank 0's only). The rank waits for Release, then tears down."""

    value: bytes | None
    problem: str = ""  # why the value could not be pickled


@dataclass(frozen=True, slots=True)
class Failed:
    """Loading, set-up or the training function raised. The rank waits for Ack before it closes anything.

    ``error`` is the pickled exception, empty when it can't be pickled; ``traceback`` has the user's frames only.
    """

    error: bytes
    class_name: str
    text: str
    traceback: str


# ---- controller to rank ----


@dataclass(frozen=True, slots=True)
class Place:
    """Store these files of your report's checkpoint in the directory ``name`` of the run."""

    name: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Committed:
    """The checkpoint is whole."""

    name: str


@dataclass(frozen=True, slots=True)
class Refused:
    """There is no checkpoint of this report; report() raises this error of train.errors."""

    error: str
    text: str


@dataclass(frozen=True, slots=True)
class Latest:
    """The latest committed checkpoint of this run; None: none since the start, what the rank was started with still stands."""

    name: str | None


@dataclass(frozen=True, slots=True)
class Master:
    """Rank 0's address."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Ack:
    """Failed has arrived."""


@dataclass(frozen=True, slots=True)
class Release:
    """The training functions of all ranks have returned."""


ToController = Entered | Report | Written | WriteFailed | AskCheckpoint | Publish | AskMaster | Returned | Failed
ToRank = Place | Committed | Refused | Latest | Master | Ack | Release
