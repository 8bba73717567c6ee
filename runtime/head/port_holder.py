"""Who listens on a port of this host: from /proc/net, as far as it may be read."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["find_port_holder"]

LISTEN = "0A"  # include/net/tcp_states.h


def find_port_holder(port: int) -> str:
    """``pid 42 (python -m runtime.head)``, or "" when it can't be found out (another user's process, not Linux)."""
    inodes = _listening_inodes(port)
    if not inodes:
        return ""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # not ours, or just gone
            for fd in (process / "fd").iterdir():
                if os.readlink(fd) in inodes:
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    return f"pid {process.name} ({command[:200]})"
    return ""


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    return inodes
