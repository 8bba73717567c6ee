"""The shell over real sockets: a daemon and a driver made of bare peers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import AuthenticationError, ConnectError, ConnectionLostError, FencedError, NotInitializedError
from runtime.head.server import HeadServer, is_loopback
from runtime.limits import Limits
from runtime.wire import messages as wire
from runtime.wire.peer import Identity, Peer, Received, connect, host_id

TOKEN = bytes(range(32))
WAIT_S = 20.0  # generous: only a hang takes that long
LIMITS = Limits(heartbeat_s=0.05, suspect_s=0.25, dead_s=1.0, reconnect_grace_s=0.3, job_close_s=5.0, driver_lease_s=0.5)


class Client:
    """A peer, and what it received."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.arrived = asyncio.Event()
        self.lost: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self.peer: Peer = None  # type: ignore[assignment]

    async def dial(self, address: str, role: str) -> Client:
        self.peer = await connect(address, token=TOKEN, identity=Identity(role, "test"), on_message=self._take, on_close=self._end)
        return self

    def _take(self, peer: Peer, received: Received) -> None:
        self.received.append(received)
        self.arrived.set()

    def _end(self, peer: Peer, error: Exception) -> None:
        self.lost.set_result(error)

    async def next(self, kind: type[Any]) -> Any:
        """The next message of this kind."""
        async with asyncio.timeout(WAIT_S):
            while True:
                for received in self.received:
                    if isinstance(received.message, kind):
                        self.received.remove(received)
                        return received
                self.arrived.clear()
                await self.arrived.wait()

    async def call(self, message: wire.Message, buffers: Any = ()) -> Any:
        return (await self.peer.call(message, buffers, timeout_s=WAIT_S)).message


@asynccontextmanager
async def head(address: str = "127.0.0.1:0", **options: Any) -> AsyncIterator[HeadServer]:
    server = HeadServer(addresses=[address], token=TOKEN, limits=options.pop("limits", LIMITS), embedded=options.pop("embedded", False),
                        strict=True)
    await server.start()
    try:
        yield server
    finally:
        await server.close()
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task() and "greet" in task.get_name()]


def facts(name: str = "a", **fields: Any) -> wire.NodeFacts:
    return wire.NodeFacts(f"id-{name}", name, host_id(), os.getpid(), "127.0.0.1", 1, "lo", {"CPU": 2.0}, {}, **fields)


async def join(server: HeadServer) -> Client:
    daemon = await Client().dial(server.addresses[0], "worker")
    accepted = await daemon.call(wire.RegisterNode(facts(), 0, ()))
    daemon.peer.epoch = accepted.incarnation
    return daemon


def opening(job_id: str = "job", pid: int = 0, logs: bool = True) -> wire.OpenJob:
    return wire.OpenJob(job_id, host_id() if pid else "elsewhere", pid, "/", (), "", logs)


async def drive(server: HeadServer, **options: Any) -> Client:
    driver = await Client().dial(server.addresses[0], "driver")
    await driver.call(opening(**options))
    return driver


def one_actor(actor_id: str = "x") -> wire.CreateActors:
    spec = wire.ActorSpec(actor_id, "", "rank 0", "Worker", 0, {"CPU": 1.0}, 0)
    return wire.CreateActors("job", f"g-{actor_id}", 0, (spec,), ({"CPU": 1.0},), "PACK", False, (), {}, "")


async def keep_alive(daemon: Client) -> None:
    with contextlib.suppress(ConnectionLostError):
        while True:
            daemon.peer.notify(wire.Heartbeat(1))
            await asyncio.sleep(0.02)


