"""B12 and B13: memory of a cluster that does nothing, time to import, size on disk."""

from __future__ import annotations

import json
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from benchmarks.measure import Bound, Result, Sample, Target, interleave
from benchmarks.program import Bench, Program, command_of, descendants, environment, kill_session, proportional_bytes

__all__ = ["idle_memory", "imports_and_size"]

Found = TypeVar("Found")

START_S = 60.0
SETTLE_S = 1.0  # a zygote has imported what it preloads, and what a start allocates is given back
IMPORTS_A_RUN = 5
MIB = 2**20
IMPORT = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
# What a training script imports; our packages load their names when they are first used, so `import train` alone loads next to nothing.
SCRIPT = "from {0} import CheckpointConfig, RunConfig, ScalingConfig, report; from {0}.torch import TorchTrainer"
IDLE = "import asyncio, uvloop, msgpack; asyncio.Runner(loop_factory=uvloop.new_event_loop).run(asyncio.sleep(3600))"


def idle_memory(bench: Bench) -> Iterator[Result]:
    """B12, for a head and a daemon as processes of their own, and for the embedded cluster, which is one."""
    bench.say("B12")
    contenders: dict[str, Callable[[], Sample]] = {
        "ours": partial(_memory_of_cluster, bench), "embedded": partial(_memory_below_driver, bench, "runtime", sys.executable),
        "bare uvloop": partial(_memory_of_bare_loop, bench)}
    if bench.ray_python:
        contenders["ray"] = partial(_memory_below_driver, bench, "ray", bench.ray_python)
    runs = interleave(contenders, rounds=bench.rounds, say=bench.say)
    ours, embedded = runs.pop("ours"), runs.pop("embedded")
    target = Target((Bound(60),))
    yield Result("B12", "idle head and worker daemon, PSS, zygote apart", "MiB", ours, runs | bench.ray_missing, target)
    yield Result("B12", "idle embedded cluster, PSS, zygote apart", "MiB", embedded, runs | bench.ray_missing, target)


def imports_and_size(bench: Bench) -> Iterator[Result]:
    """B13."""
    bench.say("B13")
    imports = {"import train": "import train", "import runtime": "import runtime", "what a script imports": SCRIPT.format("train")}
    limits_s = {"import train": 0.15, "import runtime": 0.05, "what a script imports": 0.15}
    contenders: dict[str, Callable[[], Sample]] = {
        who: partial(_import_s, bench, code, sys.executable) for who, code in (imports | {"bare asyncio": "import asyncio"}).items()}
    if bench.ray_python:
        contenders["ray"] = partial(_import_s, bench, SCRIPT.format("ray.train"), bench.ray_python)
    runs = interleave(contenders, rounds=bench.rounds, say=bench.say)
    peers = {who: of_peer for who, of_peer in runs.items() if who not in imports} | bench.ray_missing
    for name in imports:
        yield Result("B13", name, "s", runs[name], peers, Target((Bound(limits_s[name]),)))

    sizes = {"ours": _installed(bench, "headway", sys.executable)}
    if bench.ray_python:
        sizes["ray"] = _installed(bench, "ray[train]", bench.ray_python)
    contenders = {who: lambda parts=parts: sum(parts.values()) / MIB for who, parts in sizes.items()}  # type: ignore[misc]
    runs = interleave(contenders, rounds=bench.rounds, say=lambda text: None)
    note = "; ".join(f"{who}: {_biggest(parts)}" for who, parts in sizes.items())
    yield Result("B13", "installed size beside torch and what torch requires", "MiB", runs.pop("ours"), runs | bench.ray_missing,
                 Target((Bound(25),)), f"the biggest parts: {note}")


def _biggest(sizes: dict[str, int]) -> str:
    ordered = sorted(sizes.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {size / MIB:.1f}" for name, size in ordered[:5])


def _import_s(bench: Bench, code: str, python: str) -> float:
    """Seconds, the median of a few interpreters'."""
    times = [float(subprocess.run([python, "-c", IMPORT.format(code)], capture_output=True, text=True, check=True, env=environment(),
                                  cwd=bench.workspace).stdout.split()[-1]) for _ in range(bench.count(IMPORTS_A_RUN))]
    return statistics.median(times)


def _installed(bench: Bench, distribution: str, python: str) -> dict[str, int]:
    sizes = subprocess.run(command_of("installed_size", distribution, python=python), capture_output=True, text=True, check=True,
                           env=environment(), cwd=bench.workspace).stdout
    return dict(json.loads(sizes))


def _memory_of_cluster(bench: Bench) -> float:
    """MiB of a head and a daemon; the daemon's zygote is there, with torch in it, and left out."""
    token = bench.workspace / f"token-{secrets.token_hex(4)}"
    address = token.with_suffix(".address")
    head = [sys.executable, "-m", "runtime.head", "--port", "0", "--address-file", str(address), "--token-file", str(token)]
    with _process(bench, head) as head_pid:
        _wait(lambda: address.exists() and address.read_text().strip())
        worker = [sys.executable, "-m", "runtime.worker", "--head", address.read_text().strip(), "--token-file", str(token)]
        with _process(bench, worker) as worker_pid:
            zygote_pid = _wait(lambda: next((pid for pid in descendants(worker_pid) if _name(pid) == "hw zygote"), 0))
            _wait(lambda: "libtorch" in Path(f"/proc/{zygote_pid}/maps").read_text())
            time.sleep(SETTLE_S)
            return (proportional_bytes(head_pid) + proportional_bytes(worker_pid)) / MIB


def _memory_below_driver(bench: Bench, api: str, python: str) -> float:
    """MiB of what ``init()`` started, without the processes that are or will be actors."""
    with Program(command_of("actors", api, python=python), bench.workspace) as program:
        program.ask("start")
        time.sleep(SETTLE_S)
        pids = [pid for pid in descendants(program.pid) if not _name(pid).startswith(("hw ", "ray::"))]
        return sum(map(proportional_bytes, pids)) / MIB


def _memory_of_bare_loop(bench: Bench) -> float:
    """MiB of a Python process with uvloop and msgpack that waits."""
    with _process(bench, [sys.executable, "-c", IDLE]) as pid:
        _wait(lambda: "uvloop" in Path(f"/proc/{pid}/maps").read_text())
        time.sleep(SETTLE_S)
        return proportional_bytes(pid) / MIB


@contextmanager
def _process(bench: Bench, command: list[str]) -> Iterator[int]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               cwd=bench.workspace, env=environment(), start_new_session=True)
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(START_S)
        except subprocess.TimeoutExpired:
            kill_session(process)


def _wait(condition: Callable[[], Found]) -> Found:
    deadline = time.monotonic() + START_S
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"a process that is to be weighed was not ready within {START_S:g} s")
        time.sleep(0.02)
    return found


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
