"""``headway status | logs | stacks | stop`` against real drivers, each with a HOME of its own, where its cluster is listed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60.0

DRIVER = """
import re, sys, time
import runtime
runtime.init(num_cpus=2)

class Worker:
    def say(self, text): print(text)
    def hold_the_gil(self):
        print("holding")
        re.match(r"(a+)+$", "a" * 40 + "b")

worker = runtime.remote(Worker).options(name="anna", num_cpus=1).remote()
runtime.get(worker.say.remote("hello\\nworld"))
"""


class Desk:
    """A terminal: drivers and commands of one user."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.marker = uuid.uuid4().hex
        self.processes: list[subprocess.Popen[str]] = []
        (path / "home").mkdir()
        (path / "tmp").mkdir()

    def start(self, *command: str, **env: str) -> subprocess.Popen[str]:
        keep = {name: value for name, value in os.environ.items() if name in {"PATH", "LANG", "HEADWAY_TIME_SCALE"}}
        environment = keep | {"HOME": str(self.path / "home"), "TMPDIR": str(self.path / "tmp"), "HEADWAY_TEST": self.marker,
                              "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | env
        process = subprocess.Popen([sys.executable, *command], cwd=self.path, env=environment, text=True, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.processes.append(process)
        return process

    def driver(self, then: str) -> subprocess.Popen[str]:
        """A driver with an actor, ready when this returns."""
        process = self.start("-c", f"{DRIVER}\nprint('ready')\n{then}")
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == "ready\n", (line, process.communicate()[1])
        return process

    def headway(self, *arguments: str, **env: str) -> tuple[int, str, str]:
        process = self.start("-m", "runtime", *arguments, **env)
        out, err = process.communicate(timeout=WAIT_S)
        return process.returncode, out, err

    def survivors(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and self.marker.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found


@pytest.fixture
def desk(short_tmp: Path) -> Iterator[Desk]:
    desk = Desk(short_tmp)
    yield desk
    for process in desk.processes:
        if process.poll() is None:
            process.kill()
        process.communicate()
    deadline = time.monotonic() + 20
    while (left := desk.survivors()) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    assert not left
    assert not list((short_tmp / "tmp").iterdir())


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_nothing_runs(desk: Desk) -> None:
    for command in (["status"], ["status", "--json"], ["logs", "x"], ["stacks", "x"], ["stop"], ["stop", "--all"]):
        code, out, err = desk.headway(*command)
        assert (code, out) == (1, "")
        assert "nothing runs here" in err and "--address" in err
    code, _, err = desk.headway("status", "--address", "127.0.0.1:1")
    assert code == 1 and "No token" in err
    token = desk.path / "token"
    token.touch(mode=0o600)
    token.write_text("ab" * 32)
    code, _, err = desk.headway("status", HEADWAY_ADDRESS="127.0.0.1:1", HEADWAY_TOKEN_FILE=str(token))
    assert code == 1 and "refused" in err
    assert desk.headway("status", "--no-such")[0] == 2
    assert desk.headway("logs")[0] == 2


def test_stale_and_broken_records_are_no_clusters(desk: Desk) -> None:
    index = desk.path / "home/.headway/embedded"
    index.mkdir(parents=True)
    (index / "1.json").write_text("{")
    ended = desk.start("-c", "")
    ended.communicate()
    (index / "2.json").write_text(json.dumps({"address": "unix:/nowhere", "token_file": "/nowhere", "pid": ended.pid}))
    assert desk.headway("status")[0] == 1
    (index / "3.json").write_text(json.dumps({"address": "unix:/nowhere", "token_file": "/nowhere", "pid": os.getpid(), "driver_pid": 5}))
    code, _, err = desk.headway("status")
    assert code == 1 and "the embedded cluster of pid 5 is gone" in err


def test_status_of_an_embedded_cluster_and_its_record(desk: Desk) -> None:
    driver = desk.driver("more = runtime.remote(Worker).options(num_cpus=2).remote()\nprint('asked')\ntime.sleep(1000)")
    assert driver.stdout is not None and driver.stdout.readline() == "asked\n"
    [record] = (desk.path / "home/.headway/embedded").iterdir()
    assert record.stat().st_mode & 0o777 == 0o600
    assert Path(json.loads(record.read_text())["token_file"]).stat().st_mode & 0o777 == 0o600

    def shown() -> Any:
        code, out, err = desk.headway("status", "--json")
        assert (code, err) == (0, "")
        [cluster] = json.loads(out)["clusters"]
        return cluster if len(cluster["groups"]) == 2 else None

    cluster = until(shown)
    assert cluster["driver_pid"] == driver.pid
    assert [(node["state"], node["resources"]["CPU"], node["available"]["CPU"]) for node in cluster["nodes"]] == [("ALIVE", 2, 1)]
    assert [actor["name"] for actor in cluster["actors"] if actor["state"] == "READY"] == ["anna"]
    [waiting] = [group for group in cluster["groups"] if group["state"] == "PENDING"]
    assert "held by" in waiting["reason"]
    code, out, err = desk.headway("status")
    assert (code, err) == (0, "")
    assert f"embedded cluster of driver pid {driver.pid}" in out
    assert waiting["reason"].splitlines()[0] in out
    driver.kill()
    until(lambda: not record.exists())


def test_status_needs_no_home_that_can_be_written_to(desk: Desk) -> None:
    process = desk.start("-c", "import runtime\nruntime.init()\nprint(runtime.cluster_resources()['CPU'] > 0)", HOME="/proc/nowhere")
    out, err = process.communicate(timeout=WAIT_S)
    assert (out, err) == ("True\n", "")


def test_logs_and_their_end(desk: Desk) -> None:
    driver = desk.driver("import os\nwhile not os.path.exists('go'): time.sleep(0.02)\nruntime.get(worker.say.remote('later'))")
    assert desk.headway("logs", "anna") == (0, "hello\nworld\n", "")
    assert desk.headway("logs", "anna", "-n", "1") == (0, "world\n", "")
    code, out, err = desk.headway("logs", "bert")
    assert (code, out) == (1, "") and "'bert'" in err and "anna" in err
    follower = desk.start("-m", "runtime", "logs", "anna", "-n", "1", "-f")
    assert follower.stdout is not None and follower.stdout.readline() == "world\n"
    (desk.path / "go").touch()
    out, err = follower.communicate(timeout=WAIT_S)  # ends with the actor
    assert (follower.returncode, out, err) == (0, "later\n", "")
    assert driver.wait(WAIT_S) == 0


def test_stacks_while_the_gil_is_held(desk: Desk) -> None:
    desk.driver("ref = worker.hold_the_gil.remote()\ntime.sleep(1000)")
    until(lambda: "holding" in desk.headway("logs", "anna")[1])
    code, out, err = desk.headway("stacks", "anna")
    assert (code, err) == (0, "")
    assert "hold_the_gil" in out and "re/__init__.py" in out  # the main thread
    assert "io_thread.py" in out
    [actor] = json.loads(desk.headway("status", "--json")[1])["clusters"][0]["actors"]
    os.kill(actor["pid"], signal.SIGSTOP)
    code, out, err = desk.headway("stacks", "anna")
    assert (code, out) == (1, "") and "state T" in err


@pytest.mark.parametrize("how", [(), ("--all",)])
def test_stop_tells_the_driver_who_did_it(desk: Desk, how: tuple[str, ...]) -> None:
    driver = desk.driver("runtime.get(worker.hold_the_gil.remote())")
    until(lambda: "holding" in desk.headway("logs", "anna")[1])
    code, out, err = desk.headway("stop", *how)
    assert (code, err) == (0, "")
    assert out.startswith("stopped job") and f"driver pid {driver.pid}" in out
    _, err = driver.communicate(timeout=WAIT_S)
    assert driver.returncode == 1
    assert "JobStoppedError: This job was stopped by" in err and "headway stop" in err


def test_stop_of_what_does_not_run_is_an_error(desk: Desk) -> None:
    driver = desk.driver("time.sleep(1000)")
    code, out, err = desk.headway("stop", "nothing")
    assert (code, out) == (1, "") and "no jobs are called 'nothing'" in err and f"driver pid {driver.pid}" in err
    assert desk.headway("stop", "nothing", "--all")[0] == 2
    assert driver.poll() is None


def test_after_a_stop_the_driver_can_begin_anew(desk: Desk) -> None:
    driver = desk.driver("try: runtime.get(worker.hold_the_gil.remote())\n"
                         "except runtime.errors.JobStoppedError: runtime.init(); print(len(runtime.nodes()))")
    until(lambda: "holding" in desk.headway("logs", "anna")[1])
    assert desk.headway("stop")[0] == 0
    out, err = driver.communicate(timeout=WAIT_S)
    assert (driver.returncode, out) == (0, "1\n"), err


RUN = """
import json, os, sys
import runtime
from runtime.client import init
prepared = init._prepared
assert (prepared is not None) == bool(int(sys.argv[1])), prepared
pid = prepared._process.pid if prepared is not None else 0
runtime.init(**json.loads(sys.argv[2]))
print(runtime.cluster_resources()["CPU"], pid == init._session.embedded.process.pid)
"""


def test_run_starts_the_cluster_that_init_picks_up(desk: Desk) -> None:
    (desk.path / "script.py").write_text(RUN)
    code, out, err = desk.headway("run", "script.py", "1", "{}")
    assert (code, out.split()[1], err) == (0, "True", "")
    code, out, err = desk.headway("run", "script.py", "1", '{"num_cpus": 7}')  # with a wish it is another one
    assert (code, out, err) == (0, "7.0 False\n", "")
    code, _, err = desk.headway("run", "script.py", "0", "{}", HEADWAY_ADDRESS="127.0.0.1:1")
    assert code == 1 and "127.0.0.1:1" in err
    code, _, err = desk.headway("run", "--address", "127.0.0.1:1", "script.py", "0", "{}")
    assert code == 1 and "127.0.0.1:1" in err


@pytest.mark.parametrize("last", ["", "raise SystemExit(3)", "import os; os._exit(3)", "import os; os.kill(os.getpid(), 9)",
                                  "import os; os.fork() or os._exit(3); os.wait()"])
def test_run_leaves_nothing_of_a_cluster_that_nobody_wanted(desk: Desk, last: str) -> None:
    (desk.path / "script.py").write_text(last)  # the fixture looks for what is left
    assert desk.headway("run", "script.py")[0] == (0 if not last or "wait" in last else -9 if "kill" in last else 3)
