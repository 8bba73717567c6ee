"""How an actor ended, as an exception: who, where, why, and its last words."""

from __future__ import annotations

from runtime.client.serialization import loads_error
from runtime.errors import ActorDiedError, ActorError, ActorStartError
from runtime.wire.messages import ExitEvidence, NodeFacts

__all__ = ["UNKNOWN_END", "death_error", "describe_death"]

UNKNOWN_END = ExitEvidence(kind="killed", detail="nothing is known of its end")
# Errors show this many of the limits.log_tail_lines that the evidence holds: the rest is one attribute away.
SHOWN_LINES = 20
MIB = 1 << 20


def death_error(label: str, evidence: ExitEvidence, *, was_ready: bool, node: NodeFacts | None) -> ActorError:
    """The error of calls to an actor that ended: ActorStartError if its constructor never returned, else ActorDiedError.

    A constructor's exception, where it can be loaded, is the ``__cause__``.
    """
    kind = ActorDiedError if was_ready or evidence.wanted else ActorStartError
    error = kind(describe_death(label, evidence, was_ready=was_ready, node=node), evidence)
    error.__cause__ = loads_error(evidence.error)
    return error


def describe_death(label: str, evidence: ExitEvidence, *, was_ready: bool, node: NodeFacts | None) -> str:
    """In words: label, node, address, pid, what happened, memory, last lines of output."""
    place = ", ".join(part for part in (
        f"node {evidence.node_name or (node.name if node is not None else '')}".removesuffix("node "),
        evidence.host or (node.host if node is not None else ""),
        f"pid {evidence.pid}" if evidence.pid else "") if part)
    happened = "ended" if was_ready or evidence.wanted else "did not start"
    text = f"actor {evidence.label or label!r}{f' ({place})' if place else ''} {happened}: {_cause(evidence)}."
    if evidence.peak_rss_bytes and not evidence.wanted:
        text += f" Its memory peaked at {evidence.peak_rss_bytes / MIB:.0f} MiB."
    if evidence.log_tail and not evidence.wanted:
        lines = "\n".join(f"    {line}" for line in evidence.log_tail[-SHOWN_LINES:])
        text += f" Its last output ({evidence.log_path}):\n{lines}"
    elif evidence.log_path and not evidence.wanted:
        text += f" It wrote nothing to its log, {evidence.log_path}."
    return text


def _cause(evidence: ExitEvidence) -> str:
    detail = evidence.detail.rstrip(".")
    if evidence.kind == "exit code":
        return detail or f"exited with code {evidence.code}"
    if evidence.kind == "signal":
        return detail or f"killed by {evidence.signal}"
    return f"{evidence.kind}: {detail}" if detail and not detail.startswith(evidence.kind) else detail or evidence.kind
