"""Faults on purpose, for tests: messages that a peer sends get lost, late or doubled, by class."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from runtime.wire.messages import Message
from runtime.wire.peer import Peer

__all__ = ["Faults"]

Send = Callable[[], None]


class Faults:
    """From here on what ``peer`` sends passes through this; ``heal()`` delivers what was held and ends it."""

    def __init__(self, peer: Peer) -> None:
        self.sent: list[Message] = []  # all that the peer meant to send
        self._peer = peer
        self._send = peer._connection.send
        self._rules: dict[type[Message], Callable[[Send], object]] = {}
        self._held: list[Send] | None = None
        peer._connection.send = self._pass  # type: ignore[method-assign]  # the one place that every message goes through

    def drop(self, *kinds: type[Message]) -> None:
        """Messages of these classes are never sent."""
        self._rules.update(dict.fromkeys(kinds, lambda send: None))

    def duplicate(self, *kinds: type[Message]) -> None:
        """Messages of these classes are sent twice."""

        def twice(send: Send) -> None:
            send()
            send()

        self._rules.update(dict.fromkeys(kinds, twice))

    def delay(self, delay_s: float, *kinds: type[Message]) -> None:
        """Messages of these classes are sent ``delay_s`` later, behind others."""
        loop = asyncio.get_running_loop()
        self._rules.update(dict.fromkeys(kinds, lambda send: loop.call_later(delay_s, send)))

    def hold(self) -> None:
        """Nothing is sent until ``heal()``: a partition that the connection survives."""
        self._held = []

    def heal(self) -> None:
        """Send what was held; no more faults."""
        held, self._held = self._held or [], None
        self._rules.clear()
        for send in held:
            send()

    def _pass(self, message: Message, buffers: Sequence[Any] = (), call_id: int = 0) -> None:
        def send() -> None:
            if self._peer.is_open:
                self._send(message, buffers, call_id)
                self._peer._transport.flush_soon()

        self.sent.append(message)
        if self._held is not None:
            self._held.append(send)
        elif (rule := self._rules.get(type(message))) is not None:
            rule(send)
        else:
            self._send(message, buffers, call_id)
