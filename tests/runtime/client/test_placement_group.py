"""Placement groups."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from runtime.client.object_ref import get
from runtime.client.placement_group import placement_group, remove_placement_group
from runtime.errors import ArgumentError, ArgumentTypeError, InfeasibleError, PlacementError
from runtime.wire.messages import CreateGroup, GroupChanged, RemoveGroup


def test_is_ready_when_reserved(cluster: Any, session: Any) -> None:
    group = placement_group([{"CPU": 1}, {"GPU": 0.5}], strategy="SPREAD", name="pair")
    request = cluster.wait_request(CreateGroup)
    assert (request.group_id, request.bundles, request.strategy, request.name) == (group.id, ({"CPU": 1.0}, {"GPU": 0.5}), "SPREAD", "pair")
    assert group.bundle_specs == [{"CPU": 1.0}, {"GPU": 0.5}]
    assert group.bundle_count == 2
    assert not group.wait(0.01)
    cluster.send(GroupChanged(group.id, "RESERVED", node_ids=("n1", "n1")))
    assert group.wait(10)
    assert get(group.ready(), timeout=10) is group


def test_fails_when_it_can_never_be(cluster: Any, session: Any, capsys: pytest.CaptureFixture[str]) -> None:
    group = placement_group([{"CPU": 100}])
    cluster.wait_request(CreateGroup)
    cluster.send(GroupChanged(group.id, "PENDING", "no node has 100"))
    cluster.send(GroupChanged(group.id, "RELEASED", "no node has 100", (), "InfeasibleError"))
    with pytest.raises(InfeasibleError, match="no node has 100"):
        group.wait(10)
    with pytest.raises(InfeasibleError):
        get(group.ready())
    assert "waits for resources: no node has 100" in capsys.readouterr().err


def test_a_refused_group(cluster: Any, session: Any) -> None:
    cluster.answers[CreateGroup] = lambda message: ArgumentError("too many bundles")
    with pytest.raises(ArgumentError, match="too many bundles"):
        get(placement_group([{"CPU": 1}]).ready(), timeout=10)


def test_remove_waits_and_ends_who_waits(cluster: Any, session: Any) -> None:
    group = placement_group([{"CPU": 1}])
    remove_placement_group(group)
    assert cluster.wait_request(RemoveGroup).group_id == group.id
    with pytest.raises(PlacementError, match="removed"):
        get(group.ready(), timeout=10)


@pytest.mark.parametrize(("call", "error"), [
    (lambda: placement_group([]), ArgumentError), (lambda: placement_group([{}]), ArgumentError),
    (lambda: placement_group("CPU"), ArgumentTypeError), (lambda: placement_group([{"CPU": 1}], strategy="X"), ArgumentError),
    (lambda: placement_group([{"CPU": 1}], name=3), ArgumentTypeError), (lambda: remove_placement_group(3), ArgumentTypeError),
])
def test_bad_arguments(session: Any, call: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        call()


def test_does_not_travel(session: Any) -> None:
    with pytest.raises(TypeError, match="belongs to the process"):
        pickle.dumps(placement_group([{"CPU": 1}]))
