"""The embedded cluster: a head and a worker daemon on one loop in one child process, which lives and dies with its driver.

Everything goes over Unix sockets in the session's directory. The child watches the driver by a pidfd: not PDEATHSIG, which belongs to the
thread that forked, and not the end of a pipe, which children of the driver hold open. It is a session of its own, so that Ctrl-C reaches
the driver alone, which decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from runtime.errors import HeadLostError, HeadwayError
from runtime.limits import LIMITS
from runtime.pinned import ROOT

if TYPE_CHECKING:
    from runtime.worker.daemon import WorkerDaemon

__all__ = ["Embedded", "Starting", "begin_embedded", "main", "start_embedded"]

logger = logging.getLogger(__name__)

TOKEN_BYTES = 32
INDEX = Path("~/.headway/embedded")  # one file for each embedded cluster of this user, named by the pid of its process
# Without a pidfd (macOS) the driver's death shows as another parent; looked at this often.
PARENT_CHECK_S = 0.5
# -P: a file of the user's directory must not pass for one of ours, or of the standard library. ROOT comes last for the same reason.
BOOT = f"import sys; sys.path.append({ROOT!r}); from runtime.local import main; sys.exit(main(sys.argv[1:]))"


class Embedded:
    """The driver's end of its embedded cluster."""

    def __init__(self, process: subprocess.Popen[bytes], address: str, token: bytes, session_dir: str) -> None:
        self.process = process
        self.address = address
        self.token = token
        self._session_dir = session_dir

    def describe_end(self) -> str:
        """How the process ended, or that it still runs."""
        _wait(self.process, LIMITS.death_notice_s)
        code = self.process.poll()
        how = "still runs" if code is None else f"was killed by {_signal_name(-code)}" if code < 0 else f"exited with code {code}"
        return f"the process of the embedded cluster (pid {self.process.pid}) {how}."

    def close(self) -> None:
        """End the process, and what it left if it was killed. Idempotent."""
        _end(self.process)
        shutil.rmtree(self._session_dir, ignore_errors=True)
        _unlist(self.process.pid)


class Starting:
    """An embedded cluster on its way; ``wait`` or ``close`` must be called."""

    def __init__(self, process: subprocess.Popen[bytes], told: int) -> None:
        self._process = process
        self._told = told

    def wait(self) -> Embedded:
        """The cluster, when its node has joined. Raises: HeadLostError: it did not start; its own words are on stderr."""
        try:
            answer = _read_answer(self._told)
        except BaseException:
            self.close()
            raise
        if "error" in answer:
            self.close()
            raise HeadLostError(f"The embedded cluster did not start: {answer['error']}")
        os.close(self._told)
        return Embedded(self._process, answer["address"], bytes.fromhex(answer["token"]), answer["session_dir"])

    def close(self) -> None:
        """Nobody wants it: end the process."""
        os.close(self._told)
        _end(self._process)


def start_embedded(*, num_cpus: float | None, num_gpus: float | None, resources: dict[str, float] | None,
                   preload: Sequence[str]) -> Embedded:
    """Start the child process and wait until its node has joined.

    Raises: HeadLostError: it did not start; its own words are on stderr.
    """
    return begin_embedded(num_cpus=num_cpus, num_gpus=num_gpus, resources=resources, preload=preload).wait()


def begin_embedded(*, num_cpus: float | None = None, num_gpus: float | None = None, resources: dict[str, float] | None = None,
                   preload: Sequence[str] = ()) -> Starting:
    """Start the child process."""
    told, tell = os.pipe()
    options = json.dumps({"driver_pid": os.getpid(), "ready_fd": tell, "num_cpus": num_cpus, "num_gpus": num_gpus,
                          "resources": resources or {}, "preload": list(preload)})
    try:
        process = subprocess.Popen([sys.executable, "-P", "-c", BOOT, options], stdin=subprocess.DEVNULL,
                                   stdout=sys.__stderr__ or subprocess.DEVNULL, pass_fds=(tell,), start_new_session=True)
    except BaseException:
        os.close(told)
        raise
    finally:
        os.close(tell)
    return Starting(process, told)


def _read_answer(fd: int) -> dict[str, str]:
    deadline, received = time.monotonic() + LIMITS.start_s, b""
    while not received.endswith(b"\n"):
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not select.select([fd], [], [], left_s)[0]:
            return {"error": f"it was not ready within {LIMITS.start_s:g} s."}
        part = os.read(fd, 65536)
        if not part:
            return {"error": "its process ended; what it wrote is above."}
        received += part
    answer: dict[str, str] = json.loads(received)
    return answer


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, on which it cleans up; SIGKILL when that takes too long, or when the wait is interrupted."""
    try:
        if process.poll() is None:
            process.terminate()
            _wait(process, LIMITS.job_close_s + LIMITS.kill_wait_s)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Wait for its end without the polling that Popen.wait(timeout) does."""
    if process.poll() is not None:
        return
    try:
        fd = os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
        return
    try:
        select.select([fd], [], [], timeout_s)
    finally:
        os.close(fd)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# ---- the child ----


