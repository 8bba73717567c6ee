"""From PENDING to RESERVED: which group is placed when and where, why the others wait, and the start of actors in what is reserved.

Groups are tried oldest first whenever something came free; a later one that fits passes an earlier one that does not, else a job that
needs one more small actor to finish could wait for its own successor.
"""

from __future__ import annotations

from runtime.errors import InfeasibleError, PlacementTimeoutError
from runtime.head.actor import Actor, ActorState, Batch
from runtime.head.group import Bundle, Group, GroupState
from runtime.head.node import Node, NodeState
from runtime.head.placement import Room, explain_busy, explain_infeasible, feasible, reserve_all
from runtime.head.resources import Amounts, describe
from runtime.head.state import State
from runtime.wire.messages import ExitEvidence, StartActors

__all__ = ["check_deadlines", "deadline", "fail", "retry", "start_waiting", "submit"]


def submit(state: State, group: Group, now: float) -> None:
    """Take in a new group; it is RESERVED when this returns, or PENDING with a reason, or has failed for good."""
    state.groups[group.group_id] = group
    group.job.groups[group.group_id] = group
    enqueue(state, group, now)


def enqueue(state: State, group: Group, now: float) -> None:
    """Queue a PENDING group behind the others, and try it."""
    group.since = now
    group.judged, group.infeasible_since = -1, None
    state.pending[group.group_id] = group
    if not _place(state, group):
        _explain(state, group, now)


def retry(state: State, now: float) -> None:
    """Something came free: try all that waits, oldest first. Reasons are renewed a little later, once for many changes."""
    state.capacity_freed = False
    for group in list(state.hungry.values()):
        start_waiting(state, group)
    for group in list(state.pending.values()):
        _place(state, group)
    if state.pending and state.reasons_due is None:
        state.reasons_due = now + state.limits.heartbeat_s


def check_deadlines(state: State, now: float) -> None:
    """Renew reasons that are due, and fail the groups whose time is over."""
    if state.reasons_due is not None and state.reasons_due <= now:
        state.reasons_due = None
        holders = _holders(state)
        for group in list(state.pending.values()):
            _explain(state, group, now, holders)
    for group in list(state.pending.values()):
        _fail_if_over(state, group, now)


def deadline(state: State) -> float | None:
    """When ``check_deadlines`` has something to do."""
    times = [until for group in state.pending.values() if (until := _give_up_at(state, group)) is not None]
    if state.reasons_due is not None:
        times.append(state.reasons_due)
    return min(times, default=None)


def _place(state: State, group: Group) -> bool:
    nodes = [node for node in state.nodes.values() if node.state is NodeState.ALIVE]
    placed = reserve_all(group.amounts, group.strategy, [node.ledger for node in nodes])
    if placed is None:
        return False
    if all(amounts == group.amounts[0] for amounts in group.amounts):
        # Equal bundles are interchangeable: those of a node side by side, so that ranks, which go by node, are the bundles' numbers.
        first_of: dict[int, int] = {}
        placed = sorted(placed, key=lambda place: first_of.setdefault(place[0], len(first_of)))
    for bundle, (index, lease) in zip(group.bundles, placed):
        bundle.node, bundle.lease, bundle.ledger = nodes[index], lease, lease.open()
    del state.pending[group.group_id]
    state.move(group, GroupState.RESERVED)
    group.reason = ""
    state.tell_group(group)
    start_waiting(state, group)
    return True


# ---- why a group waits, and for how long ----


def _explain(state: State, group: Group, now: float, holders: dict[str, str] | None = None) -> None:
    """Renew the group's reason; its owner hears of it when it is another than before."""
    nodes = [node for node in state.nodes.values() if node.state in (NodeState.ALIVE, NodeState.SUSPECT)]
    if group.judged != state.inventory_version:
        group.judged = state.inventory_version
        starting = state.settings.embedded and state.inventory_version == 0  # its one node is about to register
        if starting or feasible(group.amounts, group.strategy, [node.ledger for node in nodes]):
            group.infeasible_since = None
        elif group.infeasible_since is None:
            group.infeasible_since = now
    if group.infeasible_since is not None:
        reason = explain_infeasible(group.amounts, group.strategy, [Room(node.name, node.ledger) for node in nodes], _remedy(state))
    elif not nodes:
        reason = "waits for the embedded cluster's node, which is starting"
    else:
        holders = _holders(state) if holders is None else holders
        reason = explain_busy(group.amounts, group.strategy, [Room(node.name, node.ledger, _note(node, holders)) for node in nodes])
    if reason != group.reason:
        group.reason = reason
        if not _fail_if_over(state, group, now):
            state.tell_group(group)


def _note(node: Node, holders: dict[str, str]) -> str:
    suspect = "SUSPECT: nothing is heard from it" if node.state is NodeState.SUSPECT else ""
    return "; ".join(filter(None, (suspect, holders.get(node.facts.node_id, ""))))


