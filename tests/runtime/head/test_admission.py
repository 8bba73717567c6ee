"""Requests are checked before anything changes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from runtime.errors import ActorNotFoundError, ArgumentError, NameTakenError
from runtime.wire import messages as wire


@pytest.fixture
def driver(world: Any) -> Any:
    world.a = world.node("a", gpu=1)
    return world.driver()


def change(message: Any, **fields: Any) -> Any:
    return dataclasses.replace(message, **fields)


@pytest.mark.parametrize(("fields", "text"), [
    ({"actors": ()}, "names no actor"),
    ({"strategy": "BOGUS"}, "'BOGUS' is unknown; it must be one of PACK, SPREAD, STRICT_PACK, STRICT_SPREAD"),
    ({"bundles": ({"CPU": -1.0},)}, "bundle 0: resource 'CPU' is -1.0"),
    ({"bundles": ({"GPU": 1.5},)}, "1.5 GPUs"),
    ({"bundles": ({"CPU": 0.5},)}, "'rank 0' needs {CPU: 1}, which does not fit into its bundle (1 x {CPU: 0.5}) even when it is empty"),
    ({"bundles": ({"CPU": 1.0},) * 10_001}, "10001 bundles; it must have 1 to 10000"),
    ({"bundles": ()}, "Placement group 'g' does not exist"),
    ({"group_id": ""}, "is empty or in use"),
])
def test_bad_actors_are_refused_and_change_nothing(world: Any, driver: Any, fields: Any, text: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        world.request(driver.conn, change(driver.actors_message("x"), **fields))
    assert text in str(caught.value)
    state = world.state
    assert not (state.groups or state.actors or state.names or state.jobs["job-1"].groups)
    assert driver.take() == []


@pytest.mark.parametrize("grace_s", [-1.0, float("nan"), float("inf")])
def test_an_impossible_grace_is_refused(world: Any, driver: Any, grace_s: float) -> None:
    driver.create("x")
    for message in (wire.RemoveGroup("g", grace_s), wire.StopActorsOf(("x",), grace_s, "?")):
        with pytest.raises(ArgumentError, match="a number of seconds from 0 on"):
            world.request(driver.conn, message)
    assert world.a.take(wire.StopActors) == []


def test_bundle_indices_are_checked(world: Any, driver: Any) -> None:
    message = driver.actors_message("x")
    with pytest.raises(ArgumentError, match="asks for bundle 1; the group has bundles 0 to 0"):
        world.request(driver.conn, change(message, actors=(change(message.actors[0], bundle=1),)))


def test_a_gang_that_does_not_fit_its_bundles_together_is_refused(world: Any, driver: Any) -> None:
    driver.create_group({"CPU": 1.0})
    two = {"group": "pg", "bundles": (), "resources": {"CPU": 1.0}, "indices": (0, 0)}
    with pytest.raises(ArgumentError, match="does not fit into its bundle .* with the rest of its gang"):
        driver.create("r0", "r1", gang=True, **two)
    driver.create("x", "y", **two)  # one after the other is fine


def test_ids_are_used_once(world: Any, driver: Any) -> None:
    driver.create("x", group="g1")
    with pytest.raises(ArgumentError, match="Group id 'g1' is empty or in use"):
        driver.create("y", group="g1")
    with pytest.raises(ArgumentError, match="Actor id 'x' is empty or was used before"):
        driver.create("x", group="g2")
    world.a.exited("x")
    with pytest.raises(ArgumentError, match="was used before"):
        driver.create("x", group="g2")


def test_a_bad_lasting_group_is_refused(world: Any, driver: Any) -> None:
    with pytest.raises(ArgumentError, match="0 bundles"):
        driver.create_group()
    with pytest.raises(ArgumentError, match="NEAR"):
        driver.create_group({"CPU": 1.0}, strategy="NEAR")


def test_actors_can_not_join_a_group_that_goes_with_its_actors_or_is_removed_or_anothers(world: Any, driver: Any) -> None:
    driver.create("x", group="g1")
    driver.create_group({"CPU": 1.0})
    driver.create("y", group="pg", bundles=(), resources={})
    other = world.driver("job-2", pid=5)
    with pytest.raises(ArgumentError, match="does not exist"):
        other.create("z", group="pg", bundles=(), resources={})
    world.begin(driver.conn, wire.RemoveGroup("pg"))
    for group in ("g1", "pg", "ghost"):
        with pytest.raises(ArgumentError, match=f"{group}.* does not exist .any more. in job job-1"):
            driver.create("z", group=group, bundles=(), resources={})


def test_names_are_unique_among_the_living_of_a_namespace(world: Any, driver: Any) -> None:
    driver.create("x", group="g1", names=("n",), namespace="team")
    with pytest.raises(NameTakenError, match="already called 'n'"):
        driver.create("y", group="g2", names=("n",), namespace="team")
    with pytest.raises(NameTakenError):
        driver.create("y", "z", group="g2", names=("m", "m"))
    driver.create("y", group="g2", names=("n",))  # the job's own namespace
    world.a.exited("x")
    driver.create("z", group="g3", names=("n",), namespace="team")
    assert {key: actor.id for key, actor in world.state.names.items()} == {("team", "n"): "z", ("job-1", "n"): "y"}


def test_a_pending_actor_holds_its_name(world: Any, driver: Any) -> None:
    driver.create("x", group="g1", names=("n",), bundles=({"CPU": 99.0},))
    with pytest.raises(NameTakenError):
        driver.create("y", group="g2", names=("n",))
    info = world.request(driver.conn, wire.FindActor(name="n"))
    assert (info.status.state, info.node) == ("PENDING", None)


def test_find_actor_by_name_and_namespace(world: Any, driver: Any) -> None:
    driver.create("x", group="g1", names=("n",))
    driver.create("y", group="g2", names=("n",), namespace="team")
    other = world.driver("job-2", pid=5, namespace="team")
    find = lambda client, **by: world.request(client.conn, wire.FindActor(**by)).status.actor_id
    assert find(driver, name="n") == "x"
    assert find(driver, name="n", namespace="team") == "y"
    assert find(other, name="n") == "y"
    assert find(other, actor_id="x") == "x"
    with pytest.raises(ActorNotFoundError, match="No living actor has the name 'm' in namespace 'team'"):
        find(driver, name="m", namespace="team")
    with pytest.raises(ActorNotFoundError, match="No living actor has the id 12345678"):
        find(driver, actor_id="1234567890")
    world.a.exited("y")
    with pytest.raises(ActorNotFoundError):
        find(other, name="n")


def test_who_found_an_actor_hears_of_it(world: Any, driver: Any) -> None:
    other = world.driver("job-2", pid=5)
    driver.create("x")
    assert world.request(other.conn, wire.FindActor(actor_id="x")).node == world.a.facts
    world.a.ready("x")
    [news] = other.take(wire.ActorsChanged)
    assert (news.actors[0].state, news.nodes) == ("READY", (world.a.facts,))
    world.a.exited("x")
    assert other.states() == {"x": "DEAD"}


def test_removing_the_unknown_is_no_error_and_twice_is_answered_twice(world: Any, driver: Any) -> None:
    assert world.request(driver.conn, wire.RemoveGroup("ghost")) == wire.Ok()
    driver.create("x")
    calls = [world.begin(driver.conn, wire.RemoveGroup("g", 5.0)), world.begin(driver.conn, wire.RemoveGroup("g", 0.0))]
    assert [stop.grace_s for stop in world.a.take(wire.StopActors)] == [5.0, 0.0]
    world.a.exited("x")
    assert [world.replies[call] for call in calls] == [wire.Ok(), wire.Ok()]


def test_a_cancelled_wait_is_not_answered_and_the_removal_goes_on(world: Any, driver: Any) -> None:
    driver.create("x")
    remove = world.begin(driver.conn, wire.RemoveGroup("g"))
    close = driver.close()
    for call in (remove, close, 999):
        world.send(driver.conn, wire.CancelCall(call))
    world.a.obey_stops()
    world.a.sweep()
    assert not world.state.jobs
    assert remove not in world.replies and close not in world.replies
