"""Whole programs: drivers, heads and daemons as a user starts them, each marked so that whatever they leave is found."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DEADLINE_S = 240.0  # generous: nothing here asserts a time


def processes_with(marker: str) -> list[int]:
    """Pids of all processes that were started, by whatever way, from a process with this marker in its environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if marker.encode() in (entry / "environ").read_bytes() and (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                    found.append(int(entry.name))
    return found


def actor_pids(marker: str) -> list[int]:
    """Of those, the actors: session leaders whose stdout is a log file of a session directory, oldest first."""
    found = []
    for pid in processes_with(marker):
        with contextlib.suppress(OSError):
            if os.getsid(pid) == pid and "/logs/" in os.readlink(f"/proc/{pid}/fd/1"):
                found.append(pid)
    return sorted(found, key=lambda pid: int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]))


@dataclass
class Program:
    """A running program and what it has printed so far."""

    process: subprocess.Popen[str]
    marker: str
    out: list[str] = field(default_factory=list)
    err: list[str] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _readers: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        for stream, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err)):
            reader = threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            reader.start()
            self._readers.append(reader)

    def _read(self, stream: Any, lines: list[str]) -> None:
        for line in stream:
            with self._changed:
                lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_line(self, condition: Callable[[str], bool], *, stderr: bool = False, start: int = 0) -> str:
        """The first line, from number ``start`` on, that fulfils the condition, as soon as it is printed."""
        lines = self.err if stderr else self.out

        def found() -> str | None:
            return next((line for line in lines[start:] if condition(line)), None)

        with self._changed:
            self._changed.wait_for(lambda: found() is not None or self.process.poll() is not None, DEADLINE_S)
            line = found()
        assert line is not None, self.report("expected line was not printed")
        return line

    def wait(self) -> int:
        """The exit code, once all output was read."""
        code = self.process.wait(DEADLINE_S)
        for reader in self._readers:
            reader.join(DEADLINE_S)
        return code

    def result(self) -> dict[str, Any]:
        """What the last line of stdout says."""
        code = self.wait()
        assert code == 0, self.report(f"exit code {code}")
        assert self.out[-1].startswith("result: "), self.report("the last line of stdout is no result")
        return json.loads(self.out[-1].removeprefix("result: "))

    def report(self, what: str) -> str:
        return "\n".join([what, "--- stdout", *self.out[-60:], "--- stderr", *self.err[-120:]])

    def actors(self) -> list[int]:
        return actor_pids(self.marker)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for reader in self._readers:
            reader.join(10)
        for stream in (self.process.stdout, self.process.stderr):
            if stream:
                stream.close()


@dataclass
class Sandbox:
    """A HOME, a temporary directory and a working directory of the test's own, and a way to start programs in them.

    ``on`` of the methods: the command that runs another one on a host that is not this one.
    """

    path: Path
    marker: str
    programs: list[Program] = field(default_factory=list)
    temporary: list[Path] = field(default_factory=list)  # directories that have to be empty at the end

    def environment(self, **extra: str) -> dict[str, str]:
        keep = {name: value for name, value in os.environ.items() if name in {"PATH", "LANG", "HEADWAY_TIME_SCALE"}}
        return keep | {"HOME": str(self.path / "home"), "TMPDIR": str(self.path / "tmp"), "HEADWAY_TEST": self.marker,
                       "TORCHINDUCTOR_CACHE_DIR": str(self.path / "inductor"), "PYTHONWARNINGS": "default", "PYTHONUNBUFFERED": "1"} | extra

    def start(self, *command: str, env: dict[str, str] | None = None, cwd: Path | None = None, on: Sequence[str] = ()) -> Program:
        process = subprocess.Popen([*on, sys.executable, *command], cwd=cwd or self.path / "cwd", env=self.environment(**(env or {})),
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   start_new_session=True)
        program = Program(process, self.marker)
        self.programs.append(program)
        return program

    def example(self, name: str, *arguments: str, env: dict[str, str] | None = None, on: Sequence[str] = ()) -> Program:
        return self.start(str(ROOT / "examples" / name), "--storage-path", str(self.path / "results"), *arguments, env=env, on=on)

    def script(self, text: str, *arguments: str, name: str = "script.py", env: dict[str, str] | None = None,
               on: Sequence[str] = ()) -> Program:
        (self.path / "cwd" / name).write_text(text)
        return self.start(name, *arguments, env=env, on=on)

    def survivors(self) -> list[str]:
        return [f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes().replace(bytes(1), b' ').decode(errors='replace')}"
                for pid in processes_with(self.marker) if Path(f"/proc/{pid}").exists()]


@contextlib.contextmanager
def open_sandbox() -> Iterator[Sandbox]:
    """Checks at the end that no process, and nothing in the temporary directory, is left."""
    path = Path(tempfile.mkdtemp(prefix="hwt-", dir="/tmp"))
    for name in ("home", "tmp", "cwd"):
        (path / name).mkdir()
    box = Sandbox(path, f"test-{uuid.uuid4().hex}", temporary=[path / "tmp"])
    try:
        yield box
    finally:
        left, files = _close(box)
    assert not left, f"still running after the test: {left}"
    assert not files, f"left in the temporary directory: {files}"


def _close(box: Sandbox) -> tuple[list[str], list[str]]:
    """End what runs and remove what there is. Returns: what should not have been there any more."""
    running = [program for program in box.programs if program.process.poll() is None]
    for program in running:
        program.process.send_signal(signal.SIGTERM)
    for program in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.process.wait(20)
    for program in box.programs:
        program.close()
    deadline = time.monotonic() + 10
    while (left := box.survivors()) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in processes_with(box.marker):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    files = sorted(str(entry) for directory in box.temporary for entry in directory.iterdir())
    subprocess.run(["rm", "-rf", str(box.path)], check=True)
    return left, files


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """One for this test alone."""
    with open_sandbox() as box:
        yield box


@pytest.fixture(scope="module")
def module_sandbox() -> Iterator[Sandbox]:
    """One for all tests of a module, where what has to run first takes long to start."""
    with open_sandbox() as box:
        yield box


@dataclass
class Cluster:
    address: str
    head: Program
    daemons: list[Program]


@pytest.fixture
def cluster(sandbox: Sandbox) -> Cluster:
    """A head and two daemons with one CPU each, as a user starts them in three terminals."""
    address_file = sandbox.path / "address"
    head = sandbox.start("-m", "runtime.head", "--port", "0", "--address-file", str(address_file))
    head.wait_line(lambda line: "127.0.0.1:" in line, stderr=True)
    address = address_file.read_text().strip()
    daemons = [sandbox.start("-m", "runtime.worker", "--head", address, "--name", f"node-{letter}", "--num-cpus", "1") for letter in "ab"]
    return Cluster(address, head, daemons)
