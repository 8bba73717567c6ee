from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

import runtime
from runtime.errors import ActorDiedError, ActorStartError
from train import Checkpoint, ScalingConfig
from train.backend import Backend, BackendConfig
from train.controller_events import ChannelEnded, FromRank, RankDied, RunEnded
from train.protocol import Failed, JobSpec, RankStart, Release, Report
from train.storage import LocalStorage
from train.worker_group import Incoming, WorkerGroup, assign_ranks, incoming


@dataclass
class FakeMember:
    index: int
    node_id: str = "a"
    gpu_ids: tuple[int, ...] = ()
    handle: Any = None
    host: str = "10.0.0.1"
    interface: str = "eth0"
    host_id: str = ""
    pid: int = 7
    resources: dict[str, float] = field(default_factory=lambda: {"CPU": 2.0})
    log_path: str = "/session/logs/x"

    @property
    def node_name(self) -> str:
        return f"node-{self.node_id}"

    @property
    def visible_gpu_ids(self) -> tuple[int, ...]:
        return self.gpu_ids


def places(*members: FakeMember) -> list[tuple[int, int, int, int, int]]:
    return [(member.index, ranks.rank, ranks.local_rank, ranks.local_world_size, ranks.node_rank)
            for member, ranks in assign_ranks(members, run_name="run", attempt=1, use_gpu=False)]


def test_ranks_of_a_node_are_neighbours_in_the_order_of_the_first_bundles():
    assert places(FakeMember(0, "b"), FakeMember(1, "a"), FakeMember(2, "b"), FakeMember(3, "a")) == [
        (0, 0, 0, 2, 0), (2, 1, 1, 2, 0), (1, 2, 0, 2, 1), (3, 3, 1, 2, 1)]


def test_inside_a_node_the_lowest_gpu_comes_first():
    found = places(FakeMember(0, gpu_ids=(2, 3)), FakeMember(1, gpu_ids=(0, 1)), FakeMember(2, gpu_ids=(0,)))
    assert [index for index, *_ in found] == [1, 2, 0]


def test_what_a_rank_is_told():
    ((_, ranks),) = assign_ranks([FakeMember(0, gpu_ids=(3,))], run_name="run", attempt=4, use_gpu=True)
    assert (ranks.world_size, ranks.num_nodes, ranks.host, ranks.interface, ranks.num_cpus) == (1, 1, "10.0.0.1", "eth0", 2.0)
    assert (ranks.attempt, ranks.run_name, ranks.use_gpu, ranks.device_index) == (4, "run", True, 0)


class FakeSubscription:
    def __init__(self, handle: FakeHandle) -> None:
        self.handle = handle

    def take(self, count: int) -> None:
        self.handle.credit += count

    def send(self, item: Any) -> None:
        if self.handle.is_gone:
            raise ActorDiedError("gone")
        self.handle.received.append(item)


class FakeReference:
    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.callback = callback


class FakeHandle:
    """An actor that reports at once, from another thread."""

    def __init__(self, early_items: int = 0) -> None:
        self.received: list[Any] = []
        self.credit = 0
        self.is_gone = False
        self.started: list[RankStart] = []
        self.reference = FakeReference()
        self._early_items = early_items

    @property
    def run(self) -> Any:
        return self

    def remote(self, start: RankStart) -> FakeReference:
        self.started.append(start)
        return self.reference

    def subscribe(self, name: str, *, window: int, on_item: Callable[[Any], None], on_end: Callable[[Any], None]) -> FakeSubscription:
        self.on_item, self.on_end = on_item, on_end
        thread = threading.Thread(target=lambda: [on_item(f"item {i}") for i in range(self._early_items)])
        thread.start()
        thread.join()
        return FakeSubscription(self)


class FakeGang:
    def __init__(self, members: list[FakeMember] | Exception) -> None:
        self.members = members
        self.stops: list[tuple[float, str]] = []
        self.early_deaths: list[tuple[int, Any]] = []

    def on_pending(self, callback: Callable[[str], None]) -> None:
        callback("2 CPUs asked, 1 free")

    def on_death(self, callback: Callable[[int, Any], None]) -> None:
        self.die = callback

    def wait_ready(self) -> list[FakeMember]:
        for index, evidence in self.early_deaths:
            self.die(index, evidence)
        if isinstance(self.members, Exception):
            raise self.members
        return self.members

    def stop(self, grace_s: float, reason: str) -> None:
        self.stops.append((grace_s, reason))

    def wait_logs(self, timeout_s: float) -> bool:
        return True


class Setting:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, storage: LocalStorage, gang: FakeGang) -> None:
        self.events: list[Any] = []
        self.said: list[str] = []
        self.created: dict[str, Any] = {}
        job = JobSpec(b"", None, Backend, BackendConfig(), storage, None, 1)

        def create_gang(cls: type, args: tuple[Any, ...], **options: Any) -> FakeGang:
            self.created = {"cls": cls, "args": args, **options}
            return gang

        monkeypatch.setattr(runtime, "create_gang", create_gang)
        monkeypatch.setattr(runtime, "get_runtime_context", lambda: FakeMember(0, host_id="here"))
        self.group = WorkerGroup(job, ScalingConfig(num_workers=2), run_name="run", env={"A": "b"}, preload=("torch",),
                                 post=self.events.append, say=self.said.append)


