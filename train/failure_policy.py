"""Whether a failed attempt is followed by another. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

__all__ = ["FailurePolicy", "Verdict"]

# Restart intensity, as Erlang's supervisors have it: an attempt that dies three times in a minute before it even enters the training
# function will not get better by itself. It only bounds max_failures=-1; a finite max_failures is never cut short.
INTENSITY_COUNT = 3
INTENSITY_S = 60.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """``retry``, and for people: "restart 1 of 1", or why there is no restart."""

    retry: bool
    text: str


class FailurePolicy:
    """Counts the failures of one ``fit()``. ``max_failures``: -1 is without limit."""

    def __init__(self, max_failures: int, *, intensity_count: int = INTENSITY_COUNT, intensity_s: float = INTENSITY_S) -> None:
        self._max_failures = max_failures
        self._intensity_count = intensity_count
        self._intensity_s = intensity_s
        self._early: deque[float] = deque()
        self.failures = 0

    def decide(self, *, entered: bool, retriable: bool, now: float) -> Verdict:
        """After a failed attempt. ``entered``: a rank of it began its training function. ``retriable``: another try could succeed."""
        if not retriable:
            return Verdict(False, "another attempt would fail the same way")
        self.failures += 1
        if self._max_failures >= 0:
            if self.failures <= self._max_failures:
                return Verdict(True, f"restart {self.failures} of {self._max_failures}")
            return Verdict(False, "no restart: FailureConfig(max_failures=0)" if self._max_failures == 0 else
                           f"all {self._max_failures} restarts of FailureConfig(max_failures={self._max_failures}) are used up")
        if not entered:
            self._early.append(now)
            while self._early and now - self._early[0] > self._intensity_s:
                self._early.popleft()
            if len(self._early) >= self._intensity_count:
                return Verdict(False, f"{len(self._early)} attempts in {self._intensity_s:g} s failed before the training function began")
        return Verdict(True, f"restart {self.failures}, without limit")
