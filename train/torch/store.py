"""The key-value store in which the ranks of one attempt meet: rank 0 serves it, on its node's own address.

Rank 0 binds a socket (port 0), gives the descriptor to ``TCPStore`` and publishes address and port; the others look them up. Nothing is
closed and bound again, so nobody can take the port in between, and the store listens on that address only, where a ``TCPStore`` that
binds by itself listens on all interfaces. Addresses are numbers, and no name server is asked.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import ConnectError, HeadwayError
from train.backend import RankSetup, Rendezvous

if TYPE_CHECKING:
    from torch.distributed import Store

__all__ = ["open_store"]

# Opening one connection to rank 0's store; it listens before its address is published, so only the network can be slow.
PROBE_S = 30.0
NSSWITCH = Path("/etc/nsswitch.conf")


def open_store(ranks: RankSetup, rendezvous: Rendezvous, timeout: timedelta) -> tuple[Store, str, int]:
    """The rank's end of the attempt's store, and the store's address and port.

    Raises:
        HeadwayError: rank 0 cannot bind its node's address.
        ConnectError: rank 0's store can't be reached from here.
    """
    from torch.distributed import TCPStore

    if ranks.rank == 0:
        listener = _listen(ranks.host, ranks.world_size)
        host, port = listener.getsockname()[:2]
        with _no_name_server():
            # multi_tenant: a user's own env:// init on this port then shares the server instead of finding the address in use.
            store = TCPStore(host, port, ranks.world_size, is_master=True, timeout=timeout, wait_for_workers=False, multi_tenant=True,
                             master_listen_fd=listener.detach())
        rendezvous.publish(host, port)
    else:
        host, port = rendezvous.lookup(timeout.total_seconds())
        _probe(ranks, host, port, min(PROBE_S, timeout.total_seconds()))
        with _no_name_server():
            store = TCPStore(host, port, ranks.world_size, is_master=False, timeout=timeout, wait_for_workers=False)
    return store, host, port


def _listen(host: str, world_size: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.bind((host, 0))
        listener.listen(max(128, world_size))
    except OSError as exc:
        listener.close()
        raise HeadwayError(f"rank 0 cannot listen on {host}, the address by which its node joined: {exc.strerror}. "
                           "Start that node's daemon again, so that it registers with the address that it has now.") from exc
    return listener


def _probe(ranks: RankSetup, host: str, port: int, limit_s: float) -> None:
    # TCPStore's own failure to connect is 60 lines of C++ frames; this one names both ends.
    try:
        socket.create_connection((host, port), timeout=limit_s).close()
    except OSError as exc:
        why = f"no answer within {limit_s:g} s" if isinstance(exc, TimeoutError) else exc.strerror or str(exc)
        raise ConnectError(f"rank {ranks.rank} on {ranks.host} cannot reach rank 0's store at {host} port {port}: {why}. "
                           "All nodes of a run must reach each other on all ports; look at firewalls and interfaces.") from exc


@contextlib.contextmanager
def _no_name_server() -> Iterator[None]:
    """While held, the C library's resolver answers from /etc/hosts alone; nobody else resolves names during a rank's set-up.

    c10d asks for the name of every address that it connects to, for its own messages, and as ``::ffff:a.b.c.d``, which no /etc/hosts
    has. One lost datagram to the name server then costs the rendezvous 5 s (seen in 1 of 70), a dead server 10 s and more.
    """
    services = _host_services()
    configure = getattr(ctypes.CDLL(None), "__nss_configure_lookup", None)  # <nss.h> of glibc; elsewhere all stays as it is
    if configure is None or services is None or configure(b"hosts", services) != 0:  # the way back is open before anything changes
        yield
        return
    configure(b"hosts", b"files")
    try:
        yield
    finally:
        configure(b"hosts", services)


def _host_services() -> bytes | None:
    """What ``/etc/nsswitch.conf`` says about host names, None if it says nothing."""
    with contextlib.suppress(OSError):
        for line in NSSWITCH.read_bytes().splitlines():
            name, _, services = line.partition(b"#")[0].partition(b":")
            if name.strip() == b"hosts":
                return services.strip()
    return None
