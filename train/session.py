"""The rank's end of the channel to the controller: what report(), get_checkpoint() and the rendezvous are made of.

A question and its answer go under one lock, so report() may be called from any thread of the rank.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
from collections.abc import Iterator
from typing import Any, Protocol, TypeVar

import runtime
from runtime.errors import GetTimeoutError, HeadwayError
from train import errors
from train.backend import RankSetup
from train.checkpoint import Checkpoint
from train.commit import manifest_of, write_files
from train.failure import Portable, user_traceback
from train.metrics import plain_metrics, refuse_oversized
from train.protocol import (
    Ack,
    AskCheckpoint,
    AskMaster,
    Committed,
    Entered,
    Failed,
    JobSpec,
    Latest,
    Master,
    Place,
    Publish,
    RankStart,
    Refused,
    Release,
    Report,
    Returned,
    ToController,
    WriteFailed,
    Written,
    dump,
)

__all__ = ["ChannelRendezvous", "Link", "Session"]

_Answer = TypeVar("_Answer")


class Link(Protocol):
    """A connected channel (``runtime.channel``), or its stand-in for a training function in the driver's own process."""

    def send(self, item: Any, timeout_s: float | None = None) -> None:
        """Queue an item; blocks only while too many are under way."""
        ...

    def recv(self, timeout_s: float | None = None) -> Any:
        """The next item from the controller."""
        ...


class Session:
    """One rank in one attempt."""

    def __init__(self, job: JobSpec, start: RankStart, link: Link) -> None:
        self.ranks: RankSetup = start.ranks
        self.storage = job.storage
        self.metadata = job.metadata or {}
        self._link = link
        self._report_max_bytes = job.report_max_bytes
        self._lock = threading.RLock()
        self._index = 0  # of the last report
        self._known = 0  # index of the last report that _checkpoint takes into account
        self._checkpoint = start.checkpoint
        self._interruptible = False
        self.interrupted = False

    # ---- called by the training function ----

    def report(self, metrics: dict[str, Any], checkpoint: Checkpoint | None, dir_name: str | None, *, delete: bool) -> None:
        """See ``train.report``."""
        plain = plain_metrics(metrics)
        refuse_oversized(plain, self._report_max_bytes)
        pickled = dump(plain, "the reported metrics")
        with self._lock, contextlib.ExitStack() as stack:
            if checkpoint is None:
                self._index += 1
                self._link.send(Report(self._index, pickled))
                return
            directory = stack.enter_context(checkpoint.as_directory())
            manifest = manifest_of(directory)
            self._index += 1
            index = self._index
            place = self._ask(Report(index, pickled, manifest, dir_name), Place)
            try:
                answer: ToController = Written(index, write_files(self.storage, place.name, directory, manifest, place.files))
            except (errors.StorageError, errors.CheckpointError) as exc:
                answer = WriteFailed(index, str(exc))
            done = self._ask(answer, Committed)
            self._checkpoint = self.storage.checkpoint(done.name)
            self._known = index
        if delete:
            shutil.rmtree(directory, ignore_errors=True)

    def latest_checkpoint(self) -> Checkpoint | None:
        """See ``train.get_checkpoint``."""
        with self._lock:
            if self._known < self._index:
                name = self._ask(AskCheckpoint(self._index), Latest).name
                if name is not None:
                    self._checkpoint = self.storage.checkpoint(name)
                self._known = self._index
            return self._checkpoint

    # ---- called around it ----

    def entered(self) -> None:
        """The training function is about to begin."""
        self._link.send(Entered())

    def returned(self, value: object) -> None:
        """It returned; wait until those of all ranks have."""
        pickled, problem = None, ""
        if self.ranks.rank == 0 and value is not None:
            try:
                pickled = dump(value, "what the training function returned")
            except HeadwayError as exc:
                problem = str(exc)
        self._ask(Returned(pickled, problem), Release)

    def failed(self, error: BaseException) -> None:
        """Something raised; tell the controller and wait until it knows."""
        class_name = type(error).__name__
        self._ask(Failed(_pickled_error(error), class_name, str(error), user_traceback(error)), Ack)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """While the user's code runs: ``interrupt`` has an effect."""
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt in the training function, as Ctrl-C does in a script. Called on another thread."""
        if self._interruptible:
            self.interrupted = True
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGINT)  # also ends a wait in a lock, which interrupt_main() does not

    def tell(self, message: ToController) -> None:
        """Send, without an answer."""
        with self._lock:
            self._link.send(message)

    def ask_master(self, timeout_s: float) -> Master:
        """Rank 0's address.

        Raises: GetTimeoutError.
        """
        return self._ask(AskMaster(), Master, timeout_s)

    def _ask(self, message: ToController, expected: type[_Answer], timeout_s: float | None = None) -> _Answer:
        with self._lock:
            self._link.send(message)
            answer = self._link.recv(timeout_s)
        if isinstance(answer, Refused):
            raise getattr(errors, answer.error)(answer.text)
        assert isinstance(answer, expected), f"{type(answer).__name__} is no answer to {type(message).__name__}"
        return answer


def _pickled_error(error: BaseException) -> bytes:
    """Empty if the exception can't make the journey; many can be pickled and not loaded again."""
    for candidate in (error, Portable(error)):
        with contextlib.suppress(Exception):  # the user's __reduce__ and __init__ run here; text and traceback travel in any case
            data: bytes = dump(candidate, "the exception of the training function")
            if isinstance(runtime.loads(data), BaseException):
                return data
    return b""


class ChannelRendezvous:
    """Rank 0's address through the controller. The channels are the attempt's own, so an old attempt's rank can neither give nor get it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def key_prefix(self) -> str:
        """``run/attempt``."""
        ranks = self._session.ranks
        return f"{ranks.run_name}/{ranks.attempt}"

    def publish(self, host: str, port: int) -> None:
        """Rank 0 says where it listens."""
        self._session.tell(Publish(host, port))

    def lookup(self, timeout_s: float) -> tuple[str, int]:
        """Where rank 0 listens.

        Raises: errors.RendezvousError: it did not say so in time.
        """
        try:
            master = self._session.ask_master(timeout_s)
        except GetTimeoutError as exc:
            ranks = self._session.ranks
            raise errors.RendezvousError(f"rank 0 did not publish its address within {timeout_s:g} s (told to rank {ranks.rank}, attempt "
                                         f"{ranks.attempt}); its set-up hangs, see its log.") from exc
        return master.host, master.port
