"""A small zygote for tests: ``forked_ranks.py SCENARIO_FILE SETUPS`` imports torch once, forks the ranks and runs the scenario in each.

In a rank, ``train.context`` answers for that rank, and ``train.report`` appends to the list ``train.reported``.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import train
import train.context
from train.backend import RankSetup
from train.torch.config import TorchConfig, _TorchBackend
from train.train_worker import rank_environment


class PipeRendezvous:
    """Rank 0 writes one record for each of the others; all wait at one pipe, and a record is read whole."""

    key_prefix = "run/1"
    record_bytes = 64

    def __init__(self, others: int) -> None:
        self._others = others
        self._read, self._write = os.pipe()
        self._ended, self.running = os.pipe()

    def publish(self, host: str, port: int) -> None:
        os.write(self._write, f"{host} {port}".encode().ljust(self.record_bytes) * self._others)

    def lookup(self, timeout_s: float) -> tuple[str, int]:
        host, port = os.read(self._read, self.record_bytes).split()
        return host.decode(), int(port)

    def wait_until_all_ended(self) -> None:
        """As in a run, where no process ends before the last training function has returned; a dead rank counts as ended."""
        os.close(self.running)
        os.read(self._ended, 1)  # end of file, once nobody holds the other end


def become(ranks: RankSetup) -> None:
    """Before anything that imports these names from train.context is imported."""
    getters = {"get_world_size": ranks.world_size, "get_world_rank": ranks.rank, "get_local_rank": ranks.local_rank,
               "get_local_world_size": ranks.local_world_size, "get_node_rank": ranks.node_rank}
    context = SimpleNamespace(**{name: lambda value=value: value for name, value in getters.items()})
    reported: list[Any] = []
    for module in (train, train.context):
        vars(module).update(current_ranks=lambda: ranks, in_training_function=lambda: True, get_context=lambda: context)
    vars(train).update(reported=reported, get_checkpoint=lambda: None,
                       report=lambda metrics, checkpoint=None: reported.append((metrics, checkpoint and checkpoint.path)))
    os.environ.update(rank_environment(ranks))


def run_rank(ranks: RankSetup, rendezvous: PipeRendezvous, scenario: Path) -> int:
    try:
        become(ranks)
        names: dict[str, Any] = {}
        exec(compile(scenario.read_text(), str(scenario), "exec"), names)
        result = names["scenario"](ranks, rendezvous, _TorchBackend(), TorchConfig(timeout_s=60))
        (scenario.parent / f"result_{ranks.rank}").write_text(json.dumps(result))
        rendezvous.wait_until_all_ended()
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
    os.close(rendezvous.running)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children)


if __name__ == "__main__":
    sys.exit(main())
