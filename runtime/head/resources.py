"""Arithmetic of resources: exact, in ten-thousandths, with GPUs by id.

A ``Ledger`` keeps what a node has and what is free of it. What was reserved from it is a ``Lease``; a lease can be divided further by
opening a ledger on it, which is how the actors of a placement group draw from their bundle. A GPU is either reserved whole by one lease
or shared by leases of fractions, never both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from runtime.errors import ArgumentError

__all__ = ["CPU", "GPU", "UNIT", "Amounts", "Lease", "Ledger", "describe", "to_floats", "to_units"]

CPU = "CPU"
GPU = "GPU"

# Ray's resolution: its accelerator_type resources come as 0.001, and 0.1 + 0.2 must be 0.3.
UNIT = 10_000
# Far above any machine, and sums over a million nodes still fit the 64-bit integers of the wire.
MAX_AMOUNT = 1_000_000_000

Amounts: TypeAlias = dict[str, int]
"""Ten-thousandths by resource name; zeros are left out."""


def to_units(resources: Mapping[str, float], what: str) -> Amounts:
    """``resources`` as exact integers, zeros left out.

    Raises: ArgumentError: an amount is negative, not finite, too fine or too large, or a GPU amount over 1 is not whole; ``what`` names
        the request in the text.
    """
    amounts = {}
    for name, value in resources.items():
        if not name or not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ArgumentError(f"{what}: resource {name!r} is {value!r}; a resource has a name and a number.")
        if not math.isfinite(value) or not 0 <= value <= MAX_AMOUNT:
            raise ArgumentError(f"{what}: resource {name!r} is {value!r}; it must be a number from 0 to {MAX_AMOUNT:g}.")
        units = round(value * UNIT)
        if value and not units:
            raise ArgumentError(f"{what}: resource {name!r} is {value!r}; the smallest amount is {1 / UNIT:g}.")
        if name == GPU and units > UNIT and units % UNIT:
            raise ArgumentError(f"{what}: {value!r} GPUs; above 1 only whole GPUs can be asked for, below 1 a fraction of one.")
        if units:
            amounts[name] = units
    return amounts


def to_floats(amounts: Mapping[str, int]) -> dict[str, float]:
    """``amounts`` as people and the wire write them."""
    return {name: units / UNIT for name, units in amounts.items()}


def describe(amounts: Mapping[str, int]) -> str:
    """``amounts`` for people: ``{CPU: 2, GPU: 0.5}``."""
    return "{" + ", ".join(f"{name}: {units / UNIT:.10g}" for name, units in amounts.items()) + "}"


@dataclass(frozen=True, slots=True)
class Lease:
    """What was reserved from one ledger. ``gpus``: ten-thousandths by GPU id."""

    amounts: Amounts
    gpus: dict[int, int]

    @property
    def gpu_ids(self) -> tuple[int, ...]:
        """Ids of its GPUs, ascending."""
        return tuple(sorted(self.gpus))

    def open(self) -> Ledger:
        """A ledger over this lease, to divide it further."""
        return Ledger(self.amounts, self.gpus)


class Ledger:
    """What there is, and what is free of it."""

    __slots__ = ("total", "free", "total_gpus", "free_gpus")

    def __init__(self, total: Amounts, gpus: Mapping[int, int] | None = None) -> None:
        if gpus is None:
            units = total.get(GPU, 0)
            gpus = dict.fromkeys(range(units // UNIT), UNIT) if units >= UNIT or not units else {0: units}
        self.total = dict(total)
        self.free = dict(total)
        self.total_gpus = dict(sorted(gpus.items()))
        self.free_gpus = dict(self.total_gpus)

    def emptied(self) -> Ledger:
        """The same inventory with nothing reserved."""
        return Ledger(self.total, self.total_gpus)

    def missing(self, asked: Amounts) -> Amounts:
        """What ``asked`` exceeds the whole inventory by; empty when an idle ledger holds it."""
        return {name: units - self.total.get(name, 0) for name, units in asked.items() if units > self.total.get(name, 0)}

    def fits(self, asked: Amounts) -> bool:
        """Whether ``reserve(asked)`` would succeed."""
        return all(units <= self.free.get(name, 0) for name, units in asked.items()) and self._pick_gpus(asked.get(GPU, 0)) is not None

    def reserve(self, asked: Amounts) -> Lease | None:
        """Take ``asked`` out of what is free; None, and nothing changed, when it does not fit."""
        gpus = self._pick_gpus(asked.get(GPU, 0))
        if gpus is None or any(units > self.free.get(name, 0) for name, units in asked.items()):
            return None
        for name, units in asked.items():
            self.free[name] -= units
        for gpu, units in gpus.items():
            self.free_gpus[gpu] -= units
        return Lease(dict(asked), gpus)

    def release(self, lease: Lease) -> None:
        """Give back what ``reserve`` took."""
        for name, units in lease.amounts.items():
            self.free[name] += units
            assert self.free[name] <= self.total[name], f"{name} was released twice"
        for gpu, units in lease.gpus.items():
            self.free_gpus[gpu] += units
            assert self.free_gpus[gpu] <= self.total_gpus[gpu], f"GPU {gpu} was released twice"

    def capacity(self, asked: Amounts, at_most: int) -> int:
        """How many times ``asked`` fits into what is free, counted up to ``at_most``."""
        count = min((self.free.get(name, 0) // units for name, units in asked.items() if name != GPU), default=at_most)
        gpu_units = asked.get(GPU, 0)
        if gpu_units >= UNIT:
            whole = sum(free == UNIT for free in self.free_gpus.values())
            count = min(count, whole // (gpu_units // UNIT))
        elif gpu_units:
            count = min(count, sum(free // gpu_units for free in self.free_gpus.values()))
        return min(count, at_most)

    def _pick_gpus(self, units: int) -> dict[int, int] | None:
        """GPUs for ``units``: the lowest idle ones, or for a fraction the lowest already shared one with room, else the lowest idle one."""
        if not units:
            return {}
        idle = [gpu for gpu, free in self.free_gpus.items() if free == UNIT]
        if units >= UNIT:
            count = units // UNIT
            return dict.fromkeys(idle[:count], UNIT) if len(idle) >= count else None
        shared = (gpu for gpu, free in self.free_gpus.items() if units <= free < UNIT)
        chosen = next(shared, idle[0] if idle else None)
        return None if chosen is None else {chosen: units}
