"""Handles: methods, pickling, finding, killing."""

from __future__ import annotations

import gc
import pickle
from typing import Any

import pytest

from runtime.client.handle import ActorHandle, get_actor, kill, methods_of
from runtime.client.object_ref import get
from runtime.errors import ActorNotFoundError, ArgumentError, ArgumentTypeError
from runtime.wire.messages import ActorInfo, ActorsChanged, ActorStatus, ExitEvidence, FindActor, Ok, StopActorsOf


class Counter:
    kind = "counter"

    def add(self) -> None: ...

    def _private(self) -> None: ...

    @staticmethod
    def static() -> None: ...

    @property
    def value(self) -> int:
        return 1


def test_methods_are_what_can_be_called() -> None:
    assert methods_of(Counter) == {"add", "_private", "static"}


def test_unknown_and_uncalled_methods_are_told(handle: ActorHandle) -> None:
    known = ActorHandle(handle._actor_id, "Counter", frozenset({"add"}), handle._found)
    assert repr(known.add) == "<ActorMethod Counter.add>"
    assert "add" in dir(known)
    with pytest.raises(AttributeError, match="actor class 'Counter' has no method 'sub'"):
        known.sub  # noqa: B018
    assert not hasattr(handle, "_repr_html_")
    with pytest.raises(ArgumentTypeError, match=r"write add.remote\(…\)"):
        known.add(1)


def test_a_handle_that_was_sent_finds_its_actor(cluster: Any, session: Any, handle: ActorHandle) -> None:
    cluster.actor().ready()
    copy = pickle.loads(pickle.dumps(handle))
    assert copy == handle
    assert hash(copy) == hash(handle)
    assert copy._link() is handle._link()  # one link an actor: order holds across handles
    session.links.clear()
    other = pickle.loads(pickle.dumps(handle))
    assert get(other.f.remote(1), timeout=10) == ("f", (1,))
    assert cluster.wait_request(FindActor).actor_id == handle._actor_id


def test_get_actor(cluster: Any, handle: ActorHandle) -> None:
    cluster.actor().ready()
    found = get_actor("bob", namespace="n")
    request = cluster.wait_request(FindActor)
    assert (request.name, request.namespace) == ("bob", "n")
    assert get(found.anything.remote(), timeout=10) == ("anything", ())
    cluster.answers[FindActor] = lambda message: ActorNotFoundError("no alice")
    with pytest.raises(ValueError, match="no alice"):
        get_actor("alice")


def test_A2_a_call_outlives_the_last_handle(cluster: Any, session: Any, handle: ActorHandle) -> None:
    session.living.clear()
    session.links.clear()
    cluster.answers[FindActor] = lambda message: ActorInfo(ActorStatus(handle._actor_id, 1, "STARTING"), "Fake")
    ref = get_actor("bob").f.remote()
    gc.collect()
    cluster.actor().ready()
    assert get(ref, timeout=10) == ("f", ())


def test_kill_asks_the_head(cluster: Any, handle: ActorHandle) -> None:
    cluster.answers[StopActorsOf] = lambda message: (cluster.io.loop.call_later(0.05, die), Ok())[1]

    def die() -> None:
        status = ActorStatus(handle._actor_id, 1, "DEAD", evidence=ExitEvidence("killed", wanted=True))
        cluster.peers[-1].notify(ActorsChanged("g", (status,)))

    kill(handle)
    assert handle._found.failure is not None  # type: ignore[union-attr]
    request = cluster.wait_request(StopActorsOf)
    assert request.actor_ids == (handle._actor_id,)
    assert request.grace_s == 0.0


@pytest.mark.parametrize(("call", "error"), [
    (lambda handle: kill("bob"), ArgumentTypeError), (lambda handle: kill(handle, no_restart=False), ArgumentError),
    (lambda handle: get_actor(3), ArgumentTypeError), (lambda handle: get_actor(""), ArgumentError),
    (lambda handle: get_actor(None), ArgumentTypeError), (lambda handle: get_actor("x", namespace=3), ArgumentTypeError),
])
def test_bad_arguments(handle: ActorHandle, call: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        call(handle)
