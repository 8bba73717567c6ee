"""How long things take: ``python -m benchmarks.latency --json FILE [--only B1,B2,…]``, from the repository root.

Contenders run in turn on this machine: ours, torchrun, a bare echo or a bare loop as the physical limit, and Ray if ``--ray-python`` names
an interpreter that imports it. Nothing here is a test; run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.calls import calls, pipelined_calls
from benchmarks.creation import creation
from benchmarks.fits import cold_script, warm_fit
from benchmarks.footprint import idle_memory, imports_and_size
from benchmarks.machine import describe_machine, load, ray_version
from benchmarks.measure import MIN_RUNS, Result, render_table, write_json
from benchmarks.program import Bench
from benchmarks.restarts import restarts

__all__ = ["BENCHMARKS", "main"]

BENCHMARKS: dict[str, Callable[[Bench], Iterator[Result]]] = {
    "B1": cold_script, "B2": warm_fit, "B5": calls, "B6": pipelined_calls, "B8": creation, "B9": restarts, "B12": idle_memory,
    "B13": imports_and_size,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = _parser().parse_args(argv)
    if options.ray_python and not ray_version(options.ray_python):
        print(f"Ray is missing: {options.ray_python} does not import ray.train and torch.", file=sys.stderr)
        options.ray_python = ""
    machine = describe_machine(options.ray_python) | {"load before": load(), "rounds": options.rounds, "scale": options.scale}
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="hw-bench-", ignore_cleanup_errors=True) as workspace:
        bench = Bench(Path(workspace), options.rounds, options.scale, options.ray_python or "", _say)
        for name in options.only:
            results += BENCHMARKS[name](bench)
    machine["load after"] = load()
    table = render_table(results, machine)
    print(table)
    write_json(options.json, results, machine)
    if options.markdown is not None:
        options.markdown.write_text(table)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description="Measures how long things take, beside the peers.")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the figures go")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="where the table goes, beside stdout")
    parser.add_argument("--only", type=_names, default=list(BENCHMARKS), metavar="B1,B2,…",
                        help=f"of {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--rounds", type=_at_least_one, default=MIN_RUNS, help="runs of each contender that count (default %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="how much is done in a run (default %(default)s)")
    parser.add_argument("--ray-python", metavar="FILE", help='interpreter of an environment with "ray[train]" and torch')
    return parser


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)} unknown; there are {', '.join(BENCHMARKS)}")
    return names


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
