"""Every message that Headway's processes exchange: one frozen dataclass each, one registry.

A message travels as a msgpack array ``[code, call_id, epoch, buffers, *fields]`` (docs/wire_protocol.md). Fields are positional, in the
order declared here: new fields go to the end with a default, so that a peer of the same major version that lacks them is
still understood; surplus fields are ignored. Records are messages' parts: they have no code and travel as arrays of their fields.

Allowed field types: ``bool int float str bytes``, ``T | None``, ``tuple[T, ...]``, ``dict[str, T]``, and records.
``codec.py`` builds encoder and checking decoder from the annotations. Buffers (user bytes: pickles, large arrays) travel beside
the fields and are never looked into by head or daemon.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

__all__ = [
    "PROTOCOL", "REGISTRY", "ActorEntry", "ActorExited", "ActorInfo", "ActorSpec", "ActorStarted", "ActorStatus", "ActorUp",
    "ActorsChanged", "ActorsReady", "AskStatus", "Call", "CallError", "CancelCall", "Challenge", "CloseJob", "ClusterStatus",
    "CreateActors", "CreateGroup", "Credit", "EndChannel", "ExitEvidence", "Failed", "Fence", "FindActor", "Goodbye", "GroupChanged",
    "GroupStatus", "Heartbeat", "HeartbeatAck", "Hello", "InitFailed", "Item", "JobOpened", "JobStatus", "JobStopped", "JobSwept",
    "ListNodes", "LogEnd", "LogLines", "Message", "NodeAccepted", "NodeFacts", "NodeList", "NodeStatus", "Ok", "OpenJob", "Ping",
    "Pong", "Preload", "Proof", "ReadLog", "RegisterNode", "RemoveGroup", "Result", "RunStatus", "Setup", "StartActors", "StartSpec",
    "StopActors", "StopActorsOf", "StopReading", "StopRequested", "Subscribe", "SweepJob", "Welcome",
]

# Raised by one when a peer of the previous number could not be understood; compared at the handshake.
PROTOCOL = 1

REGISTRY: dict[int, type[Message]] = {}


class Message:
    """Base of all messages; ``code`` is the number that names the class on the wire."""

    __slots__ = ()
    code: int = 0


M = TypeVar("M", bound=type[Message])


def _message(code: int) -> Callable[[M], M]:
    """Register the class under its wire number, which is never reused for another meaning."""

    def register(cls: M) -> M:
        assert code not in REGISTRY, f"message code {code} is taken by {REGISTRY[code].__name__}"
        cls.code = code
        REGISTRY[code] = cls
        return cls

    return register


# ---- handshake (auth.py): the only messages before a connection is open ----


@_message(1)
@dataclass(frozen=True, slots=True)
class Hello(Message):
    """First message of who dialled. ``role``: head, worker, driver, actor, cli."""

    role: str
    name: str
    protocol: int
    version: str
    python: str
    pid: int
    host_id: str
    nonce: bytes
    token_id: str = ""  # first 8 hex digits of sha256(token): lets both sides name the mismatch, gives nothing away


@_message(2)
@dataclass(frozen=True, slots=True)
class Challenge(Message):
    """The listener's answer: who it is, and its nonce."""

    role: str
    name: str
    protocol: int
    version: str
    python: str
    pid: int
    host_id: str
    nonce: bytes
    token_id: str = ""


@_message(3)
@dataclass(frozen=True, slots=True)
class Proof(Message):
    """HMAC-SHA256 of the dialler over the transcript."""

    mac: bytes


@_message(4)
@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """HMAC-SHA256 of the listener over the transcript; the connection is open."""

    mac: bytes


@_message(5)
@dataclass(frozen=True, slots=True)
class Failed(Message):
    """A request failed, or the handshake was refused: an error class of errors.py and its text."""

    error: str
    text: str


# ---- every open connection ----


@_message(10)
@dataclass(frozen=True, slots=True)
class Ok(Message):
    """Done, nothing to say."""


@_message(11)
@dataclass(frozen=True, slots=True)
class Ping(Message):
    """Answered with a Pong of the same number by the connection itself."""

    seq: int


@_message(12)
@dataclass(frozen=True, slots=True)
class Pong(Message):
    """Answer to Ping."""

    seq: int


