from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.errors import ConnectError, HeadwayError
from train.torch import store as store_module
from train.torch.store import _host_services, _no_name_server, open_store

SOON = timedelta(seconds=5)


def test_rank_zero_that_cannot_bind_its_host_says_so(make_ranks: Any, rendezvous: Any) -> None:
    with pytest.raises(HeadwayError, match=r"rank 0 cannot listen on 203\.0\.113\.1.*daemon again"):
        open_store(make_ranks(host="203.0.113.1"), rendezvous, SOON)


def test_rank_that_cannot_reach_the_store_names_both_ends(make_ranks: Any, rendezvous: Any, closed_port: int) -> None:
    rendezvous.publish("127.0.0.1", closed_port)
    with pytest.raises(ConnectError, match=rf"rank 1 on 127\.0\.0\.1 cannot reach .* 127\.0\.0\.1 port {closed_port}: Connection refused"):
        open_store(make_ranks(rank=1), rendezvous, SOON)


@pytest.mark.process
def test_ranks_see_one_store_at_the_published_address(run_ranks: Any) -> None:
    found = run_ranks("""
        from datetime import timedelta
        from train.torch.store import open_store
        def scenario(ranks, rendezvous, backend, config):
            global store  # rank 0's holds the server
            store, host, port = open_store(ranks, rendezvous, timedelta(seconds=60))
            store.set(f"from {ranks.rank}", "hello")
            return [host, port, store.get(f"from {1 - ranks.rank}").decode()]
    """)
    assert found[0] == found[1]
    assert found[0][0] == "127.0.0.1"
    assert found[0][2] == "hello"


def fake_library(lookups: list[bytes]) -> SimpleNamespace:
    """glibc, as far as the order of host services goes; it knows two of them."""

    def configure(database: bytes, services: bytes) -> int:
        assert database == b"hosts"
        if not set(services.split()) <= {b"files", b"dns"}:
            return -1
        lookups.append(services)
        return 0

    library = SimpleNamespace()
    setattr(library, "__nss_configure_lookup", configure)
    return library


@pytest.mark.parametrize(("line", "expected"), [
    (b"passwd: files\nhosts:   files dns # as installed\n", [b"files dns", b"files", b"files dns"]),
    (b"hosts: files unknown\n", []),  # what can't be restored is not touched
    (b"passwd: files\n", []),
])
def test_name_servers_are_left_out_and_come_back_after_errors_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: bytes,
                                                                  expected: list[bytes]) -> None:
    lookups = [b"initial"]
    monkeypatch.setattr("ctypes.CDLL", lambda name: fake_library(lookups))
    monkeypatch.setattr(store_module, "NSSWITCH", tmp_path / "nsswitch.conf")
    (tmp_path / "nsswitch.conf").write_bytes(line)

    def fail_inside() -> None:
        with _no_name_server():
            assert lookups[-1] == (b"files" if expected else b"initial")
            raise RuntimeError("no store")

    with pytest.raises(RuntimeError, match="no store"):
        fail_inside()
    assert lookups[1:] == expected


def test_other_c_libraries_and_missing_files_change_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace())
    with _no_name_server():
        pass
    monkeypatch.setattr(store_module, "NSSWITCH", tmp_path / "missing")
    assert _host_services() is None
