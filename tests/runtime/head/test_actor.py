"""The life cycle of an actor."""

from __future__ import annotations

from typing import Any

from runtime.head.actor import ACTOR_TABLE


def test_table() -> None:
    assert {f"{old} -> {new}" for old, targets in ACTOR_TABLE.items() for new in targets} == {
        "PENDING -> STARTING", "STARTING -> READY", "STARTING -> STOPPING", "READY -> STOPPING",
        "PENDING -> DEAD", "STARTING -> DEAD", "READY -> DEAD", "STOPPING -> DEAD", "DEAD -> PENDING"}


def test_status_and_spec_show_where_it_is_and_what_it_has(world: Any) -> None:
    world.node("a", gpu=2)
    driver = world.driver()
    driver.create("x", bundles=({"GPU": 1.0},), names=("n",))
    actor = world.state.actors["x"]
    assert str(actor) == "actor rank 0 (x, incarnation 1)"
    assert (actor.status().node_id, actor.status().gpu_ids) == ("node-a", (0,))
    assert (actor.start_spec().name, actor.start_spec().gpu_ids) == ("n", (0,))


def test_what_it_drew_is_given_back_once(world: Any) -> None:
    world.node("a")
    driver = world.driver()
    driver.create_group({"CPU": 1.0})
    driver.create("x", group="pg", bundles=(), resources={"CPU": 1.0})
    actor = world.state.actors["x"]
    ledger = actor.source
    actor.give_back()
    actor.give_back()
    assert ledger.free == ledger.total
