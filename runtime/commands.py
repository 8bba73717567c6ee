"""``headway status | logs | stacks | stop``: what they print, and their exit codes."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.control import Cluster, open_clusters, who
from runtime.errors import ActorNotFoundError, ArgumentError, HeadwayError
from runtime.ids import short
from runtime.limits import LIMITS
from runtime.picture import as_json, as_text
from runtime.wire.messages import ActorEntry, CloseJob, JobStatus, LogEnd, LogLines, ReadLog, RunStatus

__all__ = ["COMMANDS", "main"]

# An id is recognised by its first digits, from this many on.
MIN_PREFIX = 4
NUM_LINES = 1000


def main(command: str, arguments: Sequence[str]) -> int:
    """Run one command. Returns: 0; 1: what it was to do could not be done; bad options end with 2; 130: Ctrl-C."""
    options = _parse(command, arguments)
    try:
        return asyncio.run(COMMANDS[command](options))
    except (HeadwayError, OSError) as exc:
        print(f"headway {command}: {exc}", file=sys.stderr)
        return 2 if isinstance(exc, ArgumentError) else 1
    except KeyboardInterrupt:
        return 130


def _parse(command: str, arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"headway {command}", description=_HELP[command])
    parser.add_argument("--address", metavar="HOST:PORT", help="of a head (default: HEADWAY_ADDRESS, else all that you run on this host)")
    if command == "status":
        parser.add_argument("--json", action="store_true", help="one JSON document")
    elif command == "stop":
        parser.add_argument("what", nargs="?", metavar="RUN", help="name of a run, or first digits of a job's id; may be left out if only "
                            "one job runs")
        parser.add_argument("--all", action="store_true", help="all jobs")
    else:
        parser.add_argument("what", metavar="NAME|RUN", help="name of a run, or name, label, class or first digits of the id of an actor")
        parser.add_argument("--rank", type=int, metavar="N", help="of a run, only this rank")
    if command == "logs":
        parser.add_argument("-f", "--follow", action="store_true", help="go on until the actors end")
        parser.add_argument("-n", "--lines", type=int, default=NUM_LINES, help="of the end of each log (default %(default)s)")
    return parser.parse_args(list(arguments))


async def _status(options: argparse.Namespace) -> int:
    async with open_clusters(options.address) as (clusters, failed):
        if options.json:
            print(json.dumps({"clusters": [as_json(c.place.address, c.place.driver_pid, c.status) for c in clusters],
                              "unreachable": [{"address": address, "error": error} for address, error in failed]}, indent=2))
            return 0
        print("\n\n".join(as_text(c.place.address, c.place.driver_pid, c.status) for c in clusters))
        for address, error in failed:
            print(f"headway status: {address}: {error}", file=sys.stderr)
    return 0


# ---- stop ----


async def _stop(options: argparse.Namespace) -> int:
    if options.all and options.what:
        raise ArgumentError("give the name of a run or --all, not both.")
    async with open_clusters(options.address) as (clusters, _):
        chosen = _choose_jobs(clusters, options.what, stop_all=options.all)
        reason = f"stopped by {who()} with headway stop"
        await asyncio.gather(*(c.peer.call(CloseJob(job.job_id, reason), timeout_s=LIMITS.job_close_s + LIMITS.kill_wait_s)
                               for c, job in chosen))
        for cluster, job in chosen:
            print(f"stopped {_describe_job(cluster, job)}")
        if not chosen:
            print("no job runs")
    return 0


def _choose_jobs(clusters: list[Cluster], what: str | None, *, stop_all: bool) -> list[tuple[Cluster, JobStatus]]:
    jobs = [(cluster, job) for cluster in clusters for job in cluster.status.jobs]
    if stop_all:
        return jobs
    runs = {(run.job_id, run.name) for cluster in clusters for run in cluster.status.runs if not run.is_over}
    found = [(c, job) for c, job in jobs if what is None or (job.job_id, what) in runs or _is_prefix(what, job.job_id)]
    if len(found) == 1:
        return found
    running = "; ".join(_describe_job(*job) for job in jobs) or "no job runs"
    if what is None:
        raise ArgumentError(f"say which run, or --all: {running}.")
    raise ActorNotFoundError(f"{len(found) or 'no'} jobs are called {what!r}: {running}.")


def _describe_job(cluster: Cluster, job: JobStatus) -> str:
    names = ", ".join(run.name for run in cluster.status.runs if run.job_id == job.job_id and not run.is_over)
    return f"{f'run {names} of ' if names else ''}job {short(job.job_id)} (driver pid {job.pid})"


# ---- logs, stacks ----


async def _logs(options: argparse.Namespace) -> int:
    if options.lines < 0:
        raise ArgumentError(f"--lines {options.lines}: it must be at least 0.")
    async with open_clusters(options.address) as (clusters, _):
        found = _choose_actors(clusters, options.what, options.rank)
        if found is not None:
            return await _read(*found, follow=options.follow, num_lines=options.lines)
        run = next((r for c in clusters for r in c.status.runs if r.name == options.what), None)
    return _print_kept(run, options) if run is not None else _unknown(clusters, options.what)


async def _stacks(options: argparse.Namespace) -> int:
    async with open_clusters(options.address) as (clusters, _):
        found = _choose_actors(clusters, options.what, options.rank)
        if found is None:
            return _unknown(clusters, options.what)
        return await _read(*found, stacks=True)


def _choose_actors(clusters: list[Cluster], what: str, rank: int | None) -> tuple[Cluster, list[ActorEntry]] | None:
    """The ranks of a run, or the actors of that name; of the first cluster that has any."""
    for cluster in clusters:
        jobs = {run.job_id for run in cluster.status.runs if run.name == what and not run.is_over}
        found = [actor for actor in cluster.status.actors if actor.state != "PENDING" and (
            (actor.job_id in jobs and actor.gang) or what in (actor.name, actor.label, actor.class_name)
            or _is_prefix(what, actor.actor_id))]
        if rank is not None:
            found = [actor for actor in found if actor.label == f"rank {rank}"]
        if found:
            return cluster, found
    return None


async def _read(cluster: Cluster, actors: list[ActorEntry], *, stacks: bool = False, follow: bool = False, num_lines: int = -1) -> int:
    """Print what comes until all actors' ends did."""
    reading, headed, failed = {actor.actor_id: actor for actor in actors}, set[str](), False
    for actor in actors:
        await cluster.peer.call(ReadLog(actor.actor_id, num_lines, follow, stacks), timeout_s=LIMITS.dial_s)
    while reading:
        message = await cluster.received.get()
        if isinstance(message, HeadwayError):
            raise message
        if isinstance(message, LogLines):
            actor = reading[message.actor_id]
            prefix = f"[{actor.label} {message.node_name}] " if len(actors) > 1 and not stacks else ""
            if stacks and actor.actor_id not in headed:
                headed.add(actor.actor_id)
                print(f"==== {actor.label} (pid {actor.pid} on {actor.node})")
            if message.dropped:
                print(f"{prefix}{message.dropped} lines dropped, full log at {message.log_path}", file=sys.stderr)
            print("".join(f"{prefix}{line}\n" for line in message.lines), end="", flush=True)
        elif isinstance(message, LogEnd):
            actor = reading.pop(message.actor_id)
            if message.error:
                failed = True
                print(f"{actor.label} (pid {actor.pid} on {actor.node}): {message.error}", file=sys.stderr)
    return int(failed)


