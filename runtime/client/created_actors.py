"""Actors that this client asked for in one message: how the request fares, on the I/O thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Sequence

from runtime.client.actor_link import ActorLink, Failure
from runtime.client.notice import say
from runtime.client.serialization import Buffer
from runtime.client.session import Session
from runtime.errors import by_name
from runtime.wire.messages import CreateActors, GroupChanged

__all__ = ["CreatedActors"]

# A wait shorter than this is not worth a line: resources of actors that just ended come free in milliseconds.
NOTICE_AFTER_S = 1.0


class CreatedActors:
    """The listener of the group that a CreateActors message makes."""

    def __init__(self, session: Session, message: CreateActors, buffers: Sequence[Buffer], links: Sequence[ActorLink], label: str) -> None:
        self.session = session
        self.links = list(links)
        self.accepted: concurrent.futures.Future[None] = concurrent.futures.Future()
        self.reason = ""  # why it is not placed, "" once it is
        self.on_pending: list[Callable[[str], object]] = []
        self._message = message
        self._buffers = buffers
        self._label = label
        self._notice: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Send the request."""
        for link in self.links:
            self.session.register(link)
        buffers, self._buffers = self._buffers, ()
        self.session.create(self._message, buffers, self, self._accept)

    def group_changed(self, message: GroupChanged) -> None:
        """The head says how the group is."""
        self.reason = message.reason if message.state == "PENDING" else ""
        if message.error:
            self.fail(lambda: by_name(message.error, f"{self._label}: {message.reason}"))
        elif self.reason and self.on_pending:
            for callback in list(self.on_pending):
                callback(self.reason)
        elif self.reason and self._notice is None:
            self._notice = self.session.io.loop.call_later(NOTICE_AFTER_S, self._tell_pending)
        elif not self.reason:
            self._cancel_notice()

    def fail(self, failure: Failure) -> None:
        """It was refused, or can't be placed, or the session ended."""
        self._cancel_notice()
        if not self.accepted.done():
            self.accepted.set_exception(failure())
        for link in self.links:
            link.end(failure)

    def _accept(self) -> None:
        if not self.accepted.done():
            self.accepted.set_result(None)

    def _tell_pending(self) -> None:
        if self.reason:
            say(f"{self._label} waits for resources: {self.reason}")

    def _cancel_notice(self) -> None:
        if self._notice is not None:
            self._notice.cancel()
            self._notice = None
