"""One actor process as its daemon sees it: how it shall be born, its sockets, its state, and why it is to end."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import re
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runtime.errors import ConnectionLostError
from runtime.wire.messages import InitFailed, NodeFacts, StartActors, StartSpec, StopActors, StopRequested
from runtime.wire.peer import Peer
from runtime.worker.birth import FORCED_ENV, THREAD_VARIABLES, Birth
from runtime.worker.gpus import host_has_gpus, visible_devices
from runtime.worker.spawn import Exit, kill_group
from runtime.worker.sweep import Lineage

__all__ = ["TRANSITIONS", "ActorProcess", "Order", "State"]

# From the end of the process to the end of what it had written on its lifeline: the loop merely has to read it.
LAST_WORDS_S = 1.0


class State(enum.Enum):
    """Where an actor is in its life on this node."""

    FORKING = "forking"  # ordered
    STARTING = "starting"  # there is a process; it loads the class and runs the constructor
    UP = "up"  # its constructor returned
    ENDED = "ended"  # its process is gone
    BURIED = "buried"  # its leftovers too, and the head was told


TRANSITIONS: dict[State, frozenset[State]] = {
    State.FORKING: frozenset({State.STARTING, State.BURIED}),
    State.STARTING: frozenset({State.UP, State.ENDED}),
    State.UP: frozenset({State.ENDED}),
    State.ENDED: frozenset({State.BURIED}),
    State.BURIED: frozenset(),
}


@dataclass(slots=True, eq=False)
class Order:
    """A StartActors on its way: all its actors are reported as ready together."""

    message: StartActors
    buffers: Sequence[bytes | memoryview]  # dropped when all actors have them
    actors: list[ActorProcess] = field(default_factory=list)
    num_waiting: int = 0  # actors that are neither up nor gone
    abandoned: asyncio.Event = field(default_factory=asyncio.Event)  # all were stopped before they were forked

    def is_abandoned(self) -> bool:
        """Nobody wants any of them any more."""
        return all(actor.stop is not None and actor.stop.grace_s <= 0 for actor in self.actors)


class ActorProcess:
    """An actor and its process."""

    def __init__(self, spec: StartSpec, order: Order, session_dir: Path, serial: int) -> None:
        self.spec = spec
        self.order = order
        self.state = State.FORKING
        self.pid = 0
        self.peer: Peer | None = None  # the lifeline
        self.stop: StopActors | None = None  # why it is to end
        self.is_wanted_end = False  # somebody asked for it, it is no fault
        self.init_failed: InitFailed | None = None
        self.ended: tuple[Exit, bool] | None = None  # how, and whether it had been up
        self.gone = asyncio.Event()  # all of it, and its last log line was sent
        self.timer: asyncio.TimerHandle | None = None  # start time-out, then the end of the grace
        name = re.sub(r"[^A-Za-z0-9.-]+", "_", spec.label)[:40] or "actor"
        self.log_path = str(session_dir / "logs" / f"{name}-{serial}.log")
        self.unix_path = str(session_dir / f"a{serial}.sock")
        self._handover: socket.socket | None = None
        self._lifeline: socket.socket | None = None

    def move(self, state: State) -> None:
        """Change the state."""
        assert state in TRANSITIONS[self.state], f"actor {self.spec.label}: {self.state} -> {state}"
        self.state = state

    @property
    def is_running(self) -> bool:
        """There is a process."""
        return self.state in (State.STARTING, State.UP)

    # ---- birth ----

    def birth(self, lineage: Lineage, node: NodeFacts, *, simulated_gpus: bool, is_drivers_host: bool) -> Birth:
        """How the process shall be. cwd and sys.path are the driver's on its host; elsewhere the daemon's."""
        message, spec = self.order.message, self.spec
        num_threads = max(1, int(spec.resources.get("CPU", 0)))
        env = {name: os.environ.get(name) for name in FORCED_ENV}
        env.update({name: str(num_threads) for name in THREAD_VARIABLES if env[name] is None})
        env["CUDA_VISIBLE_DEVICES"] = visible_devices(spec.visible_gpu_ids, node.gpus, simulated=simulated_gpus,
                                                      host_has_gpus=host_has_gpus())
        env.update(message.env)
        return Birth(
            marker=lineage.marker(spec.actor_id), title=f"hw {spec.label}", log_path=self.log_path,
            num_threads=_first_int(env["OMP_NUM_THREADS"]) or num_threads, daemon_pid=os.getpid(),
            cwd=message.cwd if is_drivers_host else "", sys_path=message.sys_path if is_drivers_host else tuple(sys.path), env=env)

    def open_sockets(self) -> list[int]:
        """Fresh sockets and the log file. Returns: the child's descriptors (lifeline, hand-over, log), which the caller closes."""
        self.close_sockets()
        self._lifeline, lifeline = socket.socketpair()
        self._handover, handover = socket.socketpair()
        log_fd = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        return [lifeline.detach(), handover.detach(), log_fd]

    def take_lifeline(self) -> socket.socket:
        """Our end of it, for a Peer to own."""
        assert self._lifeline is not None
        lifeline, self._lifeline = self._lifeline, None
        return lifeline

    def close_sockets(self) -> None:
        """Close what no Peer owns."""
        for sock in (self._lifeline, self._handover):
            if sock is not None:
                sock.close()
        self._lifeline = self._handover = None

    # ---- life ----

    def hand_over(self, sock: socket.socket) -> bool:
        """Pass a connection to the actor and close our copy. Returns: False when it can't take it; then ``sock`` is still open."""
        if not self.is_running or self._handover is None:
            return False
        try:
            socket.send_fds(self._handover, [b"\0"], [sock.fileno()], socket.MSG_DONTWAIT)
        except OSError:  # it ended, or is stopped with a full queue
            return False
        sock.close()
        return True

    def ask_to_stop(self, stop: StopActors) -> None:
        """The polite part of a stop."""
        if self.peer is not None:
            with contextlib.suppress(ConnectionLostError):
                self.peer.notify(StopRequested(stop.reason, stop.grace_s))
        if stop.sigterm:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL for the process and its group, if there is one that was not reaped yet."""
        if self.is_running:
            kill_group(self.pid)

    def cancel_timer(self) -> None:
        """No time-out any more."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    # ---- death ----

    async def read_last_words(self) -> None:
        """Wait until the lifeline was read to its end; children that kept it open were swept before."""
        if self.peer is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await self.peer.wait_closed()
            self.peer.close("the actor ended")

    def leave(self) -> None:
        """Close and remove what is left of it here, but for the log file."""
        self.cancel_timer()
        self.close_sockets()
        with contextlib.suppress(OSError):
            os.unlink(self.unix_path)
        self.gone.set()


def _first_int(text: str | None) -> int:
    """Of OMP's "4" or "4,2"; 0 if there is none."""
    first = (text or "").partition(",")[0].strip()
    return int(first) if first.isascii() and first.isdigit() else 0
