"""The embedded cluster's process, from the driver's side."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import runtime
from runtime.errors import HeadLostError
from runtime.local import BOOT, Embedded, start_embedded

pytestmark = pytest.mark.process

WAIT_S = 30


def start() -> Embedded:
    return start_embedded(num_cpus=1, num_gpus=None, resources=None, preload=())


def wait_gone(path: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while os.path.exists(path):
        assert time.monotonic() < deadline, f"{path} is still there"
        time.sleep(0.01)


def test_starts_closed_to_others_and_ends_without_a_trace() -> None:
    embedded = start()
    folder = Path(embedded.address.removeprefix("unix:")).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(embedded.token) == 32
    assert os.getsid(embedded.process.pid) == embedded.process.pid  # Ctrl-C in the terminal does not reach it
    command = Path(f"/proc/{embedded.process.pid}/cmdline").read_bytes()
    assert embedded.token.hex().encode() not in command
    embedded.close()
    embedded.close()
    assert embedded.process.returncode == 0
    assert not folder.exists()


def test_what_a_killed_one_left_is_removed() -> None:
    embedded = start()
    folder = Path(embedded.address.removeprefix("unix:")).parent
    embedded.process.kill()
    assert "was killed by SIGKILL" in embedded.describe_end()
    assert folder.exists()
    embedded.close()
    assert not folder.exists()


def test_a_start_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("runtime.local.BOOT", "import sys; print('broken', file=sys.stderr); sys.exit(3)")
    with pytest.raises(HeadLostError, match="its process ended; what it wrote is above"):
        start()
    assert "broken" in capfd.readouterr().err
    told = "import os, json, sys; os.write(json.loads(sys.argv[1])['ready_fd'], json.dumps({'error': 'no disk'}).encode() + bytes([10]))"
    monkeypatch.setattr("runtime.local.BOOT", told)
    with pytest.raises(HeadLostError, match="did not start: no disk"):
        start()


def test_a_file_beside_the_script_does_not_pass_for_a_module_of_ours(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("runtime.py", "logging.py", "msgpack.py", "train.py"):
        (short_tmp / name).write_text("raise SystemExit('imported the wrong one')\n")
    monkeypatch.chdir(short_tmp)
    start().close()


DRIVER = """
import os, sys, time
import runtime
runtime.init(num_cpus=2)

class Sleeper:
    def pid(self): return os.getpid()
    def sleep(self): time.sleep(1000)

from runtime.client import init
actor = runtime.remote(Sleeper).remote()
pids = [runtime.get(actor.pid.remote()), init._session.embedded.process.pid]
actor.sleep.remote()
print(*pids, init._session.address.removeprefix("unix:"), flush=True)
"""


def driver(then: str) -> tuple[subprocess.Popen[str], list[int], Path]:
    environment = {**os.environ, "PYTHONPATH": str(Path(runtime.__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-c", DRIVER + then], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env=environment)
    assert process.stdout is not None
    *pids, path = process.stdout.readline().split()
    return process, [int(pid) for pid in pids], Path(path).parent


def finish(process: subprocess.Popen[str]) -> str:
    _, error = process.communicate(timeout=WAIT_S)
    return error


def gone(pids: list[int], folder: Path) -> None:
    for pid in pids:
        wait_gone(f"/proc/{pid}")
    wait_gone(str(folder))


def test_N2_a_killed_driver_leaves_nothing() -> None:
    process, pids, folder = driver("time.sleep(1000)")
    process.kill()
    finish(process)
    gone(pids, folder)


def test_a_driver_that_forgets_to_shut_down_leaves_nothing() -> None:
    for then, code in (("", 0), ("1 / 0", 1), ("sys.exit(3)", 3)):
        process, pids, folder = driver(then)
        finish(process)
        assert process.returncode == code
        gone(pids, folder)


def test_ctrl_c_interrupts_get_and_leaves_nothing() -> None:
    process, pids, folder = driver("print('waiting', flush=True)\nruntime.get(actor.sleep.remote())")
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in finish(process)
    assert process.returncode == -signal.SIGINT
    gone(pids, folder)


def test_N2_a_killed_embedded_cluster_is_a_lost_head_and_its_actors_are_gone() -> None:
    process, pids, folder = driver("try: runtime.get(actor.sleep.remote())\n"
                                   "except runtime.errors.HeadLostError as exc: print(exc, file=sys.stderr)\n")
    os.kill(pids[1], signal.SIGKILL)
    assert "was killed by SIGKILL" in finish(process)
    gone(pids, folder)


def test_the_boot_line_names_the_module() -> None:
    assert "runtime.local" in BOOT
