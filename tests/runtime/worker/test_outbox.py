"""What the head must not miss is kept until a later heartbeat was answered."""

from __future__ import annotations

from runtime.wire.messages import ActorExited, ExitEvidence, JobSwept, Message
from runtime.worker.outbox import Outbox


def test_messages_are_kept_until_a_heartbeat_sent_after_them_is_answered() -> None:
    outbox = Outbox()
    exited = ActorExited("a", 1, ExitEvidence("signal"))
    outbox.keep(exited, 3)
    outbox.keep(JobSwept("j"), 4)
    outbox.acknowledge(3)  # sent before
    assert outbox.exited == ("a",)
    outbox.acknowledge(4)
    assert outbox.exited == ()
    sent: list[Message] = []
    outbox.resend(sent.append, 9)
    assert sent == [JobSwept("j")]
    outbox.acknowledge(9)
    outbox.resend(sent.append, 9)
    assert len(sent) == 2
    outbox.acknowledge(10)
    outbox.resend(sent.append, 10)
    assert len(sent) == 2


def test_a_dead_incarnations_words_are_forgotten() -> None:
    outbox = Outbox()
    outbox.keep(ActorExited("a", 1, ExitEvidence("signal")), 0)
    outbox.clear()
    assert outbox.exited == ()
