"""B9: a rank is killed; how long until the next attempt is inside its training function.

Ranks say by a FIFO when they are inside. A kill is over when both ranks of the next attempt are; who takes longer than a limit counts as
hung and is ended. The clock is CLOCK_MONOTONIC, which all processes of a host share.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fits import TORCHRUN
from benchmarks.measure import Bound, Result, Series, Target, number
from benchmarks.program import PROGRAMS, Bench, Program, command_of, environment, kill_session

__all__ = ["Ranks", "restarts"]

WORLD_SIZE = 2
KILLS_A_RUN = 5
# Beyond it an attempt will not come any more: the slowest that came took 2 s (torchrun) and 10 s (Ray).
HUNG_S = 20.0
START_S = 120.0
# Ranks train for this long before one is killed, so that no start is interrupted.
TRAINING_S = 0.2


@dataclass(frozen=True)
class Inside:
    """One rank's news."""

    rank: int
    pid: int
    at_s: float


class Ranks:
    """The bench's end of the FIFO. ``stop`` is the file that ends the training."""

    def __init__(self, workspace: Path) -> None:
        self.fifo = str(workspace / f"inside-{time.monotonic_ns()}")
        self.stop = workspace / f"stop-{time.monotonic_ns()}"
        os.mkfifo(self.fifo, 0o600)
        self._fd = os.open(self.fifo, os.O_RDWR | os.O_CLOEXEC)
        self._text = b""
        self._now: dict[int, Inside] = {}

    def wait_all(self, within_s: float) -> float | None:
        """When the last rank of an attempt came in; None if they did not within ``within_s``."""
        self._now.clear()
        deadline = time.monotonic() + within_s
        while len(self._now) < WORLD_SIZE:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([self._fd], [], [], left_s)[0]:
                return None
            self._text += os.read(self._fd, 65536)
            *lines, self._text = self._text.split(b"\n")
            for line in lines:
                rank, pid, at_s = line.split()
                self._now[int(rank)] = Inside(int(rank), int(pid), float(at_s))
        return max(news.at_s for news in self._now.values())

    def kill(self, rank: int, within_s: float = HUNG_S) -> float | None:
        """Seconds from the SIGKILL of a rank until the next attempt is inside; None: hung."""
        time.sleep(TRAINING_S)
        pid, start = self._now[rank].pid, time.monotonic()
        os.kill(pid, signal.SIGKILL)
        inside = self.wait_all(within_s)
        return None if inside is None else inside - start

    def close(self) -> None:
        """No more news."""
        os.close(self._fd)
        os.unlink(self.fifo)
        self.stop.unlink(missing_ok=True)


def restarts(bench: Bench) -> Iterator[Result]:
    """B9; a run is the median of five kills in one fit(), for torchrun of one kill, since its next one may be its last."""
    kills = {"ours": bench.count(KILLS_A_RUN), "torchrun": 1, "ray": 1}
    took: dict[str, list[list[float | None]]] = {who: [] for who in kills if who != "ray" or bench.ray_python}
    bench.say("B9")
    with ExitStack() as stack:
        trainers = {who: _trainer(bench, stack, who) for who in took if who != "torchrun"}
        for turn in range(bench.rounds + 1):
            for who, runs in took.items():
                with _training(bench, trainers.get(who), kills[who]) as ranks:
                    runs.append(_kill_all(ranks, kills[who]))
                bench.say(f"  {who}, run {turn}: " + ", ".join("hung" if s is None else f"{number(s)} s" for s in runs[-1]))
    all_ours = [seconds for run in took["ours"] for seconds in run]
    peers: dict[str, Series | str] = {who: _series(runs) for who, runs in took.items() if who != "ours"}
    note = f"{all_ours.count(None)} of {len(all_ours)} kills hung; the slowest took {number(max(filter(None, all_ours), default=0.0))} s"
    for who, runs in took.items():
        if who != "ours":
            tries = [seconds for run in runs for seconds in run]
            note += f"; {who} hung after {tries.count(None)} of {len(tries)} kills"
    ours = _series(took["ours"])
    if isinstance(ours, str) or None in all_ours:
        raise RuntimeError(f"B9: {note}")
    yield Result("B9", "SIGKILL of a rank to the next attempt inside its training function", "s", ours, peers | bench.ray_missing,
                 Target((Bound(0.3),)), note)


def _kill_all(ranks: Ranks, count: int) -> list[float | None]:
    took: list[float | None] = []
    while len(took) < count and None not in took:
        took.append(ranks.kill(rank=len(took) % WORLD_SIZE))
    return took


def _series(runs: list[list[float | None]]) -> Series | str:
    """Of the runs in which nothing hung; the first is discarded."""
    kept = [[s for s in run if s is not None] for run in runs[1:] if None not in run]
    num_hung = sum(None in run for run in runs[1:])
    if not kept:
        return f"hung ({num_hung} of {num_hung} tries)"
    first = tuple(s for s in runs[0] if s is not None)
    return Series(tuple(statistics.median(run) for run in kept), first, {"slowest of a run": tuple(max(run) for run in kept)})


def _trainer(bench: Bench, stack: ExitStack, who: str) -> Program:
    api, python = ("ray", [bench.ray_python]) if who == "ray" else ("runtime", [])
    command = command_of("training", api, str(bench.workspace / f"restarts-{who}"))
    return stack.enter_context(Program([*python, *command[len(python):]], bench.workspace))


@contextmanager
def _training(bench: Bench, trainer: Program | None, num_kills: int) -> Iterator[Ranks]:
    """Two ranks in training, by a trainer or else by torchrun; at the end they are told to stop, or ended if they hang."""
    ranks = Ranks(bench.workspace)
    end: Callable[[], object]
    try:
        if trainer is not None:
            trainer.send("fit_until", stop=str(ranks.stop), fifo=ranks.fifo, max_failures=num_kills)
            end = trainer.answer
        else:
            end = _start_torchrun(bench, ranks, num_kills)
        if ranks.wait_all(START_S) is None:
            raise RuntimeError(f"B9: no rank was in its training function within {START_S:g} s")
        yield ranks
        ranks.stop.touch()
        end()
    finally:
        ranks.close()


def _start_torchrun(bench: Bench, ranks: Ranks, num_kills: int) -> Callable[[], None]:
    command = [*TORCHRUN, "--max-restarts", str(num_kills), str(PROGRAMS / "ranks.py"), "until", str(ranks.stop), ranks.fifo]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               cwd=bench.workspace, env=environment(), start_new_session=True)

    def end() -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(HUNG_S / 2)
        kill_session(process)

    return end
