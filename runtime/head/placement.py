"""Bundles to nodes, all or none; and why not, in words and numbers.

Big bundles go first, equal ones in the order asked, so that ranks of one node are neighbours and rank 0 has the lowest GPU of the first
node. For equal bundles (every gang) the first way through is exact; for mixed ones a bounded search goes back on its choices.

PACK        on as few nodes as greed finds: one if possible (the one with least to spare), else the roomiest first.
SPREAD      evenly: each bundle to the node with the fewest bundles of this request.
STRICT_PACK all on one node.  STRICT_SPREAD: each on a node of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from runtime.head.resources import CPU, GPU, UNIT, Amounts, Lease, Ledger, describe

__all__ = ["STRATEGIES", "Placed", "Room", "explain_busy", "explain_infeasible", "feasible", "reserve_all", "summarize"]

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")

# Steps back in the search over mixed bundles: about 20 ms. Equal bundles need none.
MAX_STEPS_BACK = 2_000
# Rows of nodes in an explanation; clusters of hundreds of nodes have few kinds of them.
MAX_ROWS = 20


class Placed(NamedTuple):
    """Where one bundle is: index of the ledger that was passed, and what was reserved there."""

    node: int
    lease: Lease


class Room(NamedTuple):
    """A node as an explanation shows it. ``note``: what else is to be known of it, "SUSPECT: …" or "held by …"."""

    name: str
    ledger: Ledger
    note: str = ""


def reserve_all(bundles: Sequence[Amounts], strategy: str, ledgers: Sequence[Ledger]) -> list[Placed] | None:
    """Reserve every bundle on the ledgers.

    Returns: the place of each bundle, in the order of ``bundles``; None, with the ledgers as they were, when they do not all fit.
    """
    if strategy in ("PACK", "STRICT_PACK"):
        total = _total(bundles)
        roomy = (i for i, ledger in enumerate(ledgers) if all(units <= ledger.free.get(name, 0) for name, units in total.items()))
        for node in sorted(roomy, key=lambda i: _spare(ledgers[i], total, i)):
            if (placed := _Search(bundles, "PACK", ledgers, (node,)).run()) is not None:
                return placed
        if strategy == "STRICT_PACK":
            return None
    return _Search(bundles, strategy, ledgers, tuple(range(len(ledgers)))).run()


def feasible(bundles: Sequence[Amounts], strategy: str, ledgers: Sequence[Ledger]) -> bool:
    """Whether the bundles would fit if nothing else were reserved."""
    return reserve_all(bundles, strategy, [ledger.emptied() for ledger in ledgers]) is not None


def _spare(ledger: Ledger, asked: Amounts, order: int) -> tuple[int, int, int]:
    """Sort key, the best node first: no idle GPUs beside work that asks for none, then the fullest, then who joined first."""
    wasted = 0 if GPU in asked else ledger.free.get(GPU, 0)
    return wasted, ledger.free.get(CPU, 0), order


class _Search:
    """Depth first over the bundles: each takes the best node that has room, and the last choice is taken back when one finds none."""

    def __init__(self, bundles: Sequence[Amounts], strategy: str, ledgers: Sequence[Ledger], nodes: tuple[int, ...]) -> None:
        self._bundles = bundles
        self._strategy = strategy
        self._ledgers = ledgers
        self._nodes = nodes
        sizes = [(bundle.get(GPU, 0), bundle.get(CPU, 0), sum(bundle.values())) for bundle in bundles]
        self._order = sorted(range(len(bundles)), key=lambda i: sizes[i], reverse=True)
        self._steps_back = 0 if all(bundle == bundles[0] for bundle in bundles) else MAX_STEPS_BACK
        self._placed: list[Placed] = []
        self._count = Counter[int]()  # bundles by node

    def run(self) -> list[Placed] | None:
        choices: list[Iterator[int]] = []
        while len(self._placed) < len(self._order):
            if len(choices) == len(self._placed):
                choices.append(self._candidates())
            if self._place_next(choices[-1]):
                continue
            choices.pop()
            self._steps_back -= 1
            if not choices or self._steps_back < 0:
                while self._placed:
                    self._take_back()
                return None
            self._take_back()
        return [placed for _, placed in sorted(zip(self._order, self._placed))]

    def _place_next(self, nodes: Iterator[int]) -> bool:
        bundle = self._bundles[self._order[len(self._placed)]]
        for node in nodes:
            if (lease := self._ledgers[node].reserve(bundle)) is not None:
                self._placed.append(Placed(node, lease))
                self._count[node] += 1
                return True
        return False

    def _take_back(self) -> None:
        node, lease = self._placed.pop()
        self._ledgers[node].release(lease)
        self._count[node] -= 1

    def _candidates(self) -> Iterator[int]:
        """Nodes for the next bundle, the best first."""
        position = len(self._placed)
        bundle = self._bundles[self._order[position]]
        if self._strategy == "PACK":
            last = self._placed[-1].node if self._placed else None
            if last is not None:
                yield last
            left = len(self._order) - position
            yield from sorted((i for i in self._nodes if i != last), key=lambda i: (
                not self._count[i], -self._ledgers[i].capacity(bundle, left), _spare(self._ledgers[i], bundle, i)))
            return
        free = (i for i in self._nodes if not (self._strategy == "STRICT_SPREAD" and self._count[i]))
        yield from sorted(free, key=lambda i: (self._count[i], _idle(self._ledgers[i], bundle), i))


def _idle(ledger: Ledger, bundle: Amounts) -> tuple[int, int]:
    """Sort key for spreading: no idle GPUs beside work that asks for none, then the emptiest."""
    wasted, cpu, _ = _spare(ledger, bundle, 0)
    return wasted, -cpu


def summarize(bundles: Sequence[Amounts]) -> str:
    """``2 x {CPU: 1} + 1 x {GPU: 1}``."""
    counts = Counter(describe(bundle) for bundle in bundles)
    return " + ".join(f"{count} x {bundle}" for bundle, count in counts.items())


def explain_infeasible(bundles: Sequence[Amounts], strategy: str, rooms: Sequence[Room], remedy: str) -> str:
    """Why the bundles do not fit even on idle nodes: a table of who has, has free, is asked for and is missing what."""
    head = f"{summarize(bundles)} ({strategy}) cannot be placed"
    if not rooms:
        return f"{head}: the cluster has no nodes. {remedy}"
    asked = _total(bundles) if strategy == "STRICT_PACK" else max(bundles, key=lambda b: (_nodes_that_hold(b, rooms) == 0, sum(b.values())))
    rows = [("node", "has", "free", "asked", "missing")]
    rows += [(room.name, describe(room.ledger.total), describe(room.ledger.free), describe(asked), describe(room.ledger.missing(asked)))
             for room in rooms[:MAX_ROWS]]
    if len(rooms) > MAX_ROWS:
        rows.append((f"({len(rooms) - MAX_ROWS} more nodes)", "", "", "", ""))
    if len(rooms) + len(bundles) > 2 and strategy != "STRICT_PACK":
        everything = Ledger(_total([room.ledger.total for room in rooms]), {})
        asked = _total(bundles)
        rows.append(("all together", describe(everything.total), describe(_total([room.ledger.free for room in rooms])), describe(asked),
                     describe(everything.missing(asked))))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    table = "\n".join("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
    return f"{head}, not even when every node is idle{_reason(bundles, strategy, rooms)}.\n{table}\n{remedy}"


def _reason(bundles: Sequence[Amounts], strategy: str, rooms: Sequence[Room]) -> str:
    if strategy == "STRICT_PACK" and len(bundles) > 1:
        return ": STRICT_PACK wants one node that holds them all"
    if strategy == "STRICT_SPREAD" and len(bundles) > len(rooms):
        return f": STRICT_SPREAD wants {len(bundles)} nodes, there are {len(rooms)}"
    lacking = sorted({name for bundle in bundles for name in bundle if all(not room.ledger.total.get(name) for room in rooms)})
    if lacking == [GPU]:
        return ": no node has a GPU (does `nvidia-smi -L` list one there?)"
    return f": no node has {', '.join(lacking)}" if lacking else ""


def explain_busy(bundles: Sequence[Amounts], strategy: str, rooms: Sequence[Room]) -> str:
    """What the bundles wait for: per node what is free of what they ask for, and who holds the rest."""
    names = list(_total(bundles))
    parts = []
    for room in rooms[:MAX_ROWS]:
        total, free = room.ledger.total, room.ledger.free
        amounts = ", ".join(f"{name} {free[name] / UNIT:.10g} of {total[name] / UNIT:.10g} free" for name in names if name in total)
        note = f" ({room.note})" if room.note else ""
        parts.append(f"{room.name}: {amounts or 'nothing of it'}{note}")
    if len(rooms) > MAX_ROWS:
        parts.append(f"{len(rooms) - MAX_ROWS} more nodes")
    return f"{summarize(bundles)} ({strategy}) waits for resources in use: {'; '.join(parts)}."


def _nodes_that_hold(bundle: Amounts, rooms: Sequence[Room]) -> int:
    return sum(not room.ledger.missing(bundle) for room in rooms)


def _total(amounts: Sequence[Amounts]) -> Amounts:
    total = Counter[str]()
    for each in amounts:
        total.update(each)
    return dict(total)
