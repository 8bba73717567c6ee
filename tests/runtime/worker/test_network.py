"""The interface that carries an address."""

from __future__ import annotations

import ipaddress

import pytest

from runtime.worker.network import interface_of, interfaces


@pytest.mark.parametrize("host", ["127.0.0.1", "127.5.6.7", "::ffff:127.0.0.1"])
def test_loopback_is_carried_by_its_interface(host: str) -> None:
    assert interface_of(host) == "lo"


def test_every_listed_address_leads_to_its_interface() -> None:
    found = interfaces()
    assert ("lo", ipaddress.ip_address("127.0.0.1")) in found
    for name, address in found:
        if [other for other, known in found if known == address] == [name]:
            assert interface_of(str(address)) == name


def test_an_address_of_another_host_has_no_interface() -> None:
    assert interface_of("203.0.113.77") == ""
