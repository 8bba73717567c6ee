"""``python -m runtime.head`` as a process: options, files, exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.limits import LIMITS
from runtime.wire import messages as wire
from runtime.wire.peer import Identity, connect, load_token

pytestmark = pytest.mark.process
WAIT_S = 30.0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a head with a home of its own."""
    started = []

    def start(*options: str, **variables: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "HOME": str(tmp_path), **variables}
        environment.pop("HEADWAY_TOKEN_FILE", None)
        command = [sys.executable, "-m", "runtime.head", *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_file(path: Path, process: subprocess.Popen[str]) -> str:
    """The text of a file once it is there; it appears whole."""
    deadline = time.monotonic() + WAIT_S
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return path.read_text()


def test_a_head_says_where_it_is_and_ends_cleanly_on_sigterm(start: Any, tmp_path: Path) -> None:
    address_file, token_file = tmp_path / "run" / "address", tmp_path / "token"
    process = start("--port", "0", "--address-file", str(address_file), "--token-file", str(token_file))
    text = wait_file(address_file, process)
    address = text.strip()
    assert text == address + "\n" and address.startswith("127.0.0.1:")
    record = tmp_path / ".headway" / "head.json"
    assert json.loads(record.read_text()) == {"address": address, "token_file": str(token_file), "pid": process.pid}
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600

    async def talk() -> None:
        lost: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        peer = await connect(address, token=load_token(token_file), identity=Identity("cli", "test"),
                             on_message=lambda peer, received: None, on_close=lambda peer, error: lost.set_result(error))
        assert (await peer.call(wire.ListNodes(), timeout_s=WAIT_S)).message == wire.NodeList(())
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(WAIT_S):
            assert "the head is shutting down" in str(await lost)

    asyncio.run(talk())
    out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    assert out == ""
    assert f"headway head at {address}" in err and f"python -m runtime.worker --head {address}" in err
    assert f"HEADWAY_ADDRESS={address}" in err and "Traceback" not in err
    assert load_token(token_file).hex() not in err
    assert not record.exists()
    assert [path.name for path in address_file.parent.iterdir()] == ["address"]


def test_ctrl_c_ends_with_130(start: Any, tmp_path: Path) -> None:
    process = start("--port", "0", "--address-file", str(tmp_path / "address"))
    wait_file(tmp_path / "address", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert (tmp_path / ".headway" / "token").exists()  # made on first use


def test_the_record_of_a_later_head_is_left_alone(start: Any, tmp_path: Path) -> None:
    process = start("--port", "0", "--address-file", str(tmp_path / "address"))
    wait_file(tmp_path / "address", process)
    record = tmp_path / ".headway" / "head.json"
    record.write_text(json.dumps({"pid": 1}))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=WAIT_S)
    assert record.exists()


def test_print_limits(start: Any, tmp_path: Path) -> None:
    process = start("--print-limits", HEADWAY_TIME_SCALE="1")
    out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0 and err == ""
    table = dict(line.split() for line in out.splitlines())
    assert table["dead_s"] == "15" and table["max_control_bytes"] == str(LIMITS.max_control_bytes)
    assert not (tmp_path / ".headway").exists()


def test_a_port_in_use_names_its_holder(start: Any, tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        process = start("--port", str(port))
        _, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 1
    assert f"headway head: port {port} of 127.0.0.1 is in use by pid {os.getpid()} (" in err
    assert "--port" in err and "Traceback" not in err
    assert not (tmp_path / ".headway" / "head.json").exists()


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.1"])
def test_an_address_that_is_not_ours_is_a_clear_error(start: Any, host: str) -> None:
    process = start("--host", host, "--port", "0")
    _, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 1
    assert f"headway head: cannot listen on {host}:0" in err and "Traceback" not in err


def test_an_open_token_file_is_refused(start: Any, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("ab" * 32)
    token.chmod(0o644)
    process = start("--port", "0", "--token-file", str(token))
    _, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 1
    assert "chmod 600" in err and "Traceback" not in err


@pytest.mark.parametrize("options", [("--port", "-1"), ("--port", "65536"), ("--port", "x"), ("--port",), ("--bogus",), ("extra",)])
def test_wrong_options_exit_with_2(start: Any, options: tuple[str, ...]) -> None:
    process = start(*options)
    _, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 2
    assert "usage: python -m runtime.head" in err and "Traceback" not in err


def test_other_hosts_are_warned_about(start: Any, tmp_path: Path) -> None:
    process = start("--host", "0.0.0.0", "--port", "0", "--address-file", str(tmp_path / "address"))
    address = wait_file(tmp_path / "address", process).strip()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=WAIT_S)
    assert "not encrypted" in err
    assert address.startswith(f"{socket.gethostname()}:")
