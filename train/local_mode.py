"""``num_workers=0``: the training function in the driver's own process and thread, with real storage, retention and resume.

The controller is the same; messages are handled where they are sent. Exceptions of the function leave ``fit()`` as they are; nothing is
restarted, and the backend is left out: there are no other ranks to connect to.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from train import context
from train.backend import RankSetup
from train.checkpoint import Checkpoint
from train.controller import Controller, RunSpec
from train.controller_events import Interrupted, RankPlace, RunEnded, Start
from train.protocol import JobSpec, RankStart, ToController, ToRank
from train.result import Result
from train.session import Session
from train.worker_group import Incoming, RankLog

__all__ = ["run_locally"]


class _LocalGroup:
    """A group of one rank that is this process, and the link between its session and the controller."""

    def __init__(self) -> None:
        self.attempt = 0
        self.checkpoint: Checkpoint | None = None
        self.feed: Callable[[Incoming], None] | None = None
        self._inbox: deque[ToRank] = deque()

    def start(self, attempt: int, checkpoint: Checkpoint | None) -> tuple[RankPlace, ...]:
        self.attempt, self.checkpoint = attempt, checkpoint
        return (RankPlace("rank 0 in this process"),)

    def stop(self, grace_s: float, reason: str) -> None:
        pass

    def logs(self) -> list[RankLog]:
        return []

    def send(self, rank: int, message: ToRank) -> None:
        self._inbox.append(message)


class _LocalLink:
    """The session's end: what it sends is handled before ``send`` returns, so that the answer is there already."""

    def __init__(self, group: _LocalGroup, feed: Callable[[Incoming], None]) -> None:
        self._group = group
        self._feed = feed

    def send(self, item: ToController, timeout_s: float | None = None) -> None:
        self._feed(Incoming(self._group.attempt, 0, item, time.time()))

    def recv(self, timeout_s: float | None = None) -> Any:
        return self._group._inbox.popleft()


def run_locally(spec: RunSpec, job: JobSpec, function: Callable[[], Any], *, use_gpu: bool, say: Callable[[str], None]) -> Result:
    """Run it and return the result; whatever ``function`` raises is raised."""
    group = _LocalGroup()
    controller = Controller(spec, lambda post: group, say)
    with controller.closing():
        controller.feed(Start())
        host, gpus = socket.gethostname(), (0,) if use_gpu else ()
        ranks = RankSetup(rank=0, world_size=1, local_rank=0, local_world_size=1, node_rank=0, num_nodes=1, host=host, interface="lo",
                          host_id="", gpu_ids=gpus, visible_gpu_ids=gpus, num_cpus=0.0, attempt=group.attempt,
                          run_name=spec.storage.run_name, use_gpu=use_gpu)
        session = Session(job, RankStart(ranks, group.checkpoint), _LocalLink(group, controller.feed))
        context.activate(session)
        try:
            value = function()
        except BaseException:
            controller.feed(Interrupted())
            raise
        finally:
            context.activate(None)
        session.returned(value)
        controller.feed(RunEnded(group.attempt, 0))
    return controller.result()
