"""Jobs: leases, closing, and that nothing is left."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.errors import ActorNotFoundError, ArgumentError, FencedError, NotInitializedError
from runtime.head import events
from runtime.wire import messages as wire


def test_L3_a_closed_job_leaves_nothing(world: Any) -> None:
    a, b, driver = world.node("a", gpu=2), world.node("b"), world.driver()
    driver.create("r0", "r1", group="gang", gang=True, bundles=({"GPU": 1.0},) * 2, names=("n0", "n1"))
    driver.create_group({"CPU": 2.0})
    driver.create("x", group="pg", bundles=(), resources={"CPU": 1.0})
    driver.create("waits", group="big", bundles=({"CPU": 100.0},))
    a.ready("r0", "r1")
    call = driver.close()
    stops = a.take(wire.StopActors) + b.take(wire.StopActors)
    assert {actor_id for stop in stops for actor_id in stop.actor_ids} == {"r0", "r1", "x"}
    assert {(stop.grace_s, stop.kind, stop.reason) for stop in stops} == {(0.0, "killed", "its job was closed")}
    assert a.take(wire.SweepJob) == b.take(wire.SweepJob) == []  # not before its actors are gone
    for actor_id in ("r0", "r1", "x"):
        world.state.actors[actor_id]
        (a if actor_id in world.state.nodes["node-a"].actors else b).exited(actor_id, "killed")
    assert world.free == {"a": {"CPU": 4.0, "GPU": 2.0}, "b": {"CPU": 4.0}}
    assert a.take(wire.SweepJob) == b.take(wire.SweepJob) == [wire.SweepJob("job-1")]
    a.send(wire.JobSwept("job-1"))
    assert call not in world.replies
    b.send(wire.JobSwept("job-1"))
    assert world.replies[call] == wire.Ok()
    state = world.state
    assert not (state.jobs or state.groups or state.actors or state.names or state.pending or state.hungry)
    assert events.UnwatchPid("job-1") in world.orders
    assert world.request(driver.conn, wire.CloseJob("job-1")) == wire.Ok()  # again is no error


def test_a_job_without_nodes_closes_at_once(world: Any) -> None:
    driver = world.driver()
    assert world.request(driver.conn, wire.CloseJob("job-1")) == wire.Ok()


def test_closing_creates_nothing_new(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    driver.create("x")
    driver.close()
    with pytest.raises(NotInitializedError, match="is CLOSING"):
        driver.create("y", group="g2")
    with pytest.raises(NotInitializedError, match="is CLOSING"):
        driver.reconnect()
    assert a.take(wire.StopActors)


def test_a_node_that_dies_needs_no_sweeping(world: Any) -> None:
    a, b, driver = world.node("a"), world.node("b"), world.driver()
    call = driver.close()
    a.sweep()
    world.lose(b.conn)
    assert call not in world.replies
    for _ in range(3):
        world.advance(1.0)
        a.beat()
    assert world.replies[call] == wire.Ok()


def test_a_node_that_comes_back_is_asked_to_sweep_again(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    world.lose(a.conn)
    call = driver.close()
    a.reconnect()
    a.register(a.incarnation)
    a.sweep()
    assert world.replies[call] == wire.Ok()


def test_the_end_of_a_job_is_not_waited_for_longer_than_the_limit(world: Any) -> None:
    """Its resources stay taken until its node has seen the end of its processes."""
    a, driver = world.node("a"), world.driver()
    driver.create("x")
    call = driver.close()
    for _ in range(15):
        assert call not in world.replies
        world.advance(1.0)
        a.beat()
    assert world.replies[call] == wire.Ok()
    assert "living ['actor rank 0" in world.logs("error")[-1]
    assert world.free == {"a": {"CPU": 3.0}}
    a.exited("x", "killed")
    a.sweep()
    assert not world.state.jobs and world.free == {"a": {"CPU": 4.0}}


def test_a_node_that_never_answers_a_sweep_does_not_keep_the_job(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    driver.close()
    for _ in range(15):
        world.advance(1.0)
        a.beat()
    assert not world.state.jobs


def test_a_driver_of_this_host_is_watched_by_pid(world: Any) -> None:
    a = world.node("a")
    driver = world.driver(pid=123)
    assert events.WatchPid("job-1", 123) in world.orders
    driver.create("x")
    world.do(events.DriverGone("job-1"))
    [stop] = a.take(wire.StopActors)
    assert (stop.kind, stop.reason, stop.grace_s) == ("owner gone", "driver pid 123 is gone", 0.0)


def test_a_driver_of_another_host_is_not_watched_and_has_its_lease(world: Any) -> None:
    a, driver = world.node("a"), world.driver(host_id="elsewhere")
    assert not any(isinstance(order, events.WatchPid) for order in world.orders)
    driver.create("x")
    world.lose(driver.conn)
    for _ in range(29):
        world.advance(1.0)
        a.beat()
    assert a.take(wire.StopActors) == []
    world.advance(1.0)
    [stop] = a.take(wire.StopActors)
    assert (stop.kind, stop.reason) == ("owner gone", "driver pid 4711 did not come back within 30 s")


def test_a_driver_of_this_host_whose_connection_stays_closed_has_a_short_grace(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    driver.create("x")
    world.lose(driver.conn)
    world.advance(world.limits.reconnect_grace_s - 0.01)
    assert a.take(wire.StopActors) == []
    world.advance(0.01)
    assert len(a.take(wire.StopActors)) == 1


def test_a_driver_that_comes_back_hears_all_it_missed(world: Any) -> None:
    a, driver = world.node("a"), world.driver(host_id="elsewhere")
    driver.create("r0", "r1", gang=True)
    world.lose(driver.conn)
    world.advance(4.0)
    a.ready("r0", "r1")
    driver.reconnect()
    assert driver.group_states() == [("RESERVED", "")]
    assert driver.states() == {"r0": "READY", "r1": "READY"}
    for _ in range(40):
        world.advance(1.0)
        a.beat()
    assert world.state.jobs["job-1"].state == "OPEN"


def test_a_resumed_job_hears_on_its_new_connection_only(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    first = driver.conn
    driver.create("x")
    driver.reconnect()
    assert events.Close(first, "replaced by a new connection of the same owner") in world.orders
    world.take(first)
    driver.take()
    a.ready("x")
    assert world.take(first) == []
    assert driver.states() == {"x": "READY"}


def test_a_job_belongs_to_the_process_that_opened_it(world: Any) -> None:
    world.driver()
    with pytest.raises(ArgumentError, match="opened by another process"):
        world.driver(pid=9)
    with pytest.raises(ArgumentError, match="opened by another process"):
        world.driver(host_id="elsewhere")


def test_a_connection_has_one_job(world: Any) -> None:
    driver = world.driver()
    with pytest.raises(ArgumentError, match="belongs to job job-1"):
        world.request(driver.conn, wire.OpenJob("job-2", "h", 1, "/", (), "", True))


def test_an_actor_opens_under_its_own_job_only(world: Any) -> None:
    a, driver, other = world.node("a"), world.driver(), world.driver("job-2", pid=5)
    driver.create("x")
    a.ready("x")
    with pytest.raises(ActorNotFoundError, match="does not belong to job job-2"):
        other.become_actor("x")
    with pytest.raises(FencedError, match="ghost is unknown"):
        driver.become_actor("ghost")


def test_logs_go_to_the_driver_that_wants_them_and_their_end_always(world: Any) -> None:
    a = world.node("a")
    wants, silent = world.driver(), world.driver("job-2", logs=False, pid=5)
    for job_id in ("job-1", "job-2", "job-3"):
        a.send(wire.LogLines(job_id, "x", "rank 0", "a", ("hello",)))
        a.send(wire.LogEnd(job_id, "x"))
    assert [type(message) for message in wants.take()] == [wire.LogLines, wire.LogEnd]
    assert [type(message) for message in silent.take()] == [wire.LogEnd]
    silent.create("y")
    assert a.take(wire.StartActors)[0].stream_logs is False


def test_actors_are_told_the_namespace_of_their_job(world: Any) -> None:
    a = world.node("a")
    world.driver(namespace="team").create("x")
    assert a.take(wire.StartActors)[0].namespace == "team"
