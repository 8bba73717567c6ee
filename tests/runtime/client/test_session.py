"""The connection to the head: how it opens, is lost, comes back, ends."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from runtime.client.io_thread import IoThread
from runtime.client.object_ref import get
from runtime.client.session import Session
from runtime.errors import (
    ActorNotFoundError,
    AuthenticationError,
    ConnectError,
    GetTimeoutError,
    HeadLostError,
    HeadwayError,
    NotInitializedError,
    VersionMismatchError,
)
from runtime.ids import JobId
from runtime.wire.messages import CloseJob, ListNodes, NodeList, OpenJob, Preload, StopActorsOf
from runtime.wire.peer import Identity


def new_session(address: str, token: bytes = b"t" * 32, **changes: Any) -> Session:
    return Session(address=address, token=token, job_id=JobId("j" * 32), namespace="ns", io=IoThread(), identity=Identity("driver", ""),
                   **changes)


def test_opens_the_job_and_closes_it(cluster: Any) -> None:
    session = new_session(cluster.address, preload=("numpy",))
    session.open()
    opened = cluster.wait_request(OpenJob)
    assert opened.job_id == "j" * 32
    assert opened.namespace == "ns"
    assert opened.cwd == str(Path.cwd())
    assert opened.log_to_driver
    assert all(entry.startswith("/") for entry in opened.sys_path)
    assert cluster.wait_request(Preload).modules == ("numpy",)
    session.close()
    session.close()
    assert cluster.of(CloseJob)
    with pytest.raises(NotInitializedError):
        session.call(ListNodes())


def test_an_actors_session_leaves_the_job_open(cluster: Any) -> None:
    session = new_session(cluster.address, owner="a" * 32)
    session.open()
    assert cluster.wait_request(OpenJob).owner_actor_id == "a" * 32
    session.close()
    assert not cluster.of(CloseJob)


def test_wrong_token_and_nobody_there_are_told_apart(cluster: Any, short_tmp: Path) -> None:
    for address, token, error, text in (
            (cluster.address, b"x" * 32, AuthenticationError, "token"),
            (f"unix:{short_tmp}/none", b"t" * 32, ConnectError, "none")):
        session = new_session(address, token)
        with pytest.raises(error, match=text):
            session.open()
        session.close()


def test_a_head_that_refuses_the_job(cluster: Any) -> None:
    cluster.answers[OpenJob] = lambda message: VersionMismatchError("Python 3.11 and 3.12")
    session = new_session(cluster.address)
    with pytest.raises(VersionMismatchError, match=r"3\.12"):
        session.open()
    session.close()
    assert not cluster.peers


def test_a_head_that_does_not_answer(cluster: Any, session: Session) -> None:
    cluster.answers[ListNodes] = lambda message: None
    with pytest.raises(GetTimeoutError, match="ListNodes"):
        session.call(ListNodes(), timeout_s=0.05)


def test_calls_from_the_io_thread_are_refused_instead_of_hanging(session: Session) -> None:
    async def ask() -> None:
        session.call(ListNodes())

    with pytest.raises(HeadwayError, match="I/O thread"):
        session.io.run(ask(), "ask")


def test_a_lost_connection_is_dialled_again_and_requests_repeated(
        cluster: Any, session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    asked = threading.Event()

    def hang_up_once(message: ListNodes) -> NodeList | None:
        if asked.is_set():
            return NodeList(())
        asked.set()
        cluster.io.loop.call_soon(cluster.peers[0]._transport.abort)
        return None

    cluster.answers[ListNodes] = hang_up_once
    assert session.call(ListNodes(), timeout_s=10).message == NodeList(())
    assert len(cluster.of(OpenJob)) == 2
    assert "Trying again" in capsys.readouterr().err


def test_A2_another_head_at_the_same_address_ends_the_session(cluster: Any, session: Session, handle: Any) -> None:
    pending = handle.f.remote()
    cluster.head_epoch = 6
    cluster.call(lambda: cluster.peers[0]._transport.abort())
    with pytest.raises(HeadLostError):
        get(pending, timeout=10)
    with pytest.raises(HeadLostError):
        session.call(ListNodes())
    with pytest.raises(HeadLostError):
        handle.f.remote()


def test_A2_an_embedded_head_that_died_ends_the_session_at_once(cluster: Any) -> None:
    class Embedded:
        address, token, closed = cluster.address, b"", False

        def describe_end(self) -> str:
            return "the process was killed by SIGKILL."

        def close(self) -> None:
            self.closed = True

    embedded = Embedded()
    session = new_session(cluster.address, embedded=embedded)
    session.open()
    cluster.call(lambda: cluster.peers[0]._transport.abort())
    with pytest.raises(HeadLostError, match="killed by SIGKILL"):
        call_until_it_fails(session)
    session.close()
    assert embedded.closed


def call_until_it_fails(session: Session) -> None:
    while True:
        session.call(StopActorsOf((), 0.0, ""), timeout_s=10)


def test_an_actor_that_nobody_knows(cluster: Any, session: Session) -> None:
    from runtime.client.handle import ActorHandle
    from runtime.wire.messages import FindActor

    cluster.answers[FindActor] = lambda message: ActorNotFoundError("no actor has id bbbb")
    with pytest.raises(ActorNotFoundError, match="bbbb"):
        get(ActorHandle("b" * 32, "Fake", None).f.remote(), timeout=10)  # type: ignore[arg-type]
