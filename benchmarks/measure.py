"""What a measurement is: interleaved runs, their statistics, when they count, and how they are written down.

Contenders take turns (A B A B …), so that a drift of the machine hits all of them; the first round is discarded. The figure of a contender
is the median of its runs, the ratio of two is the median of the ratios of runs of the same round. A figure whose runs spread by more than
30 % of their median, or of which there are fewer than five, is no result: the spread is written in its place.
"""

from __future__ import annotations

import json
import math
import operator
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["MAX_SPREAD", "MIN_RUNS", "Bound", "Result", "Series", "Target", "interleave", "percentile", "render_table", "write_json"]

MAX_SPREAD = 0.30
MIN_RUNS = 5

Sample = float | Mapping[str, float]
"""What one run yields: its figure, or a mapping with the figure as ``value`` and more that is worth keeping."""


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` (0 to 1) of the values do not exceed. Raises: ValueError: no values."""
    if not values:
        raise ValueError("no values, no percentile")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


@dataclass(frozen=True)
class Series:
    """The runs of one contender, the discarded one apart. ``details`` has what they yielded beside their figures."""

    values: tuple[float, ...]
    discarded: tuple[float, ...] = ()
    details: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """The figure."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """From the smallest to the biggest run, as a share of the median."""
        width = max(self.values) - min(self.values)
        return width / abs(self.median) if self.median else math.inf if width else 0.0

    @property
    def refusal(self) -> str:
        """Why this is no result; empty if it is one."""
        if len(self.values) < MIN_RUNS:
            return f"no result: {len(self.values)} of {MIN_RUNS} runs"
        if self.spread > MAX_SPREAD:
            return f"no result: {number(self.median)} with a spread of {self.spread:.0%}"
        return ""

    def as_json(self, who: str) -> dict[str, Any]:
        """An entry of ``runs``."""
        shown = {"who": who, "values": list(self.values), "discarded": list(self.discarded), "min": min(self.values),
                 "median": self.median, "p95": percentile(self.values, 0.95), "max": max(self.values),
                 "spread": self.spread if math.isfinite(self.spread) else None}
        return shown | {name: list(values) for name, values in self.details.items()}


def interleave(contenders: Mapping[str, Callable[[], Sample]], *, rounds: int, say: Callable[[str], None]) -> dict[str, Series]:
    """Run the contenders in turn, ``rounds`` times and once before to be discarded."""
    found: dict[str, list[Mapping[str, float]]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            sample = run()
            found[name].append(sample if isinstance(sample, Mapping) else {"value": sample})
            say(f"  {name}, {f'run {turn}' if turn else 'discarded'}: " + ", ".join(f"{k} {number(v)}" for k, v in found[name][-1].items()))
    return {name: series(samples) for name, samples in found.items()}


def series(samples: Sequence[Mapping[str, float]]) -> Series:
    """The series of these runs, of which the first is discarded."""
    kept = samples[1:]
    names = [name for name in kept[0] if name != "value"]
    return Series(tuple(sample["value"] for sample in kept), (samples[0]["value"],),
                  {name: tuple(sample[name] for sample in kept) for name in names})


@dataclass(frozen=True)
class Bound:
    """``ours`` is at most (or at least) ``limit``, or ``limit`` times the figure of ``peer``."""

    limit: float
    peer: str = ""
    at_least: bool = False

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {number(self.limit)}{f' × {self.peer}' if self.peer else ''}"

    def holds(self, ours: Series, peers: Mapping[str, Series | str]) -> bool | None:
        """None: the figures are no results, or the peer is missing."""
        peer = peers.get(self.peer) if self.peer else None
        if ours.refusal or (self.peer and (not isinstance(peer, Series) or peer.refusal)):
            return None
        figure = ours.median if not isinstance(peer, Series) else ratio_of(ours, peer)
        return bool((operator.ge if self.at_least else operator.le)(figure, self.limit))


@dataclass(frozen=True)
class Target:
    """Bounds of which all have to hold, or one (``any_of``)."""

    bounds: tuple[Bound, ...]
    any_of: bool = False

    def __str__(self) -> str:
        return (" or " if self.any_of else " and ").join(map(str, self.bounds))

    def met(self, ours: Series, peers: Mapping[str, Series | str]) -> bool | None:
        """None: what was measured does not decide it."""
        verdicts = [bound.holds(ours, peers) for bound in self.bounds]
        decisive = self.any_of  # True decides "any", False decides "all"
        if decisive in verdicts:
            return decisive
        return None if None in verdicts or not verdicts else not decisive


@dataclass(frozen=True)
class Result:
    """One row. A peer that has no figure is the reason for it: missing, hung …"""

    id: str
    name: str
    unit: str
    ours: Series
    peers: Mapping[str, Series | str] = field(default_factory=dict)
    target: Target = field(default_factory=lambda: Target(()))
    note: str = ""

    @property
    def reference(self) -> tuple[str, Series] | None:
        """The peer that the ratio is against: the target's, else the first that was measured."""
        named = [bound.peer for bound in self.target.bounds if bound.peer]
        for name in (*named, *self.peers):
            peer = self.peers.get(name)
            if isinstance(peer, Series):
                return name, peer
        return None

    @property
    def ratio(self) -> float | None:
        """Ours to the reference; None if one of them is no result."""
        if self.reference is None or self.ours.refusal or self.reference[1].refusal:
            return None
        return ratio_of(self.ours, self.reference[1])

    def as_json(self) -> dict[str, Any]:
        """An entry of ``results``; a figure that is none is the reason for it."""
        runs = [self.ours.as_json("ours"), *(peer.as_json(name) for name, peer in self.peers.items() if isinstance(peer, Series))]
        return {"id": self.id, "name": self.name, "unit": self.unit, "ours": self.ours.refusal or self.ours.median,
                "peers": {name: peer if isinstance(peer, str) else peer.refusal or peer.median for name, peer in self.peers.items()},
                "ratio": self.ratio, "target": str(self.target), "met": self.target.met(self.ours, self.peers), "note": self.note,
                "runs": runs}

    def cells(self) -> tuple[str, ...]:
        """A row of the table."""
        peers = "; ".join(f"{name} {peer if isinstance(peer, str) else _cell(peer)}" for name, peer in self.peers.items())
        against = f" ({self.reference[0]})" if self.reference is not None and len(self.peers) > 1 else ""
        met = self.target.met(self.ours, self.peers)
        ratio = f"{self.ratio:.2f}{against}" if self.ratio is not None else "—"
        verdict = "—" if not self.target.bounds else "undecided" if met is None else "yes" if met else "no"
        return self.id, self.name, self.unit, _cell(self.ours), peers or "—", ratio, str(self.target) or "—", verdict


def ratio_of(ours: Series, peer: Series) -> float:
    """The median of the ratios of each round; of the medians where there were not as many runs."""
    if len(ours.values) == len(peer.values) and all(peer.values):
        return statistics.median(a / b for a, b in zip(ours.values, peer.values))
    return ours.median / peer.median


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _cell(series_: Series) -> str:
    return series_.refusal or f"{number(series_.median)} (spread {series_.spread:.0%})"


def render_table(results: Sequence[Result], machine: Mapping[str, Any]) -> str:
    """Markdown: the machine, the results, then each series in numbers."""
    lines = [f"- {name}: {value}" for name, value in machine.items()]
    lines += ["", *_table(("id", "name", "unit", "ours", "peers", "ratio", "target", "met"), [result.cells() for result in results]), ""]
    rows = []
    for result in results:
        named = {"ours": result.ours, **{name: peer for name, peer in result.peers.items() if isinstance(peer, Series)}}
        for who, runs in named.items():
            figures = (min(runs.values), runs.median, percentile(runs.values, 0.95), max(runs.values))
            more = ", ".join(f"{name} {number(statistics.median(values))}" for name, values in runs.details.items())
            rows.append((result.id, f"{result.name}: {who}", str(len(runs.values)), *map(number, figures), f"{runs.spread:.0%}",
                         more or "—"))
    lines += _table(("id", "runs of", "number", "min", "median", "p95", "max", "spread", "also (medians)"), rows)
    notes = [f"- {result.id}, {result.name}: {result.note}" for result in results if result.note]
    return "\n".join([*lines, *(["", *notes] if notes else []), ""])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths)) + " |"

    return [line(head), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)]


def write_json(path: Path, results: Sequence[Result], machine: Mapping[str, Any]) -> None:
    """``{"machine": …, "results": […]}``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": dict(machine), "results": [result.as_json() for result in results]}, indent=1,
                               ensure_ascii=False, allow_nan=False) + "\n")
