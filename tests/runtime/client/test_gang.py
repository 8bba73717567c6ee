"""Gangs: ready together, dead together, the first cause first."""

from __future__ import annotations

import pickle
import queue
import threading
from typing import Any

import pytest

from runtime.client.gang import Gang, create_gang
from runtime.client.object_ref import get
from runtime.errors import (
    ActorDiedError,
    ActorStartError,
    ArgumentError,
    ArgumentTypeError,
    GetTimeoutError,
    InfeasibleError,
    PlacementTimeoutError,
)
from runtime.wire.messages import ActorsChanged, ActorStatus, CreateActors, ExitEvidence, GroupChanged, LogEnd, NodeFacts, RemoveGroup


class Rank:
    def f(self) -> None: ...


@pytest.fixture
def gang(cluster: Any, session: Any) -> Gang:
    gang = create_gang(Rank, (1,), {"x": 2}, bundles=[{"CPU": 1}, {"CPU": 1, "GPU": 0.5}], labels=["rank 0", "rank 1"], attempt=3,
                       env={"A": "b"}, preload=("numpy",))
    cluster.wait_request(CreateActors)
    return gang


def facts(cluster: Any) -> NodeFacts:
    return next(iter(cluster.actors.values())).cluster.answers[list(cluster.answers)[1]](None).nodes[0].facts


def tell(cluster: Any, gang: Gang, *statuses: ActorStatus) -> None:
    cluster.send(ActorsChanged(gang.group_id, statuses, (facts(cluster),)))


def ready(cluster: Any, gang: Gang) -> None:
    for handle in gang.handles:
        cluster.run(cluster.actors[handle._actor_id].listen())
    tell(cluster, gang, *(ActorStatus(handle._actor_id, 1, "READY", "n1", 70 + i, cluster.actors[handle._actor_id].path, f"/logs/{i}", (i,),
                                      (0, 1)) for i, handle in enumerate(gang.handles)))


def dead(gang: Gang, index: int, evidence: ExitEvidence) -> ActorStatus:
    return ActorStatus(gang.handles[index]._actor_id, 1, "DEAD", "n1", 70 + index, evidence=evidence)


def test_is_one_message(cluster: Any, gang: Gang) -> None:
    message = cluster.wait_request(CreateActors)
    assert message.gang
    assert message.share_gpus
    assert (message.attempt, message.env, message.preload, message.strategy, message.timeout_s) == (3, {"A": "b"}, ("numpy",), "PACK", -1.0)
    assert message.bundles == ({"CPU": 1.0}, {"CPU": 1.0, "GPU": 0.5})
    assert [(spec.label, spec.index, spec.bundle, spec.resources) for spec in message.actors] == [
        ("rank 0", 0, 0, {"CPU": 1.0}), ("rank 1", 1, 1, {"CPU": 1.0, "GPU": 0.5})]


def test_wait_ready_tells_where_everybody_is(cluster: Any, gang: Gang) -> None:
    ready(cluster, gang)
    members = gang.wait_ready(10)
    assert [member.index for member in members] == [0, 1]
    second = members[1]
    assert (second.node_name, second.host, second.interface, second.pid) == ("node-a", "127.0.0.1", "lo", 71)
    assert (second.gpu_ids, second.visible_gpu_ids, second.resources) == ((1,), (0, 1), {"CPU": 1.0, "GPU": 0.5})
    assert second.log_path == "/logs/1"
    assert get(second.handle.f.remote(), timeout=10) == ("f", ())
    assert gang.wait_ready() == members


def test_wait_ready_that_takes_too_long_says_what_it_waits_for(cluster: Any, gang: Gang) -> None:
    with pytest.raises(GetTimeoutError, match="its actors are starting"):
        gang.wait_ready(0.01)
    reasons: queue.SimpleQueue[str] = queue.SimpleQueue()
    gang.on_pending(reasons.put)
    cluster.send(GroupChanged(gang.group_id, "PENDING", "needs 2 CPU, 1 free"))
    assert reasons.get(timeout=10) == "needs 2 CPU, 1 free"
    with pytest.raises(GetTimeoutError, match="waits for resources: needs 2 CPU, 1 free"):
        gang.wait_ready(0.01)
    late: queue.SimpleQueue[str] = queue.SimpleQueue()
    gang.on_pending(late.put)
    assert late.get(timeout=10) == "needs 2 CPU, 1 free"


@pytest.mark.parametrize("error", [InfeasibleError, PlacementTimeoutError])
def test_a_gang_that_is_not_placed(cluster: Any, gang: Gang, error: type[Exception]) -> None:
    cluster.send(GroupChanged(gang.group_id, "RELEASED", "no node has it", (), error.__name__))
    with pytest.raises(error, match="gang of 2 Rank: no node has it"):
        gang.wait_ready(10)
    with pytest.raises(error):
        get(gang.handles[0].f.remote(), timeout=10)


