"""How ranks fail, and how it is told: first cause first, the user's frames only, with host, pid, signal and last output."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.errors import ActorDiedError
from train.errors import RankError

if TYPE_CHECKING:
    from runtime import ExitEvidence

__all__ = ["Failure", "Portable", "died", "first_cause", "group_text", "lost", "raised", "user_traceback"]

# Ray caps a snippet at 1000 characters (500 from each end). The first cause gets more: it is what the reader came for.
FIRST_CHARS = 4000
OTHER_CHARS = 1000
_OURS = tuple(os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), name) + os.sep
              for name in ("train", "runtime", "lightning_ext"))


@dataclass(frozen=True, slots=True)
class Failure:
    """One rank's failure. ``error`` is what the user gets, ``what`` one clause, ``detail`` the traceback or last output."""

    rank: int
    error: BaseException
    what: str
    detail: str
    at: float
    is_death: bool = False
    is_first: bool = False  # the runtime says that this death took the others with it


def raised(rank: int, who: str, error: BaseException | None, class_name: str, text: str, trace: str, at: float) -> Failure:
    """A rank's training function (or its set-up) raised; ``error`` is None if it could not be pickled."""
    what = f"{who} failed: {class_name}" + (f": {_first_line(text)}" if text else "").rstrip(".")
    return Failure(rank, error if error is not None else RankError(f"{class_name}: {text}\n{trace}".rstrip()), what, trace or text, at)


def died(rank: int, who: str, evidence: ExitEvidence, log_path: str, at: float) -> Failure:
    """A rank's process ended by itself. ``log_path``: where its output can be read when the run is over."""
    what = f"{who} {_end(evidence)}"
    detail = what + "."
    if evidence.log_tail:
        detail += "\nIts last output:\n" + "\n".join(f"  {line}" for line in evidence.log_tail)
    if log_path:
        detail += f"\nIts whole output: {log_path}"
    return Failure(rank, ActorDiedError(detail, evidence), what, detail, at, is_death=True, is_first=evidence.first)


def lost(rank: int, who: str, error: BaseException | None, at: float) -> Failure:
    """The connection to a rank ended, and nobody knows how the process does."""
    what = f"{who} was lost: {error or 'its connection was closed'}"
    return Failure(rank, error or ActorDiedError(what), what, what, at)


def _end(evidence: ExitEvidence) -> str:
    if evidence.kind == "signal":
        text = f"was killed by {evidence.signal}"
    elif evidence.kind == "exit code":
        text = f"exited with code {evidence.code}"
    else:
        text = f"ended ({evidence.kind})"
    detail = evidence.detail.rstrip(".")
    return f"{text} ({detail})" if detail and detail not in text else text


def first_cause(failures: Sequence[Failure], collateral_s: float) -> Failure:
    """The failure that the user shall see first.

    A process that ended outranks exceptions that arrived up to ``collateral_s`` before: those are what its peers saw of it.
    """
    deaths = [f for f in failures if f.is_death and f.at <= failures[0].at + collateral_s]
    return next((f for f in deaths if f.is_first), deaths[0] if deaths else failures[0])


def group_text(failures: Iterable[Failure], first: Failure) -> str:
    """``Training failed due to worker errors:`` and a snippet for each distinct failure, ranks with the same one together."""
    groups: dict[str, list[Failure]] = {_without_numbers(first.detail): [first]}
    for failure in failures:
        if failure is not first:
            groups.setdefault(_without_numbers(failure.detail), []).append(failure)
    snippets = []
    for members in groups.values():
        ranks = ",".join(str(rank) for rank in sorted({f.rank for f in members}))
        limit = FIRST_CHARS if members[0] is first and not first.is_death else sys.maxsize if members[0].is_death else OTHER_CHARS
        snippets.append(f"[Rank {ranks} Error Snippet]:\n{_cut(members[0].detail.rstrip(), limit)}")
    return "Training failed due to worker errors:\n" + "\n".join(snippets)


class Portable:
    """Pickles as the exception it holds, also when that can be pickled and not loaded: its constructor is not called again."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self._error), self._error.args, vars(self._error))


def _rebuilt(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = cls.__new__(cls, *args)
    error.args = args
    vars(error).update(state)
    return error


def user_traceback(error: BaseException) -> str:
    """The traceback as Python prints it, without the frames of this library."""
    report = traceback.TracebackException.from_exception(error)
    seen: set[int] = set()
    todo: list[traceback.TracebackException | None] = [report]
    while todo:
        part = todo.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        kept = [frame for frame in part.stack if not frame.filename.startswith(_OURS)]
        part.stack = traceback.StackSummary.from_list(kept)
        todo += [part.__cause__, part.__context__, *(part.exceptions or [])]
    return "".join(report.format())


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _without_numbers(text: str) -> str:
    return re.sub(r"\d+", "<number>", text)


def _cut(text: str, limit: int) -> str:
    half = limit // 2
    return text if len(text) <= limit else f"{text[:half]}\n... {len(text) - limit} characters left out ...\n{text[-half:]}"
