"""How calls are timed, the same for all contenders."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["rate_of", "times_of"]

WARM_UP = 200


def times_of(call: Callable[[int], object], count: int) -> dict[str, float]:
    """Milliseconds of ``count`` calls, one after the other: the median as value, minimum and p95 beside it."""
    for i in range(WARM_UP):
        call(i)
    times = []
    for i in range(count):
        start = time.perf_counter()
        call(i)
        times.append(1000 * (time.perf_counter() - start))
    times.sort()
    return {"value": times[len(times) // 2], "min": times[0], "p95": times[int(0.95 * (len(times) - 1))]}


def rate_of(calls: Callable[[int], object], count: int) -> dict[str, float]:
    """Calls a second when ``count`` of them are under way."""
    calls(WARM_UP)
    start = time.perf_counter()
    calls(count)
    return {"value": count / (time.perf_counter() - start)}
