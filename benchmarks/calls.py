"""B5 and B6: calls of an actor on the same host, one after the other and many at once; beside them a bare echo, and Ray's."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

from benchmarks.measure import Bound, Result, Sample, Target, interleave
from benchmarks.program import Bench, Program, command_of

__all__ = ["ECHO", "calls", "pipelined_calls"]

CALLS_A_RUN = 2000
PIPELINED_CALLS = 5000
ECHO = "bare echo"
BATCHED_ECHO = "bare echo, batched"


def calls(bench: Bench) -> Iterator[Result]:
    """B5, first with the threads where the kernel puts them, then with all on one core."""
    target = Target((Bound(0.12), Bound(1.6, ECHO)))
    with ExitStack() as stack:
        programs = _programs(bench, stack)
        core = max(os.sched_getaffinity(0))
        for name, cores in (("not pinned", None), (f"all threads pinned to core {core}", [core])):
            if cores is not None:
                for program in programs.values():
                    program.ask("pin", cores=cores)
            bench.say(f"B5 {name}")
            runs = interleave(_asking(programs, "call", bench.count(CALLS_A_RUN)), rounds=bench.rounds, say=bench.say)
            yield Result("B5", f"actor call, one caller, same host, p50, {name}", "ms", runs.pop("ours"), runs | bench.ray_missing, target)


def pipelined_calls(bench: Bench) -> Iterator[Result]:
    """B6."""
    target = Target((Bound(30_000, at_least=True), Bound(0.4, ECHO, at_least=True)), any_of=True)
    with ExitStack() as stack:
        programs = _programs(bench, stack) | {BATCHED_ECHO: _started(bench, stack, command_of("echo", "batched"))}
        bench.say("B6")
        runs = interleave(_asking(programs, "pipeline", bench.count(PIPELINED_CALLS)), rounds=bench.rounds, say=bench.say)
        yield Result("B6", "actor calls pipelined, one caller, same host", "calls/s", runs.pop("ours"), runs | bench.ray_missing, target)


def _programs(bench: Bench, stack: ExitStack) -> dict[str, Program]:
    commands = {"ours": command_of("actors", "runtime"), ECHO: command_of("echo")}
    if bench.ray_python:
        commands["ray"] = command_of("actors", "ray", python=bench.ray_python)
    return {who: _started(bench, stack, command) for who, command in commands.items()}


def _started(bench: Bench, stack: ExitStack, command: list[str]) -> Program:
    program = stack.enter_context(Program(command, bench.workspace))
    program.ask("start")
    return program


def _asking(programs: dict[str, Program], op: str, count: int) -> dict[str, Callable[[], Sample]]:
    return {who: partial(program.ask, op, count=count) for who, program in programs.items()}
