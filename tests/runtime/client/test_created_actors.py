"""How a request for actors fares."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.client import created_actors
from runtime.client.remote import remote
from runtime.wire.messages import CreateActors, GroupChanged


@remote
class Worker:
    def f(self) -> None: ...


def test_a_long_wait_is_told_once(cluster: Any, session: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(created_actors, "NOTICE_AFTER_S", 0.02)
    handle = Worker.options(num_cpus=3).remote()
    group_id = cluster.wait_request(CreateActors).group_id
    cluster.send(GroupChanged(group_id, "PENDING", "needs 3 CPU, 1 of 4 free"))
    text = ""
    while "waits" not in text:
        text += capsys.readouterr().err
    assert text == "headway: Worker waits for resources: needs 3 CPU, 1 of 4 free\n"
    cluster.send(GroupChanged(group_id, "RESERVED"))
    cluster.actor().ready()
    assert handle.f.remote().future().result(10)


def test_a_short_wait_is_not_told(cluster: Any, session: Any, capsys: pytest.CaptureFixture[str]) -> None:
    handle = Worker.remote()
    group_id = cluster.wait_request(CreateActors).group_id
    cluster.send(GroupChanged(group_id, "PENDING", "busy"))
    cluster.send(GroupChanged(group_id, "RESERVED"))
    cluster.actor().ready()
    assert handle.f.remote().future().result(10)
    created = session.groups[group_id]
    assert created.reason == ""
    assert created._notice is None
    assert capsys.readouterr().err == ""
    cluster.send(GroupChanged(group_id, "RELEASED"))
    cluster.actor().die()
    with pytest.raises(Exception, match="SIGKILL"):
        handle.f.remote().future().result(10)
    assert group_id not in session.groups
