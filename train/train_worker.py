"""The actor that is a rank: it runs the training function on its process's main thread, so signal handlers and debuggers work."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import runtime
from train import context
from train.backend import RankSetup
from train.failure import user_traceback
from train.protocol import CHANNEL, JobSpec, RankStart
from train.session import ChannelRendezvous, Session

__all__ = ["TrainWorker", "load_function", "rank_environment"]


def rank_environment(ranks: RankSetup) -> dict[str, str]:
    """The variables that say who a rank is: torchrun's, and Accelerate's, which without them trains unsynchronised copies on CPUs."""
    variables = {
        "RANK": str(ranks.rank),
        "LOCAL_RANK": str(ranks.local_rank),
        "WORLD_SIZE": str(ranks.world_size),
        "LOCAL_WORLD_SIZE": str(ranks.local_world_size),
        "NODE_RANK": str(ranks.node_rank),
    }
    if ranks.device_index is not None:
        variables["ACCELERATE_TORCH_DEVICE"] = f"cuda:{ranks.device_index}"
    else:
        variables["ACCELERATE_TORCH_DEVICE"] = "cpu"
        variables["ACCELERATE_USE_CPU"] = "true"
    return variables


def load_function(job: JobSpec) -> Callable[[], Any]:
    """The training function with its argument filled in."""
    function = runtime.loads(job.function)
    if job.config is None:
        return function  # type: ignore[no-any-return]
    config = runtime.loads(job.config)
    return lambda: function(config)


class TrainWorker:
    """One rank. ``run`` is called once."""

    def __init__(self, job: JobSpec) -> None:
        self._job = job

    def run(self, start: RankStart) -> None:
        """Set up, run the training function, tell the controller how it ended, tear down."""
        session = Session(self._job, start, runtime.channel(CHANNEL))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        runtime.on_stop_requested(lambda reason, grace_s: session.interrupt())
        os.environ.update(rank_environment(start.ranks))
        context.activate(session)
        try:
            self._run(session)
        finally:
            context.activate(None)

    def _run(self, session: Session) -> None:
        job, ranks = self._job, session.ranks
        backend = job.backend()
        value = None
        try:
            with session.interruptible():
                function = self._load(ranks)
                backend.setup(ranks, job.backend_config, ChannelRendezvous(session))
                session.entered()
                value = function()
        except BaseException as exc:  # noqa: BLE001 - whatever the user's code raises is told to the controller
            is_success = isinstance(exc, SystemExit) and exc.code in (None, 0)
            if not is_success and not session.interrupted:
                self._failed(session, exc)
                return
        if session.interrupted:
            return  # the controller has stopped listening, and ends this process
        session.returned(value)
        backend.teardown(ranks, job.backend_config)

    def _load(self, ranks: RankSetup) -> Callable[[], Any]:
        try:
            return load_function(self._job)
        except ModuleNotFoundError as exc:
            exc.add_note(f"This happened on {ranks.host} while loading your training function: install {exc.name!r} there, or start the "
                         "driver in the directory that has it.")
            raise

    def _failed(self, session: Session, error: BaseException) -> None:
        print(user_traceback(error), file=sys.stderr, end="", flush=True)  # into the rank's own log
        session.failed(error)
