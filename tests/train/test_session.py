from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import runtime
from runtime.errors import ArgumentError, GetTimeoutError
from train import Checkpoint
from train.backend import Backend, BackendConfig, RankSetup
from train.errors import CheckpointError, RendezvousError, ReportError
from train.protocol import (
    Ack,
    AskCheckpoint,
    AskMaster,
    Committed,
    Failed,
    JobSpec,
    Latest,
    Master,
    Place,
    Publish,
    RankStart,
    Refused,
    Release,
    Report,
    Returned,
    WriteFailed,
    Written,
)
from train.session import ChannelRendezvous, Session
from train.storage import LocalStorage

MakeDirectory = Callable[..., str]


class FakeLink:
    """What was sent, and answers made of it."""

    def __init__(self, *answers: Any) -> None:
        self.sent: list[Any] = []
        self.answers = list(answers)

    def send(self, item: Any, timeout_s: float | None = None) -> None:
        self.sent.append(item)

    def recv(self, timeout_s: float | None = None) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def make_session(storage: LocalStorage) -> Callable[..., tuple[Session, FakeLink]]:
    def make(*answers: Any, rank: int = 0, checkpoint: Checkpoint | None = None) -> tuple[Session, FakeLink]:
        job = JobSpec(b"", None, Backend, BackendConfig(), storage, None, 1 << 16)
        ranks = RankSetup(rank=rank, world_size=2, local_rank=rank, local_world_size=2, node_rank=0, num_nodes=1, host="h", interface="lo",
                          host_id="h", gpu_ids=(), visible_gpu_ids=(), num_cpus=1.0, attempt=3, run_name="run", use_gpu=False)
        link = FakeLink(*answers)
        return Session(job, RankStart(ranks, checkpoint), link), link

    return make


MakeSession = Callable[..., tuple[Session, FakeLink]]


def test_metrics_alone_are_sent_and_nothing_is_waited_for(make_session: MakeSession):
    session, link = make_session()
    session.report({"a": 1}, None, None, delete=False)
    session.report({"a": 2}, None, None, delete=False)
    assert [item.index for item in link.sent] == [1, 2]
    assert runtime.loads(link.sent[1].metrics) == {"a": 2}
    assert link.sent[0].manifest is None


def test_a_checkpoint_is_written_where_the_controller_says(
        make_session: MakeSession, storage: LocalStorage, make_directory: MakeDirectory):
    session, link = make_session(Place("ckpt", ("a",)), Committed("ckpt"))
    folder = make_directory(a="1", b="2")
    session.report({}, Checkpoint(folder), "ckpt", delete=False)
    sent, written = link.sent
    assert isinstance(sent, Report)
    assert isinstance(written, Written)
    assert sent.manifest is not None
    assert [entry.name for entry in sent.manifest] == ["a", "b"]
    assert sent.dir_name == "ckpt"
    assert list(written.files) == ["a"]
    assert os.listdir(storage.at("ckpt")) == ["a"]
    found = session.latest_checkpoint()
    assert found is not None
    assert found.path == storage.at("ckpt")
    assert sorted(os.listdir(folder)) == ["a", "b"]


def test_the_local_directory_is_deleted_when_asked(make_session: MakeSession, storage: LocalStorage, make_directory: MakeDirectory):
    session, _ = make_session(Place("ckpt", ()), Committed("ckpt"))
    folder = make_directory(a="1")
    session.report({}, Checkpoint(folder), None, delete=True)
    assert not Path(folder).exists()


def test_a_storage_that_fails_is_told_and_report_raises(
        make_session: MakeSession, storage: LocalStorage, make_directory: MakeDirectory):
    Path(storage.at("ckpt")).write_text("in the way")
    session, link = make_session(Place("ckpt", ("a",)), Refused("CheckpointError", "rank 0 could not store"))
    before = Checkpoint("/before")
    session._checkpoint = before
    with pytest.raises(CheckpointError, match="rank 0 could not store"):
        session.report({}, Checkpoint(make_directory(a="1")), None, delete=True)
    assert isinstance(link.sent[1], WriteFailed)
    assert "cannot write" in link.sent[1].text


