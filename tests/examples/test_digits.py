"""What the examples print, line by line; that they survive kills and run on clusters is tests/integration's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NUMBER = r"\d\.\d{4}"
EPOCH = re.compile(rf"epoch +(\d+)  train_loss {NUMBER}  val_accuracy ({NUMBER}) +\d+\.\d\d s  (checkpoint_\S+)")
KEPT = re.compile(rf"(checkpoint_\S+) +(\d+)  ({NUMBER})")
RELOADED = re.compile(rf"best checkpoint, loaded again: val_accuracy ({NUMBER})")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_fits_on_a_hundred_lines(example: Path) -> None:
    assert len(example.read_text().splitlines()) <= 100


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.process
@pytest.mark.timeout(240)
def test_prints_its_own_lines_only_and_the_best_checkpoint_predicts(example: Path, num_workers: int, tmp_path: Path) -> None:
    options = ["--max-epochs", "5", "--num-workers", str(num_workers), "--storage-path", str(tmp_path / "runs")]
    done = subprocess.run([sys.executable, str(example), *options], cwd=tmp_path, capture_output=True, text=True, timeout=200,
                          env=os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
    *epochs, header, first, second, third, reloaded, last = done.stdout.splitlines()
    found = [EPOCH.fullmatch(line) for line in epochs]
    assert [match and int(match[1]) for match in found] == [0, 1, 2, 3, 4], epochs
    accuracies = {match[3]: match[2] for match in found if match}
    assert header.split() == ["kept", "checkpoint", "epoch", "val_accuracy"]
    kept = [KEPT.fullmatch(line) for line in (first, second, third)]
    assert all(match and accuracies[match[1]] == match[3] for match in kept), kept
    scores = [float(match[3]) for match in kept if match]
    assert scores == sorted(scores), "best last"
    again = RELOADED.fullmatch(reloaded)
    assert again, reloaded
    assert float(again[1]) == scores[-1], "the file holds the weights that were scored"
    check_result(json.loads(last.removeprefix("result: ")), num_workers, [match[1] for match in kept if match])
    assert not list(tmp_path.glob("lightning_logs")), "nothing is written beside the run"


def check_result(result: dict[str, object], num_workers: int, kept: list[str]) -> None:
    assert set(result) == {"path", "metrics", "best_checkpoints", "world_size", "seconds"}
    assert result["world_size"] == num_workers
    assert result["best_checkpoints"] == [f"{result['path']}/{name}" for name in kept]
    assert result["metrics"]["epoch"] == 4  # type: ignore[index]
    assert (Path(str(result["path"])) / kept[-1] / "COMMITTED").is_file()
