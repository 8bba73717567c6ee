"""Who gets resources when, and what is said to who waits."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.head import events
from runtime.wire import messages as wire


def reasons(driver: Any) -> list[str]:
    return [message.reason for message in driver.take(wire.GroupChanged)]


def test_L2_a_gang_is_created_whole_or_not_at_all(world: Any) -> None:
    a, driver = world.node("a", cpu=2), world.driver()
    driver.create("r0", "r1", "r2", gang=True)
    [changed] = driver.take(wire.GroupChanged)
    assert (changed.state, changed.node_ids) == ("PENDING", ())
    assert world.free == {"a": {"CPU": 2.0}}
    assert a.started() == []
    b = world.node("b", cpu=1)
    [changed] = driver.take(wire.GroupChanged)
    assert (changed.state, changed.node_ids) == ("RESERVED", ("node-a", "node-a", "node-b"))
    assert [[spec.actor_id for spec in node.started()] for node in (a, b)] == [["r0", "r1"], ["r2"]]


def test_one_message_a_node_starts_a_gang(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    driver.create("r0", "r1", "r2", gang=True)
    assert len(a.take(wire.StartActors)) == 1
    assert len(driver.take(wire.ActorsChanged)) == 1


def test_gpus_go_lowest_first_and_can_be_shared_on_a_node(world: Any) -> None:
    a, driver = world.node("a", gpu=4), world.driver()
    driver.create("solo", group="g0", bundles=({"GPU": 1.0},))
    driver.create("r0", "r1", group="g1", gang=True, bundles=({"GPU": 1.0},) * 2, share_gpus=True)
    driver.create("half", group="g2", bundles=({"GPU": 0.5},))
    assert [(s.actor_id, s.gpu_ids, s.visible_gpu_ids) for s in a.started()] == [
        ("solo", (0,), (0,)), ("r0", (1,), (1, 2)), ("r1", (2,), (1, 2)), ("half", (3,), (3,))]
    assert driver.statuses()["r1"].visible_gpu_ids == (1, 2)


def test_an_actor_without_gpus_sees_none_also_in_a_gang_that_shares(world: Any) -> None:
    a, driver = world.node("a", gpu=1), world.driver()
    driver.create("r0", "r1", gang=True, bundles=({"GPU": 1.0}, {"CPU": 1.0}), share_gpus=True)
    assert [(s.actor_id, s.visible_gpu_ids) for s in a.started()] == [("r0", (0,)), ("r1", ())]


def test_actors_without_resources_run_anywhere(world: Any) -> None:
    a, driver = world.node("a", cpu=0), world.driver()
    driver.create("x", bundles=({},))
    assert [spec.actor_id for spec in a.started()] == ["x"]


def test_infeasible_is_an_error_at_once_in_the_embedded_cluster(make_world: Any) -> None:
    world = make_world(embedded=True)
    world.node("a", cpu=2)
    driver = world.driver()
    driver.create("x", bundles=({"CPU": 3.0},))
    [changed] = driver.take(wire.GroupChanged)
    assert (changed.state, changed.error) == ("RELEASED", "InfeasibleError")
    assert "missing" in changed.reason and "{CPU: 1}" in changed.reason and "give init() more" in changed.reason
    status = driver.statuses()["x"]
    assert (status.state, status.evidence.kind, status.evidence.detail) == ("DEAD", "start error", changed.reason)
    assert not world.state.groups and not world.state.actors


def test_the_news_of_a_failed_group_comes_before_that_of_its_actors(make_world: Any) -> None:
    world = make_world(embedded=True)
    world.node("a", cpu=2)
    driver = world.driver()
    driver.create("x", bundles=({"CPU": 3.0},))
    assert [type(message) for message in driver.take()] == [wire.GroupChanged, wire.ActorsChanged]


def test_embedded_waits_for_its_node_to_start(make_world: Any) -> None:
    world = make_world(embedded=True)
    driver = world.driver()
    driver.create("x")
    [changed] = driver.take(wire.GroupChanged)
    assert changed.state == "PENDING" and "node, which is starting" in changed.reason
    world.node("a")
    assert driver.group_states() == [("RESERVED", "")]


def test_embedded_whose_node_died_fails_at_once(make_world: Any) -> None:
    world = make_world(embedded=True)
    a, driver = world.node("a"), world.driver()
    world.lose(a.conn)
    world.advance(world.limits.reconnect_grace_s)
    driver.create("x")
    assert driver.group_states() == [("RELEASED", "InfeasibleError")]


def test_infeasible_in_a_joined_cluster_is_told_at_once_and_an_error_after_the_time_out(world: Any) -> None:
    a, driver = world.node("a", cpu=2), world.driver()
    driver.create("x", bundles=({"CPU": 3.0},))
    [changed] = driver.take(wire.GroupChanged)
    assert (changed.state, changed.error) == ("PENDING", "")
    assert "cannot be placed" in changed.reason and "python -m runtime.worker --head" in changed.reason
    for _ in range(59):
        world.advance(1.0)
        a.beat()
    assert driver.take() == []
    world.advance(1.0)
    assert driver.group_states() == [("RELEASED", "InfeasibleError")]


def test_a_node_that_joins_in_time_saves_the_infeasible(world: Any) -> None:
    world.node("a", cpu=2)
    driver = world.driver()
    driver.create("x", bundles=({"CPU": 3.0},))
    world.advance(10)
    world.node("b", cpu=8)
    assert driver.group_states() == [("PENDING", ""), ("RESERVED", "")]
    world.advance(1)
    assert world.cluster.next_deadline() <= world.now + 1  # nothing left of the time-out but the tick


def test_a_request_may_set_its_own_time_out(world: Any) -> None:
    a, driver = world.node("a", cpu=2), world.driver()
    driver.create("holder", group="g0", bundles=({"CPU": 2.0},))
    driver.take()
    driver.create("busy", group="g1", timeout_s=2.0)
    driver.create("infeasible", group="g2", bundles=({"CPU": 9.0},), timeout_s=3.0)
    driver.create("now", group="g3", timeout_s=0.0)
    messages = driver.take(wire.GroupChanged)
    assert [(m.group_id, m.state, m.error) for m in messages] == [
        ("g1", "PENDING", ""), ("g2", "PENDING", ""), ("g3", "RELEASED", "PlacementTimeoutError")]
    assert messages[2].reason.startswith("not placed within 0 s: 1 x {CPU: 1} (PACK) waits")
    for _ in range(3):
        world.advance(1.0)
        a.beat()
    assert [(m.group_id, m.error) for m in driver.take(wire.GroupChanged) if m.error] == [
        ("g1", "PlacementTimeoutError"), ("g2", "InfeasibleError")]


def test_busy_waits_for_ever_and_says_for_whom(world: Any) -> None:
    a, driver = world.node("a", cpu=2), world.driver()
    driver.create("r0", "r1", group="g0", gang=True)
    other = world.driver("job-2", pid=4712)
    other.create("x", group="g1")
    [reason] = reasons(other)
    assert reason == ("1 x {CPU: 1} (PACK) waits for resources in use: a: CPU 0 of 2 free (held by rank 0, rank 1 of job job-1 "
                      "(driver pid 4711): {CPU: 2}).")
    for _ in range(500):
        world.advance(1.0)
        a.beat()
    assert other.take() == []  # the same reason is told once
    a.ready("r0", "r1")
    a.exited("r0", "exit code")
    a.obey_stops()
    assert other.group_states() == [("RESERVED", "")]


def test_reasons_are_renewed_once_a_heartbeat_when_something_changed(world: Any) -> None:
    a, driver = world.node("a", cpu=4), world.driver()
    for i in range(4):
        driver.create(f"x{i}", group=f"g{i}")
    driver.create("big", group="big", bundles=({"CPU": 4.0},))
    assert "CPU 0 of 4 free" in reasons(driver)[-1]
    for i in range(3):
        a.exited(f"x{i}")
    assert [m.group_id for m in driver.take(wire.GroupChanged)] == ["g0", "g1", "g2"]
    world.advance(world.limits.heartbeat_s)
    [reason] = reasons(driver)
    assert "CPU 3 of 4 free (held by rank 0 of job job-1" in reason


def test_pending_groups_are_served_first_come_first_served(world: Any) -> None:
    a, driver = world.node("a", cpu=1), world.driver()
    driver.create("x0", group="g0")
    for i in range(1, 4):
        driver.create(f"x{i}", group=f"g{i}")
    order = []
    for i in range(4):
        order += [spec.actor_id for spec in a.started()]
        a.exited(f"x{i}")
    assert order == ["x0", "x1", "x2", "x3"]


def test_a_small_group_passes_a_big_one_that_does_not_fit(world: Any) -> None:
    """Else the holder's own helper would wait behind its successor for ever."""
    a, driver = world.node("a", cpu=2), world.driver()
    driver.create("holder", group="g0")
    driver.create("big", group="g1", bundles=({"CPU": 2.0},))
    driver.create("helper", group="g2", bundles=({},))
    assert [spec.actor_id for spec in a.started()] == ["holder", "helper"]


