"""Who listens on a port."""

from __future__ import annotations

import os
import socket

from runtime.head.port_holder import find_port_holder


def test_the_holder_is_named_while_it_listens() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        assert find_port_holder(port) == ""  # bound, but it does not listen
        sock.listen()
        assert find_port_holder(port).startswith(f"pid {os.getpid()} (")
    assert find_port_holder(port) == ""
