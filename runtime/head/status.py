"""The one picture: what there is, who waits for what and why, and the newest of each run; and the way of logs to who asks for them."""

from __future__ import annotations

from dataclasses import replace

from runtime.errors import ActorNotFoundError, NotInitializedError
from runtime.head.actor import Actor, ActorState
from runtime.head.group import Group, GroupState
from runtime.head.placement import summarize
from runtime.head.resources import describe
from runtime.head.state import Client, State
from runtime.wire.messages import (
    ActorEntry,
    AskStatus,
    ClusterStatus,
    GroupStatus,
    JobStatus,
    ReadLog,
    RunStatus,
    StopReading,
)

__all__ = ["receive", "stop_reading"]

# The answer is one control frame of 1 MiB at most: an actor takes up to 400 bytes, a group three texts, a run four.
MAX_ACTORS = 1000
MAX_LISTED = 200
MAX_TEXT_CHARS = 400
RUNS_KEPT = 50  # the living and the last dead


def receive(state: State, client: Client, message: AskStatus | RunStatus | ReadLog, call_id: int, now: float) -> None:
    """Answer who asks for the picture or a log; take in the news of a run."""
    match message:
        case AskStatus():
            state.reply(client.conn, call_id, cluster_status(state, now))
        case RunStatus():
            _note_run(state, client, message)
            state.reply(client.conn, call_id)
        case ReadLog():
            _read_log(state, client, message)
            state.reply(client.conn, call_id)


def cluster_status(state: State, now: float) -> ClusterStatus:
    """All tables for people; who waits comes first."""
    groups = sorted(state.groups.values(), key=lambda group: group.state is not GroupState.PENDING)
    actors = sorted(state.actors.values(), key=lambda actor: actor.state is not ActorState.PENDING)
    return ClusterStatus(
        state.settings.embedded,
        (*(node.status() for node in state.nodes.values()), *state.buried)[:MAX_LISTED],
        tuple(JobStatus(job.job_id, str(job.state), job.opened.pid, job.opened.cwd, job.opened.namespace, job.lost_at is not None)
              for job in list(state.jobs.values())[:MAX_LISTED]),
        tuple(_run(state, run) for run in state.runs.values()),
        tuple(_group(state, group, now) for group in groups[:MAX_LISTED]),
        tuple(_actor(actor) for actor in actors[:MAX_ACTORS]), len(groups), len(actors))


def _group(state: State, group: Group, now: float) -> GroupStatus:
    reason = group.reason
    if group.group_id in state.hungry:
        waiting = [actor for actor in group.living if actor.state is ActorState.PENDING]
        free = ", ".join(describe(bundle.ledger.free) for bundle in group.bundles[:4] if bundle.ledger is not None)
        reason = f"{len(waiting)} of its actors wait for others to leave their bundles; free in these: {free}"
    nodes = dict.fromkeys(bundle.node.name for bundle in group.bundles if bundle.node is not None)
    cut = MAX_TEXT_CHARS
    return GroupStatus(group.group_id, group.job.job_id, group.label[:cut], str(group.state), summarize(group.amounts)[:cut], reason[:cut],
                       now - group.since, tuple(nodes)[:8])


def _actor(actor: Actor) -> ActorEntry:
    spec = actor.spec
    return ActorEntry(actor.id, actor.group.job.job_id, actor.group.group_id, spec.name, spec.label, spec.class_name, str(actor.state),
                      actor.batch.gang, actor.node.name if actor.node else "", actor.pid, actor.gpu_ids, actor.log_path)


def _run(state: State, run: RunStatus) -> RunStatus:
    """A run whose driver is gone can't have told its own end."""
    return run if run.is_over or run.job_id in state.jobs else replace(run, state="lost with its driver", is_over=True)


def _note_run(state: State, client: Client, run: RunStatus) -> None:
    if client.owner is None:
        raise NotInitializedError(f"The run {run.name!r} belongs to no job: OpenJob comes first.")
    job_id, cut = client.owner.job.job_id, MAX_TEXT_CHARS
    state.runs[job_id, run.name] = replace(run, job_id=job_id, name=run.name[:cut], metrics=run.metrics[:cut],
                                           checkpoint=run.checkpoint[:cut], directory=run.directory[:cut])
    state.runs.move_to_end((job_id, run.name))
    while len(state.runs) > RUNS_KEPT:
        state.runs.popitem(last=False)


def _read_log(state: State, client: Client, message: ReadLog) -> None:
    """Pass the wish on to the actor's node; what is read comes as LogLines for this client.

    Raises: ActorNotFoundError: nobody has the file.
    """
    actor, dead = state.actors.get(message.actor_id), state.dead.get(message.actor_id)
    node = actor.node if actor is not None else None
    log_path = actor.log_path if actor is not None else ""
    if dead is not None:
        node, log_path = state.nodes.get(dead.status.node_id), dead.status.log_path
    if node is None or node.conn is None:
        where = f"is not on a node that answers (it is {actor.state})" if actor is not None else "is unknown, or its node is gone"
        raise ActorNotFoundError(f"The actor {message.actor_id[:8]} {where}: there is nothing to read.")
    client.reading.add(node.facts.node_id)
    state.send(node.conn, replace(message, reader=client.conn, log_path=log_path))


def stop_reading(state: State, client: Client) -> None:
    """The client is gone: nobody reads on for it."""
    for node_id in sorted(client.reading & state.nodes.keys()):
        state.send(state.nodes[node_id].conn, StopReading(client.conn))
