"""init and shutdown, embedded and on a head in another process."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import runtime
from runtime.errors import (
    AlreadyInitializedError,
    ArgumentTypeError,
    AuthenticationError,
    ConnectError,
    HeadLostError,
    NotInitializedError,
)

pytestmark = pytest.mark.process

ROOT = Path(runtime.__file__).parents[1]
WAIT_S = 60


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("HEADWAY_ADDRESS", raising=False)
    yield
    runtime.shutdown()


def test_a_second_init_is_an_error_unless_told_otherwise() -> None:
    runtime.init(num_cpus=1)
    with pytest.raises(AlreadyInitializedError, match="ignore_reinit_error=True"):
        runtime.init()
    with pytest.raises(RuntimeError):
        runtime.init()
    context = runtime.init(ignore_reinit_error=True)
    assert context.address_info == {"address": context.address}
    assert runtime.cluster_resources()["CPU"] == 1.0


def test_shutdown_can_be_repeated_and_init_after_it() -> None:
    runtime.shutdown()
    assert not runtime.is_initialized()
    with runtime.init(num_cpus=1) as context:
        assert runtime.is_initialized()
        assert "unix:" in repr(context)
    assert not runtime.is_initialized()
    runtime.shutdown()
    with pytest.raises(NotInitializedError, match=r"runtime.init\(\)"):
        runtime.nodes()
    runtime.init(num_cpus=2)
    assert runtime.cluster_resources()["CPU"] == 2.0


def test_the_first_actor_initializes() -> None:
    actor = runtime.remote(_plain("Quick", "def f(self): return 1")).remote()
    assert runtime.get(actor.f.remote(), timeout=WAIT_S) == 1
    runtime.shutdown()
    with pytest.raises(NotInitializedError, match="shutdown"):
        actor.f.remote()


def test_bad_arguments_start_nothing() -> None:
    with pytest.raises(ArgumentTypeError, match="did you mean 'num_cpus'"):
        runtime.init(num_cpu=2)
    assert not runtime.is_initialized()


def _plain(name: str, body: str) -> Any:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(f"class {name}:\n    {body}", names)
    return names[name]


# ---- a head and a worker daemon in other processes ----


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HEADWAY_TOKEN_FILE", raising=False)
    return tmp_path


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in reversed(started):
        process.terminate()
    for process in started:
        process.communicate(timeout=WAIT_S)


@pytest.fixture
def joined(home: Path, processes: list[subprocess.Popen[str]]) -> str:
    """Address of a head with one worker daemon."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    file = home / "address"
    processes.append(subprocess.Popen([sys.executable, "-m", "runtime.head", "--port", "0", "--address-file", str(file)], env=environment,
                                      stderr=subprocess.PIPE, text=True))
    deadline = time.monotonic() + WAIT_S
    while not file.exists():
        assert time.monotonic() < deadline
        assert processes[0].poll() is None, processes[0].communicate()
        time.sleep(0.01)
    address = file.read_text().strip()
    processes.append(subprocess.Popen([sys.executable, "-m", "runtime.worker", "--head", address, "--num-cpus", "3", "--preload", ""],
                                      env=environment, stderr=subprocess.PIPE, text=True))
    assert processes[1].stderr is not None
    assert "joined" in processes[1].stderr.readline()
    return address


def test_on_a_head_and_a_daemon_by_address_environment_and_auto(joined: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for by in ("argument", "environment", "auto"):
        if by == "environment":
            monkeypatch.setenv("HEADWAY_ADDRESS", joined)
        runtime.init({"argument": joined, "environment": None, "auto": "auto"}[by])
        assert runtime.cluster_resources() == {"CPU": 3.0}
        actor = runtime.remote(_plain("Quick", "def f(self, x): return 2 * x")).remote()
        assert runtime.get(actor.f.remote(4), timeout=WAIT_S) == 8
        gang = runtime.create_gang(_plain("Rank", "def f(self): return 1"), bundles=[{"CPU": 1}] * 2)
        gang.wait_ready(WAIT_S)
        gang.stop()
        runtime.shutdown()


def test_a_wrong_token_is_told(joined: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = home / "other-token"
    other.write_text("00" * 32)
    other.chmod(0o600)
    monkeypatch.setenv("HEADWAY_TOKEN_FILE", str(other))
    with pytest.raises(AuthenticationError, match="HEADWAY_TOKEN_FILE"):
        runtime.init(joined)
    other.chmod(0o644)
    with pytest.raises(AuthenticationError, match="chmod 600"):
        runtime.init(joined)
    assert not runtime.is_initialized()


def test_a_head_that_is_killed_is_lost(joined: str, processes: list[subprocess.Popen[str]]) -> None:
    runtime.init(joined)
    actor = runtime.remote(_plain("Sleeper", "def f(self): import time; time.sleep(1000)")).remote()
    ref = actor.f.remote()
    assert runtime.wait([ref], timeout=0.3)[0] == []
    processes[0].send_signal(signal.SIGKILL)
    with pytest.raises(HeadLostError, match="is lost"):
        runtime.get(ref, timeout=WAIT_S)
    assert not runtime.is_initialized()
    runtime.init("local", num_cpus=1)
    assert runtime.cluster_resources()["CPU"] == 1.0


def test_refused_and_unknown_hosts_are_told_apart(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.client.session.LIMITS", dataclasses.replace(runtime.LIMITS, connect_s=0.5))
    (home / ".headway").mkdir()
    (home / ".headway" / "token").write_text("00" * 32)
    (home / ".headway" / "token").chmod(0o600)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(ConnectError, match="refused"):
        runtime.init(f"127.0.0.1:{port}")
    with pytest.raises(ConnectError, match="no-such-host.invalid"):
        runtime.init("no-such-host.invalid:6480")


def test_no_token_is_told_if_somebody_answers(joined: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_TOKEN_FILE", str(home / "missing"))
    with pytest.raises(AuthenticationError, match="missing does not exist"):
        runtime.init(joined)
    monkeypatch.setattr("runtime.client.session.LIMITS", dataclasses.replace(runtime.LIMITS, connect_s=0.1))
    with pytest.raises(ConnectError, match="refused"):
        runtime.init("127.0.0.1:1")
