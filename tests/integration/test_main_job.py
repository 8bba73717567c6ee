"""Both examples, as a user runs them: embedded, on a head with two daemons, and with a rank killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]
EXAMPLES = ["digits_lightning.py", "digits_torch.py"]


def check_result(result: dict[str, Any], world_size: int = 2) -> None:
    assert result["metrics"]["val_accuracy"] >= 0.95
    assert result["world_size"] == world_size
    assert 1 <= len(result["best_checkpoints"]) <= 3
    for path in result["best_checkpoints"]:
        assert (Path(path) / "COMMITTED").is_file()
    assert Path(result["path"]).is_dir()
    assert result["seconds"] > 0


def listeners(pids: set[int]) -> list[str]:
    """Addresses on which one of the processes listens."""
    rows = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [row.split()[3] for row in rows if any(f"pid={pid}," in row for pid in pids)]


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_runs_embedded(sandbox: Any, example: str) -> None:
    program = sandbox.example(example)
    check_result(program.result())
    assert not [line for line in program.out if line.startswith("[rank")], "output of ranks belongs on stderr"


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_runs_on_two_daemons(sandbox: Any, cluster: Any, example: str) -> None:
    program = sandbox.example(example, "--address", cluster.address)
    check_result(program.result())
    text = "\n".join(program.err)
    assert "node-a" in text, "a rank on each daemon"
    assert "node-b" in text, "a rank on each daemon"


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.parametrize("rank", [0, 1])
def test_killed_rank_resumes_and_reaches_the_same_accuracy(sandbox: Any, example: str, rank: int) -> None:
    program = sandbox.example(example, "--max-failures", "1")
    program.wait_line(lambda line: line.lstrip().startswith("epoch") and "checkpoint" in line and any(c.isdigit() for c in line))
    os.kill(program.actors()[rank], signal.SIGKILL)
    result = program.result()
    check_result(result)
    assert any("SIGKILL" in line for line in program.err), program.report("the death is not told")
    assert any("resum" in line and "checkpoint_" in line for line in program.err), program.report("where it resumes is not told")


def test_without_failures_left_the_error_names_rank_and_signal(sandbox: Any) -> None:
    program = sandbox.example("digits_torch.py", "--max-failures", "0")
    program.wait_line(lambda line: line.lstrip().startswith("epoch") and "checkpoint" in line and any(c.isdigit() for c in line))
    os.kill(program.actors()[1], signal.SIGKILL)
    assert program.wait() == 1
    text = "\n".join(program.err)
    assert "WorkerGroupError: Training failed" in text
    assert "SIGKILL" in text


def test_no_listener_outside_loopback(sandbox: Any, cluster: Any) -> None:
    embedded = sandbox.example("digits_torch.py", "--max-epochs", "30")
    embedded.wait_line(lambda line: line.lstrip().startswith("epoch"))
    from_embedded = listeners(set(_all_pids(sandbox)))
    embedded.process.send_signal(signal.SIGINT)
    assert embedded.wait() == -signal.SIGINT  # a shell calls it 130
    joined = sandbox.example("digits_torch.py", "--max-epochs", "30", "--address", cluster.address)
    joined.wait_line(lambda line: line.lstrip().startswith("epoch"))
    from_joined = listeners(set(_all_pids(sandbox)))
    joined.process.send_signal(signal.SIGINT)
    assert joined.wait() == -signal.SIGINT
    for found in (from_embedded, from_joined):
        assert found, "torch's store listens somewhere"
        assert all(address.startswith(("127.0.0.1:", "[::1]:", "[::ffff:127.0.0.1]:")) for address in found), found


def _all_pids(sandbox: Any) -> list[int]:
    return [int(row.split()[0]) for row in sandbox.survivors()]


@pytest.mark.parametrize("example", EXAMPLES)
def test_ctrl_c_ends_training_and_all_its_processes(sandbox: Any, example: str) -> None:
    program = sandbox.example(example, "--max-epochs", "50")
    program.wait_line(lambda line: line.lstrip().startswith("epoch"))
    program.process.send_signal(signal.SIGINT)
    assert program.wait() == -signal.SIGINT  # a shell calls it 130
    assert not sandbox.survivors()


@pytest.mark.parametrize("gap_s", [0.005, 0.05])
def test_impatient_ctrl_c_leaves_nothing_either(sandbox: Any, gap_s: float) -> None:
    program = sandbox.example("digits_torch.py", "--max-epochs", "50")
    program.wait_line(lambda line: line.lstrip().startswith("epoch"))
    for _ in range(4):
        program.process.send_signal(signal.SIGINT)
        time.sleep(gap_s)  # what is tested is this rhythm
    assert program.wait() == -signal.SIGINT
    assert not sandbox.survivors()


def test_sigkill_of_the_driver_of_an_embedded_cluster(sandbox: Any) -> None:
    program = sandbox.example("digits_torch.py", "--max-epochs", "50")
    program.wait_line(lambda line: line.lstrip().startswith("epoch"))
    program.process.kill()
    program.wait()  # that nothing is left is what the sandbox checks at its end


def test_sigkill_of_the_driver_closes_its_job(sandbox: Any, cluster: Any) -> None:
    program = sandbox.example("digits_torch.py", "--max-epochs", "50", "--address", cluster.address)
    program.wait_line(lambda line: line.lstrip().startswith("epoch"))
    ranks = program.actors()
    assert len(ranks) == 2
    program.process.kill()
    program.wait()
    again = sandbox.example("digits_torch.py", "--max-epochs", "1", "--address", cluster.address)
    assert again.wait() == 0, again.report("the CPUs of the dead driver's ranks were not free again")
    assert not [pid for pid in ranks if Path(f"/proc/{pid}").exists()]


def test_second_run_of_a_name_and_logs_on_disk(sandbox: Any) -> None:
    result = sandbox.example("digits_torch.py", "--max-epochs", "2").result()
    run = Path(result["path"])
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == 2
    assert {"logs", "metrics.jsonl"} <= {entry.name for entry in run.iterdir()}
    assert {entry.name for entry in (run / "logs").iterdir()} == {"rank_0.log", "rank_1.log"}
