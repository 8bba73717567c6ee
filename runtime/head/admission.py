"""What clients ask for, checked before anything changes: groups, actors, stops, look-ups."""

from __future__ import annotations

import math
from collections.abc import Sequence

from runtime.errors import ActorNotFoundError, ArgumentError, FencedError, HeadLostError, NameTakenError, NotInitializedError
from runtime.head import scheduling, supervision
from runtime.head.actor import Actor, ActorState, Batch, Stop
from runtime.head.events import Buffers
from runtime.head.group import Bundle, Group
from runtime.head.job import Job, JobState, Owner
from runtime.head.placement import STRATEGIES, summarize
from runtime.head.resources import Amounts, Ledger, describe, to_units
from runtime.head.state import Client, State
from runtime.wire.messages import ActorInfo, ActorSpec, CancelCall, CreateActors, CreateGroup, FindActor, RemoveGroup, StopActorsOf

__all__ = ["cancel_call", "create_actors", "create_group", "find_actor", "remove_group", "stop_actors"]

# Above any cluster in sight; each bundle costs a step of the placement search.
MAX_BUNDLES = 10_000


def create_group(state: State, client: Client, message: CreateGroup, call_id: int, now: float) -> None:
    """Take in a lasting placement group."""
    owner = _owner(state, client, message.job_id)
    group = _new_group(state, owner, message, lasting=True)
    state.reply(client.conn, call_id)
    scheduling.submit(state, group, now)


def create_actors(state: State, client: Client, message: CreateActors, buffers: Buffers, call_id: int, now: float) -> None:
    """Take in actors: with bundles as a group of their own, else into a group that exists."""
    owner = _owner(state, client, message.job_id)
    if not message.actors:
        raise ArgumentError("CreateActors names no actor.")
    if message.bundles:
        group = _new_group(state, owner, message, lasting=False)
    else:
        group = _known_group(state, owner.job, message.group_id)
    batch = Batch(message, buffers)
    namespace = message.namespace or owner.job.namespace
    for spec in message.actors:
        batch.actors.append(_new_actor(state, spec, group, batch, namespace))
    _check_room(group, batch)
    _check_names(state, namespace, message.actors)
    state.reply(client.conn, call_id)
    group.batches.append(batch)
    for actor in batch.actors:
        group.actors[actor.id] = state.actors[actor.id] = actor
        if actor.spec.name:
            state.names[namespace, actor.spec.name] = actor
    if message.bundles:
        scheduling.submit(state, group, now)
    elif group.bundles[0].node is not None:
        scheduling.start_waiting(state, group)


def remove_group(state: State, client: Client, message: RemoveGroup, call_id: int, now: float) -> None:
    """Release a group after its actors have ended; answered then."""
    _check_grace(message.grace_s)
    group = state.groups.get(message.group_id)
    if group is None:
        state.reply(client.conn, call_id)
        return
    if call_id > 0:
        group.waiters.append((client.conn, call_id))
    supervision.remove_group(state, group, Stop(message.grace_s, message.reason or "its group was removed"), now)


def stop_actors(state: State, client: Client, message: StopActorsOf, call_id: int, now: float) -> None:
    """End actors; those that are unknown or gone are no error."""
    _check_grace(message.grace_s)
    state.reply(client.conn, call_id)
    actors = [actor for actor_id in message.actor_ids if (actor := state.actors.get(actor_id)) is not None]
    supervision.stop(state, actors, Stop(message.grace_s, message.reason, sigterm=message.sigterm), now)


def find_actor(state: State, client: Client, message: FindActor, call_id: int) -> None:
    """Answer with what is known of an actor, and go on telling."""
    owner = _owner(state, client)
    if message.actor_id:
        actor, wanted = state.actors.get(message.actor_id), f"id {message.actor_id[:8]}"
        if actor is None and message.actor_id in state.dead:
            state.reply(client.conn, call_id, state.dead[message.actor_id])
            return
    else:
        namespace = message.namespace or owner.job.namespace
        actor = state.names.get((namespace, message.name))
        wanted = f"name {message.name!r} in namespace {namespace!r}" if message.namespace else f"name {message.name!r}"
    if actor is None:
        raise ActorNotFoundError(f"No living actor has the {wanted}: it was not created, or it has ended.")
    if actor.state is not ActorState.DEAD:
        actor.watchers[owner] = None
        owner.watching.add(actor.id)
    state.reply(client.conn, call_id, ActorInfo(actor.status(), actor.spec.class_name, actor.node.facts if actor.node else None))


