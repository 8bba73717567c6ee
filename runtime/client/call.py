"""One call of an actor's method, from the caller's thread to the reference that it settles."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from typing import Any

from runtime.client.actor_link import ActorLink, Failure
from runtime.client.object_ref import ObjectRef, failed, pickled
from runtime.client.serialization import Buffer, Placeholder, dumps, dumps_call, join_call
from runtime.client.task_error import from_call_error
from runtime.errors import FencedError, HeadwayError, ProtocolError, TaskCancelledError
from runtime.wire.messages import Call, CallError, Result
from runtime.wire.peer import Peer, Received

__all__ = ["MethodCall", "call_method"]


def call_method(link: ActorLink, class_name: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ObjectRef:
    """Queue the call and return at once. References among the arguments are replaced by their values when these have come."""
    session = link.session
    session.check_open()
    what = f"{class_name}.{method}"
    pending: list[ObjectRef] = []
    if any(type(value) is ObjectRef for value in (*args, *kwargs.values())):
        args = tuple(_resolved(value, pending) for value in args)
        kwargs = {name: _resolved(value, pending) for name, value in kwargs.items()}
    call = MethodCall(ObjectRef(what), method, dumps_call(args, kwargs, what=what), pending)
    session.io.post(link.submit, call)
    for ref in pending:
        ref.add_done_callback(lambda ref: session.io.post(link.pump))
    return call.ref


def _resolved(value: Any, pending: list[ObjectRef]) -> Any:
    if type(value) is not ObjectRef:
        return value
    outcome = value.outcome()
    if outcome is not None and outcome.buffers is None and not outcome.is_error():
        return value.result()  # loaded already
    pending.append(value)
    return Placeholder(len(pending) - 1)


class MethodCall:
    """An operation of the actor's link."""

    __slots__ = ("_buffers", "_link", "_pending", "method", "ref")

    def __init__(self, ref: ObjectRef, method: str, buffers: list[Buffer], pending: list[ObjectRef]) -> None:
        self.ref = ref
        self.method = method
        self._buffers = buffers
        self._pending = pending

    def is_ready(self) -> bool:
        """All arguments are here."""
        return all(ref.done() for ref in self._pending)

    def send(self, link: ActorLink, peer: Peer) -> None:
        """Send it, unless an argument is a call that failed: then so has this one."""
        if self._pending:
            broken = next((outcome for ref in self._pending if (outcome := ref.outcome()) is not None and outcome.is_error()), None)
            if broken is not None:
                self.ref.settle(broken)
                return
            self._buffers = join_call(self._buffers, [_pickle_of(ref) for ref in self._pending])
        future = peer.request(Call(self.method), self._buffers)
        self._buffers, self._pending = [], []
        future.add_done_callback(functools.partial(self._answered, link, peer.epoch))

    def fail(self, failure: Failure) -> None:
        """It gets no answer."""
        self.ref.settle(failed(failure))

    def _answered(self, link: ActorLink, incarnation: int, future: asyncio.Future[Received]) -> None:
        if future.cancelled():
            self.ref.settle(failed(TaskCancelledError(f"{self.ref.what} was cancelled.")))
            return
        error = future.exception()
        if error is not None:
            link.fail_sent(self, error if isinstance(error, HeadwayError) else HeadwayError(f"{self.ref.what}: {error!r}"))
            return
        received = future.result()
        message, buffers = received.message, received.buffers
        if received.epoch != incarnation:
            text = f"{self.ref.what} was answered by incarnation {received.epoch} of the actor; the current one is {incarnation}."
            self.ref.settle(failed(FencedError(text)))
        elif isinstance(message, Result):
            self.ref.settle(pickled(buffers, self.ref.what))
        elif isinstance(message, CallError):
            where = f"{self.ref.what} on {link.node.name}" if link.node is not None else self.ref.what
            self.ref.settle(failed(lambda: from_call_error(message, buffers, where)))
        else:
            self.ref.settle(failed(ProtocolError(f"{self.ref.what} was answered with {type(message).__name__}.")))


def _pickle_of(ref: ObjectRef) -> Sequence[Buffer]:
    outcome = ref.outcome()
    assert outcome is not None, ref
    buffers = outcome.buffers  # gone once somebody has loaded the value
    return buffers if buffers is not None else dumps(outcome.value(), what=f"the result of {ref.what}")
