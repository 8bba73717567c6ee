"""Gangs: actors of one class that are created in one message, become ready together and die together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.client.actor_link import ActorLink
from runtime.client.arguments import checked_name
from runtime.client.created_actors import CreatedActors
from runtime.client.death import UNKNOWN_END
from runtime.client.handle import ActorHandle
from runtime.client.init import session_or_init
from runtime.client.interrupts import interrupts_deferred
from runtime.client.object_ref import ObjectRef, failed, get, value
from runtime.client.placement_group import checked_bundles, checked_strategy
from runtime.client.remote import checked_class, prepare_actors
from runtime.errors import ArgumentError, ArgumentTypeError, GetTimeoutError, HeadLostError, TaskCancelledError
from runtime.ids import GroupId, new_actor_id, new_group_id
from runtime.limits import LIMITS
from runtime.wire.messages import ActorSpec, CreateActors, ExitEvidence, RemoveGroup

__all__ = ["Gang", "Member", "create_gang"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Member:
    """One actor of a gang that is ready: where it runs, and with what."""

    index: int
    handle: ActorHandle
    node_id: str
    node_name: str
    host: str
    interface: str
    host_id: str
    pid: int
    gpu_ids: tuple[int, ...]
    visible_gpu_ids: tuple[int, ...]
    resources: dict[str, float]
    log_path: str


class Gang:
    """Made by ``create_gang``; its actors exist once ``wait_ready`` returned."""

    def __init__(self, created: CreatedActors, handles: list[ActorHandle], group_id: GroupId, bundles: list[dict[str, float]]) -> None:
        self.handles = handles
        self.group_id = group_id
        self._created = created
        self._bundles = bundles
        self._ready = ObjectRef(f"gang of {len(handles)}")
        self._ends: dict[int, ExitEvidence] = {}  # by index, in the order they were heard of
        self._on_death: list[Callable[[int, ExitEvidence], object]] = []
        for link in created.links:
            link.on_change.append(self._changed)

    def __repr__(self) -> str:
        return f"<Gang of {len(self.handles)} {self.handles[0]._class_name}>"

    def wait_ready(self, timeout_s: float | None = None) -> list[Member]:
        """The members, once all their constructors returned.

        Raises: InfeasibleError, PlacementTimeoutError: not placed. ActorStartError, ActorDiedError: one of them, the first to end, ended;
            ``.evidence`` says how, ``__cause__`` is its constructor's exception. GetTimeoutError: not within ``timeout_s``.
        """
        try:
            members: list[Member] = get(self._ready, timeout=timeout_s)
        except GetTimeoutError as exc:
            reason = self._created.reason
            raise GetTimeoutError(f"{self!r} was not ready within {timeout_s:g} s: "
                                  f"{f'it waits for resources: {reason}' if reason else 'its actors are starting'}.") from exc
        return members

    def on_pending(self, callback: Callable[[str], object]) -> None:
        """Call ``callback(reason)`` on the I/O thread whenever the gang waits for resources, with each new reason."""
        self._created.session.post(self._add_on_pending, callback)

    def on_death(self, callback: Callable[[int, ExitEvidence], object]) -> None:
        """Call ``callback(index, evidence)`` on the I/O thread once for each member that ends, however it ends."""
        self._created.session.post(self._add_on_death, callback)

    def stop(self, grace_s: float = 0.0, reason: str = "") -> list[ExitEvidence]:
        """End all members and release their resources; returns how each ended, when all are gone.

        Args: grace_s: they are asked first (``stop_requested()``) and killed after it. Ctrl-C ends the grace; at 0 it waits for the kill.
        """
        session = self._created.session
        session.check_open()
        with interrupts_deferred() if grace_s == 0 else contextlib.nullcontext():
            return session.io.run(self._stop(grace_s, reason), "stop a gang")

    def wait_logs(self, timeout_s: float = LIMITS.log_flush_s) -> bool:
        """Whether the last line of every member that ran was shown within ``timeout_s``."""
        session = self._created.session
        session.check_open()
        return session.io.run(self._wait_logs(timeout_s), "wait for logs")

    # ---- on the I/O thread ----

    async def _stop(self, grace_s: float, reason: str) -> list[ExitEvidence]:
        links, session = self._created.links, self._created.session
        await session.request(RemoveGroup(self.group_id, grace_s, reason or "the gang was stopped"),
                              timeout_s=grace_s + LIMITS.kill_wait_s + LIMITS.job_close_s)
        async with asyncio.timeout(LIMITS.death_notice_s):
            for link in links:  # the news of their end is a message of its own, which may come a moment later
                await link.ended.wait()
        return [_evidence(link) for link in links]

    async def _wait_logs(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                for link in self._created.links:
                    if link.status is not None and link.status.pid:
                        await link.logs_ended.wait()
        except TimeoutError:
            return False
        return True

    def _changed(self, link: ActorLink) -> None:
        links = self._created.links
        index = links.index(link)
        if link.failure is None:
            if all(other.was_ready for other in links):
                self._ready.settle(value([self._member(index, other) for index, other in enumerate(links)]))
        elif index not in self._ends:
            evidence = self._ends[index] = _evidence(link)
            # After the whole message, which may tell of several ends: the one that is marked as the first counts.
            self._created.session.io.loop.call_soon(self._fail)
            for callback in list(self._on_death):
                _run(callback, index, evidence)

    def _fail(self) -> None:
        first = min(self._ends, key=lambda index: not self._ends[index].first)
        failure = self._created.links[first].failure
        assert failure is not None, first
        self._ready.settle(failed(failure))

    def _add_on_death(self, callback: Callable[[int, ExitEvidence], object]) -> None:
        for index, evidence in self._ends.items():
            _run(callback, index, evidence)
        self._on_death.append(callback)

    def _add_on_pending(self, callback: Callable[[str], object]) -> None:
        self._created.on_pending.append(lambda reason: _run(callback, reason))
        if self._created.reason:
            _run(callback, self._created.reason)

    def _member(self, index: int, link: ActorLink) -> Member:
        status, node = link.status, link.node
        assert status is not None and node is not None, link.label
        return Member(index=index, handle=self.handles[index], node_id=node.node_id, node_name=node.name, host=node.host,
                      interface=node.interface, host_id=node.host_id, pid=status.pid, gpu_ids=status.gpu_ids,
                      visible_gpu_ids=status.visible_gpu_ids, resources=self._bundles[index], log_path=status.log_path)


def create_gang(cls: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, *, bundles: Sequence[Mapping[str, float]],
                strategy: str = "PACK", labels: Sequence[str] | None = None, preload: Sequence[str] = (),
                env: Mapping[str, str] | None = None, attempt: int = 0, share_gpus: bool = True,
                placement_timeout_s: float | None = None) -> Gang:
    """One actor ``cls(*args, **kwargs)`` for each of ``bundles``, all placed or none; returns at once, see ``wait_ready``.

    Args: labels: prefixes of their log lines. preload, env: modules imported before, and variables set in, their processes. attempt: number
        that their context shows. share_gpus: each sees the GPUs of all members on its node. placement_timeout_s: None waits for ever.
    """
    plain = checked_class(cls, "create_gang")
    specs = checked_bundles("create_gang", bundles)
    checked_strategy("create_gang", strategy)
    names = [plain.__name__ if len(specs) == 1 else f"{plain.__name__} {i}" for i in range(len(specs))] if labels is None else list(labels)
    if len(names) != len(specs):
        raise ArgumentError(f"create_gang(): {len(names)} labels for {len(specs)} bundles; there must be one for each.")
    for label in names:
        checked_name("create_gang", "labels", label)
    variables = dict(env or {})
    if not all(isinstance(text, str) for pair in variables.items() for text in pair):
        raise ArgumentTypeError(f"create_gang(env={variables!r}) must have str keys and values.")
    session = session_or_init()
    group_id = new_group_id()
    actors = tuple(ActorSpec(new_actor_id(), name="", label=names[i], class_name=plain.__name__, index=i, resources=specs[i], bundle=i)
                   for i in range(len(specs)))
    message = CreateActors(
        job_id=session.job_id, group_id=group_id, attempt=attempt, actors=actors, bundles=tuple(specs), strategy=strategy, gang=True,
        preload=tuple(preload) or session.preload, env=variables, namespace=session.namespace, share_gpus=share_gpus,
        timeout_s=-1.0 if placement_timeout_s is None else float(placement_timeout_s))
    created, handles = prepare_actors(session, message, plain, tuple(args), dict(kwargs or {}), f"gang of {len(specs)} {plain.__name__}")
    gang = Gang(created, handles, group_id, specs)
    session.post(created.start)
    return gang


def _evidence(link: ActorLink) -> ExitEvidence:
    """How it ended, also when the head did not say."""
    evidence = link.evidence()
    if evidence is not None or link.failure is None:
        return evidence or UNKNOWN_END
    error = link.failure()
    kind = "node dead" if isinstance(error, HeadLostError) else "killed" if isinstance(error, TaskCancelledError) else "start error"
    return ExitEvidence(kind=kind, detail=str(error), label=link.label, wanted=kind == "killed")


def _run(callback: Callable[..., object], *args: object) -> None:
    try:
        callback(*args)
    except Exception:
        logger.exception("a callback of a gang failed")