def test_a_refused_report_raises_the_named_error(make_session: MakeSession, make_directory: MakeDirectory):
    session, _ = make_session(Refused("ReportError", "different names"))
    with pytest.raises(ReportError, match="different names"):
        session.report({}, Checkpoint(make_directory(a="1")), None, delete=False)


def test_get_checkpoint_asks_only_for_what_it_does_not_know(
        make_session: MakeSession, storage: LocalStorage):
    first = Checkpoint("/first")
    session, link = make_session(Latest(None), Latest("ckpt"), checkpoint=first)
    assert session.latest_checkpoint() is first
    assert link.sent == []
    session.report({}, None, None, delete=False)
    assert session.latest_checkpoint() is first
    assert session.latest_checkpoint() is first
    assert link.sent[1:] == [AskCheckpoint(1)]
    session.report({}, None, None, delete=False)
    found = session.latest_checkpoint()
    assert found is not None
    assert found.path == storage.at("ckpt")


def test_too_big_metrics_are_not_sent(make_session: MakeSession):
    session, link = make_session()
    with pytest.raises(ArgumentError, match="'x' about 0.1 MiB"):
        session.report({"x": "a" * (1 << 17)}, None, None, delete=False)
    session.report({"x": 1}, None, None, delete=False)
    assert [item.index for item in link.sent] == [1]


def test_the_return_value_of_rank_0_travels(make_session: MakeSession):
    session, link = make_session(Release())
    session.returned({"a": 1})
    assert runtime.loads(link.sent[0].value) == {"a": 1}
    session, link = make_session(Release(), rank=1)
    session.returned({"a": 1})
    assert link.sent == [Returned(None, "")]


def test_a_return_value_that_cannot_be_sent_is_told_and_no_failure(make_session: MakeSession):
    session, link = make_session(Release())
    session.returned(threading.Lock())
    assert link.sent[0].value is None
    assert "lock" in link.sent[0].problem


class NoJourney(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("never")


class Awkward(Exception):
    def __init__(self, code: int, why: str) -> None:
        super().__init__(f"{code} {why}")


def fail(session: Session, link: FakeLink, error: Exception) -> Failed:
    try:
        raise error
    except Exception as exc:  # the one above
        session.failed(exc)
    assert isinstance(link.sent[-1], Failed)
    return link.sent[-1]


def test_an_exception_waits_for_its_acknowledgement(make_session: MakeSession):
    session, link = make_session(Ack(), Ack())
    sent = fail(session, link, ValueError("boom"))
    assert (sent.class_name, sent.text) == ("ValueError", "boom")
    assert "ValueError: boom" in sent.traceback
    assert isinstance(runtime.loads(sent.error), ValueError)
    assert len(link.answers) == 1
    assert isinstance(runtime.loads(fail(session, link, Awkward(1, "x")).error), Awkward)


def test_an_exception_that_cannot_travel_goes_as_text(make_session: MakeSession):
    session, link = make_session(Ack(), Ack())
    error = NoJourney("boom")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    sent = fail(session, link, error)
    assert (sent.error, sent.class_name, sent.text) == (b"", "NoJourney", "boom")


def test_interrupt_raises_in_the_training_function_only(make_session: MakeSession):
    session, _ = make_session()
    session.interrupt()
    assert not session.interrupted
    blocked = threading.Event()
    threading.Timer(0.05, lambda: session.interrupt()).start()
    with pytest.raises(KeyboardInterrupt), session.interruptible():
        blocked.wait(30)
    assert session.interrupted


def test_R1_the_rendezvous_names_run_and_attempt(make_session: MakeSession):
    session, link = make_session(Master("10.0.0.1", 4711))
    meeting = ChannelRendezvous(session)
    assert meeting.key_prefix == "run/3"
    meeting.publish("10.0.0.1", 4711)
    assert meeting.lookup(5.0) == ("10.0.0.1", 4711)
    assert link.sent == [Publish("10.0.0.1", 4711), AskMaster()]


def test_a_rendezvous_that_fails_is_told(make_session: MakeSession):
    session, _ = make_session(GetTimeoutError("no item"), rank=1)
    with pytest.raises(RendezvousError, match=r"rank 0 did not publish its address within 5 s \(told to rank 1, attempt 3\)"):
        ChannelRendezvous(session).lookup(5.0)
