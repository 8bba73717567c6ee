"""Rank after rank is killed at random moments of a run; each time the next attempt goes on from the last committed checkpoint.

``HEADWAY_SOAK_KILLS`` sets the number (200). The driver is one process; the test kills its actors from outside, as an operator's mistake or
the kernel would.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path

import pytest

pytestmark = [pytest.mark.soak, pytest.mark.process, pytest.mark.timeout(3600)]
KILLS = int(os.environ.get("HEADWAY_SOAK_KILLS", "200"))

# Each rank steps with an all-reduce, reports each step and checkpoints every third; the killer is a thread of the driver that knows the
# ranks' pids from their first lines of output and kills at a random time after the attempt's start.
SCRIPT = """
    import json, os, random, signal, sys, tempfile, threading, time
    import torch, torch.distributed as dist
    from train import Checkpoint, FailureConfig, RunConfig, ScalingConfig, get_checkpoint, get_context, report
    from train.torch import TorchTrainer

    KILLS, PIDS = int(sys.argv[1]), sys.argv[2]

    def train_func(config):
        rank = get_context().get_world_rank()
        first, checkpoint = 0, get_checkpoint()
        if checkpoint:
            with checkpoint.as_directory() as directory:
                first = json.load(open(os.path.join(directory, "step.json")))["step"] + 1
        with open(os.path.join(config["pids"], f"{os.getpid()}.{rank}.tmp"), "w") as file:
            file.write(str(time.time()))
        os.rename(file.name, file.name[:-4])
        value = torch.ones(1)
        for step in range(first, first + 100000):
            if os.path.exists(os.path.join(config["pids"], "enough")) and step % 3 == 2:
                done = torch.ones(1)
            else:
                done = torch.zeros(1)
            dist.all_reduce(done, op=dist.ReduceOp.MIN)
            dist.all_reduce(value)
            assert value.item() == 2.0, value
            value = torch.ones(1)
            if step % 3 == 2:
                with tempfile.TemporaryDirectory() as directory:
                    if rank == 0:
                        with open(os.path.join(directory, "step.json"), "w") as file:
                            json.dump({"step": step}, file)
                    report({"step": step, "first": first}, checkpoint=Checkpoint.from_directory(directory) if rank == 0 else None)
            else:
                report({"step": step, "first": first})
            if done.item():
                return

    def alive(pid):
        try:
            return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] != "Z"
        except OSError:
            return False

    recoveries = []

    def killer():
        seen, rank, last = set(), 0, None
        rng = random.Random(0)
        while len(recoveries) < KILLS:
            files = [name for name in os.listdir(PIDS) if name.endswith((".0", ".1")) and name not in seen]
            ready = {int(name.rsplit(".", 1)[1]): name for name in files if alive(name.split(".")[0])}
            if len(ready) == 2:
                if last is not None:
                    recoveries.append(min(float(open(os.path.join(PIDS, name)).read()) for name in ready.values()) - last)
                    if len(recoveries) >= KILLS:
                        break
                seen.update(ready.values())
                time.sleep(rng.choice([0.0, rng.uniform(0, 0.05), rng.uniform(0, 0.3)]))
                rank = 1 - rank
                last = time.time()
                os.kill(int(ready[rank].split(".")[0]), signal.SIGKILL)
            time.sleep(0.002)
        open(os.path.join(PIDS, "enough"), "w").close()

    threading.Thread(target=killer, daemon=True).start()
    result = TorchTrainer(train_func, train_loop_config={"pids": PIDS}, scaling_config=ScalingConfig(num_workers=2),
                          run_config=RunConfig(storage_path="results", failure_config=FailureConfig(max_failures=KILLS + 5))).fit()
    recoveries.sort()
    print(json.dumps({"path": result.path, "kills": len(recoveries), "median_s": recoveries[len(recoveries) // 2],
                      "max_s": recoveries[-1]}))
"""


def test_every_killed_rank_is_followed_by_an_attempt_that_resumes(short_tmp: Path) -> None:
    pids = short_tmp / "pids"
    pids.mkdir()
    (short_tmp / "soak.py").write_text(textwrap.dedent(SCRIPT))
    marker = f"soak-{uuid.uuid4().hex}"
    environment = os.environ | {"HEADWAY_TEST": marker, "HEADWAY_TIME_SCALE": "1"}
    process = subprocess.Popen([sys.executable, "soak.py", str(KILLS), str(pids)], cwd=short_tmp, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env=environment, start_new_session=True)
    try:
        out, err = process.communicate(timeout=60 + 5 * KILLS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"hangs; the last lines:\n{err[-6000:]}")
    assert process.returncode == 0, err[-6000:]
    told = json.loads(out.splitlines()[-1])
    print(told)
    assert told["kills"] == KILLS
    assert err.count("was killed by SIGKILL") >= KILLS
    records = [json.loads(line) for line in (Path(told["path"]) / "metrics.jsonl").read_text().splitlines()]
    check_history(records)


def check_history(records: list[dict[str, int]]) -> None:
    """Every attempt begins right behind a checkpoint (each third step) that an earlier one committed, and reports without a gap."""
    last: dict[str, int] | None = None
    committed = -1
    for record in records:
        if last is None or record["first"] != last["first"] or record["step"] != last["step"] + 1:
            assert record["step"] == record["first"], (last, record)
            assert record["first"] == committed + 1, (committed, last, record)
        if record.get("checkpoint_dir_name"):
            committed = record["step"]
        last = record
