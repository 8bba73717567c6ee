"""How actors end, and who goes with them."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.errors import FencedError
from runtime.head import events
from runtime.wire import messages as wire


def gang(world: Any, count: int = 3, **options: Any) -> tuple[Any, Any, list[str]]:
    ids = [f"r{i}" for i in range(count)]
    driver = world.driver()
    driver.create(*ids, gang=True, **options)
    return world, driver, ids


def test_a_gang_is_ready_once_when_all_its_members_are(world: Any) -> None:
    a, b = world.node("a", cpu=2), world.node("b", cpu=1)
    _, driver, _ = gang(world)
    driver.take()
    a.ready("r0", "r1")
    assert set(driver.states().values()) <= {"STARTING"}
    b.ready("r2")
    [news] = driver.take(wire.ActorsChanged)
    assert {status.actor_id: (status.state, status.pid) for status in news.actors} == {f"r{i}": ("READY", 500) for i in range(3)}
    assert {facts.name for facts in news.nodes} == {"a", "b"}


def test_actors_that_are_no_gang_are_ready_one_by_one(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    driver.create("x", "y")
    driver.take()
    a.ready("y")
    assert driver.states() == {"y": "READY"}


def test_A4_the_first_death_takes_the_gang_with_it_and_is_named(world: Any) -> None:
    a, b = world.node("a", cpu=2), world.node("b", cpu=1)
    _, driver, _ = gang(world)
    a.ready("r0", "r1")
    b.ready("r2")
    driver.take()
    b.exited("r2", "signal", signal="SIGKILL", log_tail=("bye",))
    [stop] = a.take(wire.StopActors)
    assert (set(stop.actor_ids), stop.grace_s, stop.kind, stop.reason) == ({"r0", "r1"}, 0.0, "killed", "rank 2 on b died first")
    news = driver.take()
    assert [type(message) for message in news] == [wire.GroupChanged, wire.ActorsChanged]
    assert (news[0].state, news[0].reason) == ("BROKEN", "rank 2 on b died first")
    status = {s.actor_id: s for s in news[1].actors}
    assert {k: s.state for k, s in status.items()} == {"r0": "STOPPING", "r1": "STOPPING", "r2": "DEAD"}
    evidence = status["r2"].evidence
    assert (evidence.first, evidence.wanted, evidence.signal, evidence.log_tail) == (True, False, "SIGKILL", ("bye",))
    assert world.free == {"a": {"CPU": 0.0}, "b": {"CPU": 0.0}}  # until all are gone
    a.exited("r0", "killed")
    assert world.free == {"a": {"CPU": 0.0}, "b": {"CPU": 0.0}}
    a.exited("r1", "killed")
    assert world.free == {"a": {"CPU": 2.0}, "b": {"CPU": 1.0}}
    news = driver.take()
    evidence = [status.evidence for message in news if isinstance(message, wire.ActorsChanged) for status in message.actors]
    assert [(each.first, each.wanted) for each in evidence] == [(False, True)] * 2
    assert isinstance(news[-1], wire.GroupChanged) and news[-1].state == "RELEASED"


def test_A4_of_two_unexpected_deaths_the_one_heard_first_is_the_first(world: Any) -> None:
    a = world.node("a")
    _, driver, _ = gang(world, 2)
    a.ready("r0", "r1")
    a.exited("r1", "signal", signal="SIGSEGV")
    a.exited("r0", "exit code", code=1)
    statuses = driver.statuses()
    assert (statuses["r1"].evidence.first, statuses["r0"].evidence.first) == (True, False)
    assert statuses["r0"].evidence.wanted  # collateral: it had been told to end


def test_A4_a_node_that_dies_with_two_members_names_one_of_them_first(world: Any) -> None:
    a, b = world.node("a", cpu=2), world.node("b", cpu=1)
    _, driver, _ = gang(world)
    a.ready("r0", "r1")
    b.ready("r2")
    world.lose(a.conn)
    for _ in range(3):
        world.advance(1.0)
        b.beat()
    statuses = driver.statuses()
    evidence = [statuses[name].evidence for name in ("r0", "r1")]
    assert [(each.kind, each.first) for each in evidence] == [("node dead", True), ("node dead", False)]
    [stop] = b.take(wire.StopActors)
    assert stop.reason == "rank 0 on a died first"


@pytest.mark.parametrize("kind", ["start error", "start time-out"])
def test_a_gang_that_does_not_start_dies_of_its_first_failure(world: Any, kind: str) -> None:
    a = world.node("a")
    _, driver, _ = gang(world)
    a.exited("r1", kind, detail="no module named foo", error=b"pickled")
    a.obey_stops()
    statuses = driver.statuses()
    assert {k: (s.evidence.kind, s.evidence.first) for k, s in statuses.items()} == {
        "r0": ("killed", False), "r1": (kind, True), "r2": ("killed", False)}
    assert statuses["r1"].evidence.error == b"pickled"
    assert not world.state.groups


def test_a_wanted_end_of_a_gang_has_no_first(world: Any) -> None:
    a = world.node("a")
    _, driver, ids = gang(world)
    a.ready(*ids)
    world.request(driver.conn, wire.StopActorsOf(tuple(ids), 5.0, "resize", True))
    [stop] = a.take(wire.StopActors)
    assert (stop.grace_s, stop.sigterm, stop.kind, stop.reason) == (5.0, True, "killed", "resize")
    for actor_id in ids:
        a.exited(actor_id, "exit code", code=0)
    statuses = driver.statuses()
    assert all(s.evidence.wanted and not s.evidence.first for s in statuses.values())


def test_only_the_head_knows_whose_end_was_wanted(world: Any) -> None:
    """A daemon that ends takes its actors along; for the rest of their gang that is a death like any other."""
    a, b = world.node("a", cpu=2), world.node("b", cpu=1)
    _, driver, ids = gang(world)
    a.ready("r0", "r1")
    b.ready("r2")
    b.exited("r2", "node dead", wanted=True)
    assert (driver.statuses()["r2"].evidence.first, len(a.take(wire.StopActors))) == (True, 1)


def test_who_is_stopping_can_be_hurried_but_not_slowed(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    driver.create("x")
    a.ready("x")
    for grace_s in (5.0, 30.0, 5.0, 0.0):
        world.request(driver.conn, wire.StopActorsOf(("x",), grace_s, f"within {grace_s:g} s"))
    assert [(stop.grace_s, stop.reason) for stop in a.take(wire.StopActors)] == [(5.0, "within 5 s"), (0.0, "within 0 s")]
    assert world.state.actors["x"].state == "STOPPING"


def test_stopping_the_unknown_or_dead_is_no_error(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    driver.create("x")
    a.exited("x")
    assert world.request(driver.conn, wire.StopActorsOf(("x", "ghost"), 0.0, "?")) == wire.Ok()
    assert a.take(wire.StopActors) == []


def test_an_actor_that_comes_up_while_stopping_stays_stopping(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    driver.create("x")
    world.request(driver.conn, wire.StopActorsOf(("x",), 5.0, "?"))
    driver.take()
    a.ready("x")
    assert driver.states() == {"x": "STOPPING"}


def test_A1_news_of_a_stale_incarnation_changes_nothing(world: Any) -> None:
    a, b, driver = world.node("a"), world.node("b"), world.driver()
    driver.create("x")
    driver.take()
    a.ready("x", incarnation=2)
    assert a.take(wire.StopActors) == [wire.StopActors(("x",), 0.0, "unknown to the head")]
    a.exited("x", incarnation=2)
    b.exited("x")  # not its node
    b.ready("x")
    assert driver.take() == []
    assert world.state.actors["x"].state == "STARTING"


def test_A1_a_ready_report_for_a_dead_actor_is_answered_with_a_stop(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    driver.create("x")
    a.exited("x")
    a.ready("x")
    assert a.take(wire.StopActors) == [wire.StopActors(("x",), 0.0, "unknown to the head")]


def test_A1_a_stale_actor_can_open_no_session_and_create_nothing(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    driver.create("owner")
    a.ready("owner")
    with pytest.raises(FencedError, match="not incarnation 7"):
        driver.become_actor("owner", epoch=7)
    conn = driver.become_actor("owner")
    world.request(conn, driver.actors_message("x", group="g2"))
    a.exited("owner")
    assert events.Close(conn, "its actor ended") in world.orders
    with pytest.raises(FencedError, match="unknown or was declared dead"):
        driver.become_actor("owner")


def test_A1_a_fenced_connection_is_refused_until_it_is_closed(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    driver.create("owner")
    a.ready("owner")
    conn = driver.become_actor("owner")
    world.do = world.cluster.handle  # nobody obeys Close
    exited = wire.ActorExited("owner", 1, wire.ExitEvidence("signal"))
    world.cluster.handle(events.MessageReceived(a.conn, exited, (), 0, a.incarnation), 0.0)
    [refused] = world.cluster.handle(events.MessageReceived(conn, driver.actors_message("x", group="g2"), (), 5, 1), 0.0)
    assert isinstance(refused, events.ReplyError) and isinstance(refused.error, FencedError)


def test_owner_gone_takes_along_what_it_owns(world: Any) -> None:
    a, driver = world.node("a", cpu=8), world.driver()
    driver.create("parent")
    a.ready("parent")
    conn = driver.become_actor("parent")
    world.request(conn, driver.actors_message("child", group="g-child"))
    a.ready("child")
    child_conn = driver.become_actor("child")
    world.request(child_conn, driver.actors_message("grandchild", group="g-grandchild"))
    world.take(conn)
    driver.take()
    a.exited("parent")
    assert driver.states() == {"parent": "DEAD"}  # the driver does not own the others
    [stop] = a.take(wire.StopActors)
    assert (stop.actor_ids, stop.kind, stop.reason) == (("child",), "owner gone", "its owner rank 0 ended")
    a.exited("child", "owner gone")
    [stop] = a.obey_stops()
    assert stop.actor_ids == ("grandchild",)
    assert not world.state.groups and world.free == {"a": {"CPU": 8.0}}


def test_the_lost_connection_of_an_actor_is_not_its_death(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    driver.create("parent")
    a.ready("parent")
    conn = driver.become_actor("parent")
    world.request(conn, driver.actors_message("child", group="g-child"))
    world.lose(conn)
    world.advance(0.5)
    assert a.take(wire.StopActors) == []
    again = driver.become_actor("parent")
    [group] = world.take(again, wire.GroupChanged)
    assert group.state == "RESERVED"
    [news] = world.take(again, wire.ActorsChanged)
    assert [status.actor_id for status in news.actors] == ["child"]


def test_long_evidence_is_cut(world: Any) -> None:
    a = world.node("a", cpu=100)
    _, driver, ids = gang(world, 40)
    driver.take()
    tail = tuple(f"{i:02d}" + "x" * 10_000 for i in range(50))
    a.exited("r0", "signal", log_tail=tail, error=b"e" * 10_000_000)
    for actor_id in ids[1:]:
        a.exited(actor_id, "killed", log_tail=tail)
    first = driver.statuses()["r0"].evidence
    assert first.log_tail == tail[-6:] and first.error == b""


def test_news_of_many_deaths_at_once_fits_the_frames(world: Any) -> None:
    a = world.node("a", cpu=100)
    _, driver, ids = gang(world, 60)
    for actor_id in ids:
        world.state.actors[actor_id].log_path = "/log"
    tail = ("y" * 9_000,)
    for actor_id in ids[1:]:
        a.exited(actor_id, "killed", log_tail=tail)
    driver.take()
    driver.reconnect()  # all news again, in one step
    parts = driver.take(wire.ActorsChanged)
    assert len(parts) > 1
    assert [status.actor_id for part in parts for status in part.actors] == ids
    assert all(sum(len(line) for s in part.actors if s.evidence for line in s.evidence.log_tail) < 150_000 for part in parts)
