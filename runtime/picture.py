"""A cluster's status as text for people and as JSON for programs. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.ids import short
from runtime.wire.messages import ClusterStatus, GroupStatus, NodeStatus, RunStatus

__all__ = ["as_json", "as_text", "table"]


def as_json(address: str, driver_pid: int, status: ClusterStatus) -> dict[str, Any]:
    """One cluster; the keys stay what they are."""
    return {
        "address": address, "embedded": status.embedded, "driver_pid": driver_pid or None,
        "nodes": [{
            "id": node.facts.node_id, "name": node.facts.name, "state": node.state, "address": node.facts.host, "port": node.facts.port,
            "interface": node.facts.interface, "pid": node.facts.pid, "resources": dict(node.facts.resources),
            "available": dict(node.available), "labels": dict(node.facts.labels), "gpus": list(node.facts.gpus),
            "zygotes": list(node.zygotes), "python": node.facts.python, "version": node.facts.version,
        } for node in status.nodes],
        "jobs": [{"id": job.job_id, "state": job.state, "driver_pid": job.pid, "cwd": job.cwd, "namespace": job.namespace,
                  "driver_lost": job.is_driver_lost} for job in status.jobs],
        "runs": [{"name": run.name, "job": run.job_id, "state": run.state, "over": run.is_over, "attempt": run.attempt,
                  "world_size": run.world_size, "metrics": run.metrics, "checkpoint": run.checkpoint or None, "directory": run.directory,
                  } for run in status.runs],
        "groups": [{"id": group.group_id, "job": group.job_id, "name": group.name, "state": group.state, "asked": group.asked,
                    "reason": group.reason, "waits_s": round(group.since_s, 3) if group.reason else None, "nodes": list(group.nodes),
                    } for group in status.groups],
        "actors": [{"id": actor.actor_id, "job": actor.job_id, "group": actor.group_id, "name": actor.name or None, "label": actor.label,
                    "class": actor.class_name, "state": actor.state, "node": actor.node, "pid": actor.pid or None,
                    "gpu_ids": list(actor.gpu_ids), "log_path": actor.log_path} for actor in status.actors],
        "num_groups": status.num_groups, "num_actors": status.num_actors,
    }


def as_text(address: str, driver_pid: int, status: ClusterStatus) -> str:
    """One cluster as tables; what is empty is left out."""
    kind = f"embedded cluster of driver pid {driver_pid}" if driver_pid else "cluster"
    parts = [f"{kind} at {address}"]
    for title, heads, rows in (
        ("nodes", ("name", "state", "address", "free/all", "labels", "zygotes"), [_node(node) for node in status.nodes]),
        ("runs", ("name", "state", "attempt", "ranks", "metrics", "checkpoint", "directory"), [_run(run) for run in status.runs]),
        ("actors", ("label", "name", "class", "state", "node", "pid", "gpus", "id"), [
            (a.label, a.name, a.class_name, a.state, a.node, str(a.pid or ""), ",".join(map(str, a.gpu_ids)), short(a.actor_id))
            for a in status.actors]),
        ("groups", ("id", "state", "asked", "of", "nodes"), [
            (short(g.group_id), g.state, g.asked, f"job {short(g.job_id)}", ",".join(g.nodes)) for g in status.groups]),
        ("jobs", ("id", "state", "driver pid", "cwd"), [
            (short(j.job_id), j.state, f"{j.pid}{' (lost)' if j.is_driver_lost else ''}", j.cwd) for j in status.jobs]),
    ):
        if rows:
            parts.append(f"\n{title}\n{table([heads, *rows])}")
    for what, count, shown in (("groups", status.num_groups, len(status.groups)), ("actors", status.num_actors, len(status.actors))):
        if count > shown:
            parts.append(f"\n{count - shown} more {what} are not shown")
    waiting = [_waiting(group) for group in status.groups if group.reason]
    if waiting:
        parts.append("\nwaiting\n" + "\n".join(waiting))
    return "\n".join(parts)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side, indented by two; a column that is empty below its head is left out."""
    columns = [column for column in zip(*rows) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    return "\n".join("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in zip(*columns))


def _node(node: NodeStatus) -> tuple[str, ...]:
    facts = node.facts
    amounts = " ".join(f"{name} {node.available.get(name, 0):g}/{total:g}" for name, total in facts.resources.items())
    return (facts.name, node.state, f"{facts.host}:{facts.port}" if facts.port else facts.host, amounts, _pairs(facts.labels),
            "; ".join(node.zygotes))


def _run(run: RunStatus) -> tuple[str, ...]:
    return (run.name, run.state, str(run.attempt), str(run.world_size), run.metrics, run.checkpoint, run.directory)


def _waiting(group: GroupStatus) -> str:
    head = f"{group.name} (group {short(group.group_id)}, job {short(group.job_id)}) for {group.since_s:.0f} s:"
    return textwrap.indent(f"{head}\n{textwrap.indent(group.reason, '  ')}", "  ")


def _pairs(labels: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in labels.items())
