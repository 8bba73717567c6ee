"""The worker daemon: one node of the cluster. It keeps the node registered with the head and does what the head says.

It never waits in a callback and never runs user code, so whatever actors do, its heartbeats go out. A lost connection is dialled again for
``head_loss_grace_s`` while the actors go on; a node that the head declared dead kills its actors and registers as a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import re
import socket
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime.errors import ConnectError, ConnectionLostError, FencedError, GetTimeoutError, HeadwayError, NameTakenError
from runtime.ids import new_node_id
from runtime.limits import LIMITS, Limits
from runtime.wire.address import format_tcp
from runtime.wire.auth import VERSION
from runtime.wire.messages import (
    Fence,
    Heartbeat,
    HeartbeatAck,
    JobSwept,
    LogLines,
    Message,
    NodeAccepted,
    NodeFacts,
    Preload,
    ReadLog,
    RegisterNode,
    StartActors,
    StopActors,
    StopReading,
    SweepJob,
)
from runtime.wire.peer import Identity, Listener, Peer, Received, connect_retrying, host_id, listen
from runtime.worker.actors import Actors
from runtime.worker.log_readers import LogReaders
from runtime.worker.network import interface_of
from runtime.worker.outbox import Outbox
from runtime.worker.spawn import Watcher, become_subreaper
from runtime.worker.sweep import Lineage, sweep_dead_daemons
from runtime.worker.zygote_pool import ZygotePool

__all__ = ["WorkerDaemon"]

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"


class WorkerDaemon:
    """One node. Belongs to one event loop, on the main thread of its process, whose child processes are all the daemon's.

    Args: name: of the node, unique in the cluster; None: the host's. gpus: UUIDs by index, see ``gpus.inventory``. session_dir: exists,
        mode 0700, path of at most 60 bytes; log files and sockets go there, the owner removes it. preload: modules that every zygote
        imports at least. use_zygote: False: actors are exec'd.
    """

    def __init__(self, *, head_address: str, token: bytes, name: str | None, resources: Mapping[str, float], labels: Mapping[str, str],
                 gpus: Sequence[str], simulated_gpus: bool, session_dir: Path, preload: Sequence[str] = (), limits: Limits = LIMITS,
                 use_zygote: bool = True) -> None:
        self._head_address = head_address
        self._token = token
        self._has_own_name = name is not None
        self._limits = limits
        self._session_dir = Path(session_dir)
        self._simulated_gpus = simulated_gpus
        self._preload = tuple(preload)
        self._use_zygote = use_zygote
        self._facts = NodeFacts(
            node_id=new_node_id(), name=name or _host_name(), host_id=host_id(), pid=os.getpid(), host="", port=0, interface="",
            resources={key: float(value) for key, value in resources.items()}, labels=dict(labels), gpus=tuple(gpus),
            python=platform.python_version(), version=VERSION)
        self._incarnation = 0
        self._head_epoch = 0
        self._seq = self._last_ack = 0
        self._outbox = Outbox()
        self._peer: Peer | None = None
        self._listener: Listener | None = None
        self._registering: Peer | None = None
        self._early: list[Received] = []  # came right behind NodeAccepted, before its reader ran
        self._is_started = self._is_closing = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def facts(self) -> NodeFacts:
        """The node as it was registered."""
        return self._facts

    async def start(self) -> None:
        """Register with the head.

        Raises: ConnectError: no head there within ``connect_s``. AuthenticationError, VersionMismatchError, NameTakenError: it refused.
        """
        loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[str] = loop.create_future()
        (self._session_dir / "logs").mkdir(mode=0o700, exist_ok=True)
        is_subreaper = become_subreaper()
        self._watcher = Watcher()
        lineage = Lineage.of_this_process()
        # Without a subreaper nobody could reap what a zygote forks.
        self._pool = ZygotePool(self._watcher, lineage, self._session_dir, self._limits, enabled=self._use_zygote and is_subreaper)
        self._pool.preload(self._preload)
        self._actors = Actors(
            pool=self._pool, watcher=self._watcher, lineage=lineage, session_dir=self._session_dir, limits=self._limits,
            head_address=self._head_address, token=self._token, simulated_gpus=self._simulated_gpus, facts=lambda: self._facts,
            report=self._report, send_log=self._send_log)
        self._readers = LogReaders(self._session_dir / "logs", self._limits, lambda: self._facts.name, self._actors.find,
                                   self._send_log, self._send)
        self._is_started = True
        try:
            leftovers = await asyncio.to_thread(sweep_dead_daemons)
            if leftovers:
                logger.warning("killed %d processes that a daemon which is gone had left behind", len(leftovers))
            await self._join(self._limits.connect_s)
        except BaseException:
            await self.close()
            raise
        self._run(self._beat(), "heartbeats")

    async def run_until_closed(self) -> str:
        """Why the daemon ended: ``close()`` was called, or the head is gone for good."""
        return await asyncio.shield(self._ended)

    async def close(self, reason: str = "the worker daemon was closed") -> None:
        """Kill all actors, tell the head, leave nothing behind. May be called again."""
        self._is_closing = True
        if not self._is_started:
            return
        if not self._ended.done():
            self._ended.set_result(reason)
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._readers.close()
        await self._actors.end_all(reason, "node dead")
        await self._actors.close()
        await self._pool.close()
        if self._listener is not None:
            await self._listener.close()
        if self._peer is not None:
            self._peer.close(reason)
            await self._peer.wait_closed()
        self._watcher.reap_orphans()
        self._watcher.close()

    # ---- connection to the head ----

    async def _join(self, within_s: float) -> None:
        """Connect and register; a name that we chose ourselves gives way to another daemon of this host.

        Raises: as ``start``.
        """
        deadline = asyncio.get_running_loop().time() + within_s
        while True:
            left_s = max(0.0, deadline - asyncio.get_running_loop().time())
            peer = await connect_retrying(
                self._head_address, token=self._token, identity=Identity("worker", self._facts.name), on_message=self._on_message,
                on_close=self._on_lost, within_s=left_s, limits=self._limits)
            try:
                await self._register(peer)
                return
            except FencedError as exc:
                peer.close("fenced")
                await self._become_new(str(exc))
            except NameTakenError:
                peer.close("name taken")
                if self._has_own_name:
                    raise
                self._has_own_name = True
                self._facts = replace(self._facts, name=f"{self._facts.name}-{os.getpid()}")
            except (ConnectionLostError, GetTimeoutError) as exc:
                peer.close("not registered")
                if asyncio.get_running_loop().time() >= deadline:
                    raise ConnectError(f"The head at {self._head_address} did not take this node in: {exc}") from exc
                await asyncio.sleep(self._limits.redial_min_s)
            except BaseException:
                peer.close("not registered")
                raise

    async def _register(self, peer: Peer) -> None:
        await self._listen_at(peer.local_host)
        peer.epoch = self._incarnation
        # Who ended unheard counts as running until the head has the evidence, which follows.
        running = (*self._actors.running, *self._outbox.exited)
        self._registering, self._early = peer, []
        try:
            received = await peer.call(RegisterNode(self._facts, self._incarnation, running), timeout_s=self._limits.handshake_s)
        finally:
            self._registering = None
        accepted = received.message
        if isinstance(accepted, Fence):
            raise FencedError(accepted.reason)
        if not isinstance(accepted, NodeAccepted):
            raise ConnectionLostError(f"{peer.name} answered RegisterNode with {type(accepted).__name__}.")
        self._incarnation, self._head_epoch = accepted.incarnation, accepted.head_epoch
        peer.epoch = accepted.incarnation
        self._peer = peer
        self._last_ack = self._seq
        self._actors.stop(StopActors(accepted.stop, 0.0, "the head does not know it any more"))
        self._outbox.resend(self._send, self._seq)
        early, self._early = self._early, []
        for message in early:
            self._on_message(peer, message)

    async def _listen_at(self, host: str) -> None:
        """Have the inbound port at our end of the connection to the head: where other hosts reach us. None for a head on a socket file."""
        if self._facts.host == (host or LOOPBACK):
            return
        if self._listener is not None:
            await self._listener.close()
            self._listener = None
        if host:
            self._listener = await listen(
                [format_tcp(host, 0)], token=self._token, identity=Identity("worker", self._facts.name),
                on_peer=lambda peer: peer.close("connect to an actor, or to the head"), on_handover=self._actors.hand_over,
                limits=self._limits)
        port = self._listener.port if self._listener is not None else 0
        self._facts = replace(self._facts, host=host or LOOPBACK, port=port, interface=interface_of(host or LOOPBACK))

    def _on_lost(self, peer: Peer, error: HeadwayError) -> None:
        if peer is self._peer:
            self._peer = None
            self._readers.stop_all()  # the head that comes back may have given the numbers of who read to others
            if not self._is_closing:
                logger.warning("lost the head: %s Dialling again for %g s.", error, self._limits.head_loss_grace_s)
                self._run(self._rejoin(), "rejoin")

    def _dial_afresh(self, peer: Peer) -> None:
        """Let go of a connection that hangs: behind a cut it delivers seconds after the cut is over, a new one at once."""
        logger.warning("no answer from the head for %g s. Dialling again for %g s.", self._limits.suspect_s, self._limits.head_loss_grace_s)
        self._peer = None
        peer.close("no answer to heartbeats")
        self._run(self._rejoin(), "rejoin")

    async def _rejoin(self) -> None:
        try:
            await self._join(self._limits.head_loss_grace_s)
            logger.info("the head is back")
        except HeadwayError as exc:
            logger.error("gave up on the head: %s", exc)
            if not self._ended.done():
                self._ended.set_result(f"the head is gone: {exc}")

    async def _become_new(self, reason: str) -> None:
        """The head declared this node dead: kill its actors, and be another node from now on."""
        logger.warning("fenced: %s Killing %d actors and registering anew.", reason, len(self._actors.running))
        self._incarnation = 0
        await self._actors.end_all(reason, "node dead")
        self._outbox.clear()
        self._facts = replace(self._facts, node_id=new_node_id())

    async def _beat(self) -> None:
        """Heartbeats; a head that does not answer them for ``suspect_s`` is dialled afresh. Adopted orphans are reaped in passing."""
        limits = self._limits
        while True:
            if self._peer is not None:
                self._seq += 1
                if (self._seq - self._last_ack) * limits.heartbeat_s > limits.suspect_s:
                    self._dial_afresh(self._peer)
                else:
                    self._send(Heartbeat(self._seq, self._pool.described))
            if not self._pool.is_forking:
                self._watcher.reap_orphans()
            await asyncio.sleep(limits.heartbeat_s)

    # ---- messages ----

    def _on_message(self, peer: Peer, received: Received) -> None:
        if peer is self._registering:
            self._early.append(received)
            return
        if self._is_closing or peer is not self._peer or (received.epoch and received.epoch != self._head_epoch):
            return  # of a connection or a head that is not current
        match received.message:
            case HeartbeatAck(seq):
                self._last_ack = max(self._last_ack, seq)
                self._outbox.acknowledge(seq)
            case StartActors() as message:
                self._actors.start(message, received.buffers)
            case StopActors() as message:
                self._actors.stop(message)
            case SweepJob(job_id):
                self._run(self._sweep_job(job_id), f"sweep job {job_id[:8]}")
            case Preload(modules):
                self._pool.preload((*self._preload, *modules))
            case ReadLog() as message:
                self._readers.read(message)
            case StopReading(reader):
                self._readers.stop(reader)
            case Fence(reason):
                self._peer = None
                peer.close("fenced")
                self._run(self._rejoin_fenced(reason), "rejoin")
            case other:
                logger.warning("%s sent %s, which has no place here: ignored", peer.name, type(other).__name__)

    async def _rejoin_fenced(self, reason: str) -> None:
        await self._become_new(reason)
        await self._rejoin()

    async def _sweep_job(self, job_id: str) -> None:
        await self._actors.end_job(job_id)
        self._report(JobSwept(job_id))

    def _report(self, message: Message) -> None:
        """Tell the head, if not now then when it is back."""
        self._outbox.keep(message, self._seq)
        self._send(message)

    def _send(self, message: Message) -> None:
        if self._peer is not None:
            with contextlib.suppress(ConnectionLostError):  # on_close says so
                self._peer.notify(message)

    def _send_log(self, lines: LogLines) -> bool:
        """Pass lines on unless the head is slow or away."""
        if self._peer is None or self._peer.queued_bytes > self._limits.send_queue_bytes:
            return False
        self._send(lines)
        return True

    def _run(self, steps: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(steps, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _host_name() -> str:
    """The host's name as a node's: what is not allowed in one becomes a dash."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname()).lstrip("._-")[:100]
    return name or "node"
