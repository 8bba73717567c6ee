"""Order, cancellation and closing of the mailbox."""

from __future__ import annotations

import threading
from typing import Any, cast

from runtime.actor.mailbox import Mailbox, QueuedCall
from runtime.wire.peer import Peer

CALLER = cast(Peer, object())


def _call(call_id: int, peer: Any = CALLER) -> QueuedCall:
    return QueuedCall(peer, call_id, "method", [])


def test_A3_calls_come_out_in_the_order_put() -> None:
    mailbox = Mailbox()
    calls = [_call(i) for i in range(1, 6)]
    for call in calls:
        mailbox.put(call)
    assert [mailbox.get() for _ in calls] == calls


def test_a_cancelled_call_is_left_out_and_a_started_one_is_not() -> None:
    mailbox = Mailbox()
    for i in (1, 2, 3):
        mailbox.put(_call(i))
    first = mailbox.get()
    mailbox.cancel(CALLER, 1)
    mailbox.cancel(CALLER, 2)
    mailbox.cancel(cast(Peer, object()), 3)
    assert first is not None
    assert not first.is_cancelled
    third = mailbox.get()
    assert third is not None
    assert third.call_id == 3


def test_closing_drops_what_waits_and_wakes_who_waits() -> None:
    mailbox = Mailbox()
    mailbox.put(_call(1))
    mailbox.close()
    mailbox.put(_call(2))
    assert mailbox.get() is None

    waited_for = Mailbox()
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(waited_for.get()))
    thread.start()
    waited_for.close()
    thread.join(10)
    assert got == [None]