@asynccontextmanager
async def beating(daemon: Client) -> AsyncIterator[None]:
    task = asyncio.create_task(keep_alive(daemon), name="heartbeats")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_an_actor_lives_and_dies_over_real_sockets(short_tmp: Path, kind: str) -> None:
    async with head("127.0.0.1:0" if kind == "tcp" else f"unix:{short_tmp}/head") as server:
        daemon, driver = await join(server), await drive(server)
        assert daemon.peer.hello.role == "head"
        assert await driver.call(one_actor(), [b"class", bytes(3_000_000)]) == wire.Ok()
        start = await daemon.next(wire.StartActors)
        assert [bytes(buffer)[:5] for buffer in start.buffers] == [b"class", bytes(5)]
        assert start.epoch == (await driver.next(wire.GroupChanged)).epoch > 0
        daemon.peer.notify(wire.ActorsReady("g-x", (wire.ActorStarted("x", 1, 7, "/u", "/l"),)))
        assert (await driver.next(wire.ActorsChanged)).message.actors[0].state == "STARTING"
        assert (await driver.next(wire.ActorsChanged)).message.actors[0].state == "READY"
        assert await daemon.call(wire.ActorExited("x", 1, wire.ExitEvidence("signal", signal="SIGKILL"))) == wire.Ok()
        assert (await driver.next(wire.ActorsChanged)).message.actors[0].evidence.signal == "SIGKILL"
        closing = driver.peer.request(wire.CloseJob("job"))
        await daemon.next(wire.SweepJob)
        daemon.peer.notify(wire.JobSwept("job"))
        assert (await closing).message == wire.Ok()


@pytest.mark.asyncio
async def test_requests_that_fail_raise_their_class_at_the_caller() -> None:
    async with head() as server:
        driver = await Client().dial(server.addresses[0], "driver")
        with pytest.raises(NotInitializedError, match="OpenJob comes first"):
            await driver.call(one_actor())
        daemon = await Client().dial(server.addresses[0], "worker")
        with pytest.raises(FencedError):
            await daemon.call(wire.RegisterNode(facts(), 5, ()))


@pytest.mark.asyncio
async def test_N1_a_daemon_that_beats_lives_and_a_silent_one_dies() -> None:
    async with head() as server:
        daemon, driver = await join(server), await drive(server)
        await driver.call(one_actor())
        async with beating(daemon):
            for _ in range(30):  # 0.6 s of them, longer than a silent one stays ALIVE
                await daemon.next(wire.HeartbeatAck)
            assert (await driver.call(wire.ListNodes())).nodes[0].state == "ALIVE"
        assert "silent for" in (await daemon.next(wire.Fence)).message.reason
        statuses = [(await driver.next(wire.ActorsChanged)).message.actors[0] for _ in range(2)]
        assert statuses[-1].evidence.kind == "node dead"


@pytest.mark.asyncio
async def test_a_closed_connection_of_a_daemon_is_a_dead_node_after_the_grace() -> None:
    async with head() as server:
        daemon, driver = await join(server), await drive(server)
        await driver.call(one_actor())
        assert (await driver.next(wire.ActorsChanged)).message.actors[0].state == "STARTING"
        daemon.peer.close()
        assert (await driver.next(wire.ActorsChanged)).message.actors[0].evidence.kind == "node dead"


@pytest.mark.asyncio
async def test_the_end_of_a_driver_process_of_this_host_closes_its_job() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=subprocess.PIPE)
    async with head() as server:
        daemon = await join(server)
        driver = await drive(server, pid=process.pid)
        async with beating(daemon):
            await driver.call(one_actor())
            process.kill()
            await process.wait()
            assert (await daemon.next(wire.StopActors)).message.kind == "owner gone"


@pytest.mark.asyncio
async def test_a_driver_that_is_gone_when_it_would_be_watched_is_gone() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    await process.wait()
    async with head() as server:
        driver = await drive(server, pid=process.pid)
        with pytest.raises(NotInitializedError):
            await driver.call(one_actor())


