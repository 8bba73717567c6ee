"""How an actor process shall be, and what it does first of all: before any byte of the user is looked at.

The same steps serve a fork of the zygote and an exec'd process; each step is harmless where it was done already.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import signal
import sys
import time
import types
from dataclasses import dataclass
from typing import NoReturn

from runtime.worker import sweep
from runtime.worker.spawn import die_with_parent, set_process_name

__all__ = ["FDS_PER_ACTOR", "FORCED_ENV", "THREAD_VARIABLES", "Birth", "become_actor", "stacks_path"]

# Lifeline, hand-over socket, log file: in this order.
FDS_PER_ACTOR = 3

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# While a zygote preloads: no library may start a thread or touch the GPU. Each actor gets its own values back.
FORCED_ENV = {**dict.fromkeys(THREAD_VARIABLES, "1"), "JE_ARROW_MALLOC_CONF": "background_thread:false",
              "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}

# Until the intermediate process of the double fork is gone and we are the daemon's child: usually well under a millisecond.
ADOPTION_S = 5.0
ADOPTION_POLL_S = 0.0002

# The kernel's choice when memory runs out: an actor before the daemon, the driver or a desktop.
OOM_SCORE = b"1000"


@dataclass(frozen=True, slots=True)
class Birth:
    """One actor process to be. ``env``: what differs from the environment of who starts it; None removes a variable."""

    marker: str
    title: str
    log_path: str
    num_threads: int
    daemon_pid: int
    cwd: str
    sys_path: tuple[str, ...]
    env: dict[str, str | None]


def become_actor(birth: Birth, *, lifeline_fd: int, handover_fd: int, log_fd: int | None) -> NoReturn:
    """Turn this process into the actor that ``birth`` describes and run it to its end.

    Args: log_fd: becomes stdout and stderr; None when they are that already.
    """
    sweep.rewrite_marker(birth.marker)
    if os.getsid(0) != os.getpid():
        os.setsid()
    if not _join_daemon(birth.daemon_pid):
        os._exit(1)  # nobody is left who could want us
    set_process_name(birth.title)
    _offer_to_oom_killer()
    _redirect(log_fd)
    _enter_environment(birth)
    _renew_randomness()
    if (torch := sys.modules.get("torch")) is not None:  # its pools were sized when the zygote imported it
        torch.set_num_threads(birth.num_threads)
    faulthandler.enable()
    _offer_stacks(birth.log_path)
    _forget_main(birth.title)
    host = importlib.import_module("runtime.actor.host")  # by name: the worker daemon's code does not know the actor's
    host.main(lifeline_fd=lifeline_fd, handover_fd=handover_fd, log_path=birth.log_path)
    raise AssertionError("host.main() returned")


def stacks_path(log_path: str) -> str:
    """Where the actor with this log file writes its stacks."""
    return f"{log_path.removesuffix('.log')}.stacks"


def _join_daemon(daemon_pid: int) -> bool:
    """Wait until the daemon is the parent, then die when it dies. Returns: False when it is gone."""
    deadline = time.monotonic() + ADOPTION_S
    while os.getppid() != daemon_pid:
        if time.monotonic() > deadline:
            return False
        time.sleep(ADOPTION_POLL_S)
    return die_with_parent(daemon_pid)


def _redirect(log_fd: int | None) -> None:
    if log_fd is not None:
        os.dup2(log_fd, 1)
        os.dup2(log_fd, 2)
        os.close(log_fd)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # a line is in the file when print() returns, whatever happens next; odd characters never raise
            stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]


def _enter_environment(birth: Birth) -> None:
    for name, value in (*birth.env.items(), (sweep.MARKER, birth.marker)):
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if birth.cwd:
        try:
            os.chdir(birth.cwd)
        except (OSError, ValueError) as exc:
            print(f"headway: staying in {os.getcwd()}, because the driver's directory can't be entered: {exc}", file=sys.stderr)
    if birth.sys_path:
        sys.path[:] = birth.sys_path
        importlib.invalidate_caches()


def _renew_randomness() -> None:
    """Forks must not draw the same numbers. Python's ``random`` does this by itself; torch starts from a fixed seed in any process."""
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed()


def _forget_main(title: str) -> None:
    """An empty ``__main__``: ours is nobody's business, and ``multiprocessing`` would run it again in children that it spawns."""
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv = [title]


def _offer_stacks(log_path: str) -> None:
    """At SIGUSR2 all threads' stacks are written to a file of ours, by a handler that needs no GIL."""
    with contextlib.suppress(OSError):
        fd = os.open(stacks_path(log_path), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        faulthandler.register(signal.SIGUSR2, file=fd, all_threads=True)


def _offer_to_oom_killer() -> None:
    with contextlib.suppress(OSError):
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, OOM_SCORE)
        finally:
            os.close(fd)
