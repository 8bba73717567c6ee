"""The end of actors, expected or not, and what follows from it: gangs die together, owners take along what they own, groups are released.

A gang is READY when all its members are up. Its first member that dies without having been asked takes the others with it: they are
killed at once, and what the gang reserved is free only when all are gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from runtime.head import scheduling
from runtime.head.actor import Actor, ActorState, Batch, Stop
from runtime.head.group import Group, GroupState
from runtime.head.node import Node
from runtime.head.state import State
from runtime.wire.messages import ActorExited, ActorsReady, ExitEvidence, StopActors

__all__ = ["actor_exited", "actors_up", "end", "node_gone", "remove_group", "settle_groups", "stop"]


def actors_up(state: State, node: Node, message: ActorsReady) -> None:
    """Constructors returned. Actors that the head does not want (any more) are stopped."""
    unwanted, batches = list[str](), list[Batch]()
    for started in message.actors:
        actor = node.actors.get(started.actor_id)
        if actor is None or actor.incarnation != started.incarnation:
            unwanted.append(started.actor_id)
            continue
        actor.up = True
        actor.pid, actor.unix_path, actor.log_path = started.pid, started.unix_path, started.log_path
        batches.append(actor.batch)
        state.changed_actors[actor.id] = actor
    if unwanted:
        state.log("warning", f"{node} reports {len(unwanted)} actors as ready that are not its own (any more): stopped")
        state.send(node.conn, StopActors(tuple(unwanted), 0.0, "unknown to the head"))
    for batch in dict.fromkeys(batches):
        _flip(state, batch)


def _flip(state: State, batch: Batch) -> None:
    """READY: each by itself, or a gang all at once."""
    living = [actor for actor in batch.actors if actor.state is not ActorState.DEAD]
    if batch.gang and not all(actor.up for actor in living):
        return
    for actor in living:
        if actor.up and actor.state is ActorState.STARTING:
            state.move(actor, ActorState.READY)
            state.changed_actors[actor.id] = actor


def actor_exited(state: State, node: Node, message: ActorExited, now: float) -> None:
    """A process is gone, or never came to be. News of another incarnation than the current one changes nothing."""
    actor = node.actors.get(message.actor_id)
    if actor is None or actor.incarnation != message.incarnation:
        state.log("debug", f"{node} reports the end of {message.actor_id[:8]}, incarnation {message.incarnation}, which is not current")
        return
    end(state, [(actor, message.evidence)], now)


def end(state: State, deaths: Sequence[tuple[Actor, ExitEvidence]], now: float) -> None:
    """These actors are gone, all at the same moment; who belongs to them follows."""
    firsts: list[Actor] = []
    for actor, evidence in deaths:
        batch = actor.batch
        wanted = actor.stop is not None
        first = batch.gang and not wanted and batch.first_death is None
        if first:
            batch.first_death = actor
            firsts.append(actor)
        state.bury(actor, replace(evidence, wanted=wanted, first=first))
    for actor in firsts:
        _end_gang(state, actor, now)
    for actor, _ in deaths:
        _end_owned(state, actor, now)


def _end_gang(state: State, first: Actor, now: float) -> None:
    """A member died unasked: the others are killed at once."""
    group = first.group
    reason = f"{first.spec.label} on {first.node.name if first.node else 'no node'} died first"
    if not group.lasting and group.state is GroupState.RESERVED:
        state.move(group, GroupState.BROKEN)
        group.reason = reason
        state.tell_group(group)
    stop(state, first.batch.actors, Stop(0.0, reason), now)


def _end_owned(state: State, actor: Actor, now: float) -> None:
    """An owner is gone: fence its connection, remove the groups that it made."""
    job = actor.group.job
    owner = job.owners.pop(actor.id, None)
    if owner is None:
        return
    state.end_owner(owner, "its actor ended")
    for group in [group for group in job.groups.values() if group.owner is owner]:
        remove_group(state, group, Stop(0.0, f"its owner {actor.spec.label} ended", "owner gone"), now)


def stop(state: State, actors: Iterable[Actor], wish: Stop, now: float) -> None:
    """End these actors: a PENDING one is dead at once, one that is stopping already is only hurried."""
    by_node: dict[Node, list[str]] = {}
    never_were: list[tuple[Actor, ExitEvidence]] = []
    for actor in actors:
        if actor.state is ActorState.DEAD or (actor.stop is not None and actor.stop.grace_s <= wish.grace_s):
            continue
        actor.stop = wish if actor.stop is None else Stop(wish.grace_s, actor.stop.reason, actor.stop.kind, wish.sigterm)
        if actor.state is ActorState.PENDING:
            never_were.append((actor, ExitEvidence(wish.kind, detail=wish.reason, wanted=True)))
            continue
        if actor.state is not ActorState.STOPPING:
            state.move(actor, ActorState.STOPPING)
            state.changed_actors[actor.id] = actor
        if actor.node is not None:
            by_node.setdefault(actor.node, []).append(actor.id)
    for node, actor_ids in by_node.items():
        state.send(node.conn, StopActors(tuple(actor_ids), wish.grace_s, wish.reason, wish.kind, wish.sigterm))
    if never_were:
        end(state, never_were, now)


def remove_group(state: State, group: Group, wish: Stop, now: float) -> None:
    """Stop the group's actors; it is released when the last is gone."""
    group.removing = True
    stop(state, group.living, wish, now)
    state.touch(group)


def node_gone(state: State, node: Node) -> None:
    """Lasting groups that had a bundle there are no longer whole; they are placed again when their last actor is gone."""
    for group in state.groups.values():
        if group.lasting and group.state is GroupState.RESERVED and any(bundle.node is node for bundle in group.bundles):
            state.move(group, GroupState.BROKEN)
            group.reason = f"node {node.name} is gone"
            state.tell_group(group)
            state.touch(group)


def settle_groups(state: State, now: float) -> None:
    """Finish the groups whose last actor is gone."""
    touched, state.touched_groups = state.touched_groups, {}
    for group in touched.values():
        if group.group_id not in state.groups:
            continue
        if group.removing or not group.lasting:
            if not group.living:
                state.release(group, "removed" if group.removing else "its last actor is gone")
            continue
        _forget_dead(state, group)
        if group.state is GroupState.BROKEN and all(actor.state is ActorState.PENDING for actor in group.living):
            state.free_bundles(group)
            state.move(group, GroupState.PENDING)
            scheduling.enqueue(state, group, now)


def _forget_dead(state: State, group: Group) -> None:
    """A lasting group sees many actors come and go: keep none that is dead."""
    for actor in [actor for actor in group.actors.values() if actor.state is ActorState.DEAD]:
        del group.actors[actor.id]
        state.actors.pop(actor.id, None)
    group.batches = [batch for batch in group.batches if any(actor.state is not ActorState.DEAD for actor in batch.actors)]
