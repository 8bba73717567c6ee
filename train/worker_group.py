"""The ranks of one attempt as processes: a gang of actors, a channel to each, and who of them is which rank."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import runtime
from runtime.errors import HeadwayError
from train.backend import RankSetup
from train.checkpoint import Checkpoint
from train.config import ScalingConfig
from train.controller_events import ChannelEnded, Event, FromRank, RankDied, RankPlace, RunEnded
from train.protocol import CHANNEL, Failed, JobSpec, RankStart, Report, ToRank
from train.storage import log_name
from train.train_worker import TrainWorker

if TYPE_CHECKING:
    from runtime import ExitEvidence, Gang, Member, Subscription

__all__ = ["Group", "Incoming", "RankLog", "WorkerGroup", "assign_ranks", "incoming"]


@dataclass(frozen=True, slots=True)
class RankLog:
    """Where the output of a rank of one attempt is; ``host_id`` says on which host."""

    rank: int
    attempt: int
    host_id: str
    path: str


@dataclass(frozen=True, slots=True)
class Incoming:
    """An item of a rank as it arrived on the I/O thread; opened on the controller's."""

    attempt: int
    rank: int
    item: Any
    wall: float


class Group(Protocol):
    """What the controller needs of the ranks of an attempt."""

    def start(self, attempt: int, checkpoint: Checkpoint | None) -> tuple[RankPlace, ...]:
        """Place and start them; leaves nothing behind if it raises."""
        ...

    def send(self, rank: int, message: ToRank) -> None:
        """To one rank; nothing happens if it is gone."""
        ...

    def stop(self, grace_s: float, reason: str) -> None:
        """End them all; returns when no process is left."""
        ...

    def logs(self) -> list[RankLog]:
        """Output of all attempts so far; returns when it is complete and was shown."""
        ...


def assign_ranks(members: Sequence[Member], *, run_name: str, attempt: int, use_gpu: bool) -> list[tuple[Member, RankSetup]]:
    """Members by rank: nodes in the order of their first bundle, inside a node by lowest GPU id, then by bundle."""
    nodes: dict[str, list[Member]] = {}
    for member in sorted(members, key=lambda m: m.index):
        nodes.setdefault(member.node_id, []).append(member)
    ordered: list[tuple[Member, RankSetup]] = []
    for node_rank, of_node in enumerate(nodes.values()):
        of_node.sort(key=lambda m: (min(m.gpu_ids, default=-1), m.index))
        for local_rank, member in enumerate(of_node):
            ordered.append((member, RankSetup(
                rank=len(ordered), world_size=len(members), local_rank=local_rank, local_world_size=len(of_node), node_rank=node_rank,
                num_nodes=len(nodes), host=member.host, interface=member.interface, host_id=member.host_id, gpu_ids=member.gpu_ids,
                visible_gpu_ids=member.visible_gpu_ids, num_cpus=member.resources.get("CPU", 0.0), attempt=attempt, run_name=run_name,
                use_gpu=use_gpu)))
    return ordered


def incoming(event: Incoming) -> FromRank:
    """The event of an item: user's bytes are unpickled here, on the thread that called fit()."""
    item, metrics, error = event.item, None, None
    try:
        if isinstance(item, Report):
            metrics = runtime.loads(item.metrics)
        elif isinstance(item, Failed) and item.error:
            error = runtime.loads(item.error)
    except Exception as exc:  # noqa: BLE001 - a class of the user that can't be loaded here, in a module that only ranks have
        if isinstance(item, Report):
            item = Failed(b"", type(exc).__name__, f"metrics of report {item.index} can't be loaded on the driver: {exc}", "")
    return FromRank(event.attempt, event.rank, item, metrics, error, event.wall)


class _RankLink:
    """The controller's end of one rank's channel. Credit is given on receipt, so that a rank that only reports never waits."""

    def __init__(self, attempt: int, rank: int, post: Callable[[Incoming | Event], None]) -> None:
        self._attempt = attempt
        self._rank = rank
        self._post = post
        self._lock = threading.Lock()
        self._owed = 0
        self._subscription: Subscription | None = None

    def connect(self, handle: Any) -> None:
        """Subscribe; from now on items arrive."""
        subscription = handle.subscribe(CHANNEL, window=runtime.LIMITS.channel_window, on_item=self._on_item, on_end=self._on_end)
        with self._lock:
            self._subscription, owed, self._owed = subscription, self._owed, 0
        if owed:
            subscription.take(owed)

    def send(self, message: ToRank) -> None:
        """Towards the rank."""
        assert self._subscription is not None, "connect() comes first"
        self._subscription.send(message)

    def _on_item(self, item: Any) -> None:
        self._post(Incoming(self._attempt, self._rank, item, time.time()))
        with self._lock:
            if self._subscription is None:
                self._owed += 1
                return
        self._subscription.take(1)

    def _on_end(self, error: BaseException | None) -> None:
        self._post(ChannelEnded(self._attempt, self._rank, error))


