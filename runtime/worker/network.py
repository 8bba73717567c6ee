"""Which network interface carries an address: what gloo has to be told, and what the user reads in ``nodes()``."""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import socket
import struct
from collections.abc import Iterator

__all__ = ["interface_of", "interfaces"]


class _IfAddrs(ctypes.Structure):
    """``struct ifaddrs`` of getifaddrs(3), as far as it is needed; the same on Linux and macOS."""


_IfAddrs._fields_ = [("next", ctypes.POINTER(_IfAddrs)), ("name", ctypes.c_char_p), ("flags", ctypes.c_uint),
                     ("address", ctypes.c_void_p)]


def interface_of(host: str) -> str:
    """The name of the interface with the numeric address ``host`` ("lo", "eth0"), "" if none has it."""
    wanted = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(wanted, ipaddress.IPv6Address) and wanted.ipv4_mapped is not None:
        wanted = wanted.ipv4_mapped
    found = [(name, address) for name, address in interfaces() if address == wanted]
    if not found and wanted.is_loopback:  # all of 127.0.0.0/8 is there, only 127.0.0.1 is listed
        found = [(name, address) for name, address in interfaces() if address.is_loopback]
    return found[0][0] if found else ""


def interfaces() -> list[tuple[str, ipaddress.IPv4Address | ipaddress.IPv6Address]]:
    """Every (name, address) of this network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    first = ctypes.POINTER(_IfAddrs)()
    if libc.getifaddrs(ctypes.byref(first)) != 0:
        return []
    try:
        return list(_walk(first))
    finally:
        libc.freeifaddrs(first)


def _walk(entry: ctypes._Pointer[_IfAddrs]) -> Iterator[tuple[str, ipaddress.IPv4Address | ipaddress.IPv6Address]]:
    while entry:
        item = entry.contents
        address = _address_at(item.address)
        if address is not None:
            yield item.name.decode(), address
        entry = item.next


def _address_at(pointer: int | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address in a ``struct sockaddr``; None for other families."""
    if not pointer:
        return None
    (family,) = struct.unpack("H", ctypes.string_at(pointer, 2))
    with contextlib.suppress(ValueError):
        if family == socket.AF_INET:
            return ipaddress.IPv4Address(ctypes.string_at(pointer + 4, 4))
        if family == socket.AF_INET6:
            return ipaddress.IPv6Address(ctypes.string_at(pointer + 8, 16))
    return None
