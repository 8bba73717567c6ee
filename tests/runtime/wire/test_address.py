"""Addresses and the identity of the host."""

from __future__ import annotations

import os

import pytest

from runtime.errors import ArgumentError
from runtime.wire.address import MAX_UNIX_PATH_BYTES, Address, host_id, parse_address


@pytest.mark.parametrize(("text", "address"), [
    ("10.0.0.5:6480", Address(host="10.0.0.5", port=6480)),
    ("head.example:0", Address(host="head.example", port=0)),
    ("[::1]:65535", Address(host="::1", port=65535)),
    ("unix:/run/x y/s", Address(path="/run/x y/s")),
    ("unix:/" + "x" * (MAX_UNIX_PATH_BYTES - 1), Address(path="/" + "x" * (MAX_UNIX_PATH_BYTES - 1))),
])
def test_addresses_are_read_and_written(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize("text", [
    "", "host", ":80", "host:", "host:-1", "host:65536", "host:8o", "host:٣", "::1:80", "[::1]", "unix:", "unix:relative/s", "unix:/a\0b",
    "unix:/" + "x" * MAX_UNIX_PATH_BYTES, "unix:/" + "é" * 60,
])
def test_what_is_no_address_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse_address(text)
    assert repr(text) in str(caught.value)


def test_host_id_is_stable_and_names_boot_and_namespaces() -> None:
    assert host_id() == host_id()
    assert host_id().endswith(f"-{os.stat('/proc/self/ns/net').st_ino}-{os.stat('/proc/self/ns/pid').st_ino}")