def test_a_constructor_that_raises(cluster: Any, gang: Gang) -> None:
    tell(cluster, gang, dead(gang, 1, ExitEvidence("start error", detail="KeyError: 'x'", error=pickle.dumps(KeyError("x")), first=True)))
    with pytest.raises(ActorStartError, match="rank 1.* did not start") as info:
        gang.wait_ready(10)
    assert isinstance(info.value.__cause__, KeyError)
    assert info.value.evidence.first


def test_A4_the_first_cause_is_what_wait_ready_raises_also_when_told_together(cluster: Any, gang: Gang) -> None:
    tell(cluster, gang,
         dead(gang, 0, ExitEvidence("killed", detail="rank 1 died first", wanted=True)),
         dead(gang, 1, ExitEvidence("signal", signal="SIGSEGV", detail="killed by SIGSEGV", first=True)))
    with pytest.raises(ActorStartError, match="SIGSEGV"):
        gang.wait_ready(10)


def test_on_death_is_called_once_a_member_also_the_collateral_and_late(cluster: Any, gang: Gang) -> None:
    seen: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def bad(index: int, evidence: ExitEvidence) -> None:
        raise RuntimeError("oops")

    gang.on_death(bad)
    gang.on_death(lambda index, evidence: seen.put((index, evidence.kind, threading.current_thread().name)))
    ready(cluster, gang)
    gang.wait_ready(10)
    tell(cluster, gang, dead(gang, 1, ExitEvidence("signal", signal="SIGKILL", first=True)))
    tell(cluster, gang, dead(gang, 0, ExitEvidence("killed", wanted=True)))
    assert [seen.get(timeout=10), seen.get(timeout=10)] == [(1, "signal", "headway-io"), (0, "killed", "headway-io")]
    late: queue.SimpleQueue[Any] = queue.SimpleQueue()
    gang.on_death(lambda index, evidence: late.put(index))
    assert [late.get(timeout=10), late.get(timeout=10)] == [1, 0]
    assert seen.empty()
    with pytest.raises(ActorDiedError, match="killed by SIGKILL"):
        get(gang.handles[1].f.remote(), timeout=10)


def test_stop_returns_how_each_ended(cluster: Any, gang: Gang) -> None:
    ready(cluster, gang)
    gang.wait_ready(10)

    def remove(message: RemoveGroup) -> Any:
        for index in range(2):
            cluster.io.loop.call_soon(lambda i=index: cluster.peers[-1].notify(
                ActorsChanged(gang.group_id, (dead(gang, i, ExitEvidence("killed", detail=message.reason, wanted=True)),))))
        from runtime.wire.messages import Ok

        return Ok()

    cluster.answers[RemoveGroup] = remove
    assert [(end.kind, end.detail) for end in gang.stop(grace_s=1.5, reason="done")] == [("killed", "done")] * 2
    request = cluster.wait_request(RemoveGroup)
    assert (request.group_id, request.grace_s) == (gang.group_id, 1.5)


def test_wait_logs(cluster: Any, gang: Gang) -> None:
    ready(cluster, gang)
    gang.wait_ready(10)
    assert not gang.wait_logs(0.01)
    for handle in gang.handles:
        cluster.send(LogEnd("j", handle._actor_id))
    assert gang.wait_logs(10)


def test_a_lost_head_is_a_death_of_all(cluster: Any, gang: Gang) -> None:
    seen: queue.SimpleQueue[Any] = queue.SimpleQueue()
    ready(cluster, gang)
    gang.wait_ready(10)
    gang.on_death(lambda index, evidence: seen.put((index, evidence.kind)))
    cluster.head_epoch += 1
    cluster.call(lambda: cluster.peers[-1]._transport.abort())
    assert sorted([seen.get(timeout=20), seen.get(timeout=20)]) == [(0, "node dead"), (1, "node dead")]


@pytest.mark.parametrize(("changes", "error", "text"), [
    ({"bundles": []}, ArgumentError, "at least one"),
    ({"bundles": {"CPU": 1}}, ArgumentTypeError, "list of dicts"),
    ({"bundles": [3]}, ArgumentTypeError, r"bundles\[0\]"),
    ({"bundles": [{"CPU": -1}]}, ArgumentError, r"bundles\[0\]\['CPU'\]"),
    ({"bundles": [{}], "strategy": "BOGUS"}, ArgumentError, "PACK, SPREAD, STRICT_PACK, STRICT_SPREAD"),
    ({"bundles": [{}], "labels": ["a", "b"]}, ArgumentError, "2 labels for 1 bundles"),
    ({"bundles": [{}], "env": {"A": 1}}, ArgumentTypeError, "env="),
    ({"bundles": [{}], "cls": 3}, ArgumentTypeError, "takes a class"),
])
def test_bad_arguments(session: Any, cluster: Any, changes: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        create_gang(**{"cls": Rank, **changes})
    assert not cluster.of(CreateActors)
