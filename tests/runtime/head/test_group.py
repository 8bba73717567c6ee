"""The life cycle of a placement group."""

from __future__ import annotations

from typing import Any

from runtime.head.group import GROUP_TABLE
from runtime.wire.messages import GroupChanged


def test_table() -> None:
    assert {f"{old} -> {new}" for old, targets in GROUP_TABLE.items() for new in targets} == {
        "PENDING -> RESERVED", "RESERVED -> RELEASED", "RESERVED -> BROKEN", "BROKEN -> PENDING", "BROKEN -> RELEASED",
        "PENDING -> RELEASED"}


def test_a_group_tells_its_state_and_nodes(world: Any) -> None:
    world.node("a", cpu=20)
    driver = world.driver()
    driver.create_group({"CPU": 1.0}, {"CPU": 1.0})
    group = world.state.groups["pg"]
    assert group.changed() == GroupChanged("pg", "RESERVED", "", ("node-a", "node-a"))
    assert group.label == "placement group pg"
    driver.create(*[f"x{i}" for i in range(6)], group="g2")
    assert world.state.groups["g2"].label == "rank 0, rank 1, rank 2, rank 3 and 2 more"
    assert len(world.state.groups["g2"].living) == 6