def main(argv: Sequence[str]) -> int:
    """The child's main function; its one argument is what ``start_embedded`` wants, as JSON."""
    options = json.loads(argv[0])
    os.set_inheritable(options["ready_fd"], False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format="headway: %(message)s", stream=sys.stderr)
    try:
        from uvloop import new_event_loop as loop_factory
    except ImportError:
        loop_factory = asyncio.new_event_loop
    with open(options["ready_fd"], "w", encoding="ascii") as ready, asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(_serve(options, ready))


async def _serve(options: dict[str, Any], ready: TextIO) -> int:
    from runtime.head.server import HeadServer
    from runtime.worker.session_dir import make_session_dir

    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    unwatch = _watch_driver(loop, options["driver_pid"], stop.set)
    session_dir, token = make_session_dir(), secrets.token_bytes(TOKEN_BYTES)
    server, daemon = HeadServer(addresses=[f"unix:{session_dir}/head"], token=token, embedded=True), None
    try:
        await server.start()
        daemon = _daemon(options, server.addresses[0], token, session_dir)
        await daemon.start()
        _list(server.addresses[0], token, session_dir, options["driver_pid"])
        _answer(ready, {"address": server.addresses[0], "token": token.hex(), "session_dir": str(session_dir)})
        watching = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(daemon.run_until_closed())]
        await asyncio.wait(watching, return_when=asyncio.FIRST_COMPLETED)
        for future in watching:
            future.cancel()
    except (HeadwayError, OSError) as exc:
        _answer(ready, {"error": str(exc)})
        return 1
    finally:
        unwatch()
        logging.getLogger().setLevel(logging.CRITICAL)  # that connections close now is no news
        await server.close()  # first: it ends the jobs, for which it needs the daemon
        if daemon is not None:
            await daemon.close("the embedded cluster ends")
        shutil.rmtree(session_dir, ignore_errors=True)
        _unlist(os.getpid())
    return 0


def _daemon(options: dict[str, Any], head_address: str, token: bytes, session_dir: Path) -> WorkerDaemon:
    from runtime.worker.daemon import WorkerDaemon
    from runtime.worker.gpus import inventory

    num_cpus, num_gpus = options["num_cpus"], options["num_gpus"]
    gpus, simulated = inventory(None if num_gpus is None else int(num_gpus))
    resources = {"CPU": float(len(os.sched_getaffinity(0)) if num_cpus is None else num_cpus), **options["resources"]}
    if gpus:
        resources["GPU"] = float(len(gpus))
    return WorkerDaemon(head_address=head_address, token=token, name=None, resources=resources, labels={}, gpus=gpus,
                        simulated_gpus=simulated, session_dir=session_dir, preload=options["preload"])


def _list(address: str, token: bytes, session_dir: Path, driver_pid: int) -> None:
    """Let the command line of this user find the cluster. Where HOME can't be written to, it is not found."""
    token_file, record = session_dir / "token", INDEX.expanduser() / f"{os.getpid()}.json"
    with contextlib.suppress(OSError):
        record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        listed = {"address": address, "token_file": str(token_file), "pid": os.getpid(), "driver_pid": driver_pid}
        for path, text in ((token_file, token.hex()), (record, json.dumps(listed))):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(fd, "w", encoding="ascii") as file:
                file.write(text + "\n")


def _unlist(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.unlink(INDEX.expanduser() / f"{pid}.json")


def _answer(ready: TextIO, answer: dict[str, str]) -> None:
    """The one line that the driver waits for; it is not told of what happens later."""
    if not ready.closed:
        with contextlib.suppress(BrokenPipeError), ready:  # the driver is gone
            ready.write(json.dumps(answer) + "\n")


def _watch_driver(loop: asyncio.AbstractEventLoop, pid: int, gone: Callable[[], None]) -> Callable[[], None]:
    """Call ``gone`` when the driver, our parent, has ended. Returns: what ends the watch."""
    try:
        fd = os.pidfd_open(pid)
    except (AttributeError, OSError) as exc:
        logger.debug("no pidfd of the driver: %r", exc)
        return _watch_parent(loop, pid, gone)
    if os.getppid() != pid:  # it ended before; the number may be somebody else's by now
        gone()
    loop.add_reader(fd, gone)

    def unwatch() -> None:
        loop.remove_reader(fd)
        os.close(fd)

    return unwatch


def _watch_parent(loop: asyncio.AbstractEventLoop, pid: int, gone: Callable[[], None]) -> Callable[[], None]:
    timer = loop.call_soon(lambda: None)

    def look() -> None:
        nonlocal timer
        if os.getppid() == pid:
            timer = loop.call_later(PARENT_CHECK_S, look)
        else:
            gone()

    def unwatch() -> None:
        timer.cancel()

    look()
    return unwatch
