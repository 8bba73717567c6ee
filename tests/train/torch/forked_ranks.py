"""A small zygote for tests: ``forked_ranks.py SCENARIO_FILE SETUPS`` imports torch once, forks the ranks and runs the scenario in each."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from train.backend import RankSetup
from train.torch.config import TorchConfig, _TorchBackend


class PipeRendezvous:
    """Rank 0 writes one line for each of the others."""

    key_prefix = "run/1"

    def __init__(self, others: int) -> None:
        self._others = others
        self._read, self._write = os.pipe()

    def publish(self, host: str, port: int) -> None:
        os.write(self._write, f"{host} {port:5d}\n".encode() * self._others)

    def lookup(self, timeout_s: float) -> tuple[str, int]:
        line = b""
        while not line.endswith(b"\n"):
            line += os.read(self._read, 1)
            assert line, "rank 0 is gone"
        host, port = line.split()
        return host.decode(), int(port)


def run_rank(ranks: RankSetup, rendezvous: PipeRendezvous, scenario: Path) -> int:
    try:
        names: dict[str, Any] = {}
        exec(compile(scenario.read_text(), str(scenario), "exec"), names)
        result = names["scenario"](ranks, rendezvous, _TorchBackend(), TorchConfig(timeout_s=60))
        (scenario.parent / f"result_{ranks.rank}").write_text(json.dumps(result))
        return 0
    except BaseException:  # a forked child must never go on in the parent's code
        traceback.print_exc()
        return 1


def main() -> int:
    setups = [RankSetup(**values) for values in json.loads(sys.argv[2])]
    for module in _TorchBackend.preload:
        __import__(module)
    rendezvous = PipeRendezvous(len(setups) - 1)
    children = []
    for ranks in setups:
        child = os.fork()
        if child == 0:
            code = run_rank(ranks, rendezvous, Path(sys.argv[1]))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children)


if __name__ == "__main__":
    sys.exit(main())
