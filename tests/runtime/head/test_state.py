"""The tables, and what is collected in a step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from runtime.errors import ArgumentError
from runtime.head.events import Log, Reply, ReplyError, Send
from runtime.head.job import JOB_TABLE, JobState
from runtime.head.lifecycle import IllegalTransitionError
from runtime.head.state import Settings, State
from runtime.limits import Limits
from runtime.wire import messages as wire


def make(**settings: Any) -> State:
    return State(Settings(Limits(), embedded=False, head_epoch=1, **settings))


def test_in_production_an_illegal_move_is_logged_and_ignored() -> None:
    thing = SimpleNamespace(state=JobState.CLOSED, table=JOB_TABLE)
    state = make()
    assert not state.move(thing, JobState.OPEN)
    assert thing.state is JobState.CLOSED
    [log] = state.take_out()
    assert isinstance(log, Log) and log.level == "error" and "CLOSED -> OPEN" in log.text
    with pytest.raises(IllegalTransitionError):
        make(strict=True).move(thing, JobState.OPEN)


def test_one_way_messages_are_not_answered_and_nobody_is_not_written_to() -> None:
    state = make()
    state.send(None, wire.Ok())
    state.reply(1, 0)
    assert state.take_out() == []
    state.send(1, wire.Ok())
    state.reply(1, 7)
    error = ArgumentError("no")
    state.refuse(1, 8, error)
    state.refuse(1, 0, error)
    assert state.take_out() == [Send(1, wire.Ok()), Reply(1, 7, wire.Ok()), ReplyError(1, 8, error),
                                Log("warning", "ignored a message of connection 1: no")]
    assert state.take_out() == []


def test_the_dead_are_remembered_with_their_cause_but_not_their_output(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    driver.create("x", names=("n",))
    a.exited("x", "signal", signal="SIGKILL", log_tail=("line",), error=b"e")
    info = world.request(driver.conn, wire.FindActor(actor_id="x"))
    assert (info.status.state, info.status.evidence.signal, info.class_name, info.node) == ("DEAD", "SIGKILL", "Worker", a.facts)
    assert (info.status.evidence.log_tail, info.status.evidence.error) == ((), b"")


def test_news_go_once_to_an_owner_that_also_watches(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    other = world.driver("job-2")
    driver.create("x")
    for client in (driver, other):
        world.request(client.conn, wire.FindActor(actor_id="x"))
        client.take()
    a.ready("x")
    assert len(driver.take(wire.ActorsChanged)) == len(other.take(wire.ActorsChanged)) == 1
    a.exited("x")
    assert other.states() == {"x": "DEAD"}
    assert not world.state.clients[other.conn].watching


def test_a_watcher_that_left_is_forgotten(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    other = world.driver("job-2")
    driver.create("x")
    world.request(other.conn, wire.FindActor(actor_id="x"))
    world.lose(other.conn)
    assert not world.state.actors["x"].watchers
    a.ready("x")
