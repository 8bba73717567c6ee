"""What the brain knows: its tables, and the orders it has collected in this step.

Every table is bounded by what is alive, but for those that remember: ``dead`` (limits.dead_actors_kept), ``buried`` and ``runs``.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from runtime.errors import HeadwayError
from runtime.head.actor import Actor, ActorState
from runtime.head.events import Close, Command, Log, Reply, ReplyError, Send
from runtime.head.group import Group, GroupState
from runtime.head.job import Job, Owner
from runtime.head.lifecycle import IllegalTransitionError, Record, move
from runtime.head.node import Node
from runtime.limits import Limits
from runtime.wire.messages import ActorInfo, ActorsChanged, ExitEvidence, Hello, Message, NodeFacts, NodeStatus, Ok, RunStatus

__all__ = ["Client", "Settings", "State"]

# Parts of an exit's evidence beyond these are cut, and news is divided, so that no message nears limits.max_control_bytes: a character
# is at most 4 bytes there.
MAX_TAIL_CHARS = 64 * 1024
MAX_ERROR_BYTES = 128 * 1024
MAX_NEWS_CHARS = 128 * 1024

# Dead nodes that ListNodes still shows: enough to see what happened to a cluster, whose nodes die rarely.
BURIED_NODES_KEPT = 100


@dataclass(frozen=True, slots=True)
class Settings:
    """What is fixed for the life of a head.

    ``embedded``: the cluster can't grow. ``loopback_only``: nobody off this host reaches the head. ``strict``: illegal transitions raise
    (tests) instead of being logged and ignored.
    """

    limits: Limits
    embedded: bool
    head_epoch: int
    host_id: str = ""
    python: str = ""
    loopback_only: bool = True
    strict: bool = False


@dataclass(slots=True, eq=False)
class Client:
    """An open connection, and who it turned out to be: a node's daemon, or a driver or actor."""

    conn: int
    hello: Hello
    node: Node | None = None
    owner: Owner | None = None
    reading: set[str] = field(default_factory=set)  # ids of nodes that were asked for logs


