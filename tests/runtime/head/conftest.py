"""A brain with a fake clock, and the peers that speak to it: every step is checked against the invariants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from runtime.errors import HeadwayError
from runtime.head import events
from runtime.head.cluster import Cluster
from runtime.head.group import GroupState
from runtime.head.resources import UNIT
from runtime.limits import Limits
from runtime.wire import messages as wire

HEAD_HOST = "host-of-head"


class World:
    """A cluster's brain, its clock, and everything that it ever said to each connection."""

    def __init__(self, *, embedded: bool = False, loopback_only: bool = True, limits: Limits | None = None, python: str = "") -> None:
        self.limits = limits or Limits()
        self.cluster = Cluster(self.limits, embedded=embedded, head_epoch=77, host_id=HEAD_HOST, python=python,
                               loopback_only=loopback_only, strict=True)
        self.state = self.cluster.state
        self.now = 1000.0
        self.conns = 0
        self.calls = 0
        self.inbox: dict[int, list[wire.Message]] = {}
        self.replies: dict[int, wire.Message | HeadwayError] = {}
        self.orders: list[events.Command] = []
        self.keep_orders = True

    def do(self, event: events.Event) -> list[events.Command]:
        """One step of the brain; Close is obeyed at once."""
        commands = self.cluster.handle(event, self.now)
        for command in commands:
            match command:
                case events.Send(conn, message, _):
                    assert conn in self.inbox, f"{message} sent to an unknown connection"
                    if self.keep_orders:
                        self.inbox[conn].append(message)
                case events.Reply(_, call_id, message, _):
                    assert call_id not in self.replies, "answered twice"
                    self.replies[call_id] = message
                case events.ReplyError(_, call_id, error):
                    assert call_id not in self.replies, "answered twice"
                    self.replies[call_id] = error
        if self.keep_orders:
            self.orders += commands
            self.check()
        for command in commands:
            if isinstance(command, events.Close):
                self.lose(command.conn)
        return commands

    def check(self) -> None:
        """L1, L2, A4, and no table refers to what is not in the tables."""
        state = self.state
        taken: dict[int, Counter[str]] = {}
        gpus: dict[int, Counter[int]] = {}
        whole: dict[tuple[int, int], int] = {}
        for group in state.groups.values():
            reserved = [bundle.node is not None for bundle in group.bundles]
            assert all(reserved) or not any(reserved), "L2: reserved in part"
            assert all(reserved) == (group.state in (GroupState.RESERVED, GroupState.BROKEN))
            assert (group.state is GroupState.PENDING) == (group.group_id in state.pending)
            if group.state is GroupState.PENDING:
                assert group.reason, "a pending group has no reason"
            for bundle in group.bundles:
                if bundle.node is None or bundle.lease is None or bundle.ledger is None:
                    continue
                taken.setdefault(id(bundle.node), Counter()).update(bundle.lease.amounts)
                for gpu, units in bundle.lease.gpus.items():
                    gpus.setdefault(id(bundle.node), Counter())[gpu] += units
                    if units == UNIT:
                        whole[id(bundle.node), gpu] = whole.get((id(bundle.node), gpu), 0) + 1
                drawn: Counter[str] = Counter()
                for actor in group.actors.values():
                    if actor.source is bundle.ledger and actor.lease is not None:
                        drawn.update(actor.lease.amounts)
                for name, units in bundle.ledger.total.items():
                    assert drawn[name] + bundle.ledger.free[name] == units
        for node in state.nodes.values():
            for name, units in node.ledger.total.items():
                used = taken.get(id(node), Counter())[name]
                assert 0 <= used <= units, "L1: more reserved than there is"
                assert node.ledger.free[name] == units - used
            for gpu, units in node.ledger.total_gpus.items():
                used = gpus.get(id(node), Counter())[gpu]
                assert used <= units
                assert node.ledger.free_gpus[gpu] == units - used
                assert whole.get((id(node), gpu), 0) <= 1
        for actor in state.actors.values():
            assert (actor.state == "DEAD") == (actor.evidence is not None), "A4: dead without a cause"
            assert actor.group.group_id in state.groups
        for actor in state.names.values():
            assert actor.state != "DEAD"
        for job in state.jobs.values():
            assert all(state.groups[group_id] is group for group_id, group in job.groups.items())

    # ---- time ----

    def advance(self, seconds: float) -> None:
        """Let time pass as the shell does: a Tick whenever one is due, on time."""
        end = self.now + seconds
        while (due := self.cluster.next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.do(events.Tick())
        self.now = end

    # ---- peers ----

    def connect(self, role: str, host_id: str = "elsewhere", python: str = "3.11.7", pid: int = 1) -> int:
        self.conns += 1
        self.inbox[self.conns] = []
        self.do(events.PeerJoined(self.conns, wire.Hello(role, f"{role} {self.conns}", 1, "0", python, pid, host_id, b"")))
        return self.conns

    def lose(self, conn: int, reason: str = "reset") -> None:
        self.do(events.PeerLost(conn, reason))

    def send(self, conn: int, message: wire.Message, epoch: int = 0, buffers: Any = ()) -> None:
        self.do(events.MessageReceived(conn, message, buffers, 0, epoch))

    def begin(self, conn: int, message: wire.Message, epoch: int = 0, buffers: Any = ()) -> int:
        """A request whose answer may come later, in ``replies``."""
        self.calls += 1
        self.do(events.MessageReceived(conn, message, buffers, self.calls, epoch))
        return self.calls

    def request(self, conn: int, message: wire.Message, epoch: int = 0, buffers: Any = ()) -> Any:
        """A request that is answered at once; raises the error that it was answered with."""
        answer = self.replies[self.begin(conn, message, epoch, buffers)]
        if isinstance(answer, HeadwayError):
            raise answer
        return answer

    def take(self, conn: int, kind: type[Any] | None = None) -> list[Any]:
        """What was sent to the connection since the last time; of one kind, the others stay."""
        taken = [message for message in self.inbox[conn] if kind is None or isinstance(message, kind)]
        self.inbox[conn] = [message for message in self.inbox[conn] if not (kind is None or isinstance(message, kind))]
        return taken

    def logs(self, level: str) -> list[str]:
        return [order.text for order in self.orders if isinstance(order, events.Log) and order.level == level]

    def node(self, name: str, *, cpu: float = 4, gpu: int = 0, host: str = "127.0.0.1", node_id: str = "", **more: float) -> FakeDaemon:
        return FakeDaemon(self, name, cpu, gpu, host, node_id or f"node-{name}", more)

    def driver(self, job_id: str = "job-1", *, host_id: str = HEAD_HOST, namespace: str = "", logs: bool = True,
               pid: int = 4711) -> FakeDriver:
        return FakeDriver(self, job_id, host_id, namespace, logs, pid)

    @property
    def free(self) -> dict[str, dict[str, float]]:
        return {node.name: {name: units / UNIT for name, units in node.ledger.free.items()} for node in self.state.nodes.values()}


class FakeDaemon:
    """A node's daemon: obeys nothing by itself."""

    def __init__(self, world: World, name: str, cpu: float, gpu: int, host: str, node_id: str, more: dict[str, float]) -> None:
        self.world = world
        resources = {"CPU": cpu, **({"GPU": float(gpu)} if gpu else {}), **more}
        self.facts = wire.NodeFacts(node_id, name, f"host-of-{name}", 99, host, 7000, "lo", resources, {},
                                    tuple(f"simulated-{i}" for i in range(gpu)))
        self.incarnation = 0
        self.conn = world.connect("worker")
        self.register()

    def register(self, incarnation: int = 0, running: tuple[str, ...] = ()) -> wire.NodeAccepted:
        accepted: wire.NodeAccepted = self.world.request(self.conn, wire.RegisterNode(self.facts, incarnation, running))
        self.incarnation = accepted.incarnation
        return accepted

    def reconnect(self) -> None:
        self.conn = self.world.connect("worker")

    def send(self, message: wire.Message) -> None:
        self.world.send(self.conn, message, self.incarnation)

    def beat(self) -> None:
        self.send(wire.Heartbeat(1))

    def take(self, kind: type[Any] | None = None) -> list[Any]:
        return self.world.take(self.conn, kind)

    def started(self) -> list[wire.StartSpec]:
        return [spec for message in self.take(wire.StartActors) for spec in message.actors]

    def ready(self, *actor_ids: str, group_id: str = "g", incarnation: int = 1) -> None:
        self.send(wire.ActorsReady(group_id, tuple(wire.ActorStarted(a, incarnation, 500, f"/run/{a}", f"/log/{a}") for a in actor_ids)))

    def exited(self, actor_id: str, kind: str = "signal", incarnation: int = 1, **evidence: Any) -> None:
        self.send(wire.ActorExited(actor_id, incarnation, wire.ExitEvidence(kind, **evidence)))

    def obey_stops(self) -> list[wire.StopActors]:
        """End what was ordered to end."""
        stops = self.take(wire.StopActors)
        for stop in stops:
            for actor_id in stop.actor_ids:
                self.exited(actor_id, stop.kind)
        return stops

    def sweep(self) -> None:
        for order in self.take(wire.SweepJob):
            self.send(wire.JobSwept(order.job_id))


class FakeDriver:
    """A driver, or an actor as a client."""

    def __init__(self, world: World, job_id: str, host_id: str, namespace: str, logs: bool, pid: int) -> None:
        self.world = world
        self.job_id = job_id
        self.opening = wire.OpenJob(job_id, host_id, pid, "/cwd", ("/path",), namespace, logs)
        self.conn = world.connect("driver", host_id)
        self.opened = world.request(self.conn, self.opening)

    def reconnect(self) -> None:
        self.conn = self.world.connect("driver", self.opening.host_id)
        self.world.request(self.conn, self.opening)

    def actors_message(self, *ids: str, group: str = "g", bundles: Any = None, gang: bool = False, strategy: str = "PACK",
                       resources: Any = None, names: tuple[str, ...] = (), timeout_s: float = -1.0, share_gpus: bool = False,
                       indices: tuple[int, ...] = (), namespace: str = "") -> wire.CreateActors:
        if bundles is None:
            bundles = ({"CPU": 1.0},) * len(ids)
        specs = []
        for index, actor_id in enumerate(ids):
            bundle = indices[index] if indices else min(index, max(0, len(bundles) - 1))
            asked = resources if resources is not None else (bundles[bundle] if bundles else {})
            specs.append(wire.ActorSpec(actor_id, names[index] if names else "", f"rank {index}", "Worker", index, asked, bundle))
        return wire.CreateActors(self.job_id, group, 0, tuple(specs), tuple(bundles), strategy, gang, (), {}, namespace, share_gpus,
                                 timeout_s)

    def create(self, *ids: str, buffers: Any = (b"class",), **options: Any) -> None:
        self.world.request(self.conn, self.actors_message(*ids, **options), buffers=buffers)

    def create_group(self, *bundles: dict[str, float], group: str = "pg", strategy: str = "PACK", timeout_s: float = -1.0) -> None:
        self.world.request(self.conn, wire.CreateGroup(self.job_id, group, bundles, strategy, "", timeout_s))

    def become_actor(self, actor_id: str, epoch: int = 1) -> int:
        """A connection of the actor as a client of this job."""
        conn = self.world.connect("actor")
        message = wire.OpenJob(self.job_id, "elsewhere", 9, "/", (), "", True, actor_id)
        self.world.request(conn, message, epoch)
        return conn

    def take(self, kind: type[Any] | None = None) -> list[Any]:
        return self.world.take(self.conn, kind)

    def group_states(self) -> list[tuple[str, str]]:
        return [(message.state, message.error) for message in self.take(wire.GroupChanged)]

    def statuses(self) -> dict[str, wire.ActorStatus]:
        """The last news of each actor."""
        return {status.actor_id: status for message in self.take(wire.ActorsChanged) for status in message.actors}

    def states(self) -> dict[str, str]:
        return {actor_id: status.state for actor_id, status in self.statuses().items()}

    def close(self) -> int:
        return self.world.begin(self.conn, wire.CloseJob(self.job_id))


@pytest.fixture
def make_world() -> Callable[..., World]:
    return World


@pytest.fixture
def world() -> World:
    """A cluster that nodes join."""
    return World()
