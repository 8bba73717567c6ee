"""One inotify watch of a folder: which of its files were written to. Linux only; elsewhere ``watch_writes`` returns None."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator

__all__ = ["watch_writes", "written_names"]

IN_MODIFY = 0x00000002
EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows
READ_BYTES = 64 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


def watch_writes(folder: str) -> int | None:
    """A descriptor that is readable when files of the folder were written to; None where the system has no (more) inotify."""
    try:
        fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    except AttributeError:
        return None
    if fd < 0:
        return None
    if _libc.inotify_add_watch(fd, os.fsencode(folder), IN_MODIFY) < 0:
        os.close(fd)
        return None
    return fd


def written_names(fd: int) -> set[str]:
    """Names of the files written to since the last call. An overflow of the kernel's queue loses nothing: later writes tell again."""
    names: set[str] = set()
    with contextlib.suppress(BlockingIOError):
        while data := os.read(fd, READ_BYTES):
            names.update(_names(data))
    return names


def _names(data: bytes) -> Iterator[str]:
    start = 0
    while start < len(data):
        length = EVENT.unpack_from(data, start)[3]
        start += EVENT.size
        name = data[start:start + length].rstrip(b"\0")
        if name:
            yield os.fsdecode(name)
        start += length