def cancel_call(state: State, client: Client, message: CancelCall) -> None:
    """The client no longer waits for a removal or a closing, which go on."""
    waiter = (client.conn, message.target)
    for waiters in [group.waiters for group in state.groups.values()] + [job.waiters for job in state.jobs.values()]:
        if waiter in waiters:
            waiters.remove(waiter)


# ---- checks ----


def _owner(state: State, client: Client, job_id: str | None = None) -> Owner:
    """Who asks; may it create in the job ``job_id``?

    Raises: NotInitializedError, FencedError, HeadLostError: it may not.
    """
    owner = client.owner
    if owner is not None and owner.ended:
        raise FencedError(f"{client.hello.name} was declared dead ({owner.ended}): nothing is taken from it any more.")
    if owner is None or (job_id is not None and owner.job.job_id != job_id):
        raise NotInitializedError(f"{f'Job {job_id[:8]}' if job_id else 'A job'} was not opened by this connection: OpenJob comes first.")
    if job_id is not None and state.shutting_down:
        raise HeadLostError("The head is shutting down: nothing new is taken in.")
    if job_id is not None and owner.job.state is not JobState.OPEN:
        raise NotInitializedError(f"{owner.job} is {owner.job.state}: nothing new is taken in.")
    return owner


def _check_grace(grace_s: float) -> None:
    if not 0 <= grace_s < math.inf:
        raise ArgumentError(f"grace_s={grace_s!r}; it must be a number of seconds from 0 on.")


def _new_group(state: State, owner: Owner, message: CreateGroup | CreateActors, *, lasting: bool) -> Group:
    group_id, bundles, strategy = message.group_id, message.bundles, message.strategy
    if not group_id or group_id in state.groups:
        raise ArgumentError(f"Group id {group_id!r} is empty or in use: every group needs an id of its own.")
    if strategy not in STRATEGIES:
        raise ArgumentError(f"Placement strategy {strategy!r} is unknown; it must be one of {', '.join(STRATEGIES)}.")
    if not 1 <= len(bundles) <= MAX_BUNDLES:
        raise ArgumentError(f"A placement group of {len(bundles)} bundles; it must have 1 to {MAX_BUNDLES}.")
    amounts = [to_units(bundle, f"bundle {index}") for index, bundle in enumerate(bundles)]
    name = message.name if isinstance(message, CreateGroup) else ""
    return Group(group_id, name, owner, [Bundle(asked) for asked in amounts], strategy, lasting, message.timeout_s)


def _known_group(state: State, job: Job, group_id: str) -> Group:
    group = state.groups.get(group_id)
    if group is None or group.job is not job or not group.lasting or group.removing:
        raise ArgumentError(f"Placement group {group_id[:8]!r} does not exist (any more) in {job}.")
    return group


def _new_actor(state: State, spec: ActorSpec, group: Group, batch: Batch, namespace: str) -> Actor:
    if not spec.actor_id or spec.actor_id in state.actors or spec.actor_id in state.dead:
        raise ArgumentError(f"Actor id {spec.actor_id!r} is empty or was used before: every actor needs an id of its own.")
    if spec.bundle >= len(group.bundles):
        raise ArgumentError(f"Actor {spec.label!r} asks for bundle {spec.bundle}; the group has bundles 0 to {len(group.bundles) - 1}.")
    return Actor(spec, to_units(spec.resources, f"actor {spec.label!r}"), group, batch, namespace)


def _check_room(group: Group, batch: Batch) -> None:
    """Refuse actors that would not fit into their bundles even if these were empty: a gang all together, others each alone."""
    def fresh() -> list[Ledger]:
        return [Ledger(asked) for asked in group.amounts]

    ledgers = fresh()
    for actor in batch.actors:
        choice = ledgers if actor.spec.bundle < 0 else [ledgers[actor.spec.bundle]]
        if not any(ledger.reserve(actor.asked) for ledger in choice):
            bundles: list[Amounts] = group.amounts if actor.spec.bundle < 0 else [group.amounts[actor.spec.bundle]]
            whom = "with the rest of its gang" if batch.gang and len(batch.actors) > 1 else "even when it is empty"
            raise ArgumentError(f"Actor {actor.spec.label!r} needs {describe(actor.asked)}, which does not fit into its bundle "
                                f"({summarize(bundles)}) {whom}.")
        if not batch.gang:
            ledgers = fresh()


def _check_names(state: State, namespace: str, specs: Sequence[ActorSpec]) -> None:
    names = [spec.name for spec in specs if spec.name]
    for name in names:
        if (namespace, name) in state.names or names.count(name) > 1:
            raise NameTakenError(f"A living actor is already called {name!r} in this namespace: choose another name, find that one with "
                                 "get_actor(), or end it first.")
