"""What a user does with ``import runtime``, on an embedded cluster of real processes."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import cloudpickle
import numpy as np
import pytest

import runtime
from runtime.errors import (
    ActorDiedError,
    ActorStartError,
    ChannelClosedError,
    InfeasibleError,
    NameTakenError,
    PlacementTimeoutError,
    TaskError,
)

pytestmark = pytest.mark.process

WAIT_S = 60


@pytest.fixture(autouse=True, scope="module")
def by_value() -> Iterator[None]:
    """Actors can't import test modules."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture(autouse=True)
def embedded() -> Iterator[None]:
    runtime.init(num_cpus=4, num_gpus=2, resources={"disk": 1})
    yield
    runtime.shutdown()


def get(refs: Any) -> Any:
    return runtime.get(refs, timeout=WAIT_S)


class PlainCounter:
    def __init__(self, start: int = 0, fail: bool = False) -> None:
        self.n = start
        if fail:
            raise ValueError("cannot start")

    def add(self, k: int = 1) -> int:
        self.n += k
        return self.n

    def echo(self, value: Any) -> Any:
        return value

    def fail(self, key: str) -> None:
        raise KeyError(key)

    def who(self) -> tuple[str, int, tuple[int, ...], str]:
        context = runtime.get_runtime_context()
        return context.label, context.index, context.gpu_ids, os.environ.get("CUDA_VISIBLE_DEVICES", "unset")

    def pid(self) -> int:
        return os.getpid()

    def sleep(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def exit(self, code: int) -> None:
        sys.exit(code)

    def die(self) -> None:
        print("last words", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    def call(self, other: Any, method: str, *args: Any) -> Any:
        return runtime.get(getattr(other, method).remote(*args))

    def make(self) -> int:
        self.child = Counter.remote(100)
        return int(runtime.get(self.child.pid.remote()))

    def find(self, name: str) -> int:
        return int(runtime.get(runtime.get_actor(name).add.remote()))

    def send(self, name: str, count: int) -> int:
        channel = runtime.channel(name)
        for i in range(count):
            channel.send({"i": i})
        channel.close()
        return count

    def send_and_die(self, name: str, count: int) -> None:
        channel = runtime.channel(name)
        for i in range(count):
            channel.send(i)
        os.kill(os.getpid(), signal.SIGKILL)

    def double(self, name: str) -> str:
        channel = runtime.channel(name)
        try:
            while True:
                channel.send(2 * channel.recv())
        except ChannelClosedError:
            return "closed"

    def until_asked(self) -> str:
        runtime.channel("started").send(True)
        while not runtime.stop_requested():
            time.sleep(0.01)
        print("asked to stop", flush=True)
        return "stopped"


Counter = runtime.remote(PlainCounter)


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < deadline, f"{pid} is still there"
        time.sleep(0.01)


def test_an_actor_keeps_state_and_takes_arguments() -> None:
    counter = Counter.remote(5)
    assert get(counter.add.remote()) == 6
    assert get(counter.add.remote(k=4)) == 10
    assert get([counter.add.remote() for _ in range(100)]) == list(range(11, 111))
    assert get(Counter.options(num_cpus=1).remote(start=1).add.remote(1)) == 2


def test_arrays_travel_both_ways_and_are_the_receivers_own() -> None:
    counter = Counter.remote()
    array = np.arange(1_000_000, dtype=np.float32)
    back = get(counter.echo.remote({"a": array, "n": 3}))
    assert (back["a"] == array).all()
    back["a"][0] = 7
    assert array[0] == 0


def test_errors_are_the_users_with_the_remote_traceback_and_the_actor_lives_on() -> None:
    counter = Counter.remote()
    with pytest.raises(KeyError) as info:
        get(counter.fail.remote("nope"))
    assert isinstance(info.value, TaskError)
    assert "raise KeyError(key)" in str(info.value)
    assert "PlainCounter.fail on" in str(info.value)
    assert "runtime/actor" not in str(info.value)
    assert isinstance(info.value.__cause__, KeyError)
    assert get(counter.add.remote()) == 1


def test_a_constructor_that_raises() -> None:
    counter = Counter.remote(fail=True)
    with pytest.raises(ActorStartError, match="ValueError: cannot start") as info:
        get(counter.add.remote())
    assert isinstance(info.value.__cause__, ValueError)
    assert info.value.evidence.kind == "start error"


def test_names() -> None:
    Counter.options(name="bob").remote(1)
    assert get(runtime.get_actor("bob").add.remote()) == 2
    with pytest.raises(NameTakenError, match="bob"):
        Counter.options(name="bob").remote()
    other = Counter.options(name="bob", namespace="elsewhere").remote(10)
    assert get(runtime.get_actor("bob", namespace="elsewhere").add.remote()) == get(other.add.remote(0)) == 11
    with pytest.raises(ValueError, match="alice"):
        runtime.get_actor("alice")
    bob = runtime.get_actor("bob")
    runtime.kill(bob)
    with pytest.raises(ActorDiedError):
        get(bob.add.remote())
    with pytest.raises(ValueError, match="bob"):
        runtime.get_actor("bob")
    assert get(Counter.options(name="bob").remote(7).add.remote(0)) == 7


def test_kill_ends_pending_calls_with_the_reason() -> None:
    counter = Counter.remote()
    pid = get(counter.pid.remote())
    busy, queued = counter.sleep.remote(WAIT_S), counter.add.remote()
    runtime.kill(counter)
    for ref in (busy, queued):
        with pytest.raises(ActorDiedError, match=r"runtime.kill\(\) was called"):
            get(ref)
    wait_gone(pid)
    runtime.kill(counter)


def test_exit_codes_and_signals_are_told_with_the_last_words() -> None:
    counter = Counter.remote()
    with pytest.raises(ActorDiedError, match="exited with code 3") as info:
        get(counter.exit.remote(3))
    assert info.value.evidence.code == 3
    with pytest.raises(ActorDiedError, match="killed by SIGKILL") as info:
        get(Counter.remote().die.remote())
    assert info.value.evidence.signal == "SIGKILL"
    assert "last words" in info.value.evidence.log_tail
    assert "    last words" in str(info.value)


def test_wait() -> None:
    a, b = Counter.remote(), Counter.remote()
    get([a.add.remote(), b.add.remote()])
    slow, fast = a.sleep.remote(WAIT_S), b.sleep.remote(0)
    assert runtime.wait([slow, fast], timeout=WAIT_S) == ([fast], [slow])
    assert runtime.wait([slow], timeout=0.01) == ([], [slow])


def test_nodes_and_resources() -> None:
    (node,) = runtime.nodes()
    assert node["Alive"]
    assert node["Resources"] == {"CPU": 4.0, "GPU": 2.0, "disk": 1.0}
    assert runtime.cluster_resources() == {"CPU": 4.0, "GPU": 2.0, "disk": 1.0}
    counter = Counter.options(num_cpus=3, num_gpus=0.5).remote()
    get(counter.add.remote())
    assert runtime.available_resources() == {"CPU": 1.0, "GPU": 1.5, "disk": 1.0}
    assert runtime.get_runtime_context().node_id == node["NodeID"]


def test_gpus_are_assigned_and_hidden_from_others() -> None:
    with_gpu = [Counter.options(num_gpus=1, name=f"g{i}").remote() for i in range(2)]
    assert sorted(get([counter.who.remote() for counter in with_gpu])) == [("g0", 0, (0,), "0"), ("g1", 0, (1,), "1")]
    assert get(Counter.remote().who.remote())[2:] == ((), "")


def test_what_can_never_be_placed_is_an_error_at_once_and_what_is_busy_waits() -> None:
    with pytest.raises(InfeasibleError, match="CPU: 100"):
        get(Counter.options(num_cpus=100).remote().add.remote())
    first = Counter.options(num_cpus=4).remote()
    get(first.add.remote())
    waiting = Counter.options(num_cpus=2).remote(7).add.remote(0)
    assert runtime.wait([waiting], timeout=0.1)[0] == []
    runtime.kill(first)
    assert get(waiting) == 7


def test_placement_groups() -> None:
    group = runtime.placement_group([{"CPU": 2}, {"CPU": 1, "GPU": 1}])
    assert group.wait(WAIT_S)
    assert get(group.ready()) is group
    assert runtime.available_resources()["CPU"] == 1.0
    inside = Counter.options(num_cpus=1, num_gpus=1, placement_group=group, placement_group_bundle_index=1).remote()
    assert get(inside.who.remote())[2] == (0,)
    runtime.remove_placement_group(group)
    with pytest.raises(ActorDiedError):
        get(inside.add.remote())
    assert runtime.available_resources()["CPU"] == 4.0
    with pytest.raises(InfeasibleError):
        get(runtime.placement_group([{"CPU": 3}, {"CPU": 3}]).ready())


def test_handles_and_references_travel() -> None:
    a, b = Counter.remote(1), Counter.remote(10)
    assert get(a.call.remote(b, "add", 5)) == 15
    assert get(b.add.remote(a.add.remote(2))) == 18
    assert get(a.echo.remote([b]))[0] == b
    with pytest.raises(KeyError, match="deep") as info:
        get(a.call.remote(b, "fail", "deep"))
    assert str(info.value).count("Remote traceback") == 2


def test_actors_create_and_find_actors_and_take_them_along() -> None:
    parent = Counter.remote()
    Counter.options(name="shared").remote(41)
    assert get(parent.find.remote("shared")) == 42
    child_pid = get(parent.make.remote())
    assert os.path.exists(f"/proc/{child_pid}")
    runtime.kill(parent)
    wait_gone(child_pid)


def test_in_a_running_event_loop() -> None:
    async def main() -> Any:
        counter = Counter.remote()
        first = await counter.add.remote()
        rest = await asyncio.gather(*(counter.add.remote() for _ in range(3)))
        with pytest.raises(KeyError):
            await counter.fail.remote("x")
        return first, rest

    assert asyncio.run(main()) == (1, [2, 3, 4])


def test_from_several_threads() -> None:
    results: queue.SimpleQueue[int] = queue.SimpleQueue()

    def work() -> None:
        counter = Counter.remote()
        for _ in range(20):
            value = get(counter.add.remote())
        results.put(value)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results.get() for _ in range(4)] == [20] * 4


def test_output_goes_to_stderr_with_a_prefix(capfd: pytest.CaptureFixture[str]) -> None:
    gang = runtime.create_gang(PlainCounter, bundles=[{"CPU": 1}], labels=["rank 0"])
    gang.wait_ready(WAIT_S)
    with pytest.raises(ActorDiedError):
        get(gang.handles[0].die.remote())
    assert gang.wait_logs(WAIT_S)
    captured = capfd.readouterr()
    assert f"[rank 0 {runtime.nodes()[0]['NodeName']}] last words\n" in captured.err
    assert captured.out == ""


def test_a_channel_towards_us() -> None:
    counter = Counter.remote()
    subscription = counter.subscribe("reports", window=4)
    ref = counter.send.remote("reports", 50)
    assert [item["i"] for item in subscription] == list(range(50))
    assert get(ref) == 50


def test_a_channel_both_ways_and_async() -> None:
    counter = Counter.remote()
    subscription = counter.subscribe("numbers", window=8)
    ref = counter.double.remote("numbers")

    async def main() -> list[int]:
        received = []
        for i in range(20):
            await asyncio.to_thread(subscription.send, i)
            received.append(await anext(subscription))
        return received

    assert asyncio.run(main()) == [2 * i for i in range(20)]
    subscription.close()
    assert get(ref) == "closed"


def test_what_was_sent_before_a_death_is_delivered_before_the_end() -> None:
    counter = Counter.remote()
    seen: queue.SimpleQueue[Any] = queue.SimpleQueue()
    subscription = counter.subscribe("reports", window=100, on_item=seen.put, on_end=seen.put)
    ref = counter.send_and_die.remote("reports", 30)
    with pytest.raises(ActorDiedError):
        get(ref)
    received = [seen.get(timeout=WAIT_S) for _ in range(31)]
    assert received[:30] == list(range(30))
    assert isinstance(received[30], ActorDiedError)
    subscription.close()


def test_a_gang_from_start_to_stop() -> None:
    gang = runtime.create_gang(PlainCounter, (7,), bundles=[{"CPU": 1, "GPU": 1}] * 2, labels=["rank 0", "rank 1"], attempt=2)
    members = gang.wait_ready(WAIT_S)
    assert get([member.handle.who.remote() for member in members]) == [("rank 0", 0, (0,), "0,1"), ("rank 1", 1, (1,), "0,1")]
    assert [member.pid for member in members] == get([handle.pid.remote() for handle in gang.handles])
    assert all(os.path.exists(member.log_path) for member in members)
    assert members[0].host == "127.0.0.1"
    ends = gang.stop(reason="enough")
    assert [(end.kind, end.detail, end.wanted) for end in ends] == [("killed", "enough", True)] * 2
    assert not any(os.path.exists(f"/proc/{member.pid}") for member in members)
    assert runtime.available_resources() == runtime.cluster_resources()
    assert [end.kind for end in gang.stop()] == ["killed", "killed"]


def test_A4_a_gang_dies_together_and_the_first_cause_is_marked() -> None:
    gang = runtime.create_gang(PlainCounter, bundles=[{"CPU": 1}] * 3)
    deaths: queue.SimpleQueue[Any] = queue.SimpleQueue()
    gang.on_death(lambda index, evidence: deaths.put((index, evidence)))
    gang.wait_ready(WAIT_S)
    busy = gang.handles[0].sleep.remote(WAIT_S)
    gang.handles[2].die.remote()
    ends = dict(deaths.get(timeout=WAIT_S) for _ in range(3))
    assert (ends[2].signal, ends[2].first, ends[2].wanted) == ("SIGKILL", True, False)
    assert all(ends[i].wanted and not ends[i].first and "died first" in ends[i].detail for i in (0, 1))
    with pytest.raises(ActorDiedError, match="died first"):
        get(busy)


def test_a_gang_that_is_asked_to_stop_can_finish() -> None:
    gang = runtime.create_gang(PlainCounter, bundles=[{"CPU": 1}] * 2)
    members = gang.wait_ready(WAIT_S)
    seen = [handle.until_asked.remote().future() for handle in gang.handles]
    assert all(next(handle.subscribe("started")) for handle in gang.handles)
    ends = gang.stop(grace_s=WAIT_S)
    assert [future.result(WAIT_S) for future in seen] == ["stopped", "stopped"]
    assert all(end.wanted for end in ends)
    assert all("asked to stop" in end.log_tail for end in ends)
    assert not any(os.path.exists(f"/proc/{member.pid}") for member in members)


def test_a_gang_that_cannot_start_or_be_placed() -> None:
    with pytest.raises(ActorStartError, match="cannot start") as info:
        runtime.create_gang(PlainCounter, kwargs={"fail": True}, bundles=[{"CPU": 1}] * 2).wait_ready(WAIT_S)
    assert isinstance(info.value.__cause__, ValueError)
    with pytest.raises(InfeasibleError, match="disk"):
        runtime.create_gang(PlainCounter, bundles=[{"disk": 1}] * 2).wait_ready(WAIT_S)
    holder = Counter.options(resources={"disk": 1}).remote()
    get(holder.add.remote())
    gang = runtime.create_gang(PlainCounter, bundles=[{"disk": 1}], placement_timeout_s=0.2)
    reasons: list[str] = []
    gang.on_pending(reasons.append)
    with pytest.raises(PlacementTimeoutError, match="disk"):
        gang.wait_ready(WAIT_S)
    assert "disk" in reasons[0]


def test_functions_travel_as_bytes() -> None:
    factor = 3
    data = runtime.dumps_function(lambda x: factor * x, "f")
    assert runtime.loads(data)(2) == 6


def test_a_forked_child_has_no_session_and_does_no_harm() -> None:
    counter = Counter.remote()
    get(counter.add.remote())
    pid = os.fork()
    if pid == 0:
        try:
            runtime.nodes()
        except runtime.errors.NotInitializedError:
            os._exit(0 if not runtime.is_initialized() else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert get(counter.add.remote()) == 2


def test_every_public_name_is_there() -> None:
    for name in runtime.__all__:
        assert getattr(runtime, name) is not None
    assert set(runtime.__all__) <= set(dir(runtime))
    with pytest.raises(AttributeError, match="'nope'"):
        runtime.nope  # noqa: B018
