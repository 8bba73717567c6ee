"""Placement groups: resources reserved all together or not at all, for actors to be put into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runtime.client.actor_link import Failure
from runtime.client.arguments import checked_amounts, checked_name
from runtime.client.init import current_session, session_or_init
from runtime.client.notice import say
from runtime.client.object_ref import ObjectRef, failed, value, wait
from runtime.client.session import Session
from runtime.errors import ArgumentError, ArgumentTypeError, PlacementError, by_name
from runtime.ids import GroupId, new_group_id
from runtime.limits import LIMITS
from runtime.wire.messages import CreateGroup, GroupChanged, RemoveGroup

__all__ = ["STRATEGIES", "PlacementGroup", "checked_bundles", "checked_strategy", "placement_group", "remove_placement_group"]

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")


class PlacementGroup:
    """A reserved, or waiting, group of bundles. Made by ``placement_group``."""

    def __init__(self, group_id: GroupId, bundle_specs: list[dict[str, float]], name: str) -> None:
        self.id = group_id
        self.bundle_specs = bundle_specs
        self.name = name
        self._ready = ObjectRef(f"placement group {name or group_id[:8]}")

    @property
    def bundle_count(self) -> int:
        """How many bundles it has."""
        return len(self.bundle_specs)

    def ready(self) -> ObjectRef:
        """A reference to the group itself, done once all its bundles are reserved; it fails when they can't be."""
        return self._ready

    def wait(self, timeout_seconds: float | None = 30) -> bool:
        """Whether it is reserved within ``timeout_seconds``.

        Raises: InfeasibleError, PlacementTimeoutError: it never will be.
        """
        done, _ = wait([self._ready], timeout=timeout_seconds)
        if done:
            self._ready.result()
        return bool(done)

    def __repr__(self) -> str:
        return f"<PlacementGroup {self.name or self.id[:8]}: {self.bundle_specs}>"

    def __reduce__(self) -> Any:
        raise TypeError("a PlacementGroup belongs to the process that made it: create actors from there")

    # ---- a listener of its group, on the I/O thread ----

    def group_changed(self, message: GroupChanged) -> None:
        """The head says how the group is."""
        if message.error:
            self.fail(lambda: by_name(message.error, f"{self!r}: {message.reason}"))
        elif message.state == "RESERVED":
            self._ready.settle(value(self))
        elif message.state == "PENDING" and message.reason:
            say(f"{self!r} waits for resources: {message.reason}")

    def fail(self, failure: Failure) -> None:
        """It will not be reserved."""
        self._ready.settle(failed(failure))


def placement_group(bundles: Sequence[Mapping[str, float]], strategy: str = "PACK", name: str = "") -> PlacementGroup:
    """Reserve ``bundles``, each on one node, all or none; returns at once, see ``ready()``.

    Args: strategy: PACK (few nodes), SPREAD (many), STRICT_PACK (one), STRICT_SPREAD (a node each).
    """
    specs = checked_bundles("placement_group", bundles)
    if not any(specs) or not all(specs):
        raise ArgumentError(f"placement_group(bundles={bundles!r}): each bundle must ask for something, like {{'CPU': 1}}.")
    checked_strategy("placement_group", strategy)
    session = session_or_init()
    group = PlacementGroup(new_group_id(), specs, checked_name("placement_group", "name", name or None))
    session.post(session.create, CreateGroup(session.job_id, group.id, tuple(specs), strategy, group.name), (), group)
    return group


def remove_placement_group(placement_group: PlacementGroup) -> None:
    """Kill the actors in the group and release its resources; returns when that is done."""
    if not isinstance(placement_group, PlacementGroup):
        raise ArgumentTypeError(f"remove_placement_group() takes a PlacementGroup, not {type(placement_group).__name__}.")
    session: Session = current_session()
    session.call(RemoveGroup(placement_group.id, 0.0, "remove_placement_group() was called"), timeout_s=LIMITS.job_close_s)
    session.post(placement_group.fail, lambda: PlacementError(f"{placement_group!r} was removed before it was reserved."))


def checked_bundles(function: str, bundles: object) -> list[dict[str, float]]:
    """Bundles of a group. Raises: ArgumentError, ArgumentTypeError."""
    if isinstance(bundles, (str, Mapping)) or not isinstance(bundles, Sequence):
        raise ArgumentTypeError(f"{function}(bundles=…) must be a list of dicts like [{{'CPU': 1}}], not {type(bundles).__name__}.")
    if not bundles:
        raise ArgumentError(f"{function}(bundles=[]) must have at least one bundle.")
    return [{name: amount for name, amount in checked_amounts(function, f"bundles[{i}]", bundle).items() if amount}
            for i, bundle in enumerate(bundles)]


def checked_strategy(function: str, strategy: object) -> None:
    """Raise: ArgumentError: it is none of STRATEGIES."""
    if strategy not in STRATEGIES:
        raise ArgumentError(f"{function}(strategy={strategy!r}) must be one of {', '.join(STRATEGIES)}.")
