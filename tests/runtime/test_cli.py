"""The command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import runtime
from runtime.cli import main

ROOT = Path(__file__).resolve().parents[2]


def headway(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "runtime", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"headway {runtime.__version__}\n"
    assert main(["--help"]) == 0
    assert "SCRIPT [ARGS ...]" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "text"), [
    ([], "a command is missing"), (["frobnicate"], "unknown command 'frobnicate'"),
    (["run"], "usage: headway run [--address HOST:PORT] SCRIPT"),
    (["run", "--fast"], "usage: headway run [--address HOST:PORT] SCRIPT"), (["run", "missing.py"], "there is no file 'missing.py'"),
])
def test_bad_command_lines_exit_with_2(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(("command", "option"), [("head", "--port"), ("worker", "--head")])
def test_head_and_worker_are_the_modules(tmp_path: Path, command: str, option: str) -> None:
    done = headway(tmp_path, command, "--help")
    assert done.returncode == 0, done.stderr
    assert option in done.stdout
    assert headway(tmp_path, command, "--no-such-option").returncode == 2


def test_run_makes_our_names_ours_and_passes_arguments(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("WORD = 'beside'\n")
    (tmp_path / "train.py").write_text(
        "import sys\nimport helper\nfrom train import ScalingConfig\nprint(__name__, sys.argv, helper.WORD, ScalingConfig.__module__)\n"
        "print(sys.path[0])\n")
    other = tmp_path / "elsewhere"
    other.mkdir()
    done = headway(other, "run", "../train.py", "--lr", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["__main__ ['../train.py', '--lr', '1'] beside train.config", str(tmp_path)]
    assert done.stderr == ""


def test_run_shows_the_scripts_traceback_alone_and_its_exit_codes(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def f():\n    raise ValueError('no')\nf()\n")
    done = headway(tmp_path, "run", "bad.py")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "Traceback (most recent call last):"
    assert done.stderr.splitlines()[1].startswith('  File "bad.py", line 3')
    assert done.stderr.splitlines()[-1] == "ValueError: no"
    (tmp_path / "exit.py").write_text("import sys\nsys.exit(7)\n")
    assert headway(tmp_path, "run", "exit.py").returncode == 7
    (tmp_path / "ctrl_c.py").write_text("raise KeyboardInterrupt\n")
    assert headway(tmp_path, "run", "ctrl_c.py").returncode == -signal.SIGINT