@_message(13)
@dataclass(frozen=True, slots=True)
class Goodbye(Message):
    """The sender closes on purpose."""

    reason: str


@_message(14)
@dataclass(frozen=True, slots=True)
class CancelCall(Message):
    """The caller no longer wants the answer of its call ``target``."""

    target: int


# ---- nodes: worker daemon <-> head ----


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What is fixed about a node for one incarnation of its daemon."""

    node_id: str
    name: str
    host_id: str  # boot id and network namespace: equal means Unix sockets reach it
    pid: int
    host: str  # numeric address: the local end of the daemon's connection to the head
    port: int  # the daemon's inbound TCP port
    interface: str  # name of the network interface that carries `host`
    resources: dict[str, float]
    labels: dict[str, str]
    gpus: tuple[str, ...] = ()  # UUID by index, or "simulated-0" …
    python: str = ""
    version: str = ""


@_message(20)
@dataclass(frozen=True, slots=True)
class RegisterNode(Message):
    """Join, or come back after a lost connection with the incarnation that was given then (0: new). Answer: NodeAccepted."""

    facts: NodeFacts
    incarnation: int
    running: tuple[str, ...]  # actor ids


@_message(21)
@dataclass(frozen=True, slots=True)
class NodeAccepted(Message):
    """``stop``: actors of ``running`` that the head does not want any more."""

    incarnation: int
    head_epoch: int
    stop: tuple[str, ...] = ()


@_message(22)
@dataclass(frozen=True, slots=True)
class Heartbeat(Message):
    """Daemon to head, each ``heartbeat_s``."""

    seq: int
    zygotes: tuple[str, ...] = ()  # for people: "torch: ready"


@_message(23)
@dataclass(frozen=True, slots=True)
class HeartbeatAck(Message):
    """Head to daemon: the round trip that the daemon judges the head by."""

    seq: int


@_message(24)
@dataclass(frozen=True, slots=True)
class Fence(Message):
    """Head to daemon: this incarnation was declared dead. Kill its actors at once, then register anew."""

    reason: str


@_message(25)
@dataclass(frozen=True, slots=True)
class Preload(Message):
    """Head to daemon (or driver to head, which passes it on): start a zygote for this set of modules now."""

    modules: tuple[str, ...]


@_message(26)
@dataclass(frozen=True, slots=True)
class ListNodes(Message):
    """Answer: NodeList."""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node as the head sees it. ``state``: JOINING ALIVE SUSPECT DRAINING DEAD GONE."""

    facts: NodeFacts
    state: str
    available: dict[str, float]
    zygotes: tuple[str, ...] = ()


@_message(27)
@dataclass(frozen=True, slots=True)
class NodeList(Message):
    """Answer to ListNodes."""

    nodes: tuple[NodeStatus, ...]


# ---- actors: head <-> worker daemon ----


@dataclass(frozen=True, slots=True)
class StartSpec:
    """One actor for a daemon to start."""

    actor_id: str
    incarnation: int
    name: str
    label: str  # prefix of its log lines: "rank 1", or the class name
    class_name: str
    index: int  # place in its gang, 0 for a single actor
    resources: dict[str, float]
    gpu_ids: tuple[int, ...] = ()  # its own
    visible_gpu_ids: tuple[int, ...] = ()  # what CUDA_VISIBLE_DEVICES shall hold, sorted: its own, or the gang's on this node


@_message(30)
@dataclass(frozen=True, slots=True)
class StartActors(Message):
    """All actors of one group on one node, in one message. Buffers: the pickled (class, args, kwargs), the same for all."""

    job_id: str
    group_id: str
    attempt: int
    actors: tuple[StartSpec, ...]
    preload: tuple[str, ...]
    env: dict[str, str]
    driver_host_id: str
    cwd: str
    sys_path: tuple[str, ...]
    stream_logs: bool
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class ActorStarted:
    """Where a ready actor is."""

    actor_id: str
    incarnation: int
    pid: int
    unix_path: str
    log_path: str


@_message(31)
@dataclass(frozen=True, slots=True)
class ActorsReady(Message):
    """Daemon to head, once for all actors of a StartActors whose constructors returned."""

    group_id: str
    actors: tuple[ActorStarted, ...]


