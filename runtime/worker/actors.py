"""The daemon's actors, from the order to start them to the evidence of their end.

Ended actors are buried one batch after the other, so the head hears of deaths in the order in which they happened: first what an actor left
behind is swept, then its last words are read, then the head is told, and at last its log is sent to the end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from runtime.errors import ActorNotFoundError, HeadwayError
from runtime.limits import Limits
from runtime.wire.messages import (
    ActorExited,
    ActorsReady,
    ActorStarted,
    ActorUp,
    InitFailed,
    LogEnd,
    LogLines,
    Message,
    NodeFacts,
    Setup,
    StartActors,
    StopActors,
)
from runtime.wire.peer import Peer, Received, attach, host_id, refuse
from runtime.worker.actor_process import ActorProcess, Order, State
from runtime.worker.birth import FDS_PER_ACTOR
from runtime.worker.evidence import MemoryKills, exit_evidence, start_error
from runtime.worker.logs import LogBatch, LogTails
from runtime.worker.spawn import Exit, Watcher
from runtime.worker.sweep import Lineage, sweep
from runtime.worker.zygote_pool import ZygoteDiedError, ZygotePool, exec_actor

__all__ = ["Actors"]

logger = logging.getLogger(__name__)

# Zygotes that may die under one order before its actors are exec'd instead.
MAX_ZYGOTES = 2
# An actor without a lifeline can't be talked to; this long after it closed, a living one is ended.
LIFELINE_S = 1.0


class Actors:
    """All actors of this node. ``report`` takes what the head has to know, ``send_log`` what it may lose (and then says False)."""

    def __init__(self, *, pool: ZygotePool, watcher: Watcher, lineage: Lineage, session_dir: Path, limits: Limits, head_address: str,
                 token: bytes, simulated_gpus: bool, facts: Callable[[], NodeFacts], report: Callable[[Message], None],
                 send_log: Callable[[LogLines], bool]) -> None:
        self._pool = pool
        self._watcher = watcher
        self._lineage = lineage
        self._session_dir = session_dir
        self._limits = limits
        self._head_address = head_address
        self._token = token
        self._simulated_gpus = simulated_gpus
        self._facts = facts
        self._report = report
        self._send_log = send_log
        self._tails = LogTails(session_dir / "logs", limits)
        self._memory = MemoryKills()
        self._actors: dict[str, ActorProcess] = {}  # those that the head has not been told the end of
        self._not_gone: set[ActorProcess] = set()
        self._ended: list[ActorProcess] = []
        self._burial: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._serial = 0

    @property
    def running(self) -> tuple[str, ...]:
        """Ids of the actors whose end was not reported."""
        return tuple(self._actors)

    def find(self, actor_id: str) -> ActorProcess | None:
        """The actor, unless its end was reported."""
        return self._actors.get(actor_id)

    # ---- start ----

    def start(self, message: StartActors, buffers: Sequence[bytes | memoryview]) -> None:
        """Begin to start all actors of the message; what comes of it is reported."""
        order = Order(message, buffers)
        for spec in message.actors:
            if spec.actor_id in self._actors:
                logger.warning("actor %s (%s) was ordered again while it exists: ignored", spec.label, spec.actor_id)
                continue
            self._serial += 1
            actor = ActorProcess(spec, order, self._session_dir, self._serial)
            actor.timer = asyncio.get_running_loop().call_later(self._limits.start_s, self._start_timed_out, actor)
            self._actors[spec.actor_id] = actor
            self._not_gone.add(actor)
            order.actors.append(actor)
        order.num_waiting = len(order.actors)
        if order.actors:
            self._run(self._create(order), f"start {len(order.actors)} actors of group {message.group_id[:8]}")

    async def _create(self, order: Order) -> None:
        try:
            pids = await self._fork(order)
        except (HeadwayError, OSError, ValueError) as exc:  # ValueError: a variable or path that no system takes
            for actor in order.actors:
                self._never_was(actor, str(exc))
            return
        for actor, pid in zip(order.actors, pids, strict=True):
            actor.pid = pid
            actor.move(State.STARTING)
            self._watcher.watch(pid, partial(self._on_exit, actor))
            if order.message.stream_logs:
                self._tails.follow(actor.log_path, partial(self._on_log, actor))
        for actor in order.actors:
            await self._introduce(actor)
        order.buffers = ()

    async def _fork(self, order: Order) -> list[int]:
        """Processes for all actors of the order: pids.

        Raises: ActorStartError, OSError: none of them lives on.
        """
        message = order.message
        await self._pool.wait_ready(message.preload, unless=order.abandoned)
        if order.is_abandoned():
            raise HeadwayError("It was stopped before its process was made.")
        n, is_drivers_host = FDS_PER_ACTOR, message.driver_host_id == host_id()
        births = [actor.birth(self._lineage, self._facts(), simulated_gpus=self._simulated_gpus, is_drivers_host=is_drivers_host)
                  for actor in order.actors]
        for num_died in range(MAX_ZYGOTES + 1):
            fds: list[int] = []
            try:
                for actor in order.actors:
                    fds += actor.open_sockets()
                pids = await self._pool.fork(message.preload, births, fds) if num_died < MAX_ZYGOTES else None
                if pids is None:
                    pids = [exec_actor(birth, fds[n * i:n * (i + 1)]) for i, birth in enumerate(births)]
                return pids
            except ZygoteDiedError as exc:
                logger.warning("%s while it was to start %d actors; trying another way", exc, len(births))
            finally:
                for fd in fds:
                    os.close(fd)
        raise AssertionError("unreachable: exec_actor needs no zygote")

    async def _introduce(self, actor: ActorProcess) -> None:
        """Take up the lifeline and tell the process who it is; its answer says that the constructor may run."""
        if actor.stop is not None and actor.stop.grace_s <= 0:
            actor.kill()
        message, spec = actor.order.message, actor.spec
        actor.peer = await attach(actor.take_lifeline(), name=f"actor {spec.label}", on_message=partial(self._on_message, actor),
                                  on_close=lambda peer, error: self._on_lifeline_lost(actor), limits=self._limits)
        setup = Setup(spec, message.job_id, message.group_id, message.attempt, self._facts(), self._head_address, self._token,
                      actor.unix_path, message.namespace)
        try:
            loaded = actor.peer.request(setup, actor.order.buffers)
        except HeadwayError as exc:
            self._fail(actor, f"its class can't be handed to it: {exc}", "start error")
            return
        loaded.add_done_callback(lambda future: self._on_loaded(actor, future))

    def _on_loaded(self, actor: ActorProcess, future: asyncio.Future[Received]) -> None:
        if not future.cancelled() and future.exception() is None and actor.stop is None:
            actor.cancel_timer()

    def _start_timed_out(self, actor: ActorProcess) -> None:
        actor.timer = None
        self._fail(actor, f"it did not get as far as its constructor within {self._limits.start_s:g} s", "start time-out")

    def _on_message(self, actor: ActorProcess, peer: Peer, received: Received) -> None:
        match received.message:
            case ActorUp() if actor.state is State.STARTING:
                actor.move(State.UP)
                self._one_less_waiting(actor.order)
            case InitFailed() as message:
                actor.init_failed = message
            case other:
                logger.warning("actor %s sent %s out of place: ignored", actor.spec.label, type(other).__name__)

    def _one_less_waiting(self, order: Order) -> None:
        order.num_waiting -= 1
        ready = tuple(ActorStarted(actor.spec.actor_id, actor.spec.incarnation, actor.pid, actor.unix_path, actor.log_path)
                      for actor in order.actors if actor.state is State.UP)
        if not order.num_waiting and ready:
            self._report(ActorsReady(order.message.group_id, ready))

    # ---- stop ----

    def stop(self, message: StopActors) -> None:
        """End these actors; one that has ended already keeps its own cause."""
        for actor_id in message.actor_ids:
            if actor_id in self._actors:
                self._stop(self._actors[actor_id], message, is_wanted=True)

    def _fail(self, actor: ActorProcess, reason: str, kind: str) -> None:
        """End an actor for a fault of its own."""
        self._stop(actor, StopActors((actor.spec.actor_id,), 0.0, reason, kind), is_wanted=False)

    def _stop(self, actor: ActorProcess, stop: StopActors, *, is_wanted: bool) -> None:
        if actor.state in (State.ENDED, State.BURIED) or (actor.is_running and self._watcher.has_ended(actor.pid)):
            return
        if actor.stop is None:
            actor.is_wanted_end = is_wanted
            actor.stop = stop
        elif stop.grace_s < actor.stop.grace_s:
            actor.stop = StopActors((), stop.grace_s, actor.stop.reason, actor.stop.kind, stop.sigterm)
        if stop.grace_s <= 0 or (actor.is_running and actor.peer is None):
            actor.kill()  # one that is being forked is killed when it is born
            if actor.order.is_abandoned():
                actor.order.abandoned.set()
            return
        actor.ask_to_stop(stop)
        actor.cancel_timer()
        actor.timer = asyncio.get_running_loop().call_later(stop.grace_s, actor.kill)

    async def end_all(self, reason: str, kind: str = "killed") -> None:
        """Kill every actor; returns when nothing of them is left."""
        await self._end(list(self._not_gone), reason, kind)

    async def end_job(self, job_id: str) -> None:
        """Kill every actor of the job; returns when nothing of them is left."""
        await self._end([actor for actor in self._not_gone if actor.order.message.job_id == job_id], "its job was closed", "killed")

    async def _end(self, actors: list[ActorProcess], reason: str, kind: str) -> None:
        for actor in actors:
            self._stop(actor, StopActors((), 0.0, reason, kind), is_wanted=True)
        for actor in actors:
            await actor.gone.wait()

    # ---- connections ----

    def hand_over(self, sock: socket.socket, actor_id: str) -> None:
        """Pass an inbound connection to its actor; ``sock`` is ours."""
        actor = self._actors.get(actor_id)
        if actor is None or not actor.hand_over(sock):
            error = ActorNotFoundError(f"Node {self._facts().name!r} runs no actor {actor_id[:8]}.. that could take this connection.")
            self._run(refuse(sock, error, self._limits), "refuse a connection")

    def _on_lifeline_lost(self, actor: ActorProcess) -> None:
        if actor.is_running:
            actor.cancel_timer()
            actor.timer = asyncio.get_running_loop().call_later(
                LIFELINE_S, self._fail, actor, "it closed its connection to the worker daemon and lived on", "killed")

    def _on_log(self, actor: ActorProcess, batch: LogBatch) -> bool:
        message = actor.order.message
        return self._send_log(LogLines(message.job_id, actor.spec.actor_id, actor.spec.label, self._facts().name, batch.lines,
                                       batch.dropped, actor.log_path))

    # ---- end ----

    def _on_exit(self, actor: ActorProcess, ended: Exit) -> None:
        was_waiting = actor.state is State.STARTING
        actor.ended = (ended, not was_waiting)
        actor.move(State.ENDED)
        actor.cancel_timer()
        if was_waiting:
            self._one_less_waiting(actor.order)
        self._ended.append(actor)
        if self._burial is None:
            self._burial = self._run(self._bury(), "bury ended actors")

    async def _bury(self) -> None:
        try:
            while self._ended:
                batch, self._ended = self._ended, []
                ids = {actor.spec.actor_id for actor in batch}
                if not await sweep(self._lineage, ids, limit_s=self._limits.kill_wait_s):
                    logger.warning("processes that %s left behind did not end within %g s", ", ".join(a.spec.label for a in batch),
                                   self._limits.kill_wait_s)
                for actor in batch:
                    await actor.read_last_words()
                    self._tell_end(actor)
        finally:
            self._burial = None

    def _tell_end(self, actor: ActorProcess) -> None:
        assert actor.ended is not None
        ended, was_up = actor.ended
        evidence = exit_evidence(
            ended, pid=actor.pid, label=actor.spec.label, log_path=actor.log_path, node=self._facts(), was_up=was_up, stop=actor.stop,
            is_wanted=actor.is_wanted_end, init_failed=actor.init_failed, memory=self._memory, limits=self._limits)
        self._forget(actor, ActorExited(actor.spec.actor_id, actor.spec.incarnation, evidence))

    def _never_was(self, actor: ActorProcess, reason: str) -> None:
        evidence = start_error(reason, label=actor.spec.label, log_path=actor.log_path, node=self._facts(), stop=actor.stop)
        self._one_less_waiting(actor.order)
        self._forget(actor, ActorExited(actor.spec.actor_id, actor.spec.incarnation, evidence))

    def _forget(self, actor: ActorProcess, exited: ActorExited) -> None:
        actor.move(State.BURIED)
        del self._actors[actor.spec.actor_id]
        self._report(exited)
        self._run(self._finish_log(actor), f"last log lines of {actor.spec.label}")

    async def _finish_log(self, actor: ActorProcess) -> None:
        await self._tails.finish(actor.log_path)
        self._report(LogEnd(actor.order.message.job_id, actor.spec.actor_id))
        self._not_gone.discard(actor)
        actor.leave()

    # ---- tasks ----

    def _run(self, steps: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(steps, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Drop everything; call ``end_all`` first."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for actor in self._not_gone:
            actor.leave()
        self._tails.close()