def test_a_pending_group_can_be_removed(world: Any) -> None:
    world.node("a", cpu=1)
    driver = world.driver()
    driver.create("x0", group="g0")
    driver.create("x1", group="g1")
    driver.take()
    assert world.request(driver.conn, wire.RemoveGroup("g1", 0.0, "changed my mind")) == wire.Ok()
    status = driver.statuses()["x1"]
    assert (status.state, status.evidence) == ("DEAD", wire.ExitEvidence("killed", detail="changed my mind", label="rank 0", wanted=True))
    assert driver.group_states() == [("RELEASED", "")]
    assert not world.state.pending


# ---- lasting groups ----


def test_actors_draw_from_their_bundle(world: Any) -> None:
    a, driver = world.node("a", gpu=2), world.driver()
    driver.create_group({"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 1.0})
    assert driver.group_states() == [("RESERVED", "")]
    assert world.free == {"a": {"CPU": 2.0, "GPU": 0.0}}
    driver.create("x", "y", group="pg", bundles=(), resources={"GPU": 1.0}, indices=(1, 0))
    assert [(spec.actor_id, spec.gpu_ids) for spec in a.started()] == [("x", (1,)), ("y", (0,))]
    assert world.free == {"a": {"CPU": 2.0, "GPU": 0.0}}


def test_an_actor_waits_for_room_in_its_bundle(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    driver.create_group({"CPU": 1.0})
    driver.create("x", group="pg", bundles=(), resources={"CPU": 1.0})
    driver.create("y", group="pg", bundles=(), resources={"CPU": 1.0})
    assert [spec.actor_id for spec in a.started()] == ["x"]
    assert driver.states() == {"x": "STARTING"}
    a.exited("x")
    [start] = a.take(wire.StartActors)
    assert [spec.actor_id for spec in start.actors] == ["y"]
    assert driver.states() == {"x": "DEAD", "y": "STARTING"}


def test_any_bundle_will_do_for_bundle_minus_one(world: Any) -> None:
    a, driver = world.node("a", gpu=2), world.driver()
    driver.create_group({"GPU": 1.0}, {"GPU": 1.0})
    driver.create("x", "y", group="pg", bundles=(), resources={"GPU": 1.0}, indices=(-1, -1))
    assert [(spec.actor_id, spec.gpu_ids) for spec in a.started()] == [("x", (0,)), ("y", (1,))]


def test_a_gang_in_a_lasting_group_starts_whole_or_waits(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    driver.create_group({"CPU": 1.0}, {"CPU": 1.0})
    driver.create("x", group="pg", bundles=(), resources={"CPU": 1.0})
    driver.create("r0", "r1", group="pg", bundles=(), resources={"CPU": 1.0}, indices=(1, 0), gang=True)
    assert [spec.actor_id for spec in a.started()] == ["x"]
    driver.create("y", group="pg", bundles=(), resources={"CPU": 1.0}, indices=(1,))
    assert [spec.actor_id for spec in a.started()] == ["y"]  # what the gang can't have whole it does not hold
    a.exited("x")
    a.exited("y")
    assert [spec.actor_id for spec in a.started()] == ["r0", "r1"]


def test_an_empty_lasting_group_that_is_removed_makes_room(world: Any) -> None:
    a, driver = world.node("a", cpu=1), world.driver()
    driver.create_group({"CPU": 1.0})
    driver.create("x", group="g1")
    assert world.request(driver.conn, wire.RemoveGroup("pg")) == wire.Ok()
    assert [spec.actor_id for spec in a.started()] == ["x"]


def test_actors_created_while_their_group_waits_start_when_it_is_reserved(world: Any) -> None:
    driver = world.driver()
    driver.create_group({"CPU": 1.0})
    driver.create("x", group="pg", bundles=(), resources={"CPU": 1.0})
    assert [m.state for m in driver.take(wire.GroupChanged)] == ["PENDING"]
    a = world.node("a")
    assert [spec.actor_id for spec in a.started()] == ["x"]


def test_a_lasting_group_outlives_its_actors_until_it_is_removed(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    driver.create_group({"CPU": 1.0})
    driver.create("x", group="pg", bundles=(), resources={"CPU": 1.0})
    a.exited("x")
    assert driver.group_states() == [("RESERVED", "")]
    driver.create("y", group="pg", bundles=(), resources={"CPU": 1.0})
    call = world.begin(driver.conn, wire.RemoveGroup("pg", 1.5, "done"))
    [stop] = a.take(wire.StopActors)
    assert (stop.actor_ids, stop.grace_s, stop.reason) == (("y",), 1.5, "done")
    assert call not in world.replies
    assert world.free == {"a": {"CPU": 3.0}}
    a.exited("y", "killed")
    assert world.replies[call] == wire.Ok()
    assert world.free == {"a": {"CPU": 4.0}}


def test_a_lasting_group_that_loses_a_node_is_broken_and_placed_again_when_its_actors_are_gone(world: Any) -> None:
    a, b, driver = world.node("a", cpu=1), world.node("b", cpu=1), world.driver()
    driver.create_group({"CPU": 1.0}, {"CPU": 1.0})
    driver.create("x", group="pg", bundles=(), resources={"CPU": 1.0}, indices=(0,))
    driver.create("y", group="pg", bundles=(), resources={"CPU": 1.0}, indices=(1,))
    driver.take()
    world.lose(b.conn)
    world.advance(world.limits.reconnect_grace_s)
    [changed] = driver.take(wire.GroupChanged)
    assert (changed.state, changed.reason) == ("BROKEN", "node b is gone")
    assert driver.states() == {"y": "DEAD"}
    a.exited("x")
    [changed] = driver.take(wire.GroupChanged)
    assert changed.state == "PENDING"
    world.node("c", cpu=1)
    [changed] = driver.take(wire.GroupChanged)
    assert (changed.state, changed.node_ids) == ("RESERVED", ("node-a", "node-c"))


def test_a_group_that_is_placed_again_has_its_whole_time_again(world: Any) -> None:
    driver = world.driver()
    driver.create_group({"CPU": 1.0})  # infeasible: there are no nodes
    a = world.node("a")
    for _ in range(100):
        world.advance(1.0)
        a.beat()
    world.lose(a.conn)
    world.advance(world.limits.reconnect_grace_s)
    assert driver.group_states() == [("PENDING", ""), ("RESERVED", ""), ("BROKEN", ""), ("PENDING", "")]
    world.advance(world.limits.placement_infeasible_s - 1.0)
    assert driver.group_states() == []
    world.advance(1.0)
    assert driver.group_states() == [("RELEASED", "InfeasibleError")]


def test_nothing_starts_on_a_node_whose_connection_is_lost(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    driver.create_group({"CPU": 1.0})
    world.lose(a.conn)
    driver.create("x", group="pg", bundles=(), resources={"CPU": 1.0})
    a.reconnect()
    a.register(a.incarnation)
    assert [spec.actor_id for spec in a.started()] == ["x"]


@pytest.mark.parametrize("strategy", ["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"])
def test_every_strategy_reaches_the_nodes(world: Any, strategy: str) -> None:
    nodes, driver = [world.node("a"), world.node("b")], world.driver()
    driver.create("r0", "r1", gang=True, strategy=strategy)
    per_node = sorted(len(node.started()) for node in nodes)
    assert per_node == ([1, 1] if "SPREAD" in strategy else [0, 2])


def test_answers_come_before_the_news(world: Any) -> None:
    world.node("a")
    driver = world.driver()
    commands = world.do(events.MessageReceived(driver.conn, driver.actors_message("x"), (b"",), 900, 0))
    sent = [command for command in commands if not isinstance(command, events.Log) and command.conn == driver.conn]
    assert isinstance(sent[0], events.Reply)
    assert [type(command.message) for command in sent[1:]] == [wire.GroupChanged, wire.ActorsChanged]


def test_equal_bundles_of_a_node_stand_side_by_side(world: Any) -> None:
    a, b, driver = world.node("a", cpu=2), world.node("b", cpu=2), world.driver()
    driver.create("r0", "r1", "r2", "r3", gang=True, strategy="SPREAD")
    assert [[spec.actor_id for spec in node.started()] for node in (a, b)] == [["r0", "r1"], ["r2", "r3"]]
