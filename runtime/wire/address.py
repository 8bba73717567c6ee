"""Addresses of peers, and which host this is.

``HOST:PORT``, ``[IPV6]:PORT`` or ``unix:/path``. Two processes with equal ``host_id()`` reach each other by Unix sockets and see each
other's process ids.
"""

from __future__ import annotations

import functools
import os
import platform
import socket
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import ArgumentError

__all__ = ["Address", "host_id", "parse_address", "format_tcp"]

MAX_UNIX_PATH_BYTES = 107  # sun_path of Linux, less its end mark


@dataclass(frozen=True, slots=True)
class Address:
    """``path`` is set for Unix sockets, ``host`` and ``port`` for TCP."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else format_tcp(self.host, self.port)


def format_tcp(host: str, port: int) -> str:
    """``HOST:PORT`` with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(text: str) -> Address:
    """The address that ``text`` names.

    Raises: ArgumentError: it is none.
    """
    if text.startswith("unix:"):
        path = text[len("unix:"):]
        if not path.startswith("/") or "\0" in path or len(os.fsencode(path)) > MAX_UNIX_PATH_BYTES:
            raise ArgumentError(f"Address {text!r}: the path of a Unix socket must be absolute and of at most {MAX_UNIX_PATH_BYTES} bytes.")
        return Address(path=path)
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ArgumentError(f"Address {text!r}: write an IPv6 address in brackets, like [::1]:6480.")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ArgumentError(f"Address {text!r} must be HOST:PORT (like 10.0.0.5:6480), [IPV6]:PORT or unix:/path.")
    return Address(host=host, port=int(port))


@functools.cache
def host_id() -> str:
    """Boot id, network namespace and pid namespace as one string; elsewhere than on Linux the host's name and kernel."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}-{os.stat('/proc/self/ns/net').st_ino}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{socket.gethostname()}-{platform.platform()}"
