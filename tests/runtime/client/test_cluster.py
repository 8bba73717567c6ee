"""What the cluster has, with Ray's keys."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.client.cluster import available_resources, cluster_resources, nodes
from runtime.client.inside import channel, get_runtime_context, on_stop_requested, stop_requested
from runtime.errors import NotInitializedError
from runtime.wire.messages import ListNodes, NodeFacts, NodeList, NodeStatus


def node(name: str, state: str, cpus: float, free: float) -> NodeStatus:
    facts = NodeFacts(node_id=name, name=name, host_id=name, pid=1, host="10.0.0.1", port=7, interface="eth0",
                      resources={"CPU": cpus, "x": 1}, labels={"zone": "a"})
    return NodeStatus(facts, state, {"CPU": free, "x": 0.0})


@pytest.fixture(autouse=True)
def three_nodes(cluster: Any, session: Any) -> None:
    cluster.answers[ListNodes] = lambda message: NodeList((node("a", "ALIVE", 4, 3), node("b", "SUSPECT", 2, 2), node("c", "DEAD", 8, 8)))


def test_nodes_have_rays_keys() -> None:
    first, _, dead = nodes()
    assert (first["NodeID"], first["Alive"], first["NodeManagerAddress"], first["NodeName"]) == ("a", True, "10.0.0.1", "a")
    assert (first["Resources"], first["Labels"], first["Interface"]) == ({"CPU": 4.0, "x": 1.0}, {"zone": "a"}, "eth0")
    assert not dead["Alive"]


def test_resources_are_those_of_living_nodes() -> None:
    assert cluster_resources() == {"CPU": 6.0, "x": 2.0}
    assert available_resources() == {"CPU": 5.0}


def test_a_drivers_context(session: Any) -> None:
    context = get_runtime_context()
    assert context.job_id == context.get_job_id() == session.job_id
    assert context.actor_id is context.get_actor_id() is None
    assert context.get_node_id() == ""  # none of the nodes is this host


def test_what_only_actors_have() -> None:
    assert not stop_requested()
    with pytest.raises(NotInitializedError, match=r"on_stop_requested\(\) is for code inside an actor"):
        on_stop_requested(lambda reason, grace_s: None)
    with pytest.raises(NotInitializedError, match=r"channel\(\) is for code inside an actor"):
        channel("reports")
