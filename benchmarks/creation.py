"""B8: actors created on a running cluster with a warm zygote, to the last one's first reply."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

from benchmarks.measure import Bound, Result, Sample, Target, interleave
from benchmarks.program import Bench, Program, command_of

__all__ = ["creation"]

LIMITS_S = {1: 0.03, 8: 0.15}


def creation(bench: Bench) -> Iterator[Result]:
    """B8, for 1 and for 8 actors."""
    commands = {"ours": command_of("actors", "runtime")}
    if bench.ray_python:
        commands["ray"] = command_of("actors", "ray", python=bench.ray_python)
    with ExitStack() as stack:
        programs = {who: stack.enter_context(Program(command, bench.workspace)) for who, command in commands.items()}
        for program in programs.values():
            program.ask("start")
        for count, limit_s in LIMITS_S.items():
            bench.say(f"B8, {count}")
            asking: dict[str, Callable[[], Sample]] = {
                who: partial(program.ask, "create", count=count) for who, program in programs.items()}
            runs = interleave(asking, rounds=2 * bench.rounds, say=bench.say)
            yield Result("B8", f"create {count} actor{'s' if count > 1 else ''}, to the first reply of all", "s", runs.pop("ours"),
                         runs | bench.ray_missing, Target((Bound(limit_s),)))
