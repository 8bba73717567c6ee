"""What the head must not miss: kept until it certainly arrived, and sent again on a new connection.

Connections deliver in order, so the answer to a heartbeat proves that all that was sent before it has arrived. The head ignores what it
knows already.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from runtime.wire.messages import ActorExited, Message

__all__ = ["Outbox"]


class Outbox:
    """Messages in order, each with the number of the last heartbeat that went out before it."""

    def __init__(self) -> None:
        self._kept: deque[tuple[int, Message]] = deque()

    def keep(self, message: Message, last_seq: int) -> None:
        """Remember a message that is being sent now, or has to be once there is a connection."""
        self._kept.append((last_seq, message))

    def acknowledge(self, seq: int) -> None:
        """Heartbeat ``seq`` was answered."""
        while self._kept and self._kept[0][0] < seq:
            self._kept.popleft()

    def resend(self, send: Callable[[Message], None], last_seq: int) -> None:
        """Send all again on a new connection."""
        kept, self._kept = self._kept, deque()
        for _, message in kept:
            self.keep(message, last_seq)
            send(message)

    def clear(self) -> None:
        """Forget all: it was said by an incarnation that is dead."""
        self._kept.clear()

    @property
    def exited(self) -> tuple[str, ...]:
        """Actors whose end the head may not have heard of."""
        return tuple(message.actor_id for _, message in self._kept if isinstance(message, ActorExited))