@pytest.mark.asyncio
async def test_without_pidfds_the_connection_of_a_driver_has_to_do(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def refuse(pid: int) -> int:
        raise OSError("Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    async with head() as server:
        daemon = await join(server)
        async with beating(daemon):
            driver = await drive(server, pid=os.getpid())
            await driver.call(one_actor())
            driver.peer.close()
            assert (await daemon.next(wire.StopActors)).message.kind == "owner gone"
    assert "can't be watched: Function not implemented" in caplog.text


@pytest.mark.asyncio
async def test_close_ends_jobs_first_and_says_goodbye_to_all() -> None:
    server = HeadServer(addresses=["127.0.0.1:0"], token=TOKEN, embedded=False, limits=LIMITS)
    await server.start()
    daemon, driver = await join(server), await drive(server)
    await driver.call(one_actor())
    running = asyncio.create_task(server.run_until_closed())
    async with beating(daemon):
        closing = asyncio.create_task(server.close())
        await daemon.next(wire.StopActors)
        daemon.peer.notify(wire.ActorExited("x", 1, wire.ExitEvidence("killed")))
        await daemon.next(wire.SweepJob)
        assert not closing.done()
        daemon.peer.notify(wire.JobSwept("job"))
        async with asyncio.timeout(WAIT_S):
            await closing
            await running
            assert "the head is shutting down" in str(await daemon.lost)
            assert "the head is shutting down" in str(await driver.lost)
    with pytest.raises(ConnectError):
        await Client().dial(server.addresses[0], "driver")
    await server.close()  # again is no error


@pytest.mark.asyncio
async def test_close_does_not_wait_for_a_daemon_that_does_not_answer() -> None:
    limits = Limits(heartbeat_s=0.05, job_close_s=0.2)
    async with head(limits=limits) as server:
        await join(server)
        driver = await drive(server)
        await driver.call(one_actor())


@pytest.mark.asyncio
async def test_a_server_that_was_never_started_can_be_closed() -> None:
    server = HeadServer(addresses=["127.0.0.1:0"], token=TOKEN, embedded=False)
    await server.close()
    await server.run_until_closed()


@pytest.mark.asyncio
async def test_a_port_in_use_is_an_error_with_its_number() -> None:
    async with head() as server:
        second = HeadServer(addresses=server.addresses, token=TOKEN, embedded=False)
        with pytest.raises(ConnectError) as caught:
            await second.start()
        assert caught.value.errno


@pytest.mark.asyncio
async def test_a_wrong_token_gets_no_connection() -> None:
    async with head() as server:
        with pytest.raises(AuthenticationError):
            await connect(server.addresses[0], token=bytes(32), identity=Identity("driver", "evil"), on_message=lambda peer, received: None,
                          on_close=lambda peer, error: None)


@pytest.mark.asyncio
async def test_log_lines_for_a_slow_driver_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with head() as server:
        daemon, driver = await join(server), await drive(server)
        [slow] = [peer for peer in server._peers.values() if peer.hello.role == "driver"]
        full = True
        monkeypatch.setattr(type(slow), "queued_bytes", property(lambda peer: LIMITS.send_queue_bytes + 1 if full and peer is slow else 0))
        lines = wire.LogLines("job", "x", "rank 0", "a", ("1", "2", "3"), dropped=4)
        assert await daemon.call(lines) == wire.Ok()
        full = False
        daemon.peer.notify(lines)
        daemon.peer.notify(wire.LogEnd("job", "x"))
        assert (await driver.next(wire.LogLines)).message.dropped == 4 + 7
        await driver.next(wire.LogEnd)
        assert not [r for r in driver.received if isinstance(r.message, wire.LogLines)]
        assert not server._dropped


@pytest.mark.asyncio
async def test_a_message_that_can_not_be_sent_ends_its_connection_alone(caplog: Any) -> None:
    limits = Limits(heartbeat_s=0.05, reconnect_grace_s=0.2, job_close_s=5.0, max_control_bytes=20_000)
    async with head(limits=limits) as server:
        daemon = await join(server)
        driver = await Client().dial(server.addresses[0], "driver")
        await driver.call(wire.OpenJob("job", "elsewhere", 1, "/", ("x" * 15_000,), "", True))
        await driver.call(wire.CreateActors("job", "g", 0, tuple(
            wire.ActorSpec(f"{i}", "", "r" * 1000, "W", i, {}, 0) for i in range(6)), ({},), "PACK", False, (), {}, ""))
        async with asyncio.timeout(WAIT_S):
            assert "could not be sent" in str(await daemon.lost)
        assert (await driver.next(wire.GroupChanged)).message.state == "RESERVED"
    assert "StartActors to worker" in caplog.text


@pytest.mark.asyncio
async def test_the_brains_log_is_the_loggers(caplog: Any) -> None:
    with caplog.at_level(logging.INFO, logger="runtime.head.server"):
        async with head() as server:
            await join(server)
    assert "node a (127.0.0.1, incarnation 1) joined" in caplog.text


def test_loopback_is_recognised() -> None:
    for address in ("127.0.0.1:1", "127.9.9.9:1", "localhost:1", "[::1]:1", "unix:/run/x"):
        assert is_loopback(address)
    for address in ("0.0.0.0:1", "[::]:1", "10.0.0.1:1", "example.org:1"):
        assert not is_loopback(address)


def test_the_head_never_loads_what_unpickles_user_bytes() -> None:
    code = "import sys, runtime.head.server, runtime.head.__main__; print(sorted({'cloudpickle', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