@dataclass(frozen=True, slots=True)
class ExitEvidence:
    """How an actor ended, with what is known of it.

    ``kind`` is one of: exit code, signal, out of memory, start error, node dead, killed, owner gone, start time-out.
    """

    kind: str
    code: int = 0  # exit code, when kind is "exit code"
    signal: str = ""  # "SIGKILL" …
    detail: str = ""  # one sentence
    log_tail: tuple[str, ...] = ()
    log_path: str = ""
    peak_rss_bytes: int = 0
    pid: int = 0
    label: str = ""
    node_name: str = ""
    host: str = ""
    wanted: bool = False  # somebody asked for this end (stop, kill, collateral of a gang's first death)
    first: bool = False  # of its gang, the one whose death took the others with it
    error: bytes = b""  # pickled exception of a constructor; opened by the driver only


@_message(32)
@dataclass(frozen=True, slots=True)
class ActorExited(Message):
    """Daemon to head: the process is gone (or never came to be)."""

    actor_id: str
    incarnation: int
    evidence: ExitEvidence


@_message(33)
@dataclass(frozen=True, slots=True)
class StopActors(Message):
    """Head to daemon. ``grace_s`` 0: SIGKILL at once. Else: a message, (with ``sigterm``) SIGTERM, and SIGKILL after the grace."""

    actor_ids: tuple[str, ...]
    grace_s: float
    reason: str
    kind: str = "killed"  # the ExitEvidence.kind to report
    sigterm: bool = False


@_message(34)
@dataclass(frozen=True, slots=True)
class SweepJob(Message):
    """Head to daemon: the job is closed, nothing of it may be left. Answered by JobSwept when so."""

    job_id: str


@_message(35)
@dataclass(frozen=True, slots=True)
class JobSwept(Message):
    """Daemon to head."""

    job_id: str


@_message(36)
@dataclass(frozen=True, slots=True)
class LogLines(Message):
    """Daemon to head to driver: output of one actor. ``dropped``: lines left out before these by the rate limit.

    ``reader``: the answer to a ReadLog, for who sent that.
    """

    job_id: str
    actor_id: str
    label: str
    node_name: str
    lines: tuple[str, ...]
    dropped: int = 0
    log_path: str = ""
    reader: int = 0


@_message(37)
@dataclass(frozen=True, slots=True)
class LogEnd(Message):
    """Daemon to head to driver: the actor is gone and all its lines were sent; or the end of a ReadLog, ``error``: why it failed."""

    job_id: str
    actor_id: str
    reader: int = 0
    error: str = ""


# ---- a daemon and its actor (inherited socket pair, no handshake) ----


@_message(40)
@dataclass(frozen=True, slots=True)
class Setup(Message):
    """Daemon to actor: who you are. Buffers: the pickled (class, args, kwargs)."""

    spec: StartSpec
    job_id: str
    group_id: str
    attempt: int
    node: NodeFacts
    head_address: str
    token: bytes
    unix_path: str
    namespace: str = ""


@_message(41)
@dataclass(frozen=True, slots=True)
class ActorUp(Message):
    """Actor to daemon: the constructor returned, calls are accepted."""

    actor_id: str


@_message(42)
@dataclass(frozen=True, slots=True)
class InitFailed(Message):
    """Actor to daemon: class could not be loaded or its constructor raised. ``error`` is pickled, ``text`` the traceback."""

    actor_id: str
    error: bytes
    text: str


@_message(43)
@dataclass(frozen=True, slots=True)
class StopRequested(Message):
    """Daemon to actor: please end within ``grace_s``; SIGKILL follows."""

    reason: str
    grace_s: float


# ---- jobs, groups, actors: driver (or actor) <-> head ----


@_message(50)
@dataclass(frozen=True, slots=True)
class OpenJob(Message):
    """First request of a driver; an actor that becomes a client opens under its own job's id. Answer: JobOpened."""

    job_id: str
    host_id: str
    pid: int
    cwd: str
    sys_path: tuple[str, ...]
    namespace: str
    log_to_driver: bool
    owner_actor_id: str = ""  # set by actors


