"""Nodes: who belongs to the cluster, who is silent, who is dead, and that the dead stay out.

A node is judged by what its daemon sends, never by what its actors do. Dead is final for an incarnation: whoever speaks for it is told
Fence, and nothing that it says counts. That, not waiting, makes it safe to place its work elsewhere.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import replace

from runtime.errors import ArgumentError, FencedError, HeadLostError, NameTakenError, VersionMismatchError
from runtime.head import supervision
from runtime.head.actor import ActorState
from runtime.head.node import Node, NodeState, inventory
from runtime.head.state import Client, State
from runtime.wire.messages import ExitEvidence, Fence, Hello, NodeAccepted, NodeFacts, NodeList, Preload, RegisterNode, StopActors, SweepJob

__all__ = ["check_deadlines", "check_python", "current_node", "deadline", "extend", "heard", "lost", "node_list", "register"]

# It appears in logs, tables and file names.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def register(state: State, client: Client, message: RegisterNode, call_id: int, now: float) -> None:
    """Take in a node, or have it back after a lost connection.

    Raises: FencedError: it comes back with an incarnation that is dead or unknown. Others: it can't be taken.
    """
    facts, known = message.facts, state.nodes.get(message.facts.node_id)
    if state.shutting_down:
        raise HeadLostError("The head is shutting down: nothing new is taken in.")
    if message.incarnation:
        if known is None or known.incarnation != message.incarnation:
            raise FencedError(f"Node {facts.name!r}, incarnation {message.incarnation}, was declared dead or never was of this cluster: "
                              "its actors must end, then it can register anew.")
        _check_address(state, facts)
        _resume(state, client, known, message, call_id, now)
        return
    if not NAME.fullmatch(facts.name):
        raise ArgumentError(f"Node name {facts.name[:200]!r}: it must be 1 to 128 letters, digits, dots, dashes and underscores, the first "
                            "a letter or digit.")
    ledger = inventory(facts)
    check_python(state, client.hello, f"node {facts.name!r}")
    _check_address(state, facts)
    _make_way(state, client, facts, now)
    if not state.nodes:
        state.last_tick = now  # nobody had to tick before
    state.incarnations += 1
    node = Node(facts, state.incarnations, ledger, client.conn, now)
    client.node = state.nodes[facts.node_id] = node
    state.move(node, NodeState.ALIVE)
    _inventory_changed(state)
    state.reply(client.conn, call_id, NodeAccepted(node.incarnation, state.settings.head_epoch, message.running))
    for modules in dict.fromkeys(job.preload for job in state.jobs.values() if job.preload):
        state.send(client.conn, Preload(modules))
    state.log("info", f"{node} joined with {facts.resources}")


def check_python(state: State, hello: Hello, who: str) -> None:
    """One minor version of Python in a cluster: code pickled by one does not load in another.

    Raises: VersionMismatchError: another one than the head's.
    """
    ours, theirs = state.settings.python, hello.python
    if ours and theirs and ours.split(".")[:2] != theirs.split(".")[:2]:
        raise VersionMismatchError(f"{who} runs Python {theirs}, the head runs {ours}: functions do not travel between them. Use one minor "
                                   "version everywhere.")


def _check_address(state: State, facts: NodeFacts) -> None:
    if state.settings.loopback_only or not facts.host:
        return
    try:
        is_loopback = ipaddress.ip_address(facts.host.partition("%")[0]).is_loopback
    except ValueError as exc:
        raise ArgumentError(f"Node {facts.name!r} has the address {facts.host!r}, which is no numeric one.") from exc
    if is_loopback:
        raise ArgumentError(f"Node {facts.name!r} has the address {facts.host}, where other hosts of this cluster cannot reach it. Start "
                            "it with --head and an address of the head that other hosts use, not a loopback one.")


def _make_way(state: State, client: Client, facts: NodeFacts, now: float) -> None:
    """A second node of one name is refused while the first is well; else the new one wins and the old one is fenced."""
    for node in list(state.nodes.values()):
        same = node.facts.node_id == facts.node_id or node is client.node
        if node.conn == client.conn:
            node.conn = None  # who speaks there is about to be another node: the Fence is not for it
        if same or (node.name == facts.name and node.state is not NodeState.ALIVE):
            _declare_dead(state, node, "it registered anew" if same else f"another daemon registered as {facts.name!r}", now)
        elif node.name == facts.name:
            raise NameTakenError(f"A living node at {node.facts.host or 'this host'} (pid {node.facts.pid}) is already called "
                                 f"{facts.name!r}: start this one with another --name.")


def _resume(state: State, client: Client, node: Node, message: RegisterNode, call_id: int, now: float) -> None:
    """The node is back in time: bring both sides' ideas of its actors together."""
    if node.conn is not None and node.conn != client.conn:
        state.close(node.conn, "replaced by a new connection of the same node")
    node.conn, node.last_seen, node.lost_at = client.conn, now, None
    client.node = node
    where = replace(node.facts, host=message.facts.host, port=message.facts.port, interface=message.facts.interface)
    if where != node.facts:  # it came back another way: who calls its actors has to know
        node.facts = where
        state.changed_actors.update(node.actors)
    if node.state is NodeState.SUSPECT:
        state.move(node, NodeState.ALIVE)
        state.capacity_freed = True
    running = dict.fromkeys(message.running)
    unwanted = tuple(actor_id for actor_id in running if actor_id not in node.actors)
    state.reply(client.conn, call_id, NodeAccepted(node.incarnation, state.settings.head_epoch, unwanted))
    detail = f"its process ended, or the order to start it was lost, while the connection to {node.name} was down"
    supervision.end(state, [(actor, ExitEvidence(actor.stop.kind if actor.stop else "node dead", detail=detail))
                            for actor in node.actors.values() if actor.id not in running], now)
    for actor in node.actors.values():
        if actor.state is ActorState.STOPPING and actor.stop is not None:
            stop = actor.stop
            state.send(client.conn, StopActors((actor.id,), stop.grace_s, stop.reason, stop.kind, stop.sigterm))
    for job in state.jobs.values():
        if job.sweeping and node.facts.node_id in job.sweeping:
            state.send(client.conn, SweepJob(job.job_id))
    state.log("info", f"{node} is back")


