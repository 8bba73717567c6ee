"""The directory of one session: log files and Unix sockets, closed to other users, with a path short enough for sockets."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

__all__ = ["make_session_dir"]

PREFIX = "headway-"
# A Unix socket's path has 107 bytes; beyond ours come a slash and the name of an actor's socket.
MAX_BYTES = 60
LOCK = "lock"  # a file that the session's process holds a lock on for as long as it lives
_held: list[int] = []  # descriptors of those locks: never closed by us, the kernel does it


def make_session_dir() -> Path:
    """A new directory of mode 0700, under XDG_RUNTIME_DIR, else the temporary directory, else /tmp; those of dead sessions go."""
    for parent in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):
        if parent and os.path.isdir(parent) and os.access(parent, os.W_OK | os.X_OK):
            path = tempfile.mkdtemp(prefix=PREFIX, dir=parent)
            if len(os.fsencode(path)) <= MAX_BYTES:
                _held.append(_lock(path, os.O_CREAT | os.O_EXCL))
                _sweep(Path(parent))
                return Path(path)
            os.rmdir(path)
    raise OSError(f"No directory for sockets: neither XDG_RUNTIME_DIR, {tempfile.gettempdir()} nor /tmp can be written to with a path "
                  f"of at most {MAX_BYTES} bytes.")


def _lock(path: str, flags: int = 0) -> int:
    """The descriptor of the directory's lock. Raises: OSError: there is none, or its process lives."""
    fd = os.open(os.path.join(path, LOCK), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def _sweep(parent: Path) -> None:
    """Remove what sessions of this user left whose process was killed: their lock can be had."""
    for path in parent.glob(PREFIX + "*"):
        with contextlib.suppress(OSError):
            if path.stat(follow_symlinks=False).st_uid == os.getuid():
                fd = _lock(str(path))
                shutil.rmtree(path, ignore_errors=True)
                os.close(fd)