@_message(51)
@dataclass(frozen=True, slots=True)
class JobOpened(Message):
    """``embedded``: the cluster can't grow, so the infeasible is an error at once."""

    head_epoch: int
    embedded: bool


@_message(52)
@dataclass(frozen=True, slots=True)
class CloseJob(Message):
    """Answered with Ok when no process of the job is left. ``reason``: it is not its driver that asks; the actors have a grace."""

    job_id: str
    reason: str = ""


@_message(53)
@dataclass(frozen=True, slots=True)
class CreateGroup(Message):
    """Reserve bundles, all or none. Answered with Ok at once; GroupChanged follows. ``timeout_s`` < 0: wait for ever."""

    job_id: str
    group_id: str
    bundles: tuple[dict[str, float], ...]
    strategy: str  # PACK SPREAD STRICT_PACK STRICT_SPREAD
    name: str = ""
    timeout_s: float = -1.0


@dataclass(frozen=True, slots=True)
class ActorSpec:
    """One actor that a client asks for."""

    actor_id: str
    name: str
    label: str
    class_name: str
    index: int
    resources: dict[str, float]
    bundle: int  # of its group


@_message(54)
@dataclass(frozen=True, slots=True)
class CreateActors(Message):
    """Create actors into the group ``group_id``. Buffers: the pickled (class, args, kwargs), the same for all.

    ``bundles`` not empty: the group is made by this message and released with its last actor (a single actor is a group of one).
    Else the group exists already. ``gang``: the first member's unexpected death kills the others. Answered with Ok at once;
    GroupChanged and ActorsChanged follow.
    """

    job_id: str
    group_id: str
    attempt: int
    actors: tuple[ActorSpec, ...]
    bundles: tuple[dict[str, float], ...]
    strategy: str
    gang: bool
    preload: tuple[str, ...]
    env: dict[str, str]
    namespace: str
    share_gpus: bool = False
    timeout_s: float = -1.0


@_message(55)
@dataclass(frozen=True, slots=True)
class RemoveGroup(Message):
    """Release the group; its actors are killed after ``grace_s``. Answered with Ok when all are gone."""

    group_id: str
    grace_s: float = 0.0
    reason: str = ""


@_message(56)
@dataclass(frozen=True, slots=True)
class GroupChanged(Message):
    """Head to owner. ``state``: PENDING (always with a reason) RESERVED BROKEN RELEASED. ``error``: class name when it failed for good."""

    group_id: str
    state: str
    reason: str = ""
    node_ids: tuple[str, ...] = ()  # by bundle
    error: str = ""


@dataclass(frozen=True, slots=True)
class ActorStatus:
    """An actor as the head sees it. ``state``: PENDING STARTING READY STOPPING DEAD; DEAD has evidence."""

    actor_id: str
    incarnation: int
    state: str
    node_id: str = ""
    pid: int = 0
    unix_path: str = ""
    log_path: str = ""
    gpu_ids: tuple[int, ...] = ()
    visible_gpu_ids: tuple[int, ...] = ()
    evidence: ExitEvidence | None = None


@_message(57)
@dataclass(frozen=True, slots=True)
class ActorsChanged(Message):
    """Head to owner (and to who asked by FindActor): one message for all that changed in one step, with the nodes they are on."""

    group_id: str
    actors: tuple[ActorStatus, ...]
    nodes: tuple[NodeFacts, ...] = ()


@_message(58)
@dataclass(frozen=True, slots=True)
class StopActorsOf(Message):
    """Driver to head (kill): end these actors; answered with Ok at once, ActorsChanged follows."""

    actor_ids: tuple[str, ...]
    grace_s: float
    reason: str
    sigterm: bool = False


@_message(59)
@dataclass(frozen=True, slots=True)
class FindActor(Message):
    """By id, or by name and namespace. Answer: ActorInfo; later changes of its state follow as ActorsChanged."""

    actor_id: str = ""
    name: str = ""
    namespace: str = ""


@_message(60)
@dataclass(frozen=True, slots=True)
class ActorInfo(Message):
    """Answer to FindActor."""

    status: ActorStatus
    class_name: str
    node: NodeFacts | None = None


# ---- caller <-> actor ----


