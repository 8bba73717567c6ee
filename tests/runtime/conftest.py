"""A head that only records and answers, with a real worker daemon process under it: for tests of daemon and actors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from runtime.client import serialization
from runtime.ids import new_actor_id, new_group_id, new_job_id
from runtime.wire.messages import (
    ActorsReady,
    ActorStarted,
    Call,
    CallError,
    Heartbeat,
    HeartbeatAck,
    NodeAccepted,
    NodeFacts,
    RegisterNode,
    Result,
    StartActors,
    StartSpec,
    StopActors,
)
from runtime.wire.peer import Identity, Peer, Received, connect, host_id, listen
from runtime.worker.sweep import Lineage

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 20.0
HEAD_EPOCH = 7

# A daemon with some limits of its own; its zygotes and actors have the usual ones.
WITH_LIMITS = """
import dataclasses, json, sys
import runtime.limits
runtime.limits.LIMITS = dataclasses.replace(runtime.limits.LIMITS, **json.loads(sys.argv.pop(1)))
import runtime.worker.__main__ as worker
sys.exit(worker.main())
"""


class FakeHead:
    """Registers whoever comes and answers heartbeats; all else is kept for ``expect``."""

    def __init__(self) -> None:
        self.token = secrets.token_bytes(32)
        self.facts: NodeFacts | None = None
        self.incarnation = 0
        self.registrations: list[RegisterNode] = []
        self.answer_register: Callable[[RegisterNode], Any] | None = None
        self.answers_heartbeats = True
        self.peer: Peer | None = None
        self.received: list[Any] = []
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, address: str = "127.0.0.1:0") -> None:
        self.listener = await listen([address], token=self.token, identity=Identity("head", "fake"), on_peer=self._greet)
        self.address = self.listener.addresses[0]

    async def close(self) -> None:
        await self.listener.close()
        if self.peer is not None:
            self.peer.close("test over")
            await self.peer.wait_closed()

    def _greet(self, peer: Peer) -> None:
        peer.epoch = HEAD_EPOCH
        peer.on_message = self._receive
        peer.on_close = lambda peer, error: self._note(("lost", error))

    def _receive(self, peer: Peer, received: Received) -> None:
        message = received.message
        if isinstance(message, RegisterNode):
            self.registrations.append(message)
            answer = self.answer_register(message) if self.answer_register is not None else None
            if isinstance(answer, Exception):
                peer.reply_error(received.call_id, answer)
                return
            self.peer, self.facts = peer, message.facts
            self.incarnation = message.incarnation or self.incarnation + 1
            peer.reply(received.call_id, answer or NodeAccepted(self.incarnation, HEAD_EPOCH))
            self._note(message)
        elif isinstance(message, Heartbeat):
            if self.answers_heartbeats:
                peer.notify(HeartbeatAck(message.seq))
            self._note(message)
        else:
            assert received.epoch == self.incarnation, (message, received.epoch)
            self._note(message)

    def _note(self, message: Any) -> None:
        self.received.append(message)

        async def tell() -> None:
            async with self._changed:
                self._changed.notify_all()

        task = asyncio.ensure_future(tell())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def expect(self, kind: Any, where: Callable[[Any], bool] = lambda message: True) -> Any:
        """The first message of this class that fits; it is taken out."""

        def taken() -> Any:
            for message in self.received:
                if isinstance(message, kind) and where(message):
                    self.received.remove(message)
                    return message
            return None

        async with asyncio.timeout(WAIT_S), self._changed:
            while (found := taken()) is None:
                await self._changed.wait()
        return found

    def send(self, message: Any, buffers: Sequence[Any] = ()) -> None:
        assert self.peer is not None
        self.peer.notify(message, buffers)


class Caller:
    """A client's connection to one actor."""

    def __init__(self, peer: Peer, received: list[Received]) -> None:
        self.peer = peer
        self.received = received

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        answer = await self.peer.call(Call(method), serialization.dumps_call(args, kwargs, what=method), timeout_s=WAIT_S)
        if isinstance(answer.message, CallError):
            return answer.message, answer.buffers
        assert isinstance(answer.message, Result)
        return serialization.loads(answer.buffers)


