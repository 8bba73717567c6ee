"""The request to stop, and what there is outside of actors."""

from __future__ import annotations

import pytest

from runtime.actor import channel, context
from runtime.errors import NotInitializedError


def test_outside_of_an_actor_there_is_no_context() -> None:
    assert context.current_actor() is None
    assert context.client_parameters() is None
    assert not context.stop_requested()
    with pytest.raises(NotInitializedError, match="inside an actor"):
        context.on_stop_requested(lambda reason, grace_s: None)
    with pytest.raises(NotInitializedError, match="inside an actor"):
        channel.channel("x")


def test_each_callback_is_told_of_the_first_request_once() -> None:
    notice = context.StopNotice()
    told: list[str] = []

    def early(reason: str, grace_s: float) -> None:
        told.append(f"early {reason} {grace_s:g}")

    assert notice.add(early) is None
    assert not notice.requested
    assert notice.request("first", 3.0) == [early]
    assert notice.request("second", 1.0) == []
    assert notice.requested
    assert notice.add(lambda reason, grace_s: None) == ("first", 3.0)
