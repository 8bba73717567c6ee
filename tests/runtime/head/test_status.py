"""The picture that the command line shows, who may stop a job, and the way of logs."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.errors import ActorNotFoundError, NotInitializedError
from runtime.head import status
from runtime.wire import messages as wire
from runtime.wire.codec import encode


def picture(world: Any) -> wire.ClusterStatus:
    return world.request(world.connect("cli"), wire.AskStatus())


def test_the_picture_has_nodes_jobs_groups_and_actors(world: Any) -> None:
    node, driver = world.node("a", cpu=2, gpu=1), world.driver()
    node.send(wire.Heartbeat(1, ("torch: ready",)))
    driver.create("x", "y", gang=True, names=("first", ""))
    node.ready("x", "y")
    shown = picture(world)
    assert [(n.facts.name, n.state, n.available, n.zygotes) for n in shown.nodes] == [
        ("a", "ALIVE", {"CPU": 0.0, "GPU": 1.0}, ("torch: ready",))]
    assert [(job.job_id, job.state, job.pid) for job in shown.jobs] == [("job-1", "OPEN", 4711)]
    [group] = shown.groups
    assert (group.state, group.asked, group.reason, group.nodes) == ("RESERVED", "2 x {CPU: 1}", "", ("a",))
    assert [(a.actor_id, a.name, a.label, a.state, a.gang, a.node, a.pid, a.log_path) for a in shown.actors] == [
        ("x", "first", "rank 0", "READY", True, "a", 500, "/log/x"), ("y", "", "rank 1", "READY", True, "a", 500, "/log/y")]
    assert (shown.num_groups, shown.num_actors, shown.embedded) == (1, 2, False)


def test_what_waits_comes_first_with_its_reason_in_words_and_numbers(world: Any) -> None:
    world.node("a", cpu=2)
    driver = world.driver()
    driver.create("x", group="one", bundles=({"CPU": 2.0},))
    driver.create("y", group="two", bundles=({"CPU": 1.0},))
    world.now += 7
    first, second = picture(world).groups
    assert (first.group_id, first.state, round(first.since_s)) == ("two", "PENDING", 7)
    assert "{CPU: 2}" in first.reason and "held by rank 0" in first.reason
    assert (second.group_id, second.reason) == ("one", "")


def test_actors_that_wait_in_a_reserved_group_have_a_reason_too(world: Any) -> None:
    world.node("a", cpu=2)
    driver = world.driver()
    driver.create_group({"CPU": 1.0})
    driver.create("x", group="pg", bundles=(), resources={"CPU": 1.0})
    driver.create("y", group="pg", bundles=(), resources={"CPU": 1.0})
    [group] = picture(world).groups
    assert group.state == "RESERVED"
    assert group.reason == "1 of its actors wait for others to leave their bundles; free in these: {CPU: 0}"


def run(name: str = "r", state: str = "running", **more: Any) -> wire.RunStatus:
    return wire.RunStatus(name, state, 1, 2, "loss=1", "checkpoint_1", "/results/r", **more)


def test_the_newest_of_each_run_is_kept_and_a_lost_driver_is_seen(world: Any) -> None:
    world.node("a")
    driver = world.driver()
    world.send(driver.conn, run(state="scheduling"))
    world.send(driver.conn, run())
    world.send(driver.conn, run("done", "finished", is_over=True))
    shown = picture(world).runs
    assert [(r.name, r.state, r.job_id, r.is_over) for r in shown] == [
        ("r", "running", "job-1", False), ("done", "finished", "job-1", True)]
    driver.close()
    for node_conn in list(world.inbox):
        for order in world.take(node_conn, wire.SweepJob):
            world.send(node_conn, wire.JobSwept(order.job_id), 1)
    assert not world.state.jobs
    assert [(r.name, r.state, r.is_over) for r in picture(world).runs] == [("r", "lost with its driver", True), ("done", "finished", True)]


def test_M1_runs_are_bounded_and_their_texts_cut(world: Any) -> None:
    driver = world.driver()
    for i in range(status.RUNS_KEPT + 3):
        world.send(driver.conn, wire.RunStatus(f"r{i}", "running", 1, 1, "m" * 10_000))
    runs = picture(world).runs
    assert len(runs) == status.RUNS_KEPT
    assert runs[0].name == "r3"
    assert len(runs[0].metrics) == status.MAX_TEXT_CHARS


def test_a_run_of_nobody_is_refused(world: Any) -> None:
    with pytest.raises(NotInitializedError, match="belongs to no job"):
        world.request(world.connect("cli"), run())


def test_M1_the_picture_of_a_large_cluster_fits_a_control_frame(world: Any) -> None:
    world.keep_orders = False
    world.node("a", cpu=10_000)
    driver = world.driver()
    for i in range(300):
        driver.create(*(f"{i:04}-{j:027}" for j in range(5)), group=f"group-{i}")
    for i in range(300):
        driver.create(f"waits-{i}", group=f"pending-{i}", bundles=({"CPU": 9999.0},))
    shown = picture(world)
    assert (shown.num_groups, shown.num_actors, len(shown.groups), len(shown.actors)) == (600, 1800, status.MAX_LISTED, status.MAX_ACTORS)
    assert shown.groups[0].state == "PENDING"
    assert len(encode(shown, 0, 0)) < world.limits.max_control_bytes


def test_a_job_that_somebody_stops_has_a_grace_and_its_driver_is_told(world: Any) -> None:
    node, driver = world.node("a"), world.driver()
    driver.create("x")
    node.ready("x")
    world.send(driver.conn, run())
    asked = world.begin(world.connect("cli"), wire.CloseJob("job-1", "stopped by alice"))
    assert [(r.state, r.is_over) for r in picture(world).runs] == [("stopped", True)]
    assert driver.take(wire.JobStopped) == [wire.JobStopped("stopped by alice")]
    [stop] = node.take(wire.StopActors)
    assert (stop.actor_ids, stop.grace_s, stop.reason) == (("x",), world.limits.stop_grace_s, "stopped by alice")
    assert asked not in world.replies
    node.exited("x", "killed", detail=stop.reason)
    assert driver.statuses()["x"].evidence.detail == "stopped by alice"
    node.sweep()
    assert world.replies[asked] == wire.Ok()
    assert not world.state.jobs


def test_a_driver_that_leaves_ends_the_grace(world: Any) -> None:
    node, driver = world.node("a"), world.driver()
    driver.create("x")
    world.begin(world.connect("cli"), wire.CloseJob("job-1", "stopped by alice"))
    node.take()
    driver.close()
    assert [(stop.actor_ids, stop.grace_s) for stop in node.take(wire.StopActors)] == [(("x",), 0.0)]  # the daemon keeps the first reason


def test_a_log_goes_to_who_asked_and_to_nobody_else(world: Any) -> None:
    node, driver = world.node("a"), world.driver(logs=False)
    driver.create("x")
    node.ready("x")
    reader = world.connect("cli")
    assert world.request(reader, wire.ReadLog("x", 5, True)) == wire.Ok()
    assert node.take(wire.ReadLog) == [wire.ReadLog("x", 5, True, False, reader, "/log/x")]
    driver.take()
    lines = wire.LogLines("", "x", "", "a", ("hello",), 0, "/log/x", reader)
    node.send(lines)
    node.send(wire.LogEnd("", "x", reader))
    assert world.take(reader) == [lines, wire.LogEnd("", "x", reader)]
    assert not driver.take()
    world.lose(reader)
    assert node.take(wire.StopReading) == [wire.StopReading(reader)]
    node.send(lines)  # was on its way


def test_a_dead_actors_log_can_be_read_while_its_node_lives(world: Any) -> None:
    node, driver = world.node("a"), world.driver()
    driver.create("x")
    reader = world.connect("cli")
    node.ready("x")
    node.exited("x")
    world.request(reader, wire.ReadLog("x"))
    assert [message.log_path for message in node.take(wire.ReadLog)] == ["/log/x"]
    world.lose(node.conn)
    with pytest.raises(ActorNotFoundError, match="nothing to read"):
        world.request(reader, wire.ReadLog("x"))
    driver.create("y", bundles=({"CPU": 4.0},))
    for unknown in ("y", "z"):
        with pytest.raises(ActorNotFoundError, match="nothing to read"):
            world.request(reader, wire.ReadLog(unknown))
