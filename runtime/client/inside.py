"""What code asks about the process that it runs in: who am I, shall I stop, my channels.

Inside an actor the answers are those of ``runtime.actor``, which is above this layer: it is reached by name, and only if it is there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runtime.client.cluster import node_here
from runtime.client.init import current_session
from runtime.errors import NotInitializedError

__all__ = ["RuntimeContext", "channel", "get_runtime_context", "on_stop_requested", "stop_requested"]


@dataclass(frozen=True, slots=True)
class RuntimeContext:
    """Facts about this process. In a driver ``actor_id`` is None, and the node is the one of its host, if that is a node ("" else)."""

    job_id: str
    node_id: str
    node_name: str
    host: str
    interface: str
    host_id: str
    actor_id: str | None = None
    index: int = 0
    label: str = ""
    attempt: int = 0
    resources: dict[str, float] | None = None
    gpu_ids: tuple[int, ...] = ()
    visible_gpu_ids: tuple[int, ...] = ()
    log_path: str = ""

    def get_job_id(self) -> str:
        """Ray's form of ``job_id``."""
        return self.job_id

    def get_node_id(self) -> str:
        """Ray's form of ``node_id``."""
        return self.node_id

    def get_actor_id(self) -> str | None:
        """Ray's form of ``actor_id``."""
        return self.actor_id

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """Ray's form of ``gpu_ids``."""
        return {"GPU": [str(index) for index in self.gpu_ids]}


def get_runtime_context() -> RuntimeContext:
    """Facts about this actor or driver."""
    context = sys.modules.get("runtime.actor.context")
    actor = context.current_actor() if context is not None else None
    if actor is None:
        session = current_session()
        here = node_here(session)
        if here is None:
            return RuntimeContext(session.job_id, "", "", "", "", session.host_id)
        facts = here.facts
        return RuntimeContext(session.job_id, facts.node_id, facts.name, facts.host, facts.interface, facts.host_id)
    node = actor.node
    return RuntimeContext(
        actor.job_id, node.node_id, node.name, node.host, node.interface, node.host_id, actor.actor_id, actor.index, actor.label,
        actor.attempt, dict(actor.resources), actor.gpu_ids, actor.visible_gpu_ids, actor.log_path)


def stop_requested() -> bool:
    """Whether somebody asked this actor to stop; False in a driver."""
    context = sys.modules.get("runtime.actor.context")
    return context is not None and bool(context.stop_requested())


def on_stop_requested(callback: Callable[[str, float], object]) -> None:
    """Call ``callback(reason, grace_s)`` on the I/O thread once, when this actor is asked to stop.

    Raises: NotInitializedError: this process is no actor.
    """
    _actor_module("context", "on_stop_requested()").on_stop_requested(callback)


def channel(name: str) -> Any:
    """The channel ``name`` of this actor; who has its handle gets the other end by ``handle.subscribe(name)``.

    Raises: NotInitializedError: this process is no actor.
    """
    return _actor_module("channel", "channel()").channel(name)


def _actor_module(name: str, what: str) -> Any:
    module = sys.modules.get(f"runtime.actor.{name}")
    if module is None:
        raise NotInitializedError(f"{what} is for code inside an actor; this process is none.")
    return module