def current_node(state: State, client: Client, epoch: int) -> Node | None:
    """The node that this daemon may speak for; None, and it is told so, when its incarnation is not current."""
    node = client.node
    if node is not None and state.nodes.get(node.facts.node_id) is node and node.conn == client.conn and epoch == node.incarnation:
        return node
    what = f"incarnation {epoch} of {node.name}" if node else "a node that has not registered here"
    state.send(client.conn, Fence(f"{what} is not current"))
    return None


def heard(state: State, node: Node, now: float) -> None:
    """The daemon sent something: it is well."""
    node.last_seen = now
    if node.state is NodeState.SUSPECT:
        state.move(node, NodeState.ALIVE)
        state.capacity_freed = True
        state.log("info", f"{node} is heard again")


def lost(state: State, client: Client, reason: str, now: float) -> None:
    """A daemon's connection closed: it may come back within the grace."""
    node = client.node
    if node is None or node.conn != client.conn or state.nodes.get(node.facts.node_id) is not node:
        return
    node.conn, node.lost_at = None, now
    if node.state is NodeState.ALIVE:
        state.move(node, NodeState.SUSPECT)
        state.log("debug" if state.shutting_down else "warning", f"{node} is SUSPECT: its connection closed ({reason})")


def check_deadlines(state: State, now: float) -> None:
    """Judge the silent."""
    limits = state.limits
    for node in list(state.nodes.values()):
        if node.dead_at(limits) <= now:
            silent = f"silent for {now - node.last_seen:.1f} s" if node.lost_at is None else (
                f"its connection closed and did not come back within {limits.reconnect_grace_s:g} s")
            _declare_dead(state, node, silent, now)
        elif node.state is NodeState.ALIVE and node.deadline(limits) <= now:
            state.move(node, NodeState.SUSPECT)
            state.log("warning", f"{node} is SUSPECT: silent for {now - node.last_seen:.1f} s")


def deadline(state: State) -> float | None:
    """When ``check_deadlines`` has something to do."""
    return min((node.deadline(state.limits) for node in state.nodes.values()), default=None)


def extend(state: State, late_s: float, now: float) -> None:
    """The head itself did not run for this long: what it did not hear then counts against nobody."""
    for node in state.nodes.values():
        node.extend(late_s, now)


def node_list(state: State) -> NodeList:
    """All nodes, the last dead ones too."""
    return NodeList((*(node.status() for node in state.nodes.values()), *state.buried))


def _declare_dead(state: State, node: Node, reason: str, now: float) -> None:
    state.log("warning", f"{node} is DEAD: {reason}; {len(node.actors)} actors lost")
    state.send(node.conn, Fence(f"declared dead: {reason}"))
    state.move(node, NodeState.DEAD)
    node.conn = None
    del state.nodes[node.facts.node_id]
    state.buried.append(node.status())
    _inventory_changed(state)
    for job in state.jobs.values():
        if job.sweeping:
            job.sweeping.discard(node.facts.node_id)
    evidence = ExitEvidence("node dead", detail=f"node {node.name} is dead: {reason}")
    supervision.end(state, [(actor, evidence) for actor in list(node.actors.values())], now)
    supervision.node_gone(state, node)


def _inventory_changed(state: State) -> None:
    state.inventory_version += 1
    state.capacity_freed = True
