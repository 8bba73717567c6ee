"""B1 and B2: training two ranks for one all-reduce, as a script from start to exit, and once more in a driver that has done it before."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from benchmarks.measure import Bound, Result, Sample, Target, interleave
from benchmarks.program import PROGRAMS, Bench, Program, command_of, seconds_to_exit

__all__ = ["TORCHRUN", "cold_script", "warm_fit"]

# --standalone: a rendezvous of its own on a free port.
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
WARM_FITS_A_RUN = 3


def cold_script(bench: Bench) -> Iterator[Result]:
    """B1."""
    storage = str(bench.workspace / "cold")
    commands = {"ours": command_of("training", "runtime", storage, "once"), "torchrun": [*TORCHRUN, str(PROGRAMS / "ranks.py"), "once"]}
    if bench.ray_python:
        commands["ray"] = command_of("training", "ray", storage, "once", python=bench.ray_python)
    contenders: dict[str, Callable[[], Sample]] = {
        who: lambda command=command: seconds_to_exit(command, bench.workspace) for who, command in commands.items()}  # type: ignore[misc]
    bench.say("B1")
    runs = interleave(contenders, rounds=bench.rounds, say=bench.say)
    yield Result("B1", "script that trains 2 ranks for one all-reduce (gloo), start to exit", "s", runs.pop("ours"),
                 runs | bench.ray_missing, Target((Bound(1.0, "torchrun"),)))


def warm_fit(bench: Bench) -> Iterator[Result]:
    """B2; a run is the median of a few, and the run that is discarded has the cold one."""
    with ExitStack() as stack:
        commands = {"ours": command_of("training", "runtime", str(bench.workspace / "warm"))}
        if bench.ray_python:
            commands["ray"] = command_of("training", "ray", str(bench.workspace / "warm-ray"), python=bench.ray_python)
        contenders: dict[str, Callable[[], Sample]] = {}
        for who, command in commands.items():
            program = stack.enter_context(Program(command, bench.workspace))
            num_fits = bench.count(WARM_FITS_A_RUN) if who == "ours" else 1
            contenders[who] = lambda ask=program.ask, num_fits=num_fits: statistics.median(  # type: ignore[misc]
                [ask("fit") for _ in range(num_fits)])
        bench.say("B2")
        runs = interleave(contenders, rounds=bench.rounds, say=bench.say)
        yield Result("B2", "second fit() of the same driver, 2 trivial ranks, to its end", "s", runs.pop("ours"), runs | bench.ray_missing,
                     Target((Bound(0.15),)))
