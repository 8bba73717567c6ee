"""The directory of one session: log files and Unix sockets, closed to other users, with a path short enough for sockets."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["make_session_dir"]

PREFIX = "headway-"
# A Unix socket's path has 107 bytes; beyond ours come a slash and the name of an actor's socket.
MAX_BYTES = 60


def make_session_dir() -> Path:
    """A new directory of mode 0700, under XDG_RUNTIME_DIR, else the temporary directory, else /tmp."""
    for parent in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):
        if parent and os.path.isdir(parent) and os.access(parent, os.W_OK | os.X_OK):
            path = tempfile.mkdtemp(prefix=PREFIX, dir=parent)
            if len(os.fsencode(path)) <= MAX_BYTES:
                return Path(path)
            os.rmdir(path)
    raise OSError(f"No directory for sockets: neither XDG_RUNTIME_DIR, {tempfile.gettempdir()} nor /tmp can be written to with a path "
                  f"of at most {MAX_BYTES} bytes.")
