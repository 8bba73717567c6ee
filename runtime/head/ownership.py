"""Jobs: who opens one, who resumes it, and that nothing of it is left when it is closed.

Ownership is a tree: job, group, actor. A job ends when its driver says so, when its driver's process ends, or when the driver's
connection stays away for longer than its lease.
"""

from __future__ import annotations

from dataclasses import replace

from runtime.errors import ActorNotFoundError, ArgumentError, FencedError, HeadLostError, NotInitializedError
from runtime.head import supervision
from runtime.head.actor import Stop
from runtime.head.events import UnwatchPid, WatchPid
from runtime.head.job import DRIVER, Job, JobState, Owner
from runtime.head.membership import check_python
from runtime.head.node import Node
from runtime.head.state import Client, State
from runtime.wire.messages import CloseJob, JobOpened, JobStopped, LogEnd, LogLines, OpenJob, Preload, SweepJob

__all__ = ["advance_closing", "check_deadlines", "close_all", "close_job", "deadline", "driver_gone", "extend", "forward_logs", "lost",
           "open_job", "preload", "swept"]


def open_job(state: State, client: Client, message: OpenJob, call_id: int, epoch: int) -> None:
    """A driver opens or resumes its job, or an actor becomes a client within it."""
    if state.shutting_down:
        raise HeadLostError("The head is shutting down: nothing new is taken in.")
    known = client.owner
    if known is not None and (known.job.job_id, known.actor_id) != (message.job_id, message.owner_actor_id):
        raise ArgumentError(f"This connection belongs to {known.job} already.")
    check_python(state, client.hello, client.hello.name or f"pid {message.pid}")
    job = state.jobs.get(message.job_id)
    if job is not None and job.state is not JobState.OPEN:
        raise NotInitializedError(f"{job} is {job.state}.")
    if message.owner_actor_id:
        job = _job_of_actor(state, message, epoch)
    elif job is None:
        job = Job(message, same_host=bool(message.host_id) and message.host_id == state.settings.host_id)
        state.jobs[job.job_id] = job
        if job.same_host:
            state.out.append(WatchPid(job.job_id, message.pid))
        state.log("info", f"{job} opened")
    elif (job.opened.host_id, job.opened.pid) != (message.host_id, message.pid):
        raise ArgumentError(f"{job} was opened by another process.")
    owner = job.owners.setdefault(message.owner_actor_id, Owner(job, message.owner_actor_id))
    if owner.conn is not None and owner.conn != client.conn:
        state.clients[owner.conn].owner = None
        state.close(owner.conn, "replaced by a new connection of the same owner")
    client.owner, owner.conn = owner, client.conn
    if owner.actor_id == DRIVER:
        job.lost_at = None
    state.reply(client.conn, call_id, JobOpened(state.settings.head_epoch, state.settings.embedded))
    _tell_missed(state, owner)


def _job_of_actor(state: State, message: OpenJob, epoch: int) -> Job:
    actor = state.actors.get(message.owner_actor_id)
    if actor is None or actor.evidence is not None:
        raise FencedError(f"Actor {message.owner_actor_id[:8]} is unknown or was declared dead: it can open no session.")
    if actor.group.job.job_id != message.job_id:
        raise ActorNotFoundError(f"Actor {message.owner_actor_id[:8]} does not belong to job {message.job_id[:8]}.")
    if epoch and epoch != actor.incarnation:
        raise FencedError(f"{actor} is current, not incarnation {epoch}: it can open no session.")
    return actor.group.job


def _tell_missed(state: State, owner: Owner) -> None:
    """An owner that resumes hears what it missed of what is gone, and how all else is now."""
    missed, owner.missed = owner.missed, []
    for message in missed:
        state.send(owner.conn, message)
    for group in owner.job.groups.values():
        if group.owner is owner:
            state.tell_group(group)
            state.changed_actors.update(group.actors)
    state.changed_actors.update({actor.id: actor for actor in state.watched(owner)})


def close_job(state: State, client: Client, message: CloseJob, call_id: int, now: float) -> None:
    """Close on request; answered when nothing of the job is left, at once if there is no such job."""
    job = state.jobs.get(message.job_id)
    if job is None:
        state.reply(client.conn, call_id)
        return
    if call_id > 0:
        job.waiters.append((client.conn, call_id))
    if message.reason and job.state is JobState.OPEN:
        for owner in job.owners.values():
            state.tell(owner, JobStopped(message.reason), last=False)
        for key, run in state.runs.items():
            if run.job_id == job.job_id and not run.is_over:  # its driver can't tell
                state.runs[key] = replace(run, state="stopped", is_over=True)
        _begin_closing(state, job, Stop(state.limits.stop_grace_s, message.reason), now)
        return
    for group in list(job.groups.values()) if job.state is JobState.CLOSING else ():
        supervision.stop(state, group.living, Stop(0.0, "its job was closed"), now)  # what is left of a grace is over
    _begin_closing(state, job, Stop(0.0, "its job was closed"), now)


