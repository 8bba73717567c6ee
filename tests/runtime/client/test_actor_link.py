"""The client's end of an actor: order, queueing, and that each call ends exactly once."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import numpy as np
import pytest

from runtime.client.handle import ActorHandle
from runtime.client.object_ref import get
from runtime.client.serialization import dumps
from runtime.errors import (
    ActorDiedError,
    ActorStartError,
    ConnectError,
    ConnectionLostError,
    FencedError,
    GetTimeoutError,
    NotInitializedError,
    ProtocolError,
    SerializationError,
    TaskCancelledError,
    TaskError,
)
from runtime.limits import LIMITS
from runtime.wire.messages import ActorStatus, ExitEvidence, Ok, Result


def test_calls_before_the_actor_is_ready_wait_and_go_in_order(cluster: Any, handle: ActorHandle) -> None:
    refs = [handle.f.remote(i) for i in range(50)]
    assert not any(ref.done() for ref in refs)
    cluster.actor().ready()
    refs += [handle.g.remote(i) for i in range(50)]
    assert get(refs, timeout=10) == [("f", (i,)) for i in range(50)] + [("g", (i,)) for i in range(50)]
    assert [call[:2] for call in cluster.actor().calls] == [("f", (i,)) for i in range(50)] + [("g", (i,)) for i in range(50)]


def test_A3_calls_of_one_thread_start_in_the_order_sent_also_behind_a_late_argument(cluster: Any, handle: ActorHandle) -> None:
    actor = cluster.actor()
    release: list[Any] = []
    actor.behave = lambda method, args, kwargs: release.append(1) if method == "late" else (method, args)
    actor.ready()
    late = handle.late.remote()
    refs = [handle.f.remote(late), handle.f.remote(1), handle.f.remote(2)]
    actor.wait_arrived(1)
    assert len(actor.calls) == 1
    call_id = actor.received[-1].call_id
    cluster.call(lambda: actor.peers[-1].reply(call_id, Result(), dumps("value", what="x")))
    assert get(refs, timeout=10) == [("f", ("value",)), ("f", (1,)), ("f", (2,))]


def test_references_as_arguments_are_resolved_wherever_they_come_from(cluster: Any, handle: ActorHandle) -> None:
    cluster.actor().behave = lambda method, args, kwargs: args[0] if method == "echo" else (args, kwargs)
    cluster.actor().ready()
    unloaded, loaded, big = handle.echo.remote("u"), handle.echo.remote("l"), handle.echo.remote(np.arange(100_000))
    assert get(loaded, timeout=10) == "l"
    args, kwargs = get(handle.f.remote(unloaded, 1, x=loaded, y=big), timeout=10)
    assert args == ("u", 1)
    assert kwargs["x"] == "l"
    assert kwargs["y"].sum() == np.arange(100_000).sum()


def test_a_failed_argument_fails_the_call_with_the_same_error(cluster: Any, handle: ActorHandle) -> None:
    def behave(method: str, args: Any, kwargs: Any) -> Any:
        raise KeyError("first")

    cluster.actor().behave = behave
    cluster.actor().ready()
    with pytest.raises(KeyError, match="first"):
        get(handle.g.remote(handle.f.remote()), timeout=10)
    assert [call[0] for call in cluster.actor().calls] == ["f"]


def test_references_inside_of_arguments_are_refused(cluster: Any, handle: ActorHandle) -> None:
    ref = handle.f.remote()
    with pytest.raises(SerializationError, match=r"argument 0 of Fake.g holds '\[0\]'.*ObjectRef"):
        handle.g.remote([ref])


def test_an_error_is_the_users_and_ours(cluster: Any, handle: ActorHandle) -> None:
    def behave(method: str, args: Any, kwargs: Any) -> Any:
        raise ZeroDivisionError("by zero")

    cluster.actor().behave = behave
    cluster.actor().ready()
    with pytest.raises(ZeroDivisionError) as info:
        get(handle.f.remote(), timeout=10)
    assert isinstance(info.value, TaskError)
    assert str(info.value) == "Fake.f on node-a raised ZeroDivisionError: by zero\n\nRemote traceback:\nthe traceback"


def test_A2_death_before_the_lost_connection_is_noticed(cluster: Any, handle: ActorHandle) -> None:
    actor = cluster.actor()
    actor.behave = lambda *call: None
    actor.ready()
    refs = [handle.f.remote() for _ in range(3)]
    actor.wait_arrived(3)
    actor.status("DEAD", ExitEvidence("signal", signal="SIGKILL", detail="killed by SIGKILL", pid=77, label="rank 1", node_name="node-a",
                                      log_tail=("last", "words"), log_path="/logs/x", peak_rss_bytes=7 << 20))
    actor.hang_up()
    for ref in refs:
        with pytest.raises(ActorDiedError) as info:
            get(ref, timeout=10)
        assert info.value.evidence.signal == "SIGKILL"
        text = str(info.value)
        for part in ("rank 1", "node-a", "pid 77", "killed by SIGKILL", "7 MiB", "/logs/x", "    last\n    words"):
            assert part in text
    with pytest.raises(ActorDiedError, match="SIGKILL"):
        get(handle.f.remote(), timeout=10)


def test_A2_death_after_the_lost_connection(cluster: Any, handle: ActorHandle) -> None:
    actor = cluster.actor()
    actor.behave = lambda *call: None
    actor.ready()
    ref = handle.f.remote()
    actor.wait_arrived()
    actor.die()
    with pytest.raises(ActorDiedError, match="SIGKILL"):
        get(ref, timeout=10)


def test_A2_answers_that_were_given_before_the_death_count(cluster: Any, handle: ActorHandle) -> None:
    actor = cluster.actor()
    actor.behave = lambda *call: None
    actor.ready()
    ref = handle.f.remote()
    actor.wait_arrived()
    call_id = actor.received[-1].call_id
    actor.status("DEAD", ExitEvidence("exit code", code=0))
    cluster.call(lambda: (actor.peers[-1].reply(call_id, Result(), dumps("made it", what="x")), actor.peers[-1].close()))
    assert get(ref, timeout=10) == "made it"


def test_A2_a_lost_connection_without_news_is_a_connection_error_and_the_next_call_dials_again(
        cluster: Any, session: Any, handle: ActorHandle) -> None:
    actor = cluster.actor()
    actor.behave = lambda method, args, kwargs: None if method == "stuck" else method
    actor.ready()
    stuck = handle.stuck.remote()
    actor.wait_arrived()
    peer = next(iter(session.actor_peers))
    actor.hang_up()
    session.io.run(peer.wait_closed(), "test")
    after = handle.f.remote()
    with pytest.raises(ConnectionLostError):
        get(stuck, timeout=10)
    assert get(after, timeout=10) == "f"


def test_A2_an_actor_that_cannot_be_reached(cluster: Any, handle: ActorHandle) -> None:
    actor = cluster.actor()
    actor.status("READY", pid=77, unix_path=f"{actor.path}-missing")
    with pytest.raises(ConnectError, match="actor 'Fake' is ready on node node-a, but can't be connected to: .*-missing"):
        get(handle.f.remote(), timeout=10)


def test_A2_a_node_that_died_ends_calls_without_waiting_for_the_connection(cluster: Any, session: Any, handle: ActorHandle) -> None:
    actor = cluster.actor()
    actor.behave = lambda *call: None
    actor.ready()
    ref = handle.f.remote()
    actor.wait_arrived()
    cluster.call(lambda: actor.peers[-1]._transport.pause_reading())  # its host is gone, and answers no goodbye
    next(iter(session.actor_peers))._transport._limits = LIMITS.scaled(100.0)
    actor.status("DEAD", ExitEvidence("node dead", detail="node node-a is dead: silent"))
    with pytest.raises(ActorDiedError, match="node node-a is dead"):
        get(ref, timeout=10)


def test_A2_shutdown_ends_what_is_pending(cluster: Any, session: Any, handle: ActorHandle) -> None:
    actor = cluster.actor()
    actor.behave = lambda *call: None
    queued = handle.f.remote()
    actor.ready()
    sent = handle.f.remote()
    actor.wait_arrived(2)
    session.close()
    for ref in (queued, sent):
        with pytest.raises(TaskCancelledError, match="shutdown"):
            get(ref, timeout=10)
    with pytest.raises(NotInitializedError, match="shutdown"):
        handle.f.remote()


def test_A2_a_get_that_times_out_leaves_the_call_alone(cluster: Any, handle: ActorHandle) -> None:
    ref = handle.f.remote(1)
    with pytest.raises(GetTimeoutError, match=r"Fake.f had no result within 0.01 s"):
        get(ref, timeout=0.01)
    cluster.actor().ready()
    assert get(ref, timeout=10) == ("f", (1,))


def test_a_constructor_that_raised_is_a_start_error_with_its_cause(cluster: Any, handle: ActorHandle) -> None:
    ref = handle.f.remote()
    cluster.actor().status("STARTING")
    cluster.actor().status("DEAD", ExitEvidence("start error", detail="ValueError: no", error=pickle.dumps(ValueError("no"))))
    with pytest.raises(ActorStartError, match="did not start: start error: ValueError: no") as info:
        get(ref, timeout=10)
    assert isinstance(info.value.__cause__, ValueError)
    assert info.value.evidence.kind == "start error"


def test_an_answer_of_another_incarnation_is_fenced(cluster: Any, handle: ActorHandle) -> None:
    cluster.actor().epoch = 9
    cluster.actor().ready()
    with pytest.raises(FencedError, match="incarnation 9"):
        get(handle.f.remote(), timeout=10)


def test_an_answer_that_makes_no_sense_is_a_protocol_error(cluster: Any, handle: ActorHandle) -> None:
    actor = cluster.actor()
    actor.behave = lambda *call: None
    actor.ready()
    ref = handle.f.remote()
    actor.wait_arrived()
    call_id = actor.received[-1].call_id
    cluster.call(lambda: actor.peers[-1].reply(call_id, Ok()))
    with pytest.raises(ProtocolError, match="Ok"):
        get(ref, timeout=10)


def test_old_news_does_not_undo_newer(cluster: Any, session: Any, handle: ActorHandle) -> None:
    cluster.actor().ready()
    assert get(handle.f.remote(), timeout=10)
    link = handle._found
    assert link is not None
    session.io.run(_update(link, ActorStatus(link.actor_id, 1, "PENDING")), "test")
    assert link.status is not None
    assert link.status.state == "READY"


async def _update(link: Any, status: ActorStatus) -> None:
    link.update(status, None)


def test_more_than_the_send_queue_is_sent_piece_by_piece(cluster: Any, handle: ActorHandle) -> None:
    cluster.actor().behave = lambda method, args, kwargs: int(args[0][0])
    cluster.actor().ready()
    refs = [handle.f.remote(np.full(1 << 19, i)) for i in range(16)]  # 4 MiB each, the queue takes 16
    assert get(refs, timeout=30) == list(range(16))


def test_several_threads_call_one_actor(cluster: Any, handle: ActorHandle) -> None:
    cluster.actor().ready()
    results: list[Any] = []

    def call(i: int) -> None:
        results.append((i, get([handle.f.remote(i, j) for j in range(100)], timeout=20)))

    threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [(i, [("f", (i, j)) for j in range(100)]) for i in range(4)]
    for i in range(4):
        assert [args[1] for _, args, _ in cluster.actor().calls if args[0] == i] == list(range(100))
