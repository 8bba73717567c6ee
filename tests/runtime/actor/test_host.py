"""The process that runs user code: calls, their errors and order, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.client import serialization
from runtime.errors import FencedError
from runtime.wire.faults import Faults
from runtime.wire.messages import ActorExited, Call, Result, Subscribe

pytestmark = pytest.mark.process

AnyCluster = Callable[..., Any]


def _subject() -> type:
    class Odd(Exception):
        def __init__(self, code: int, *, note: str) -> None:
            super().__init__(f"odd {code}")
            self.code, self.note = code, note

        def __str__(self) -> str:
            raise RuntimeError("not even this")

    class Subject:
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def echo(self, value: Any) -> Any:
            return value

        def note(self, value: Any) -> None:
            self.seen.append(value)

        def notes(self) -> list[Any]:
            return self.seen

        def raise_value_error(self) -> None:
            try:
                {}["missing"]
            except KeyError as exc:
                raise ValueError("bad \ud800 value") from exc

        def raise_odd(self) -> None:
            raise Odd(3, note="keep")

        def raise_locked(self) -> None:
            import threading

            raise ValueError("locked", threading.Lock())

        def interrupt(self) -> None:
            raise KeyboardInterrupt

        def big(self, num_bytes: int) -> bytes:
            return b"x" * num_bytes

        def lock(self) -> Any:
            import threading

            return threading.Lock()

        def wait_for(self, path: str) -> None:
            import os
            import time

            while not os.path.exists(path):
                time.sleep(0.005)

        def thread(self) -> tuple[bool, list[str]]:
            import threading

            return threading.current_thread() is threading.main_thread(), sorted(thread.name for thread in threading.enumerate())

        def exit_with_hooks(self, path: str) -> None:
            import atexit
            import sys

            def hook() -> None:
                with open(path, "w") as file:
                    file.write("ran")

            atexit.register(hook)
            sys.stdout.write("unfinished line")
            sys.exit(5)

        def who(self) -> dict[str, Any]:
            import dataclasses

            import runtime
            from runtime.actor import context

            found = context.current_actor()
            assert found is not None
            parameters = context.client_parameters()
            assert parameters is not None
            return {**dataclasses.asdict(found), "runtime_context": runtime.get_runtime_context().actor_id, "job": parameters.job_id,
                    "head": parameters.head_address, "is_running": parameters.loop.is_running()}

        def fork_and_ask(self) -> tuple[str, str, str, bool]:
            """What a forked child sees: facts, errors, and which of our sockets it still has."""
            import os
            import pickle

            from runtime.actor import channel, context

            def attempt(ask: Callable[[], Any]) -> str:
                try:
                    return str(ask())
                except Exception as exc:
                    return f"{type(exc).__name__}: {exc}"

            named = channel.channel("x")
            read_fd, write_fd = os.pipe()
            if os.fork() == 0:
                sockets = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                           if os.path.exists(f"/proc/self/fd/{fd}") and os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")]
                answers = (attempt(lambda: context.current_actor().label), attempt(lambda: named.send(1)),
                           attempt(context.client_parameters), len(sockets) == 0)
                os.write(write_fd, pickle.dumps(answers))
                os._exit(0)
            os.close(write_fd)
            os.wait()
            with open(read_fd, "rb") as pipe:
                return pickle.loads(pipe.read())

        def pool(self) -> list[int]:
            import multiprocessing

            with multiprocessing.get_context("fork").Pool(2) as pool:
                return pool.map(abs, [-1, -2, -3])

    return Subject


@pytest.mark.asyncio
async def test_a_call_returns_its_value_of_any_size(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_subject())
        for by_tcp in (False, True):
            caller = await cluster.connect(actor, by_tcp=by_tcp)
            assert await caller.call("echo", {"a": [1, None, "ü"]}) == {"a": [1, None, "ü"]}
            value = b"y" * (20 << 20)
            assert await caller.call("echo", value) == value
            assert len(await caller.call("big", 3 << 20)) == 3 << 20


@pytest.mark.asyncio
async def test_methods_run_on_the_main_thread_beside_one_io_thread(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_subject())
        assert await (await cluster.connect(actor)).call("thread") == (True, ["MainThread", "headway-io"])


@pytest.mark.asyncio
async def test_an_exception_travels_with_the_users_traceback_only(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_subject())
        caller = await cluster.connect(actor)
        failure, buffers = await caller.call("raise_value_error")
        assert (failure.class_name, failure.text) == ("ValueError", "bad \\ud800 value")
        assert "KeyError: 'missing'" in failure.traceback
        assert "in raise_value_error" in failure.traceback
        assert "_run_call" not in failure.traceback
        assert isinstance(serialization.loads_error(buffers), ValueError)


@pytest.mark.asyncio
async def test_an_exception_that_is_hard_to_pickle_or_print_is_still_reported(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_subject())
        caller = await cluster.connect(actor)
        failure, buffers = await caller.call("raise_odd")
        assert failure.text == "<its __str__() failed>"
        failure, buffers = await caller.call("raise_locked")
        assert failure.class_name == "ValueError"
        assert "raise_locked" in failure.traceback
        failure, buffers = await caller.call("interrupt")
        assert failure.class_name == "KeyboardInterrupt"
        failure, buffers = await caller.call("lock")
        assert failure.class_name == "SerializationError"
        assert "the result of Subject.lock" in failure.text
        failure, buffers = await caller.call("no_such_method")
        assert failure.class_name == "AttributeError"
        assert await caller.call("echo", 1) == 1


@pytest.mark.asyncio
async def test_A1_a_call_for_another_incarnation_is_fenced(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_subject(), incarnation=4)
        for wrong in (3, 5, 0):
            caller = await cluster.connect(actor, incarnation=wrong)
            with pytest.raises(FencedError, match=f"incarnation {wrong} of this actor, which is 4"):
                await caller.call("note", wrong)
        assert await (await cluster.connect(actor)).call("notes") == []


@pytest.mark.asyncio
async def test_A3_calls_of_one_caller_run_in_the_order_sent(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_subject())
        caller = await cluster.connect(actor)
        sizes = [10, 300_000, 1, 2_000_000, 5]
        values = [bytes([i % 256]) * sizes[i % 5] for i in range(40)]
        await asyncio.gather(*(caller.call("note", value) for value in values))
        assert await caller.call("notes") == values


@pytest.mark.asyncio
async def test_A3_a_call_that_arrives_twice_runs_once(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_subject())
        caller = await cluster.connect(actor)
        faults = Faults(caller.peer)
        faults.duplicate(Call)
        for i in range(5):
            await caller.call("note", i)
        faults.heal()
        assert await caller.call("notes") == [0, 1, 2, 3, 4]


@pytest.mark.asyncio
async def test_a_cancelled_call_that_waits_is_not_started(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_subject())
        caller = await cluster.connect(actor)
        gate = cluster.tmp / "gate"
        busy = asyncio.ensure_future(caller.call("wait_for", str(gate)))
        await asyncio.sleep(0)
        waiting = caller.peer.request(Call("note"), serialization.dumps_call((1,), {}, what="note"))
        last = asyncio.ensure_future(caller.call("notes"))
        await asyncio.sleep(0)
        caller.peer.cancel(waiting)
        await caller.peer.call(Subscribe(1, "x", 1), timeout_s=20)  # answered beside the call that runs: the cancellation has arrived
        gate.touch()
        await busy
        assert await last == []


@pytest.mark.asyncio
async def test_results_given_before_the_end_arrive_and_hooks_run(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_subject())
        caller = await cluster.connect(actor)
        calls = [caller.peer.request(Call("big"), serialization.dumps_call((1 << 20,), {}, what="big")) for _ in range(8)]
        leaving = caller.peer.request(Call("exit_with_hooks"), serialization.dumps_call((str(cluster.tmp / "hook"),), {}, what="x"))
        results = await asyncio.gather(*calls)
        assert all(isinstance(result.message, Result) for result in results)
        with pytest.raises(Exception, match="connection|closed"):
            await leaving
        evidence = (await cluster.head.expect(ActorExited)).evidence
        assert (evidence.kind, evidence.code) == ("exit code", 5)
        assert evidence.log_tail == ("unfinished line",)
        assert (cluster.tmp / "hook").read_text() == "ran"


@pytest.mark.asyncio
async def test_P3_an_actor_waits_for_a_caller_that_does_not_read(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_subject())
        caller = await cluster.connect(actor)
        listener = caller.peer.on_message
        caller.peer.on_message = None  # stop reading
        calls = [caller.peer.request(Call("big"), serialization.dumps_call((4 << 20,), {}, what="big")) for _ in range(60)]
        await asyncio.sleep(1.0)
        resident = int(Path(f"/proc/{actor.pid}/statm").read_text().split()[1]) * 4096
        assert resident < 150 << 20  # of 240 MiB that were asked for
        caller.peer.on_message = listener
        results = await asyncio.gather(*calls)
        assert all(isinstance(result.message, Result) for result in results)


@pytest.mark.asyncio
async def test_an_actor_knows_who_it_is(worker_cluster: AnyCluster) -> None:
    async with worker_cluster("--num-gpus", "2") as cluster:
        actors = await cluster.start(_subject(), count=2, label="rank", resources={"CPU": 1.0}, gpu_ids=(1,), visible_gpu_ids=(0, 1))
        who = await (await cluster.connect(actors[1])).call("who")
        assert (who["actor_id"], who["index"], who["label"], who["incarnation"]) == (actors[1].actor_id, 1, "rank 1", 1)
        assert (who["job_id"], who["job"], who["head"]) == (cluster.job_id, cluster.job_id, cluster.head.address)
        assert (who["gpu_ids"], who["visible_gpu_ids"], who["resources"]) == ((1,), (0, 1), {"CPU": 1.0})
        assert who["log_path"] == actors[1].log_path
        assert who["node"]["host"] == "127.0.0.1"
        assert who["runtime_context"] == actors[1].actor_id
        assert who["is_running"] is True


@pytest.mark.asyncio
async def test_forked_children_have_no_connections_and_are_told_so(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_subject())
        for by_tcp in (False, True):
            caller = await cluster.connect(actor, by_tcp=by_tcp)
            label, sending, parameters, no_sockets = await caller.call("fork_and_ask")
            assert label == "Subject 0"
            assert sending.startswith("HeadwayError: channel 'x' was used in process")
            assert parameters.startswith("HeadwayError: the client was used in process")
            assert no_sockets
            assert await caller.call("pool") == [1, 2, 3]
            assert await caller.call("echo", 2) == 2
