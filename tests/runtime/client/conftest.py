"""A head and actors that do what a test tells them, on sockets of their own, and a session with them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.client import init as init_module
from runtime.client.actor_link import ActorLink
from runtime.client.handle import ActorHandle
from runtime.client.io_thread import IoThread
from runtime.client.serialization import dumps, dumps_error, loads
from runtime.client.session import Session
from runtime.ids import ActorId, JobId
from runtime.wire.messages import (
    ActorInfo,
    ActorsChanged,
    ActorStatus,
    Call,
    CallError,
    CreateActors,
    ExitEvidence,
    FindActor,
    JobOpened,
    ListNodes,
    Message,
    NodeFacts,
    NodeList,
    NodeStatus,
    Ok,
    OpenJob,
    Result,
    Subscribe,
)
from runtime.wire.peer import Identity, Listener, Peer, Received, host_id, listen

TOKEN = b"t" * 32
NODE = NodeFacts(node_id="n1", name="node-a", host_id=host_id(), pid=1, host="127.0.0.1", port=0, interface="lo", resources={"CPU": 4.0},
                 labels={})


class FakeActor:
    """Answers calls with ``behave(method, args, kwargs)``; None leaves them unanswered. ``calls``: what arrived, in order."""

    def __init__(self, cluster: FakeCluster, actor_id: str) -> None:
        self.cluster = cluster
        self.actor_id = actor_id
        self.path = str(cluster.folder / actor_id[:8])
        self.calls: list[tuple[str, Any, Any]] = []
        self.received: list[Received] = []
        self.peers: list[Peer] = []
        self.arrived = threading.Semaphore(0)
        self.behave: Callable[[str, Any, Any], Any] = lambda method, args, kwargs: (method, args)
        self.epoch = 1
        self.listener: Listener | None = None

    async def listen(self) -> None:
        self.listener = await listen([f"unix:{self.path}"], token=TOKEN, identity=Identity("actor", "fake"), on_peer=self._greet)

    def _greet(self, peer: Peer) -> None:
        peer.epoch = self.epoch
        self.peers.append(peer)
        peer.on_message, peer.on_close = self._receive, lambda peer, error: self.peers.remove(peer)

    def _receive(self, peer: Peer, received: Received) -> None:
        self.received.append(received)
        if isinstance(received.message, Subscribe):
            peer.reply(received.call_id, Ok())
        elif isinstance(received.message, Call):
            args, kwargs = loads(received.buffers)
            self.calls.append((received.message.method, args, kwargs))
            try:
                result = self.behave(received.message.method, args, kwargs)
            except Exception as exc:
                peer.reply(received.call_id, CallError(type(exc).__name__, str(exc), "the traceback"), [dumps_error(exc)])
            else:
                if result is not None:
                    peer.reply(received.call_id, Result(), dumps(result, what="result"))
        self.arrived.release()

    def wait_arrived(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.arrived.acquire(timeout=10)

    def ready(self) -> None:
        """Listen, and have the head say that it is ready."""
        self.cluster.run(self.listen())
        self.status("READY", pid=77, unix_path=self.path, log_path="/logs/x")

    def status(self, state: str, evidence: ExitEvidence | None = None, **facts: Any) -> None:
        status = ActorStatus(self.actor_id, 1, state, node_id="n1", evidence=evidence, **facts)
        self.cluster.send(ActorsChanged("g", (status,), (NODE,)))

    def die(self, evidence: ExitEvidence | None = None) -> None:
        """The process is gone, and the head says so."""
        self.hang_up()
        self.status("DEAD", evidence or ExitEvidence("signal", signal="SIGKILL", detail="killed by SIGKILL", pid=77, node_name="node-a"))

    def hang_up(self) -> None:
        self.cluster.call(lambda: [peer._transport.abort() for peer in list(self.peers)])

    def send(self, message: Message, buffers: Any = ()) -> None:
        self.cluster.call(lambda: self.peers[-1].notify(message, buffers))


class FakeCluster:
    """A head that accepts all. ``requests``: what arrived; ``answers``: by message class, what to reply instead of Ok."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.io = IoThread()
        self.requests: list[Message] = []
        self.arrived = threading.Condition()
        self.answers: dict[type[Message], Callable[[Any], Message | Exception | None]] = {
            OpenJob: lambda message: JobOpened(self.head_epoch, False),
            ListNodes: lambda message: NodeList((NodeStatus(NODE, "ALIVE", {"CPU": 3.0}),)),
            FindActor: self._find,
        }
        self.peers: list[Peer] = []
        self.head_epoch = 5
        self.actors: dict[str, FakeActor] = {}
        self.address = f"unix:{folder}/head"
        self.listener: Listener | None = None

    async def listen(self) -> None:
        self.listener = await listen([self.address], token=TOKEN, identity=Identity("head", "fake"), on_peer=self._greet)

    def _greet(self, peer: Peer) -> None:
        self.peers.append(peer)
        peer.on_message, peer.on_close = self._receive, lambda peer, error: self.peers.remove(peer)

    def _receive(self, peer: Peer, received: Received) -> None:
        message = received.message
        if isinstance(message, CreateActors):
            for spec in message.actors:
                self.actors.setdefault(spec.actor_id, FakeActor(self, spec.actor_id))
        answer = self.answers.get(type(message), lambda message: Ok())(message)
        if received.call_id and isinstance(answer, Exception):
            peer.reply_error(received.call_id, answer)  # type: ignore[arg-type]
        elif received.call_id and answer is not None:
            peer.reply(received.call_id, answer)
        with self.arrived:
            self.requests.append(message)
            self.arrived.notify_all()

    def _find(self, message: FindActor) -> Message:
        actor = next(actor for actor in self.actors.values() if message.actor_id in ("", actor.actor_id))
        return ActorInfo(ActorStatus(actor.actor_id, 1, "READY", "n1", 77, actor.path), "Fake", NODE)

    def call(self, action: Callable[[], Any]) -> Any:
        async def run() -> Any:
            return action()

        return self.io.run(run(), "test")

    def run(self, steps: Any) -> Any:
        return self.io.run(steps, "test")

    def send(self, message: Message) -> None:
        self.call(lambda: self.peers[-1].notify(message))

    def wait_request(self, kind: type[Message], count: int = 1) -> Any:
        """The ``count``-th request of that class."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.of(kind)) >= count, 10), f"no {kind.__name__}"
        return self.of(kind)[count - 1]

    def of(self, kind: type[Message]) -> list[Any]:
        return [message for message in self.requests if isinstance(message, kind)]

    def actor(self, index: int = 0) -> FakeActor:
        """The ``index``-th actor that was asked for."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.actors) > index, 10)
        return list(self.actors.values())[index]

    def close(self) -> None:
        async def close() -> None:
            listeners = [self.listener, *(actor.listener for actor in self.actors.values())]
            for listener in listeners:
                if listener is not None:
                    await listener.close()
            for peer in [*self.peers, *(peer for actor in self.actors.values() for peer in list(actor.peers))]:
                peer.close()
                await peer.wait_closed()

        self.run(close())
        self.io.stop()


@pytest.fixture
def cluster(short_tmp: Path) -> Iterator[FakeCluster]:
    fake = FakeCluster(short_tmp)
    fake.run(fake.listen())
    yield fake
    fake.close()


@pytest.fixture
def session(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """A session with the fake cluster, the current one of this process."""
    session = Session(address=cluster.address, token=TOKEN, job_id=JobId("j" * 32), namespace="", io=IoThread(),
                      identity=Identity("driver", ""))
    session.open()
    monkeypatch.setattr(init_module, "_session", session)
    yield session
    session.close()


@pytest.fixture
def handle(cluster: FakeCluster, session: Session) -> ActorHandle:
    """A handle of an actor that is not ready yet; its fake is ``cluster.actor()``."""
    actor_id = ActorId("a" * 32)
    cluster.actors[actor_id] = FakeActor(cluster, actor_id)
    link = ActorLink(session, actor_id, "Fake")

    async def register() -> None:
        session.register(link)

    session.io.run(register(), "register")
    return ActorHandle(actor_id, "Fake", None, link)