def _print_kept(run: RunStatus, options: argparse.Namespace) -> int:
    """A run without processes has its logs in its directory."""
    pattern = "rank_*.log" if options.rank is None else f"rank_{options.rank}.log"
    files = sorted(Path(run.directory, "logs").glob(pattern))
    if not files:
        print(f"headway logs: run {run.name} ({run.state}) has no processes, and there is no {run.directory}/logs/{pattern} on this host.",
              file=sys.stderr)
        return 1
    for path in files:
        prefix = f"[{path.stem.replace('_', ' ')}] " if len(files) > 1 else ""
        lines = path.read_text(encoding="utf-8", errors="backslashreplace").splitlines()
        print("".join(f"{prefix}{line}\n" for line in lines[len(lines) - min(len(lines), options.lines):]), end="")
    return 0


def _unknown(clusters: list[Cluster], what: str) -> int:
    runs = [run.name for cluster in clusters for run in cluster.status.runs]
    actors = [actor.name or f"{actor.label} ({short(actor.actor_id)})" for cluster in clusters for actor in cluster.status.actors]
    raise ActorNotFoundError(f"no run or actor with a process is called {what!r}; runs: {', '.join(runs) or 'none'}; actors: "
                             f"{', '.join(actors[:20]) or 'none'}.")


def _is_prefix(what: str, identifier: str) -> bool:
    return len(what) >= MIN_PREFIX and identifier.startswith(what)


COMMANDS = {"status": _status, "logs": _logs, "stacks": _stacks, "stop": _stop}
_HELP = {
    "status": "Nodes, runs, actors, groups and jobs of running clusters, and for what waits the reason.",
    "logs": "Output of an actor, or of the ranks of a run.",
    "stacks": "What all threads of an actor, or of the ranks of a run, are doing, also while the GIL is held.",
    "stop": "Stop a job: its processes get a message and a grace, its driver an error that says who stopped it.",
}
