"""The worker daemon as a real process under a fake head: registration, heartbeats, fencing, loss of the head."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import FencedError, NameTakenError
from runtime.wire.messages import (
    ActorExited,
    ActorsReady,
    Fence,
    Heartbeat,
    JobSwept,
    NodeAccepted,
    RegisterNode,
    SweepJob,
)

pytestmark = pytest.mark.process


def _sleeper() -> type:
    class Sleeper:
        def pid(self) -> int:
            import os

            return os.getpid()

        def hold_gil(self, seconds: float) -> None:
            import ctypes

            ctypes.PyDLL(None).usleep(int(seconds * 1e6))

        def leave(self, code: int) -> None:
            import os

            os._exit(code)

    return Sleeper


@pytest.mark.asyncio
async def test_it_registers_with_facts_about_this_host(worker_cluster: Callable[..., Any]) -> None:
    async with worker_cluster("--name", "alpha", "--labels", "zone=a", "--resources", '{"disk": 2}', "--num-gpus", "2") as cluster:
        facts = cluster.head.facts
        assert (facts.name, facts.labels, facts.pid) == ("alpha", {"zone": "a"}, cluster.process.pid)
        assert facts.resources == {"CPU": 4.0, "GPU": 2.0, "disk": 2.0}
        assert facts.gpus == ("simulated-0", "simulated-1")
        assert (facts.host, facts.interface) == ("127.0.0.1", "lo")
        assert facts.port > 0


@pytest.mark.asyncio
async def test_a_head_on_a_socket_file_needs_no_port(worker_cluster: Callable[..., Any], short_tmp: Path) -> None:
    async with worker_cluster(head_address=f"unix:{short_tmp}/head.sock") as cluster:
        assert (cluster.head.facts.host, cluster.head.facts.port, cluster.head.facts.interface) == ("127.0.0.1", 0, "lo")
        (actor,) = await cluster.start(_sleeper())
        assert await (await cluster.connect(actor)).call("pid") == actor.pid


@pytest.mark.asyncio
async def test_N1_heartbeats_go_on_while_an_actor_holds_the_GIL(worker_cluster: Callable[..., Any]) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_sleeper())
        caller = await cluster.connect(actor)
        holding = asyncio.ensure_future(caller.call("hold_gil", 1.5))
        cluster.head.received.clear()
        for _ in range(3):
            await cluster.head.expect(Heartbeat)
        assert not holding.done()
        (other,) = await cluster.start(_sleeper())  # and the daemon starts others meanwhile
        assert not holding.done()
        await holding
        assert other.pid != actor.pid


@pytest.mark.asyncio
async def test_F1_a_fenced_daemon_kills_its_actors_and_registers_as_a_new_node(worker_cluster: Callable[..., Any]) -> None:
    async with worker_cluster() as cluster:
        await cluster.start(_sleeper(), count=2)
        first = cluster.head.registrations[-1]
        cluster.head.send(Fence("declared dead: silent"))
        again = await cluster.head.expect(RegisterNode)
        assert again.incarnation == 0
        assert again.running == ()
        assert again.facts.node_id != first.facts.node_id
        assert cluster.descendants() == []
        assert not any(isinstance(message, ActorExited) for message in cluster.head.received)
        await cluster.start(_sleeper())


@pytest.mark.asyncio
async def test_F1_orders_of_another_head_epoch_are_ignored(worker_cluster: Callable[..., Any]) -> None:
    async with worker_cluster() as cluster:
        cluster.head.peer.epoch = 3  # an earlier head's
        stale = cluster.order(_sleeper())
        cluster.head.peer.epoch = 7
        await cluster.start(_sleeper())
        assert not any(isinstance(m, ActorsReady) and m.group_id == stale.group_id for m in cluster.head.received)


@pytest.mark.asyncio
async def test_after_a_lost_connection_it_comes_back_with_its_incarnation_and_actors(worker_cluster: Callable[..., Any]) -> None:
    async with worker_cluster() as cluster:
        actor, dying = await cluster.start(_sleeper(), count=2)
        caller = await cluster.connect(dying)
        cluster.head.peer._transport.abort()
        with pytest.raises(Exception, match="connection"):
            await caller.call("leave", 3)  # while there is no head: its evidence waits
        again = await cluster.head.expect(RegisterNode)
        assert again.incarnation == 1
        assert set(again.running) == {actor.actor_id, dying.actor_id}
        exited = await cluster.head.expect(ActorExited)
        assert (exited.actor_id, exited.evidence.code) == (dying.actor_id, 3)
        assert await (await cluster.connect(actor)).call("pid") == actor.pid


@pytest.mark.asyncio
async def test_what_the_head_does_not_want_any_more_is_stopped(worker_cluster: Callable[..., Any]) -> None:
    async with worker_cluster() as cluster:
        kept, unwanted = await cluster.start(_sleeper(), count=2)
        cluster.head.answer_register = lambda message: NodeAccepted(message.incarnation, 7, (unwanted.actor_id,))
        cluster.head.peer._transport.abort()
        exited = await cluster.head.expect(ActorExited)
        assert (exited.actor_id, exited.evidence.wanted) == (unwanted.actor_id, True)
        assert await (await cluster.connect(kept)).call("pid") == kept.pid


@pytest.mark.asyncio
async def test_F1_an_incarnation_that_is_refused_becomes_a_new_node(worker_cluster: Callable[..., Any]) -> None:
    async with worker_cluster() as cluster:
        await cluster.start(_sleeper())
        cluster.head.answer_register = lambda message: FencedError("declared dead") if message.incarnation else None
        cluster.head.peer._transport.abort()
        again = await cluster.head.expect(RegisterNode)
        assert (again.incarnation, again.running) == (0, ())
        assert cluster.descendants() == []


@pytest.mark.asyncio
async def test_a_head_that_does_not_answer_is_dialled_afresh(worker_cluster: Callable[..., Any]) -> None:
    async with worker_cluster(limits={"heartbeat_s": 0.05, "suspect_s": 0.5}) as cluster:
        cluster.head.answers_heartbeats = False
        again = await cluster.head.expect(RegisterNode)
        assert again.incarnation == 1
        cluster.head.answers_heartbeats = True
        await cluster.start(_sleeper())


@pytest.mark.asyncio
async def test_a_connection_that_hangs_is_not_waited_for_before_the_head_is_dialled_afresh(worker_cluster: Callable[..., Any]) -> None:
    async with worker_cluster(limits={"heartbeat_s": 0.05, "suspect_s": 0.5, "handshake_s": 30.0}) as cluster:
        hanging = cluster.head.peer
        hanging._transport.pause_reading()  # as behind a pulled cable: neither an answer nor an end
        again = await cluster.head.expect(RegisterNode)
        assert again.incarnation == 1
        await cluster.start(_sleeper())
        hanging._transport.resume_reading()
        await hanging.wait_closed()


@pytest.mark.asyncio
async def test_without_a_head_it_ends_after_the_grace(worker_cluster: Callable[..., Any]) -> None:
    async with worker_cluster(limits={"head_loss_grace_s": 1.0}) as cluster:
        (actor,) = await cluster.start(_sleeper())
        await cluster.head.close()
        assert await cluster.wait_ended() == 1
        assert "the head is gone" in cluster.output
        assert not Path(f"/proc/{actor.pid}").exists()


@pytest.mark.asyncio
async def test_a_name_of_its_own_choice_gives_way(worker_cluster: Callable[..., Any]) -> None:
    def refuse_first(head: Any) -> None:
        head.answer_register = lambda message: None if len(head.registrations) > 1 else NameTakenError("taken")

    async with worker_cluster(prepare=refuse_first) as cluster:
        first, second = cluster.head.registrations
        assert second.facts.name == f"{first.facts.name}-{cluster.process.pid}"


@pytest.mark.asyncio
async def test_N2_actors_of_a_killed_daemon_are_gone(worker_cluster: Callable[..., Any]) -> None:
    async with worker_cluster() as cluster:
        actors = await cluster.start(_sleeper(), count=3)
        callers = [await cluster.connect(actor) for actor in actors]
        holding = asyncio.ensure_future(callers[0].call("hold_gil", 30.0))  # it could not react to anything
        await asyncio.sleep(0.05)
        cluster.process.kill()
        assert await cluster.wait_ended() == -signal.SIGKILL
        started = time.monotonic()
        while cluster.descendants():
            await asyncio.sleep(0.01)
            assert time.monotonic() - started < 5
        with pytest.raises(Exception, match="connection"):
            await holding


@pytest.mark.asyncio
async def test_L3_nothing_of_a_swept_job_is_left(worker_cluster: Callable[..., Any]) -> None:
    async with worker_cluster() as cluster:
        await cluster.start(_sleeper(), count=3)
        cluster.head.send(SweepJob("another job"))
        await cluster.head.expect(JobSwept, lambda message: message.job_id == "another job")
        assert len(cluster.descendants()) == 3
        cluster.head.send(SweepJob(cluster.job_id))
        await cluster.head.expect(JobSwept, lambda message: message.job_id == cluster.job_id)
        assert cluster.descendants() == []
        assert list((cluster.tmp / "run").glob("*/*.sock")) == []
        assert sum(isinstance(message, ActorExited) for message in cluster.head.received) == 3


@pytest.mark.asyncio
async def test_a_job_is_swept_while_its_actors_are_being_started(worker_cluster: Callable[..., Any]) -> None:
    async with worker_cluster() as cluster:
        order = cluster.order(_sleeper(), count=2)
        cluster.head.send(SweepJob(cluster.job_id))
        await cluster.head.expect(JobSwept)
        exited = {message.actor_id for message in cluster.head.received if isinstance(message, ActorExited)}
        assert exited == {spec.actor_id for spec in order.actors}
        assert cluster.descendants() == []


@pytest.mark.asyncio
async def test_ctrl_c_ends_it_with_130(worker_cluster: Callable[..., Any]) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_sleeper())
        cluster.process.send_signal(signal.SIGINT)
        assert await cluster.wait_ended() == 130
        exited = await cluster.head.expect(ActorExited)
        assert (exited.actor_id, exited.evidence.wanted) == (actor.actor_id, True)


@pytest.mark.parametrize("arguments", [
    ["--head", "nowhere"], ["--head", "h:1", "--num-cpus", "-1"], ["--head", "h:1", "--resources", "["],
    ["--head", "h:1", "--resources", "[]"],
    ["--head", "h:1", "--resources", '{"a": NaN}'], ["--head", "h:1", "--resources", '{"CPU": 1}'], ["--head", "h:1", "--name", "../x"],
    ["--head", "h:1", "--labels", "x"], [], ["--head", "h:1", "--bogus"],
])
def test_bad_arguments_exit_with_2_and_no_traceback(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "runtime.worker", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "error:" in done.stderr


def test_a_missing_token_is_explained(short_tmp: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "runtime.worker", "--head", "127.0.0.1:1", "--token-file", str(short_tmp / "none")],
                          capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "No token" in done.stderr
    assert "Traceback" not in done.stderr