def _remedy(state: State) -> str:
    if state.settings.embedded:
        return ("The embedded cluster cannot grow: ask for less, give init() more (num_cpus=, num_gpus=, resources=), "
                "or join a cluster (address=).")
    return "Ask for less, or join a node that has it: python -m runtime.worker --head HOST:PORT."


def _holders(state: State) -> dict[str, str]:
    """By node id: "held by rank 0, rank 1 of job 1a2b3c4d (driver pid 42): {CPU: 2}"."""
    held: dict[str, list[str]] = {}
    for group in state.groups.values():
        by_node: dict[str, Amounts] = {}
        for bundle in group.bundles:
            if bundle.node is not None:
                amounts = by_node.setdefault(bundle.node.facts.node_id, {})
                for name, units in bundle.asked.items():
                    amounts[name] = amounts.get(name, 0) + units
        for node_id, amounts in by_node.items():
            if amounts:
                held.setdefault(node_id, []).append(f"{group.label} of {group.job}: {describe(amounts)}")
    return {node_id: "held by " + "; ".join(texts[:3]) + (f"; and {len(texts) - 3} more" if len(texts) > 3 else "")
            for node_id, texts in held.items()}


def _give_up_at(state: State, group: Group) -> float | None:
    """When the group fails if nothing changes; None: it waits for ever."""
    limited = group.since + group.timeout_s if group.timeout_s >= 0 else None
    if group.infeasible_since is None:
        return limited
    if state.settings.embedded:
        return group.infeasible_since
    return group.infeasible_since + state.limits.placement_infeasible_s if limited is None else limited


def _fail_if_over(state: State, group: Group, now: float) -> bool:
    until = _give_up_at(state, group)
    if until is None or until > now:
        return False
    if group.infeasible_since is not None:
        fail(state, group, InfeasibleError.__name__, group.reason)
    else:
        fail(state, group, PlacementTimeoutError.__name__, f"not placed within {group.timeout_s:g} s: {group.reason}")
    return True


def fail(state: State, group: Group, error: str, reason: str) -> None:
    """The group can't be had: its owner is told, and its actors, which never were, are dead of it."""
    actors = group.living
    state.release(group, reason, error)
    for actor in actors:
        state.bury(actor, ExitEvidence("start error", detail=reason))
    state.touched_groups.pop(group.group_id, None)
    for actor in actors:
        state.actors.pop(actor.id, None)


# ---- actors into reserved bundles ----


def start_waiting(state: State, group: Group) -> None:
    """Start the group's PENDING actors that fit into their bundles now: of a gang all or none."""
    hungry = False
    for batch in group.batches:
        drawn = _draw(batch)
        if drawn:
            _start(state, group, batch, drawn)
        if any(actor.state is ActorState.PENDING for actor in batch.actors):
            hungry = True
        else:
            batch.buffers = ()
    if hungry:
        state.hungry[group.group_id] = group
    else:
        state.hungry.pop(group.group_id, None)


def _draw(batch: Batch) -> list[Actor]:
    drawn: list[Actor] = []
    for actor in batch.actors:
        if actor.state is not ActorState.PENDING:
            continue
        bundle = _bundle_with_room(actor)
        if bundle is not None:
            assert bundle.ledger is not None
            actor.node, actor.source, actor.lease = bundle.node, bundle.ledger, bundle.ledger.reserve(actor.asked)
            drawn.append(actor)
        elif batch.gang:
            for other in drawn:
                other.give_back()
                other.node = other.lease = None
            return []
    return drawn


def _bundle_with_room(actor: Actor) -> Bundle | None:
    bundles = actor.group.bundles if actor.spec.bundle < 0 else actor.group.bundles[actor.spec.bundle:actor.spec.bundle + 1]
    return next((bundle for bundle in bundles if bundle.node is not None and bundle.node.state is NodeState.ALIVE
                 and bundle.ledger is not None and bundle.ledger.fits(actor.asked)), None)


def _start(state: State, group: Group, batch: Batch, actors: list[Actor]) -> None:
    message, opened = batch.message, group.job.opened
    by_node: dict[Node, list[Actor]] = {}
    for actor in actors:
        assert actor.node is not None
        by_node.setdefault(actor.node, []).append(actor)
    for node, members in by_node.items():
        together = {gpu for other in batch.actors if other.node is node for gpu in other.gpu_ids}
        for actor in members:
            actor.visible_gpu_ids = tuple(sorted(together)) if message.share_gpus and actor.gpu_ids else actor.gpu_ids
            state.move(actor, ActorState.STARTING)
            node.actors[actor.id] = actor
            state.changed_actors[actor.id] = actor
        state.send(node.conn, StartActors(
            group.job.job_id, group.group_id, message.attempt, tuple(actor.start_spec() for actor in members), message.preload, message.env,
            opened.host_id, opened.cwd, opened.sys_path, opened.log_to_driver, opened.namespace), batch.buffers)
