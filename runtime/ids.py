"""Identifiers: random, unguessable, minted by whoever creates the thing, never by the head's brain (it has no randomness).

An id is a capability: knowing an actor's id (and the cluster token) is what entitles a peer to call it.
"""

from __future__ import annotations

import secrets
from typing import NewType

__all__ = ["ActorId", "GroupId", "JobId", "NodeId", "new_actor_id", "new_group_id", "new_job_id", "new_node_id", "short"]

ActorId = NewType("ActorId", str)
GroupId = NewType("GroupId", str)
JobId = NewType("JobId", str)
NodeId = NewType("NodeId", str)


def new_actor_id() -> ActorId:
    """128 random bits as 32 hexadecimal digits."""
    return ActorId(secrets.token_hex(16))


def new_group_id() -> GroupId:
    """128 random bits as 32 hexadecimal digits."""
    return GroupId(secrets.token_hex(16))


def new_job_id() -> JobId:
    """128 random bits as 32 hexadecimal digits."""
    return JobId(secrets.token_hex(16))


def new_node_id() -> NodeId:
    """128 random bits as 32 hexadecimal digits."""
    return NodeId(secrets.token_hex(16))


def short(identifier: str) -> str:
    """The first 8 digits, for people; never for comparing."""
    return identifier[:8]