class WorkerGroup:
    """Ranks on the cluster. Callbacks of the runtime become events, which go to ``post`` from its I/O thread."""

    def __init__(self, job: JobSpec, scaling: ScalingConfig, *, run_name: str, env: dict[str, str], preload: tuple[str, ...],
                 post: Callable[[Incoming | Event], None], say: Callable[[str], None]) -> None:
        self._job = job
        self._scaling = scaling
        self._run_name = run_name
        self._env = env
        self._preload = preload
        self._post = post
        self._say = say
        self._gang: Gang | None = None
        self._attempt = 0
        self._links: list[_RankLink] = []
        self._deaths: list[tuple[int, ExitEvidence]] = []  # by member, those that came before ranks were assigned
        self._ranks: dict[int, int] | None = None  # rank by member
        self._lock = threading.Lock()
        self._logs: list[RankLog] = []

    def start(self, attempt: int, checkpoint: Checkpoint | None) -> tuple[RankPlace, ...]:
        """See ``Group``.

        Raises: runtime.errors.HeadwayError: infeasible, timed out, or a process did not come up.
        """
        world_size = self._scaling.num_workers
        self._attempt, self._links, self._ranks, self._deaths = attempt, [], None, []
        gang = runtime.create_gang(
            TrainWorker, (self._job,), bundles=[self._scaling.resources_of_rank] * world_size, strategy=self._scaling.placement_strategy,
            labels=[f"rank {rank}" for rank in range(world_size)], preload=self._preload, env=self._env, attempt=attempt, share_gpus=True)
        self._gang = gang
        try:
            gang.on_pending(lambda reason: self._say(f"waiting for resources: {reason}"))
            gang.on_death(self._on_death)
            assigned = assign_ranks(gang.wait_ready(), run_name=self._run_name, attempt=attempt, use_gpu=self._scaling.use_gpu)
            self._run(assigned, checkpoint)
        except BaseException:
            with contextlib.suppress(HeadwayError, TimeoutError):  # why they did not start is what counts
                self.stop(0.0, "the ranks did not start")
            raise
        return tuple(RankPlace(f"rank {ranks.rank} on {member.node_name} (pid {member.pid})", self._kept_log(member, ranks.rank))
                     for member, ranks in assigned)

    def _kept_log(self, member: Member, rank: int) -> str:
        """Where the rank's output is when the run is over."""
        is_here = member.host_id == runtime.get_runtime_context().host_id
        return self._job.storage.at(log_name(rank)) if is_here else member.log_path

    def _run(self, assigned: list[tuple[Member, RankSetup]], checkpoint: Checkpoint | None) -> None:
        self._logs += [RankLog(ranks.rank, self._attempt, member.host_id, member.log_path) for member, ranks in assigned]
        self._links = [_RankLink(self._attempt, rank, self._post) for rank in range(len(assigned))]
        with self._lock:
            self._ranks = {member.index: ranks.rank for member, ranks in assigned}
            early = self._deaths
        for index, evidence in early:
            self._on_death(index, evidence)
        for member, ranks in assigned:
            self._links[ranks.rank].connect(member.handle)
            reference = member.handle.run.remote(RankStart(ranks, checkpoint))
            reference.add_done_callback(partial(self._on_run_ended, self._attempt, ranks.rank))

    def send(self, rank: int, message: ToRank) -> None:
        """See ``Group``."""
        with contextlib.suppress(HeadwayError):  # it is gone, which is told by other ways
            self._links[rank].send(message)

    def stop(self, grace_s: float, reason: str) -> None:
        """See ``Group``."""
        if self._gang is not None:
            self._gang.stop(grace_s=grace_s, reason=reason)

    def logs(self) -> list[RankLog]:
        """See ``Group``."""
        if self._gang is not None:
            self._gang.wait_logs(runtime.LIMITS.log_flush_s)
        return self._logs

    def _on_death(self, index: int, evidence: ExitEvidence) -> None:
        with self._lock:
            if self._ranks is None:
                self._deaths.append((index, evidence))
                return
            rank = self._ranks[index]
        self._post(RankDied(self._attempt, rank, evidence))

    def _on_run_ended(self, attempt: int, rank: int, reference: object) -> None:
        self._post(RunEnded(attempt, rank))