@_message(70)
@dataclass(frozen=True, slots=True)
class Call(Message):
    """Run a method. Buffers: the pickled (args, kwargs) and its out-of-band buffers. Answer: Result or CallError."""

    method: str


@_message(71)
@dataclass(frozen=True, slots=True)
class Result(Message):
    """Buffers: the pickled value and its out-of-band buffers."""


@_message(72)
@dataclass(frozen=True, slots=True)
class CallError(Message):
    """The method raised. Buffers: the pickled exception, absent when it can't be pickled."""

    class_name: str
    text: str
    traceback: str


@_message(73)
@dataclass(frozen=True, slots=True)
class Subscribe(Message):
    """Open the named channel of this actor for the sender, who picks ``channel_id``. Answered with Ok."""

    channel_id: int
    name: str
    window: int


@_message(74)
@dataclass(frozen=True, slots=True)
class Item(Message):
    """One item of a channel, in either direction. Buffers: the pickled item."""

    channel_id: int
    seq: int


@_message(75)
@dataclass(frozen=True, slots=True)
class Credit(Message):
    """The receiver of items took ``count`` of them."""

    channel_id: int
    count: int


@_message(76)
@dataclass(frozen=True, slots=True)
class EndChannel(Message):
    """No more items in this direction."""

    channel_id: int
    reason: str = field(default="")


# ---- one picture: command line, driver <-> head <-> daemon ----


@_message(80)
@dataclass(frozen=True, slots=True)
class AskStatus(Message):
    """Answer: ClusterStatus."""


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job as the head sees it. ``state``: OPEN CLOSING."""

    job_id: str
    state: str
    pid: int  # of its driver
    cwd: str
    namespace: str = ""
    is_driver_lost: bool = False


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """A group as the head sees it. ``reason``: why it, or an actor in it, waits, in words and numbers."""

    group_id: str
    job_id: str
    name: str
    state: str
    asked: str
    reason: str = ""
    since_s: float = 0.0  # how long ago it began to wait
    nodes: tuple[str, ...] = ()  # names


@dataclass(frozen=True, slots=True)
class ActorEntry:
    """An actor as the head sees it. ``gang``: it is one of several that live and die together."""

    actor_id: str
    job_id: str
    group_id: str
    name: str
    label: str
    class_name: str
    state: str
    gang: bool
    node: str = ""
    pid: int = 0
    gpu_ids: tuple[int, ...] = ()
    log_path: str = ""


@_message(82)
@dataclass(frozen=True, slots=True)
class RunStatus(Message):
    """Driver to head: where a run of its is. The head keeps the newest of each; ``job_id`` is filled in by it."""

    name: str
    state: str
    attempt: int
    world_size: int
    metrics: str = ""  # the newest, as short text
    checkpoint: str = ""  # the newest committed one
    directory: str = ""
    is_over: bool = False
    job_id: str = ""


@_message(81)
@dataclass(frozen=True, slots=True)
class ClusterStatus(Message):
    """Answer to AskStatus. Long tables are cut, those who wait first: ``num_groups`` and ``num_actors`` count all."""

    embedded: bool
    nodes: tuple[NodeStatus, ...]
    jobs: tuple[JobStatus, ...]
    runs: tuple[RunStatus, ...]
    groups: tuple[GroupStatus, ...]
    actors: tuple[ActorEntry, ...]
    num_groups: int
    num_actors: int


@_message(83)
@dataclass(frozen=True, slots=True)
class ReadLog(Message):
    """Command line to head, answered with Ok, to the actor's daemon: LogLines follow, at last LogEnd, all with ``reader``.

    ``num_lines``: of the end of the log; < 0: all of it. ``follow``: go on until the actor ends. ``stacks``: what all its threads are
    doing, instead of its log. The head fills in ``reader`` and ``log_path``.
    """

    actor_id: str
    num_lines: int = -1
    follow: bool = False
    stacks: bool = False
    reader: int = 0
    log_path: str = ""


@_message(84)
@dataclass(frozen=True, slots=True)
class StopReading(Message):
    """Head to daemon: who read is gone."""

    reader: int


@_message(85)
@dataclass(frozen=True, slots=True)
class JobStopped(Message):
    """Head to the owners of a job: somebody else closed it."""

    reason: str