def driver_gone(state: State, job_id: str, now: float) -> None:
    """The driver's process ended."""
    if (job := state.jobs.get(job_id)) is not None:
        _begin_closing(state, job, Stop(0.0, f"driver pid {job.opened.pid} is gone", "owner gone"), now)


def close_all(state: State, reason: str, now: float) -> None:
    """The head ends: so do all jobs."""
    state.shutting_down = True
    for job in list(state.jobs.values()):
        _begin_closing(state, job, Stop(0.0, reason, "owner gone"), now)


def lost(state: State, client: Client, now: float) -> None:
    """A client's connection closed: a driver has its lease to come back. Whether an actor lives, its node knows."""
    owner = client.owner
    if owner is None or owner.conn != client.conn:
        return
    owner.conn, job = None, owner.job
    if owner.actor_id != DRIVER or job.state is not JobState.OPEN:
        return
    job.lost_at = now
    # On this host its process is watched, so a closed connection means that it gave up, or is about to re-dial.
    job.lease_s = state.limits.reconnect_grace_s if job.same_host else state.limits.driver_lease_s
    state.log("warning", f"{job} lost its driver's connection: it has {job.lease_s:g} s to come back")


def _begin_closing(state: State, job: Job, wish: Stop, now: float) -> None:
    if job.state is not JobState.OPEN:
        return
    state.move(job, JobState.CLOSING)
    state.log("info", f"{job} is closing: {wish.reason}")
    job.close_by = now + state.limits.job_close_s
    if job.same_host:
        state.out.append(UnwatchPid(job.job_id))
    for group in list(job.groups.values()):
        supervision.remove_group(state, group, wish, now)


def advance_closing(state: State) -> None:
    """Take each closing job as far as it can go: actors gone, then nodes swept, then closed."""
    for job in [job for job in state.jobs.values() if job.state is JobState.CLOSING and not job.groups]:
        if job.sweeping is None:
            job.sweeping = set(state.nodes)
            for node in state.nodes.values():
                state.send(node.conn, SweepJob(job.job_id))
        if not job.sweeping:
            _close(state, job)


def swept(state: State, node: Node, job_id: str) -> None:
    """A node has nothing of the job any more."""
    job = state.jobs.get(job_id)
    if job is not None and job.sweeping is not None:
        job.sweeping.discard(node.facts.node_id)


def _close(state: State, job: Job) -> None:
    state.move(job, JobState.CLOSED)
    del state.jobs[job.job_id]
    for owner in job.owners.values():
        state.end_owner(owner, f"{job} is closed")
        if owner.conn is not None:
            state.clients[owner.conn].owner = None
    _answer(state, job)
    state.log("info", f"{job} is closed")


def _answer(state: State, job: Job) -> None:
    waiters, job.waiters = job.waiters, []
    for conn, call_id in waiters:
        state.reply(conn, call_id)


def check_deadlines(state: State, now: float) -> None:
    """Close the jobs of drivers that did not come back; do not let a job's end be waited for longer than ``job_close_s``."""
    for job in list(state.jobs.values()):
        until = job.deadline()
        if until is None or until > now:
            continue
        if job.state is JobState.OPEN:
            reason = f"driver pid {job.opened.pid} did not come back within {job.lease_s:g} s"
            _begin_closing(state, job, Stop(0.0, reason, "owner gone"), now)
            continue
        # What is left stays in the tables until its node has seen its end: its resources are not free before.
        left = [str(actor) for group in job.groups.values() for actor in group.living]
        state.log("error", f"{job} is not closed after {state.limits.job_close_s:g} s: living {left}, "
                           f"not swept {sorted(job.sweeping or ())}")
        job.close_by = now + state.limits.job_close_s
        _answer(state, job)
        if job.sweeping:
            job.sweeping.clear()


def deadline(state: State) -> float | None:
    """When ``check_deadlines`` has something to do."""
    return min((until for job in state.jobs.values() if (until := job.deadline()) is not None), default=None)


def extend(state: State, late_s: float, now: float) -> None:
    """The head itself did not run for this long: no driver could come back then."""
    for job in state.jobs.values():
        if job.lost_at is not None:
            job.lost_at = min(now, job.lost_at + late_s)


def preload(state: State, client: Client, message: Preload, call_id: int) -> None:
    """Pass a driver's preload set on to all nodes, and later to those that join while its job is open."""
    if client.owner is not None:
        client.owner.job.preload = message.modules
    for node in state.nodes.values():
        state.send(node.conn, message)
    state.reply(client.conn, call_id)


def forward_logs(state: State, message: LogLines | LogEnd) -> None:
    """Output of an actor to the driver: lines if it wants them, their end always; or to who asked for it."""
    if message.reader:
        state.send(message.reader if message.reader in state.clients else None, message)
        return
    job = state.jobs.get(message.job_id)
    if job is not None and (isinstance(message, LogEnd) or job.opened.log_to_driver):
        state.send(job.owners[DRIVER].conn, message)
