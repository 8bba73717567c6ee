"""What the cluster has: nodes and their resources, with Ray's keys."""

from __future__ import annotations

from collections import Counter
from typing import Any

from runtime.client.init import current_session
from runtime.client.session import Session
from runtime.wire.messages import ListNodes, NodeList, NodeStatus

__all__ = ["available_resources", "cluster_resources", "node_here", "nodes"]

# A suspect node is silent for a few seconds; its resources are still the cluster's.
LIVING = ("ALIVE", "SUSPECT")


def nodes() -> list[dict[str, Any]]:
    """A dict a node, dead ones too: NodeID, Alive, State, NodeName, NodeManagerAddress, Interface, Resources, Available, Labels."""
    return [{
        "NodeID": node.facts.node_id, "Alive": node.state in LIVING, "State": node.state, "NodeName": node.facts.name,
        "NodeManagerHostname": node.facts.name, "NodeManagerAddress": node.facts.host, "NodeManagerPort": node.facts.port,
        "Interface": node.facts.interface, "Resources": dict(node.facts.resources), "Available": dict(node.available),
        "Labels": dict(node.facts.labels),
    } for node in _list_nodes(current_session())]


def cluster_resources() -> dict[str, float]:
    """Resources of all living nodes together."""
    return dict(sum((Counter(node.facts.resources) for node in _list_nodes(current_session()) if node.state in LIVING), Counter()))


def available_resources() -> dict[str, float]:
    """Resources that nothing has reserved, of all living nodes together."""
    return dict(sum((Counter(node.available) for node in _list_nodes(current_session()) if node.state in LIVING), Counter()))


def node_here(session: Session) -> NodeStatus | None:
    """The node that this process's host is, if it is one."""
    return next((node for node in _list_nodes(session) if node.facts.host_id == session.host_id and node.state in LIVING), None)


def _list_nodes(session: Session) -> tuple[NodeStatus, ...]:
    answer = session.call(ListNodes()).message
    assert isinstance(answer, NodeList), answer
    return answer.nodes
