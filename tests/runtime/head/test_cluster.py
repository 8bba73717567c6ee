"""The brain as a whole: a job from its opening to its end, and that it is pure."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import runtime.head
from runtime.errors import InfeasibleError, NotInitializedError, ProtocolError, VersionMismatchError
from runtime.head import events
from runtime.limits import Limits
from runtime.wire import messages as wire

HEAD = Path(runtime.head.__file__).parent
SHELL = {"server.py", "__main__.py", "port_holder.py"}


def test_one_actor_from_its_creation_to_its_end(world: Any) -> None:
    node, driver = world.node("a"), world.driver()
    driver.create("x", names=("counter",))
    assert driver.group_states() == [("RESERVED", "")]
    assert driver.states() == {"x": "STARTING"}
    [start] = node.take(wire.StartActors)
    assert (start.cwd, start.sys_path, start.driver_host_id, start.stream_logs) == ("/cwd", ("/path",), "host-of-head", True)
    assert start.actors == (wire.StartSpec("x", 1, "counter", "rank 0", "Worker", 0, {"CPU": 1.0}),)
    node.ready("x")
    [news] = driver.take(wire.ActorsChanged)
    [status] = news.actors
    assert (status.state, status.pid, status.unix_path, status.log_path) == ("READY", 500, "/run/x", "/log/x")
    assert news.nodes == (node.facts,)
    assert world.free == {"a": {"CPU": 3.0}}
    node.exited("x", "exit code", code=3, pid=500)
    [news] = driver.take(wire.ActorsChanged)
    evidence = news.actors[0].evidence
    assert (evidence.kind, evidence.code, evidence.label, evidence.node_name, evidence.wanted) == ("exit code", 3, "rank 0", "a", False)
    assert driver.group_states() == [("RELEASED", "")]
    assert world.free == {"a": {"CPU": 4.0}}
    assert not world.state.actors and not world.state.groups and not world.state.names


def test_user_bytes_pass_through_unopened_and_are_not_kept(world: Any) -> None:
    world.node("a")
    driver = world.driver()
    pickled = memoryview(b"not a pickle at all")
    driver.create("x", buffers=(pickled,))
    [sent] = [order for order in world.orders if isinstance(order, events.Send) and isinstance(order.message, wire.StartActors)]
    assert sent.buffers == (pickled,)
    assert world.state.actors["x"].batch.buffers == ()


def test_requests_before_open_job_are_refused(world: Any) -> None:
    driver = world.driver()
    stranger = world.connect("driver")
    with pytest.raises(NotInitializedError, match="OpenJob comes first"):
        world.request(stranger, driver.actors_message("x"))


def test_messages_of_other_roles_are_refused_and_ignored(world: Any) -> None:
    driver = world.driver()
    with pytest.raises(ProtocolError, match="NodeAccepted is nothing"):
        world.request(driver.conn, wire.NodeAccepted(1, 1))
    world.send(driver.conn, wire.NodeAccepted(1, 1))
    assert "ignored a message" in world.logs("warning")[-1]
    world.send(driver.conn, wire.ActorExited("x", 1, wire.ExitEvidence("signal")))
    assert isinstance(driver.take()[-1], wire.Fence)


def test_events_of_unknown_connections_change_nothing(world: Any) -> None:
    assert world.do(events.MessageReceived(99, wire.ListNodes(), (), 1, 0)) == []
    assert world.do(events.PeerLost(99, "?")) == []
    assert world.do(events.DriverGone("nobody")) == []


def test_another_minor_version_of_python_is_refused(make_world: Any) -> None:
    world = make_world(python="3.12.1")
    with pytest.raises(VersionMismatchError, match=r"Python 3\.11\.7, the head runs 3\.12\.1"):
        world.node("a")
    with pytest.raises(VersionMismatchError):
        world.driver()


def test_list_nodes_shows_what_is_free_and_who_is_dead(world: Any) -> None:
    a, driver = world.node("a", gpu=2), world.driver()
    world.node("b")
    driver.create("x", bundles=({"GPU": 0.5},))
    listed = world.request(driver.conn, wire.ListNodes())
    assert [(n.facts.name, n.state, n.available) for n in listed.nodes] == [
        ("a", "ALIVE", {"CPU": 4.0, "GPU": 1.5}), ("b", "ALIVE", {"CPU": 4.0})]
    world.lose(a.conn)
    world.advance(world.limits.reconnect_grace_s)
    states = {n.facts.name: n.state for n in world.request(driver.conn, wire.ListNodes()).nodes}
    assert states["a"] == "DEAD"


def test_shut_down_closes_all_jobs_and_takes_nothing_new(world: Any) -> None:
    node, driver = world.node("a"), world.driver()
    driver.create("x")
    world.do(events.ShutDown("bye"))
    assert not world.cluster.is_empty
    [stop] = node.obey_stops()
    assert (stop.kind, stop.reason, stop.grace_s) == ("owner gone", "bye", 0.0)
    node.sweep()
    assert world.cluster.is_empty
    for attempt in (lambda: world.node("b"), lambda: world.driver("job-2")):
        with pytest.raises(Exception, match="shutting down"):
            attempt()


def test_a_run_replays_from_its_events(make_world: Any) -> None:
    """The same events give the same commands: no clock, no randomness, no order of hashes."""
    def run() -> list[events.Command]:
        world = make_world()
        nodes = [world.node(name, gpu=2) for name in "ab"]
        driver = world.driver()
        driver.create(*[f"r{i}" for i in range(4)], gang=True, bundles=({"GPU": 1.0},) * 4, strategy="SPREAD")
        nodes[0].ready("r0", "r2")
        nodes[1].exited("r1")
        world.advance(60)
        return list(world.orders)

    assert run() == run()


def test_N3_the_head_reads_no_wall_clock() -> None:
    for path in HEAD.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        for word in ("time.time", "time_ns", "datetime", "localtime", "gmtime", "strftime"):
            assert word not in text, f"{path.name} uses {word}"


def test_N3_the_brain_imports_no_clock_loop_randomness_or_io() -> None:
    forbidden = {"asyncio", "time", "random", "secrets", "os", "socket", "threading", "logging", "datetime", "pathlib", "io", "uuid",
                 "select", "pickle", "cloudpickle", "torch", "uvloop"}
    for path in HEAD.glob("*.py"):
        if path.name in SHELL:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else (
                [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
            assert not {name.split(".")[0] for name in names} & forbidden, f"{path.name} imports {names}"
            assert not any(name.startswith("runtime.wire.") and name != "runtime.wire.messages" for name in names), path.name


def test_M1_a_hundred_thousand_births_and_deaths_leave_the_tables_flat(make_world: Any) -> None:
    world = make_world(limits=Limits(dead_actors_kept=50))
    node, driver = world.node("a"), world.driver()
    driver.create_group({"CPU": 2.0})
    world.keep_orders = False

    def sizes() -> list[int]:
        state = world.state
        group = state.groups["pg"]
        return [len(table) for table in (state.clients, state.nodes, state.jobs, state.groups, state.actors, state.names, state.pending,
                                         state.hungry, state.dead, state.buried, state.touched_groups, state.changed_actors,
                                         group.actors, group.batches, node_of(world).actors, state.jobs["job-1"].groups)]

    def node_of(world: Any) -> Any:
        return world.state.nodes["node-a"]

    def births(first: int, count: int) -> None:
        for i in range(first, first + count):
            single = i % 2
            driver.create(f"x{i}", group=f"g{i}" if single else "pg", bundles=None if single else (), resources={"CPU": 1.0},
                          names=(f"name{i}",))
            if i % 3:
                node.ready(f"x{i}")
            node.exited(f"x{i}")
            world.replies.clear()

    births(0, 200)
    before = sizes()
    births(200, 99_800)
    assert sizes() == before
    assert len(world.state.dead) == 50


def test_M1_ten_thousand_jobs_and_nodes_leave_the_tables_flat(make_world: Any) -> None:
    world = make_world()
    world.keep_orders = False
    keeper = world.node("keeper")
    for i in range(10_000):
        node, driver = world.node("guest"), world.driver(f"job-{i}")
        driver.create("x", group=f"g{i}") if i < 1 else driver.create(f"x{i}", group=f"g{i}")
        call = driver.close()
        world.lose(node.conn)
        world.advance(world.limits.reconnect_grace_s)
        keeper.exited("x" if i < 1 else f"x{i}")
        keeper.send(wire.JobSwept(f"job-{i}"))
        assert isinstance(world.replies[call], wire.Ok)
        world.lose(driver.conn)
        world.replies.clear()
        world.inbox.clear()
        world.inbox[keeper.conn] = []
    state = world.state
    assert (len(state.nodes), len(state.jobs), len(state.groups), len(state.actors), len(state.clients)) == (1, 0, 0, 0, 1)
    assert len(state.buried) == 100
    assert len(state.dead) == world.limits.dead_actors_kept


def test_embedded_says_so(make_world: Any) -> None:
    world = make_world(embedded=True)
    assert world.driver().opened == wire.JobOpened(77, True)


def test_an_infeasible_request_does_not_disturb_others(make_world: Any) -> None:
    world = make_world(embedded=True)
    node, driver = world.node("a"), world.driver()
    driver.create("big", group="g1", bundles=({"CPU": 99.0},))
    driver.create("small", group="g2")
    assert driver.group_states() == [("RELEASED", InfeasibleError.__name__), ("RESERVED", "")]
    assert [spec.actor_id for spec in node.started()] == ["small"]
