"""Nodes: joining, silence, death, return."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from runtime.errors import ArgumentError, FencedError, NameTakenError
from runtime.head import events
from runtime.wire import messages as wire


def state_of(world: Any, name: str) -> str:
    return next((str(node.state) for node in world.state.nodes.values() if node.name == name), "gone")


def test_a_node_joins_with_a_new_incarnation_and_the_heads_epoch(world: Any) -> None:
    a, b = world.node("a"), world.node("b")
    assert (a.incarnation, b.incarnation) == (1, 2)
    c = world.node("c")
    assert c.register(0).head_epoch == 77
    assert c.incarnation == 4  # registering anew is a new incarnation


def test_what_a_new_node_runs_is_not_wanted(world: Any) -> None:
    a = world.node("a")
    assert a.register(0, running=("old",)).stop == ("old",)


def test_heartbeats_are_acknowledged(world: Any) -> None:
    a = world.node("a")
    a.send(wire.Heartbeat(41))
    assert a.take(wire.HeartbeatAck) == [wire.HeartbeatAck(41)]


def test_silence_makes_suspect_then_dead(world: Any) -> None:
    a = world.node("a")
    world.advance(world.limits.suspect_s - 0.001)
    assert state_of(world, "a") == "ALIVE"
    world.advance(0.001)
    assert state_of(world, "a") == "SUSPECT"
    a.beat()
    assert state_of(world, "a") == "ALIVE"
    world.advance(world.limits.dead_s - 0.001)
    assert state_of(world, "a") == "SUSPECT"
    world.advance(0.001)
    assert state_of(world, "a") == "gone"
    assert [type(m) for m in a.take()][-1] is wire.Fence
    assert "silent for 15.0 s" in world.logs("warning")[-1]


def test_nothing_is_placed_on_a_suspect_node_and_nothing_killed(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    driver.create("x", group="g1")
    a.ready("x")
    world.advance(world.limits.suspect_s)
    driver.take()
    driver.create("y", group="g2")
    [changed] = driver.take(wire.GroupChanged)
    assert changed.state == "PENDING" and "SUSPECT: nothing is heard from it" in changed.reason
    assert world.state.actors["x"].state == "READY"
    a.take()
    a.beat()
    assert driver.group_states() == [("RESERVED", "")]
    assert [spec.actor_id for spec in a.started()] == ["y"]


def test_N1_a_node_whose_heartbeats_arrive_is_never_dead(make_world: Any) -> None:
    """Whatever else happens, late ticks of the head included."""
    for seed in range(8):
        rng = random.Random(seed)
        world = make_world()
        a, b = world.node("a"), world.node("b")
        b_next = 0.0
        driver = world.driver()
        for i in range(300):
            step = rng.choice([0.1, 0.5, 1.0, 3.0, 10.0, world.limits.dead_s - 0.01])
            if rng.random() < 0.2:
                world.now += step  # the head sleeps: nothing ticks, what came meanwhile is read first
                a.beat()
                world.do(events.Tick())
            else:
                world.advance(step)
                a.beat()
            if rng.random() < 0.3:
                driver.create(f"x{i}", group=f"g{i}", resources={}, bundles=({},))
                a.ready(f"x{i}")
            if rng.random() < b_next:
                world.lose(b.conn)
            assert state_of(world, "a") == "ALIVE"
            assert a.incarnation == world.state.nodes["node-a"].incarnation


def test_a_pause_of_the_head_counts_against_nobody(world: Any) -> None:
    """A Tick that comes late by d moves all deadlines of nodes and leases by d."""
    world.node("a")
    lost = world.node("b")
    driver = world.driver(host_id="elsewhere")
    world.lose(lost.conn)
    world.lose(driver.conn)
    world.advance(1.0)
    nodes = dict(world.state.nodes)
    before = {name: node.dead_at(world.limits) for name, node in nodes.items()}
    lease = world.state.jobs["job-1"].deadline()
    due = world.cluster.next_deadline()
    world.now = due + 30.0
    world.do(events.Tick())
    assert {name: node.dead_at(world.limits) - before[name] for name, node in nodes.items()} == {"node-a": 30.0, "node-b": 30.0}
    assert world.state.jobs["job-1"].deadline() - lease == 30.0
    assert state_of(world, "a") == "ALIVE" and state_of(world, "b") == "SUSPECT"
    world.advance(world.limits.dead_s)
    assert (state_of(world, "a"), state_of(world, "b")) == ("gone", "gone")  # it is put off, not called off


def test_what_was_heard_during_a_pause_is_not_in_the_future(world: Any) -> None:
    a = world.node("a")
    world.now += 100
    a.beat()
    world.do(events.Tick())
    assert world.state.nodes["node-a"].last_seen == world.now


def test_ticks_are_due_every_heartbeat_while_there_are_nodes(world: Any) -> None:
    assert world.cluster.next_deadline() is None
    world.now += 1e6  # an idle head without nodes is not "late"
    a = world.node("a")
    assert world.cluster.next_deadline() == world.now + world.limits.heartbeat_s
    world.advance(2.0)
    a.beat()
    assert world.cluster.next_deadline() <= world.now + world.limits.heartbeat_s


def test_a_lost_connection_that_comes_back_in_time_changes_nothing(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    driver.create("x")
    a.ready("x")
    driver.take()
    world.lose(a.conn)
    assert state_of(world, "a") == "SUSPECT"
    world.advance(world.limits.reconnect_grace_s - 0.01)
    a.reconnect()
    accepted = a.register(a.incarnation, running=("x",))
    assert (accepted.incarnation, accepted.stop) == (1, ())
    assert state_of(world, "a") == "ALIVE"
    assert driver.take() == []
    world.advance(1.0)
    assert state_of(world, "a") == "ALIVE"


def test_a_lost_connection_that_stays_away_is_a_dead_node(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    driver.create("x")
    a.ready("x")
    world.lose(a.conn)
    world.advance(world.limits.reconnect_grace_s)
    status = driver.statuses()["x"]
    assert status.evidence.kind == "node dead"
    assert "did not come back within 3 s" in status.evidence.detail
    assert (status.evidence.node_name, status.evidence.pid, status.evidence.log_path) == ("a", 500, "/log/x")


def test_a_node_that_comes_back_is_told_what_it_missed(world: Any) -> None:
    a, driver = world.node("a", cpu=8), world.driver()
    for name in "xyz":
        driver.create(name, group=f"g-{name}")
        a.ready(name)
    world.lose(a.conn)
    world.request(driver.conn, wire.StopActorsOf(("y",), 2.0, "enough", True))
    driver.take()
    a.reconnect()
    accepted = a.register(a.incarnation, running=("x", "y", "ghost"))
    assert accepted.stop == ("ghost",)
    assert a.take(wire.StopActors) == [wire.StopActors(("y",), 2.0, "enough", "killed", True)]
    assert driver.statuses()["z"].evidence.kind == "node dead"  # it ended unseen
    assert world.state.actors["x"].state == "READY"


def test_a_node_that_comes_back_another_way_is_found_there(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    driver.create("x")
    a.ready("x")
    driver.take()
    world.lose(a.conn)
    a.reconnect()
    a.facts = dataclasses.replace(a.facts, host="127.0.0.2", port=99, resources={"CPU": 1e6})
    a.register(a.incarnation, running=("x",))
    [news] = driver.take(wire.ActorsChanged)
    assert [(node.host, node.port, node.resources) for node in news.nodes] == [("127.0.0.2", 99, {"CPU": 4.0})]


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "\x1b[31m", "n" * 129])
def test_impossible_names_are_refused(world: Any, name: str) -> None:
    with pytest.raises(ArgumentError, match="1 to 128 letters"):
        world.node(name)


def test_a_second_connection_of_one_node_replaces_the_first(world: Any) -> None:
    a = world.node("a")
    first = a.conn
    a.reconnect()
    a.register(a.incarnation)
    assert events.Close(first, "replaced by a new connection of the same node") in world.orders
    assert state_of(world, "a") == "ALIVE"  # the end of the old one is no loss
    world.send(first, wire.Heartbeat(1), a.incarnation)
    a.beat()
    assert a.take(wire.HeartbeatAck)


def test_F1_a_dead_incarnation_is_fenced_and_ignored(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    driver.create("x")
    a.ready("x")
    world.advance(world.limits.dead_s)
    assert driver.states()["x"] == "DEAD"
    assert driver.group_states() == [("RESERVED", ""), ("RELEASED", "")]
    a.take()
    for message in (wire.Heartbeat(9), wire.ActorsReady("g", (wire.ActorStarted("x", 1, 5, "", ""),)),
                    wire.ActorExited("x", 1, wire.ExitEvidence("signal")), wire.JobSwept("job-1")):
        a.send(message)
        [fence] = a.take()
        assert isinstance(fence, wire.Fence) and "incarnation 1 of a is not current" in fence.reason
    assert driver.take() == []
    with pytest.raises(FencedError, match="incarnation 1, was declared dead or never was"):
        a.register(a.incarnation)
    assert a.register(0).incarnation == 2
    a.beat()
    assert a.take() == [wire.HeartbeatAck(1)]


def test_F1_messages_of_an_older_epoch_on_a_current_connection_are_fenced(world: Any) -> None:
    a = world.node("a")
    a.register(0)  # anew: incarnation 2
    a.take()
    world.send(a.conn, wire.Heartbeat(1), epoch=1)
    assert isinstance(a.take()[0], wire.Fence)


def test_F1_a_daemon_that_never_registered_is_fenced(world: Any) -> None:
    conn = world.connect("worker")
    world.send(conn, wire.Heartbeat(1), 5)
    assert world.take(conn) == [wire.Fence("a node that has not registered here is not current")]


def test_a_second_node_of_one_name_is_refused_while_the_first_is_well(world: Any) -> None:
    first = world.node("a", host="10.0.0.1", node_id="n1")
    with pytest.raises(NameTakenError, match=r"living node at 10\.0\.0\.1 \(pid 99\) is already called 'a'"):
        world.node("a", node_id="n2")
    world.lose(first.conn)
    world.node("a", node_id="n2")
    assert set(world.state.nodes) == {"n2"}
    first.reconnect()
    with pytest.raises(FencedError):
        first.register(first.incarnation)


def test_registering_anew_ends_the_former_incarnation_and_its_actors(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    driver.create("x")
    a.reconnect()
    a.register(0)
    assert driver.statuses()["x"].evidence.detail == "node a is dead: it registered anew"
    assert world.free == {"a": {"CPU": 4.0}}


def test_a_daemon_that_becomes_another_node_on_its_connection_is_not_fenced_for_the_former(world: Any) -> None:
    a = world.node("a")
    a.facts = dataclasses.replace(a.facts, node_id="other")
    a.register(0)
    assert a.take(wire.Fence) == []
    assert set(world.state.nodes) == {"other"}


def test_a_loopback_address_is_refused_when_the_head_listens_elsewhere(make_world: Any) -> None:
    world = make_world(loopback_only=False)
    for host in ("127.0.0.1", "::1"):
        with pytest.raises(ArgumentError, match=f"has the address {host}, where other hosts"):
            world.node("a", host=host)
    with pytest.raises(ArgumentError, match="has the address 'localhost', which is no numeric one"):
        world.node("a", host="localhost")
    world.node("a", host="10.0.0.1")
    world.node("b", host="fe80::1%eth0")
    make_world(loopback_only=True).node("a", host="127.0.0.1")


@pytest.mark.parametrize(("resources", "gpus", "text"), [
    ({"CPU": 4.0, "GPU": 2.0}, ("u0",), "lists 1 GPUs .u0. and says that it has 2"),
    ({"GPU": 0.5}, (), "0.5 GPUs; a node has whole GPUs"),
    ({"CPU": -4.0}, (), "'CPU' is -4.0"),
])
def test_an_impossible_inventory_is_refused(world: Any, resources: Any, gpus: Any, text: str) -> None:
    conn = world.connect("worker")
    facts = wire.NodeFacts("n", "a", "h", 1, "127.0.0.1", 1, "lo", resources, {}, gpus)
    with pytest.raises(ArgumentError, match=text):
        world.request(conn, wire.RegisterNode(facts, 0, ()))
    assert not world.state.nodes


def test_preload_sets_reach_all_nodes_and_those_that_join_later(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    preload = wire.Preload(("torch", "numpy"))
    assert world.request(driver.conn, preload) == wire.Ok()
    assert a.take() == [preload]
    assert world.node("b").take() == [preload]


def test_a_node_in_the_tables_is_judged_by_its_own_clock(world: Any) -> None:
    a = world.node("a")
    world.advance(4.0)
    world.node("b")
    world.advance(1.0)
    assert (state_of(world, "a"), state_of(world, "b")) == ("SUSPECT", "ALIVE")
    a.beat()
    world.advance(4.0)
    assert (state_of(world, "a"), state_of(world, "b")) == ("ALIVE", "SUSPECT")
