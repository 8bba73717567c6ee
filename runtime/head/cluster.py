"""The head's brain: ``handle(event, now) -> commands``. Pure: no clock, no randomness, no I/O, so a run can be replayed from its events.

The rules are in ``membership`` (nodes), ``ownership`` (jobs), ``admission`` (requests), ``scheduling`` (groups) and ``supervision``
(actors), ``status`` answers who asks; all work on one ``State``. Here messages find their rule, and each step is brought to its end.
"""

from __future__ import annotations

from runtime.errors import HeadwayError, ProtocolError
from runtime.head import admission, membership, ownership, scheduling, status, supervision
from runtime.head.events import Command, DriverGone, Event, MessageReceived, PeerJoined, PeerLost, ShutDown, Tick
from runtime.head.state import Client, Settings, State
from runtime.limits import Limits
from runtime.wire import messages as wire

__all__ = ["Cluster"]

FROM_NODES = (wire.Heartbeat, wire.ActorsReady, wire.ActorExited, wire.LogLines, wire.LogEnd, wire.JobSwept)


class Cluster:
    """Membership, ledger, placement and names of one cluster.

    Args: as in ``Settings``.
    """

    def __init__(self, limits: Limits, *, embedded: bool, head_epoch: int, host_id: str = "", python: str = "", loopback_only: bool = True,
                 strict: bool = False) -> None:
        self.state = State(Settings(limits, embedded, head_epoch, host_id, python, loopback_only, strict))

    @property
    def is_empty(self) -> bool:
        """Whether no job is left."""
        return not self.state.jobs

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take in one event at the monotonic time ``now``; the commands are to be run in their order."""
        state = self.state
        match event:
            case MessageReceived():
                self._receive(event, now)
            case PeerJoined(conn, hello):
                state.clients[conn] = Client(conn, hello)
            case PeerLost():
                self._lose(event, now)
            case DriverGone(job_id):
                ownership.driver_gone(state, job_id, now)
            case Tick():
                self._tick(now)
            case ShutDown(reason):
                ownership.close_all(state, reason, now)
        self._settle(now)
        return state.take_out()

    def next_deadline(self) -> float | None:
        """When the next Tick is due; None while there is nothing to wait for."""
        state = self.state
        times = [membership.deadline(state), ownership.deadline(state), scheduling.deadline(state)]
        if state.nodes and state.last_tick is not None:
            # A tick at least every heartbeat, so that a pause of the head itself is noticed to within one.
            times.append(state.last_tick + state.limits.heartbeat_s)
        return min((time for time in times if time is not None), default=None)

    def _tick(self, now: float) -> None:
        state, due = self.state, self.next_deadline()
        if due is not None and now > due:
            membership.extend(state, now - due, now)
            ownership.extend(state, now - due, now)
        state.last_tick = now
        membership.check_deadlines(state, now)
        ownership.check_deadlines(state, now)
        scheduling.check_deadlines(state, now)

    def _settle(self, now: float) -> None:
        """Bring the step to its end: news out, finished groups released, what came free given to who waits, until nothing moves."""
        state = self.state
        while state.changed_actors or state.touched_groups or state.capacity_freed:
            state.flush_actors()
            supervision.settle_groups(state, now)
            if state.capacity_freed:
                scheduling.retry(state, now)
        ownership.advance_closing(state)

    def _lose(self, event: PeerLost, now: float) -> None:
        state = self.state
        client = state.clients.pop(event.conn, None)
        if client is None:
            return
        membership.lost(state, client, event.reason, now)
        ownership.lost(state, client, now)
        status.stop_reading(state, client)

    def _receive(self, event: MessageReceived, now: float) -> None:
        state = self.state
        client = state.clients.get(event.conn)
        if client is None:
            return
        try:
            if isinstance(event.message, FROM_NODES):
                self._receive_from_node(client, event, now)
            elif isinstance(event.message, (wire.AskStatus, wire.RunStatus, wire.ReadLog)):
                status.receive(state, client, event.message, event.call_id, now)
            else:
                self._receive_request(client, event, now)
        except HeadwayError as exc:
            state.refuse(event.conn, event.call_id, exc)

    def _receive_from_node(self, client: Client, event: MessageReceived, now: float) -> None:
        state = self.state
        node = membership.current_node(state, client, event.epoch)
        if node is None:
            return
        membership.heard(state, node, now)
        match event.message:
            case wire.Heartbeat(seq, zygotes):
                node.zygotes = zygotes
                state.send(event.conn, wire.HeartbeatAck(seq))
                return
            case wire.ActorsReady() as message:
                supervision.actors_up(state, node, message)
            case wire.ActorExited() as message:
                supervision.actor_exited(state, node, message, now)
            case wire.LogLines() | wire.LogEnd() as message:
                ownership.forward_logs(state, message)
            case wire.JobSwept(job_id):
                ownership.swept(state, node, job_id)
        state.reply(event.conn, event.call_id)

    def _receive_request(self, client: Client, event: MessageReceived, now: float) -> None:
        state, call_id = self.state, event.call_id
        match event.message:
            case wire.RegisterNode() as message:
                membership.register(state, client, message, call_id, now)
            case wire.OpenJob() as message:
                ownership.open_job(state, client, message, call_id, event.epoch)
            case wire.CloseJob() as message:
                ownership.close_job(state, client, message, call_id, now)
            case wire.CreateGroup() as message:
                admission.create_group(state, client, message, call_id, now)
            case wire.CreateActors() as message:
                admission.create_actors(state, client, message, event.buffers, call_id, now)
            case wire.RemoveGroup() as message:
                admission.remove_group(state, client, message, call_id, now)
            case wire.StopActorsOf() as message:
                admission.stop_actors(state, client, message, call_id, now)
            case wire.FindActor() as message:
                admission.find_actor(state, client, message, call_id)
            case wire.CancelCall() as message:
                admission.cancel_call(state, client, message)
            case wire.ListNodes():
                state.reply(event.conn, call_id, membership.node_list(state))
            case wire.Preload() as message:
                ownership.preload(state, client, message, call_id)
            case message:
                raise ProtocolError(f"{type(message).__name__} is nothing that a {client.hello.role or 'client'} can send to the head.")
