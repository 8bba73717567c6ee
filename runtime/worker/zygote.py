"""A single-threaded process with the preload set imported, from which actor processes are forked in milliseconds.

It talks to its daemon over an inherited socket pair (descriptor 3): a length, a msgpack body, descriptors beside it. Requests are lists of
births; the answer has their pids. Each request forks twice: the process in between makes the actors and ends, so that they become children
of the daemon (a subreaper), who alone can then reap them and know their exit status; actors survive the zygote's death. Before each
fork there must be one thread and no CUDA context, else the answer is a refusal and the daemon starts actors by exec. When the daemon is
gone, the zygote kills what its actors left, removes the session's directory and ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import json
import os
import shutil
import socket
import struct
import sys
import time
from dataclasses import dataclass
from typing import Any

import msgpack

from runtime.worker import sweep
from runtime.worker.birth import FDS_PER_ACTOR, Birth, become_actor
from runtime.worker.spawn import FIRST_FD, die_with_parent, outlive_parent, set_process_name

__all__ = ["LENGTH", "MAX_BIRTHS", "ZygoteOptions", "main", "main_exec", "pack_request"]

LENGTH = struct.Struct(">I")
# A kernel passes at most 253 descriptors with one message.
MAX_BIRTHS = 253 // FDS_PER_ACTOR

# What every actor needs. cloudpickle makes the classes of the user's script.
ALWAYS = ("runtime.actor.host", "uvloop", "cloudpickle")

# After the daemon's end of the socket closed: until the kernel has made us somebody else's child, then until its actors are gone.
ORPHANED_S = 5.0
SWEEP_S = 10.0
POLL_S = 0.005


@dataclass(frozen=True, slots=True)
class ZygoteOptions:
    """What the daemon passes as the one argument, in JSON."""

    daemon_pid: int
    modules: tuple[str, ...]
    session_dir: str
    marker: str


def main() -> None:
    """Run the zygote; in an actor that it forked, run the actor. Never returns in the latter."""
    options = ZygoteOptions(**json.loads(sys.argv[2]))
    set_process_name("hw zygote")
    control = socket.socket(fileno=FIRST_FD)
    if not die_with_parent(options.daemon_pid):  # there is nothing to sweep before the first fork
        return
    failure = _preload(options.modules) or _unfit()
    if failure:
        _send(control, {"error": failure})
        return
    outlive_parent()
    gc.collect()
    gc.freeze()  # the children's collector leaves these pages alone, so they stay shared
    _send(control, {})
    newborn = _serve(control)
    if newborn is not None:
        control.close()
        birth, (lifeline_fd, handover_fd, log_fd) = newborn
        become_actor(birth, lifeline_fd=lifeline_fd, handover_fd=handover_fd, log_fd=log_fd)
    _clean_up(options)
    os._exit(0)  # finalising an interpreter with torch in it takes most of a second


def main_exec() -> None:
    """Run one actor in this freshly exec'd process: the way without a zygote."""
    fields = json.loads(sys.argv[2])
    become_actor(Birth(**{**fields, "sys_path": tuple(fields["sys_path"])}), lifeline_fd=FIRST_FD, handover_fd=FIRST_FD + 1, log_fd=None)


def pack_request(births: list[Birth]) -> bytes:
    """The bytes of a request; its descriptors go with the first of them, FDS_PER_ACTOR for each birth in turn."""
    body: bytes = msgpack.packb([dataclasses.asdict(birth) for birth in births])
    return LENGTH.pack(len(body)) + body


def _preload(modules: tuple[str, ...]) -> str:
    """Import them. Returns: why that failed, or ""."""
    for name in (*ALWAYS, *modules):
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - a user's choice of modules: anything may come; the daemon is told
            return f"importing {name!r} failed with {type(exc).__name__}: {exc}"
    return ""


def _unfit() -> str:
    """Why this process must not be forked, or ""."""
    num_threads = len(os.listdir("/proc/self/task"))
    if num_threads > 1:
        return f"it has {num_threads} threads, and a fork would copy locks that the others hold"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "CUDA is initialised, and a CUDA context does not survive a fork"
    return ""


def _serve(control: socket.socket) -> tuple[Birth, list[int]] | None:
    """Answer requests. Returns: None when the daemon is gone; in a forked actor its birth and descriptors."""
    while (request := _receive(control)) is not None:
        births, fds = request
        failure = _unfit()
        if failure:
            _send(control, {"error": failure})
        else:
            newborn = _fork(control, births, fds)
            if newborn is not None:
                return newborn
        for fd in fds:
            os.close(fd)
    return None


def _fork(control: socket.socket, births: list[Birth], fds: list[int]) -> tuple[Birth, list[int]] | None:
    """Fork the actors and answer with their pids. Returns: None; in an actor its birth and descriptors."""
    sys.stdout.flush()
    sys.stderr.flush()
    read_fd, write_fd = os.pipe()
    try:
        between = os.fork()
    except OSError as exc:
        os.close(read_fd)
        os.close(write_fd)
        _send(control, {"error": "", "pids": [], "errno": exc.errno})
        return None
    if between == 0:
        index = _fork_each(births, write_fd)
        own = fds[FDS_PER_ACTOR * index:FDS_PER_ACTOR * (index + 1)]
        for fd in {read_fd, write_fd, *fds} - set(own):
            os.close(fd)
        return births[index], own
    os.close(write_fd)
    with open(read_fd, "rb") as pipe:
        pids = [pid for (pid,) in LENGTH.iter_unpack(pipe.read())]
    _, status = os.waitpid(between, 0)
    _send(control, {"pids": pids, "errno": os.waitstatus_to_exitcode(status)})
    return None


def _fork_each(births: list[Birth], write_fd: int) -> int:
    """Fork all, write their pids, end. Returns in the actors only: the index of the one that this process is."""
    for index in range(len(births)):
        try:
            pid = os.fork()
        except OSError as exc:
            os._exit(exc.errno or 1)
        if pid == 0:
            return index
        os.write(write_fd, LENGTH.pack(pid))
    os._exit(0)


def _receive(control: socket.socket) -> tuple[list[Birth], list[int]] | None:
    head, fds, _, _ = socket.recv_fds(control, LENGTH.size, MAX_BIRTHS * FDS_PER_ACTOR, socket.MSG_CMSG_CLOEXEC)
    if not head:
        return None
    head += _read(control, LENGTH.size - len(head))
    body = msgpack.unpackb(_read(control, LENGTH.unpack(head)[0]))
    return [Birth(**{**fields, "sys_path": tuple(fields["sys_path"])}) for fields in body], fds


def _read(control: socket.socket, num_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < num_bytes:
        chunk = control.recv(num_bytes - len(data))
        if not chunk:
            raise SystemExit("headway zygote: the daemon went away in the middle of a request")
        data += chunk
    return bytes(data)


def _send(control: socket.socket, answer: dict[str, Any]) -> None:
    body = msgpack.packb(answer)
    with contextlib.suppress(BrokenPipeError):  # the daemon is gone: the next read says so
        control.sendall(LENGTH.pack(len(body)) + body)


def _clean_up(options: ZygoteOptions) -> None:
    """Kill and remove what a daemon that died left behind; nothing if it lives and merely dropped us."""
    deadline = time.monotonic() + ORPHANED_S
    while os.getppid() == options.daemon_pid:
        if time.monotonic() > deadline:
            return
        time.sleep(POLL_S)
    lineage = sweep.Lineage.parse(options.marker)[0]
    deadline = time.monotonic() + SWEEP_S
    while sweep.kill_pass(lineage) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    shutil.rmtree(options.session_dir, ignore_errors=True)
