"""Handles of actors: ``handle.method.remote(x)``, ``handle.subscribe(name)``; ``kill`` and ``get_actor``.

A handle can be an argument of a call, or part of one: on the other side it finds the actor through the head and connects to it directly.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from runtime.client.actor_link import ActorLink
from runtime.client.arguments import checked_name
from runtime.client.call import call_method
from runtime.client.init import current_session
from runtime.client.object_ref import ObjectRef
from runtime.client.session import Session
from runtime.client.subscription import Subscription
from runtime.errors import ArgumentError, ArgumentTypeError
from runtime.ids import ActorId, short
from runtime.limits import LIMITS
from runtime.wire.messages import ActorInfo, FindActor, StopActorsOf

__all__ = ["ActorHandle", "ActorMethod", "get_actor", "kill", "methods_of"]


class ActorMethod:
    """A method of an actor; ``remote`` calls it there."""

    __slots__ = ("_handle", "_name")

    def __init__(self, handle: ActorHandle, name: str) -> None:
        self._handle = handle
        self._name = name

    def remote(self, *args: Any, **kwargs: Any) -> ObjectRef:
        """Call the method on the actor; returns at once. Calls from this process start in the order they were made (A3)."""
        return call_method(self._handle._link(), self._handle._class_name, self._name, args, kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: it would call nothing."""
        raise ArgumentTypeError(f"Methods of actors can't be called directly: write {self._name}.remote(…), and get() its result.")

    def __repr__(self) -> str:
        return f"<ActorMethod {self._handle._class_name}.{self._name}>"


class ActorHandle:
    """A handle of one actor, whose methods are its attributes."""

    def __init__(self, actor_id: ActorId, class_name: str, methods: frozenset[str] | None, link: ActorLink | None = None) -> None:
        """``methods`` None: not known, any name is tried."""
        self._actor_id = actor_id
        self._class_name = class_name
        self._methods = methods
        self._found = link

    def __getattr__(self, name: str) -> ActorMethod:
        methods = self.__dict__.get("_methods")
        # What is not known is tried, but for the names that libraries probe objects for (_repr_html_).
        if name.startswith("__") or (name.startswith("_") if methods is None else name not in methods):
            raise AttributeError(f"actor class {self.__dict__.get('_class_name')!r} has no method {name!r}")
        return ActorMethod(self, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(self._methods or ())})

    def __repr__(self) -> str:
        return f"<ActorHandle {self._class_name} {short(self._actor_id)}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and other._actor_id == self._actor_id

    def __hash__(self) -> int:
        return hash(self._actor_id)

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorHandle, (self._actor_id, self._class_name, self._methods)

    def subscribe(self, name: str, *, window: int = LIMITS.channel_window, on_item: Callable[[Any], object] | None = None,
                  on_end: Callable[[BaseException | None], object] | None = None) -> Subscription:
        """Receive what the actor sends on its channel ``name``, in order, and send to it.

        Args: window: that many items may be under way that nobody took yet. on_item, on_end: called on the I/O thread, in order; then
            ``subscription.take(n)`` tells the actor that n items are done with. Without them iterate: ``for`` or ``async for``.
        """
        checked_name("subscribe", "name", name)
        if isinstance(window, bool) or not isinstance(window, int):
            raise ArgumentTypeError(f"subscribe(window={window!r}) must be an int, not {type(window).__name__}.")
        if not 1 <= window <= LIMITS.max_array_len:
            raise ArgumentError(f"subscribe(window={window}) must be between 1 and {LIMITS.max_array_len}.")
        link = self._link()
        subscription = Subscription(link, name, window, on_item, on_end)
        link.session.post(subscription.start)
        return subscription

    def _link(self) -> ActorLink:
        link = self._found
        if link is None:
            session = current_session()
            link = self._found = session.io.run(session.find(self._actor_id, self._class_name), "find an actor")
        return link


def methods_of(cls: type) -> frozenset[str]:
    """Names of what can be called on instances of ``cls``; dunder names are not for remote callers, but for ``__call__``."""
    return frozenset(name for name in dir(cls) if (not name.startswith("__") or name == "__call__") and callable(getattr(cls, name, None)))


def get_actor(name: str, namespace: str | None = None) -> ActorHandle:
    """A handle of the living actor that was created with ``.options(name=…)``.

    Raises: ActorNotFoundError (a ValueError): there is none in this namespace.
    """
    if not checked_name("get_actor", "name", name):
        raise ArgumentTypeError("get_actor(name=None) must be a str.")
    session = current_session()
    answer = session.call(FindActor(name=name, namespace=checked_name("get_actor", "namespace", namespace) or session.namespace))
    info = answer.message
    assert isinstance(info, ActorInfo), info
    actor_id = ActorId(info.status.actor_id)
    return ActorHandle(actor_id, info.class_name, None, session.io.run(session.find(actor_id, info.class_name), "find an actor"))


def kill(actor: ActorHandle, *, no_restart: bool = True) -> None:
    """End the actor's process at once; returns when it is gone. Calls that are pending there fail with ActorDiedError.

    To kill a dead one is no error. If its node does not answer, it returns after limits.kill_wait_s.
    """
    if not isinstance(actor, ActorHandle):
        raise ArgumentTypeError(f"kill() takes an ActorHandle, not {type(actor).__name__}.")
    if not no_restart:
        raise ArgumentError("kill(no_restart=False) asks for a restart, and actors are not restarted here.")
    session: Session = current_session()
    link = actor._link()
    session.call(StopActorsOf((actor._actor_id,), 0.0, "runtime.kill() was called"))
    session.io.run(_wait_ended(link), "wait for an end")


async def _wait_ended(link: ActorLink) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LIMITS.kill_wait_s):
            await link.ended.wait()