class State:
    """All tables of the head, and ``out``, the commands of the current step."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.limits = settings.limits
        self.clients: dict[int, Client] = {}
        self.nodes: dict[str, Node] = {}
        self.jobs: dict[str, Job] = {}
        self.groups: dict[str, Group] = {}
        self.actors: dict[str, Actor] = {}
        self.names: dict[tuple[str, str], Actor] = {}  # by namespace and name, the living ones
        self.pending: dict[str, Group] = {}  # groups that wait for resources, oldest first
        self.hungry: dict[str, Group] = {}  # reserved groups with actors that wait for room in their bundle
        self.dead: OrderedDict[str, ActorInfo] = OrderedDict()
        self.buried: deque[NodeStatus] = deque(maxlen=BURIED_NODES_KEPT)
        self.runs: OrderedDict[tuple[str, str], RunStatus] = OrderedDict()  # by job id and name, those that are over too
        self.incarnations = 0  # of nodes; one counter for all, so that a later one is always greater
        self.inventory_version = 0  # changes with every node that comes or goes
        self.shutting_down = False
        self.last_tick: float | None = None
        self.reasons_due: float | None = None  # when the reasons of pending groups are looked at again
        # Work that this step still has to do, see Cluster._settle.
        self.capacity_freed = False
        self.touched_groups: dict[str, Group] = {}
        self.changed_actors: dict[str, Actor] = {}
        self.out: list[Command] = []

    # ---- orders ----

    def send(self, conn: int | None, message: Message, buffers: Sequence[bytes | memoryview] = ()) -> None:
        """One-way message; nothing when there is no connection now."""
        if conn is not None:
            self.out.append(Send(conn, message, buffers))

    def reply(self, conn: int, call_id: int, message: Message | None = None) -> None:
        """Answer a request (with Ok when there is nothing to say); nothing when it was a one-way message."""
        if call_id > 0:
            self.out.append(Reply(conn, call_id, message or Ok()))

    def refuse(self, conn: int, call_id: int, error: HeadwayError) -> None:
        """Answer a request with an error; a one-way message leaves a line in the log."""
        if call_id > 0:
            self.out.append(ReplyError(conn, call_id, error))
        else:
            self.log("warning", f"ignored a message of connection {conn}: {error}")

    def close(self, conn: int, reason: str) -> None:
        """Close a connection; its PeerLost follows."""
        self.out.append(Close(conn, reason))

    def log(self, level: str, text: str) -> None:
        """A line for the head's log."""
        self.out.append(Log(level, text))

    def take_out(self) -> list[Command]:
        """The collected commands, in order."""
        out, self.out = self.out, []
        return out

    # ---- transitions ----

    def move(self, record: Record, state: StrEnum) -> bool:
        """Enter a state; False, and a line in the log, when the record's table does not allow it."""
        try:
            move(record, state)
        except IllegalTransitionError as exc:
            if self.settings.strict:
                raise
            self.log("error", f"ignored: {exc}")
            return False
        return True

    # ---- owners and groups ----

    def end_owner(self, owner: Owner, reason: str) -> None:
        """Nothing is taken from this owner any more, and nothing told to it."""
        owner.ended = reason
        owner.missed.clear()
        for actor in self.watched(owner):
            actor.watchers.pop(owner, None)
        owner.watching.clear()
        if owner.conn is not None and owner.actor_id:
            self.close(owner.conn, reason)

    def watched(self, owner: Owner) -> list[Actor]:
        """The actors that the owner asked for by FindActor."""
        return [self.actors[actor_id] for actor_id in sorted(owner.watching) if actor_id in self.actors]

    def tell(self, owner: Owner, message: Message, *, last: bool) -> None:
        """News for an owner. The last of a thing waits for an owner whose connection is lost: nothing in the tables will tell it again."""
        if owner.conn is not None:
            self.send(owner.conn, message)
        elif last and not owner.ended:
            owner.missed.append(message)

    def tell_group(self, group: Group, error: str = "") -> None:
        """Send the group's state to its owner."""
        self.tell(group.owner, group.changed(error), last=group.state is GroupState.RELEASED)

    def touch(self, group: Group) -> None:
        """Have the step look at the end whether the group is finished."""
        self.touched_groups[group.group_id] = group

    def free_bundles(self, group: Group) -> None:
        """Give everything that the group reserved back to its nodes."""
        for bundle in group.bundles:
            if bundle.node is not None and bundle.lease is not None:
                bundle.node.ledger.release(bundle.lease)
            bundle.node = bundle.lease = bundle.ledger = None
        self.capacity_freed = True

    def release(self, group: Group, reason: str, error: str = "") -> None:
        """The group's end: resources back, its owner and who waits for it told, and it is forgotten."""
        if not self.move(group, GroupState.RELEASED):
            return
        self.pending.pop(group.group_id, None)
        self.hungry.pop(group.group_id, None)
        self.free_bundles(group)
        group.reason = reason
        self.tell_group(group, error)
        for conn, call_id in group.waiters:
            self.reply(conn, call_id)
        del self.groups[group.group_id]
        del group.job.groups[group.group_id]
        self.touched_groups.pop(group.group_id, None)
        for actor_id in group.actors:
            self.actors.pop(actor_id, None)

    # ---- actors ----

    def bury(self, actor: Actor, evidence: ExitEvidence) -> None:
        """The actor is DEAD of this: its name and what it drew from its bundle are free, its owner will be told."""
        node = actor.node
        facts = node.facts if node else None
        actor.evidence = replace(_bounded(evidence), label=actor.spec.label, pid=evidence.pid or actor.pid,
                                 log_path=evidence.log_path or actor.log_path, node_name=facts.name if facts else "",
                                 host=facts.host if facts else "")
        if not self.move(actor, ActorState.DEAD):
            return
        actor.give_back()
        self.capacity_freed = True
        if node is not None:
            node.actors.pop(actor.id, None)
        key = (actor.namespace, actor.spec.name)
        if self.names.get(key) is actor:
            del self.names[key]
        kept = replace(actor.status(), evidence=replace(actor.evidence, log_tail=(), error=b""))  # the long parts went to the owner
        self.dead[actor.id] = ActorInfo(kept, actor.spec.class_name, facts)
        while len(self.dead) > self.limits.dead_actors_kept:
            self.dead.popitem(last=False)
        self.changed_actors[actor.id] = actor
        self.touch(actor.group)

    def flush_actors(self) -> None:
        """One ActorsChanged a group to its owner, and to others for the actors that they asked for."""
        changed, self.changed_actors = self.changed_actors, {}
        news: dict[tuple[Owner, str], list[Actor]] = {}
        for actor in changed.values():
            for owner in {actor.group.owner: None, **actor.watchers}:
                news.setdefault((owner, actor.group.group_id), []).append(actor)
            if actor.state is ActorState.DEAD:
                for owner in actor.watchers:
                    owner.watching.discard(actor.id)
                actor.watchers.clear()
        for (owner, group_id), actors in news.items():
            for part in _divided(actors):
                nodes: dict[str, NodeFacts] = {actor.node.facts.node_id: actor.node.facts for actor in part if actor.node}
                self.tell(owner, ActorsChanged(group_id, tuple(actor.status() for actor in part), tuple(nodes.values())),
                          last=any(actor.state is ActorState.DEAD for actor in part))


def _bounded(evidence: ExitEvidence) -> ExitEvidence:
    """The evidence without what is too long to be passed on: the oldest log lines, a huge exception."""
    room, tail = MAX_TAIL_CHARS, list[str]()
    for line in reversed(evidence.log_tail):
        room -= len(line)
        if room < 0:
            break
        tail.append(line)
    return replace(evidence, log_tail=tuple(reversed(tail)), error=evidence.error if len(evidence.error) <= MAX_ERROR_BYTES else b"")


def _divided(actors: list[Actor]) -> Iterator[list[Actor]]:
    """The actors in parts whose news fits into one message each; nearly always one part."""
    part, chars = list[Actor](), 0
    for actor in actors:
        evidence = actor.evidence
        size = 512 + (sum(map(len, evidence.log_tail)) + len(evidence.error) if evidence else 0)
        if part and chars + size > MAX_NEWS_CHARS:
            yield part
            part, chars = [], 0
        part.append(actor)
        chars += size
    yield part