class Cluster:
    """A fake head and one worker daemon process."""

    def __init__(self, head: FakeHead, process: subprocess.Popen[bytes], log: Path, tmp: Path) -> None:
        self.head = head
        self.process = process
        self.tmp = tmp
        self.job_id = new_job_id()
        self._log = log

    @property
    def output(self) -> str:
        """What the daemon wrote to stderr."""
        return self._log.read_text()

    def descendants(self) -> list[int]:
        """Living actors and what they left, by marker."""
        return processes_below(self.process.pid)

    def order(self, cls: type, *args: Any, count: int = 1, preload: tuple[str, ...] = (), env: dict[str, str] | None = None,
              resources: dict[str, float] | None = None, stream_logs: bool = False, label: str = "", gpu_ids: tuple[int, ...] = (),
              visible_gpu_ids: tuple[int, ...] = (), cwd: str = "/", sys_path: tuple[str, ...] = (), incarnation: int = 1,
              on_other_host: bool = False, **kwargs: Any) -> StartActors:
        """Order ``count`` actors of one group."""
        specs = tuple(StartSpec(new_actor_id(), incarnation, "", f"{label or cls.__name__} {i}", cls.__name__, i, resources or {}, gpu_ids,
                                visible_gpu_ids) for i in range(count))
        message = StartActors(self.job_id, new_group_id(), 0, specs, preload, env or {}, "elsewhere" if on_other_host else host_id(), cwd,
                              sys_path or tuple(sys.path), stream_logs)
        self.head.send(message, serialization.dumps((cls, args, kwargs), what=cls.__name__))
        return message

    async def start(self, cls: type, *args: Any, **options: Any) -> list[ActorStarted]:
        """Order actors and wait until they are ready."""
        order = self.order(cls, *args, **options)
        ready = await self.head.expect(ActorsReady, lambda message: message.group_id == order.group_id)
        assert [actor.actor_id for actor in ready.actors] == [spec.actor_id for spec in order.actors]
        return list(ready.actors)

    async def connect(self, actor: ActorStarted, *, by_tcp: bool = False, incarnation: int | None = None) -> Caller:
        """A direct connection to an actor."""
        facts = self.head.facts
        assert facts is not None
        received: list[Received] = []
        address = f"{facts.host}:{facts.port}" if by_tcp else f"unix:{actor.unix_path}"
        peer = await connect(address, token=self.head.token, identity=Identity("driver", "test"), target=actor.actor_id if by_tcp else "",
                             on_message=lambda peer, message: received.append(message), on_close=lambda peer, error: None)
        peer.epoch = actor.incarnation if incarnation is None else incarnation
        return Caller(peer, received)

    def stop(self, *actors: ActorStarted, grace_s: float = 0.0, reason: str = "test", **options: Any) -> None:
        self.head.send(StopActors(tuple(actor.actor_id for actor in actors), grace_s, reason, **options))

    async def wait_ended(self) -> int:
        """The daemon's exit code."""
        async with asyncio.timeout(WAIT_S):
            return await asyncio.to_thread(self.process.wait)


def processes_below(daemon_pid: int) -> list[int]:
    """Marked processes of a daemon, dead or alive, its zygotes left out."""
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            block = Path(f"/proc/{int(name)}/environ").read_bytes()
            for entry in block.split(b"\0"):
                if entry.startswith(b"HEADWAY_LINEAGE="):
                    owner, actor_id = Lineage.parse(entry.partition(b"=")[2].decode())
                    if owner.pid == daemon_pid and actor_id.strip("0"):
                        found.append(int(name))
    return found


@pytest.fixture
def worker_cluster(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``async with worker_cluster(*arguments of the daemon) as cluster``."""
    runtime_dir = short_tmp / "run"
    runtime_dir.mkdir(mode=0o700)

    @asynccontextmanager
    async def start(*arguments: str, preload: str = "", env: dict[str, str] | None = None, head_address: str = "127.0.0.1:0",
                    prepare: Callable[[FakeHead], None] | None = None, limits: dict[str, float] | None = None,
                    prefix: Sequence[str] = ()) -> AsyncIterator[Cluster]:
        head = FakeHead()
        if prepare is not None:
            prepare(head)
        await head.start(head_address)
        token_file = short_tmp / "token"
        token_file.write_text(head.token.hex())
        token_file.chmod(0o600)
        log = short_tmp / "daemon.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-c", WITH_LIMITS, json.dumps(limits or {}), "--head", head.address,
                 "--token-file", str(token_file), "--num-cpus", "4", "--preload", preload, *arguments],
                cwd=ROOT, stdout=output, stderr=output, start_new_session=True,
                env={**os.environ, "XDG_RUNTIME_DIR": str(runtime_dir), **(env or {})})
        cluster = Cluster(head, process, log, short_tmp)
        try:
            await head.expect(RegisterNode)
            yield cluster
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                assert await cluster.wait_ended() == 0, cluster.output
            async with asyncio.timeout(WAIT_S):
                while left := processes_below(process.pid):
                    await asyncio.sleep(0.01)
            assert not left
            async with asyncio.timeout(WAIT_S):
                while list(runtime_dir.iterdir()):
                    await asyncio.sleep(0.01)
        except BaseException:
            print(log.read_text())
            for path in sorted(runtime_dir.glob("*/logs/*")):
                print(f"---- {path.name}\n{path.read_text(errors='replace')}")
            raise
        finally:
            if process.poll() is None:
                process.kill()
                await asyncio.to_thread(process.wait)
            for pid in processes_below(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await head.close()

    return start