def test_one_message_creates_the_gang_and_one_call_starts_each_rank(monkeypatch: pytest.MonkeyPatch, storage: LocalStorage):
    handles = [FakeHandle(), FakeHandle()]
    gang = FakeGang([FakeMember(0, "a", handle=handles[0], host_id="here"), FakeMember(1, "b", handle=handles[1], host_id="there")])
    setting = Setting(monkeypatch, storage, gang)
    checkpoint = Checkpoint("/x")
    first, second = setting.group.start(5, checkpoint)
    assert setting.created["bundles"] == [{"CPU": 1.0}] * 2
    assert (setting.created["labels"], setting.created["attempt"]) == (["rank 0", "rank 1"], 5)
    assert (setting.created["preload"], setting.created["env"]) == (("torch",), {"A": "b"})
    assert [(start.ranks.rank, start.checkpoint) for handle in handles for start in handle.started] == [(0, checkpoint), (1, checkpoint)]
    assert setting.said == ["waiting for resources: 2 CPUs asked, 1 free"]
    assert (first.who, first.log_path) == ("rank 0 on node-a (pid 7)", storage.at("logs/rank_0.log"))
    assert (second.who, second.log_path) == ("rank 1 on node-b (pid 7)", "/session/logs/x")
    setting.group.send(1, Release())
    assert handles[1].received == [Release()]
    handles[1].is_gone = True
    setting.group.send(1, Release())  # told by other ways
    assert [(log.rank, log.attempt, log.host_id) for log in setting.group.logs()] == [(0, 5, "here"), (1, 5, "there")]


def test_callbacks_become_events_by_rank(monkeypatch: pytest.MonkeyPatch, storage: LocalStorage):
    handles = [FakeHandle(), FakeHandle()]
    gang = FakeGang([FakeMember(0, gpu_ids=(1,), handle=handles[0]), FakeMember(1, gpu_ids=(0,), handle=handles[1])])
    setting = Setting(monkeypatch, storage, gang)
    setting.group.start(1, None)
    evidence = object()
    gang.die(0, evidence)  # member 0 is rank 1: its GPU has the higher number
    handles[1].on_end(None)
    handles[1].reference.callback(None)
    assert setting.events == [RankDied(1, 1, evidence), ChannelEnded(1, 0, None), RunEnded(1, 0)]  # type: ignore[arg-type]


def test_credit_is_given_on_receipt_also_for_items_that_come_at_once(monkeypatch: pytest.MonkeyPatch, storage: LocalStorage):
    handles = [FakeHandle(early_items=3), FakeHandle()]
    setting = Setting(monkeypatch, storage, FakeGang([FakeMember(i, handle=handle) for i, handle in enumerate(handles)]))
    setting.group.start(1, None)
    assert handles[0].credit == 3
    handles[0].on_item("item 3")
    assert handles[0].credit == 4
    assert [event.item for event in setting.events] == [f"item {i}" for i in range(4)]


def test_a_death_before_the_ranks_are_known_is_not_lost(monkeypatch: pytest.MonkeyPatch, storage: LocalStorage):
    gang = FakeGang([FakeMember(i, handle=FakeHandle()) for i in range(2)])
    gang.early_deaths = [(1, "evidence")]
    setting = Setting(monkeypatch, storage, gang)
    setting.group.start(1, None)
    assert setting.events == [RankDied(1, 1, "evidence")]  # type: ignore[arg-type]


def test_a_gang_that_does_not_start_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, storage: LocalStorage):
    gang = FakeGang(ActorStartError("no"))
    setting = Setting(monkeypatch, storage, gang)
    with pytest.raises(ActorStartError):
        setting.group.start(1, None)
    assert gang.stops == [(0.0, "the ranks did not start")]


def test_users_bytes_are_opened_on_the_controllers_thread():
    metrics = runtime.dumps_function({"a": 1}, "metrics")
    assert incoming(Incoming(1, 0, Report(1, metrics), 5.0)) == FromRank(1, 0, Report(1, metrics), {"a": 1}, None, 5.0)
    failed = Failed(runtime.dumps_function(ValueError("x"), "error"), "ValueError", "x", "")
    assert isinstance(incoming(Incoming(1, 0, failed, 5.0)).error, ValueError)


def test_bytes_that_cannot_be_opened_here_are_told():
    broken = b"cno_such_module\nThing\n."
    assert incoming(Incoming(1, 0, Failed(broken, "Thing", "x", ""), 0.0)).error is None
    event = incoming(Incoming(1, 0, Report(3, broken), 0.0))
    assert isinstance(event.message, Failed)
    assert "metrics of report 3 can't be loaded on the driver: No module named 'no_such_module'" in event.message.text
