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
    assert not world.state.clients[other.conn].owner.watching


def test_a_watcher_whose_job_is_closed_is_forgotten(world: Any) -> None:
    a, driver = world.node("a"), world.driver()
    other = world.driver("job-2")
    driver.create("x")
    world.request(other.conn, wire.FindActor(actor_id="x"))
    other.close()
    a.sweep()
    assert not world.state.actors["x"].watchers
    other.take()
    a.ready("x")
    assert other.take() == []


def test_who_comes_back_hears_what_it_missed_of_what_is_gone(world: Any) -> None:
    """Of its own, and of what it had asked for; nothing of it is in the tables any more."""
    a, driver, other = world.node("a"), world.driver(), world.driver("job-2", pid=5)
    driver.create("x", group="g1")
    driver.create("y", group="g2")
    for actor_id in "xy":
        world.request(other.conn, wire.FindActor(actor_id=actor_id))
    for client in (driver, other):
        client.take()
        world.lose(client.conn)
    a.exited("x", "signal", signal="SIGKILL", log_tail=("last words",))
    a.ready("y")
    for client in (driver, other):
        client.reconnect()
        statuses = client.statuses()
        assert {key: status.state for key, status in statuses.items()} == {"x": "DEAD", "y": "READY"}
        assert statuses["x"].evidence.log_tail == ("last words",)
    assert driver.group_states() == [("RELEASED", ""), ("RESERVED", "")]
    assert not any(owner.missed for job in world.state.jobs.values() for owner in job.owners.values())
