"""One connection, sans-IO: bytes in, messages out, and back.

It owns the life cycle, the handshake, the call ids, the calls that wait for a reply, and the assembling of big buffers. The shell
(transport.py) moves bytes between it and a socket. Whatever bytes come: a message, or one ProtocolError that closes it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from runtime.errors import ArgumentError, ConnectionLostError, HeadwayError, ProtocolError, by_name
from runtime.limits import LIMITS, Limits
from runtime.wire.auth import Dialler, Handshake, clean
from runtime.wire.codec import decode, encode, unpacker
from runtime.wire.framing import Assembly, Buffer, FrameDecoder, Outbox, control_frame
from runtime.wire.messages import (
    CancelCall,
    Challenge,
    Credit,
    Failed,
    Goodbye,
    Heartbeat,
    HeartbeatAck,
    Hello,
    Message,
    Ping,
    Pong,
    Proof,
    Welcome,
)

__all__ = ["Connection", "Received", "Reply", "State", "TRANSITIONS", "MAX_ERROR_CHARS", "wire_text"]


class State(enum.Enum):
    """Where a connection is in its life."""

    DIALING = "dialing"  # no bytes yet
    HELLO = "hello"  # the handshake is going on
    OPEN = "open"
    CLOSING = "closing"  # nothing is accepted any more; the last words are on their way
    CLOSED = "closed"


TRANSITIONS: dict[State, frozenset[State]] = {
    State.DIALING: frozenset({State.HELLO, State.OPEN, State.CLOSED}),
    State.HELLO: frozenset({State.OPEN, State.CLOSING, State.CLOSED}),
    State.OPEN: frozenset({State.CLOSING, State.CLOSED}),
    State.CLOSING: frozenset({State.CLOSED}),
    State.CLOSED: frozenset(),
}

# Sent ahead of others, between the chunks of a big message. Heartbeats: 256 MiB take longer than dead_s on a slow network.
URGENT = frozenset({Ping, Pong, Credit, Heartbeat, HeartbeatAck})
BETWEEN_CHUNKS = URGENT | {Goodbye, CancelCall}  # accepted there; we never let a CancelCall overtake its call

MAX_REASON_CHARS = 600  # of a goodbye or a refusal: a character may take 6 bytes, and 4 KiB is the limit of the handshake
MAX_ERROR_CHARS = 100_000  # of an error that answers a request: a table of nodes is long


class Received(NamedTuple):
    """A message with its buffers. ``call_id`` > 0: a request, to be answered with ``peer.reply(call_id, ...)``."""

    message: Message
    buffers: list[bytes | memoryview]
    call_id: int
    epoch: int


class Reply(Protocol):
    """Where the reply to a call goes; asyncio's and concurrent's futures are such."""

    def done(self) -> bool:
        """Nobody waits any more."""

    def set_result(self, result: Received, /) -> None:
        """It was answered."""

    def set_exception(self, exception: BaseException, /) -> None:
        """It was answered with an error, or will never be answered."""


class Connection:
    """State, queues and pending calls of one connection. Not thread-safe; never waits."""

    def __init__(self, handshake: Handshake | None, *, name: str, limits: Limits = LIMITS, preamble: bytes = b"") -> None:
        self.state = State.DIALING
        self.name = name
        self.epoch = 0
        self.error: HeadwayError | None = None  # why it is closing or closed
        self.on_open: Callable[[], None] = lambda: None
        self.on_message: Callable[[Received], None] = lambda received: None
        self._limits = limits
        self._handshake = handshake
        self._preamble = preamble
        self._unpack = unpacker(limits)
        self._decoder = FrameDecoder(self, max_control_bytes=limits.handshake_max_bytes, max_bulk_bytes=0)
        self._outbox = Outbox(max_bulk_bytes=limits.max_bulk_bytes)
        self._pending: dict[int, Reply] = {}
        self._last_call_id = 0
        self._last_stream = 0
        self._assembly: Assembly | None = None
        self._announced: Received | None = None  # the message that is being assembled
        self.get_buffer = self._decoder.get_buffer
        self.take = self._outbox.take

    @property
    def remote(self) -> Hello | Challenge | None:
        """What the other side said of itself; None without a handshake."""
        return self._handshake.remote if self._handshake is not None else None

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait to be taken."""
        return self._outbox.queued_bytes

    @property
    def num_pending(self) -> int:
        """Requests without a reply yet."""
        return len(self._pending)

    # ---- life ----

    def start(self) -> None:
        """There is a stream: begin the handshake, or open at once if there is none."""
        if self._handshake is None:
            self._open()
            return
        self._enter(State.HELLO)
        first = self._handshake.start()
        if first is not None:
            self._outbox.push(self._preamble + control_frame(first))

    def close(self, reason: str = "") -> None:
        """Say goodbye after all that is queued, accept nothing more; pending calls fail."""
        if self.state is State.OPEN:
            self._send_last(Goodbye(wire_text(reason)), keep_queue=True)
        self._end(ConnectionLostError(f"The connection to {self.name} was closed here{f': {reason}' if reason else ''}."))

    def fail(self, error: HeadwayError) -> None:
        """Close because of ``error``: drop what is queued and tell the other side the reason."""
        text = wire_text(error)
        if self.state is State.OPEN:
            self._send_last(Goodbye(f"{type(error).__name__}: {text}"))
        elif self.state is State.HELLO and not isinstance(self._handshake, Dialler):
            self._send_last(Failed(type(error).__name__, text))
        self._end(error)

    def eof(self) -> None:
        """The other side sends no more."""
        if self.state in (State.HELLO, State.OPEN):
            cut = self._decoder.missing
            what = "during the handshake" if self.state is State.HELLO else "without a goodbye"
            self.lost(f"{self.name} closed the connection {what}{f', {cut}' if cut else ''}.")

    def lost(self, reason: str) -> None:
        """The stream is gone."""
        self._end(ConnectionLostError(reason))
        if self.state is not State.CLOSED:
            self._enter(State.CLOSED)
        self._outbox.clear()

    def _enter(self, state: State) -> None:
        if state not in TRANSITIONS[self.state]:
            raise AssertionError(f"connection {self.name}: {self.state} -> {state}")
        self.state = state

    def _open(self) -> None:
        self._enter(State.OPEN)
        self._decoder.set_limits(max_control_bytes=self._limits.max_control_bytes, max_bulk_bytes=self._limits.max_bulk_bytes)
        self.on_open()

    def _end(self, error: HeadwayError) -> None:
        """The one way out: whoever is first gives the reason; each pending call fails, once."""
        if self.state in (State.CLOSING, State.CLOSED):
            return
        self.error = error
        self._enter(State.CLOSED if self.state is State.DIALING else State.CLOSING)
        self._decoder.stop()
        self._assembly = self._announced = None
        pending, self._pending = self._pending, {}
        for reply in pending.values():
            if not reply.done():
                lost = ConnectionLostError(str(error))
                lost.__cause__ = None if isinstance(error, ConnectionLostError) else error
                reply.set_exception(lost)

    def _send_last(self, message: Message, *, keep_queue: bool = False) -> None:
        if not keep_queue:
            self._outbox.clear()
        self._outbox.push(control_frame(encode(message, 0, self.epoch)))

    # ---- sending ----

    def send(self, message: Message, buffers: Sequence[Any] = (), call_id: int = 0) -> None:
        """Queue a message.

        Raises: ConnectionLostError: not open. ArgumentError: the message can't be sent, or is too big.
        """
        if self.state is not State.OPEN:
            raise ConnectionLostError(str(self.error or f"The connection to {self.name} is not open yet."))
        limits = self._limits
        frame, stream, views = self._framed(message, call_id, [_flat(buffer, message) for buffer in buffers] if buffers else ())
        if len(frame) > limits.max_control_bytes:
            raise ArgumentError(f"{type(message).__name__} has {len(frame)} bytes beside its buffers, more than the limit of "
                                f"{limits.max_control_bytes}: send less at once.")
        outbox = self._outbox
        outbox.push(frame, stream, views, urgent=type(message) in URGENT)
        if outbox.queued_bytes > 4 * (limits.send_queue_bytes + outbox.max_message_bytes):
            self.fail(ConnectionLostError(f"{self.name} does not read: {outbox.queued_bytes} bytes are waiting for it, the limit is 4 x "
                                          f"({limits.send_queue_bytes} + {outbox.max_message_bytes})."))
            raise ConnectionLostError(str(self.error))

    def request(self, message: Message, buffers: Sequence[Any], reply: Reply) -> int:
        """Queue a request; ``reply`` gets the answer, or the error that ended it. Returns the call id."""
        call_id = self._last_call_id + 1
        self.send(message, buffers, call_id)
        self._last_call_id = call_id
        self._pending[call_id] = reply
        return call_id

    def forget(self, call_id: int) -> None:
        """Nobody waits for the reply any more; tell the other side, and ignore what still comes."""
        if self._pending.pop(call_id, None) is not None:
            self.send(CancelCall(call_id))

    def _framed(self, message: Message, call_id: int, views: Sequence[Buffer]) -> tuple[bytes, int, Sequence[Buffer]]:
        """The control frame, and the buffers that follow it as bulk under a stream number."""
        total = sum(map(len, views))
        if total <= self._limits.inline_bytes:
            return control_frame(encode(message, call_id, self.epoch, views)), 0, ()
        if total > self._limits.max_message_bytes or len(views) > self._limits.max_array_len:
            raise ArgumentError(f"{type(message).__name__} has {len(views)} buffers of {total} bytes together; the limits are "
                                f"{self._limits.max_array_len} and {self._limits.max_message_bytes}: send it in parts.")
        self._last_stream = self._last_stream % 0xFFFFFFFF + 1
        frame = control_frame(encode(message, call_id, self.epoch, [len(view) for view in views]), self._last_stream)
        return frame, self._last_stream, views

    # ---- receiving: the sink of the frame decoder ----

    def received(self, num_bytes: int) -> None:
        """``num_bytes`` were written to the start of ``get_buffer()``. What they mean is done; never raises for what they are."""
        try:
            self._decoder.received(num_bytes)
        except HeadwayError as exc:
            self._refuse(exc)

    def feed(self, data: Buffer) -> None:
        """Copying ``received``."""
        try:
            self._decoder.feed(data)
        except HeadwayError as exc:
            self._refuse(exc)

    def _refuse(self, error: HeadwayError) -> None:
        self.fail(ProtocolError(f"{self.name}: {error}") if isinstance(error, ProtocolError) else error)

    def control(self, body: memoryview, stream: int) -> None:
        """A control frame."""
        if self.state is State.OPEN:
            message, call_id, epoch, buffers = decode(body, self._unpack)
            if stream:
                self._assembly = self._assemble(message, buffers, stream)
                self._announced = Received(message, self._assembly.buffers, call_id, epoch)
            elif self._assembly is not None and type(message) not in BETWEEN_CHUNKS:
                raise ProtocolError(f"{type(message).__name__} came before the message in front of it was complete.")
            else:
                self._deliver(Received(message, _inlined(message, buffers) if buffers else [], call_id, epoch))
        elif self.state is State.HELLO and self._handshake is not None:
            if stream:
                raise ProtocolError("Bulk was announced in the handshake.")
            answer = self._handshake.receive(bytes(body))
            if answer is not None:
                self._outbox.push(control_frame(answer))
            if self._handshake.done:
                self._open()

    def bulk(self, stream: int, num_bytes: int) -> memoryview:
        """A bulk frame begins."""
        if self._assembly is None or self._assembly.stream != stream:
            raise ProtocolError(f"Bulk chunk of stream {stream}, which no message announced.")
        return self._assembly.place(num_bytes)

    def bulk_end(self) -> None:
        """A bulk frame is complete."""
        assembly, announced = self._assembly, self._announced
        if assembly is not None and announced is not None and assembly.chunk_ended():
            self._assembly = self._announced = None
            self._deliver(announced)

    def _assemble(self, message: Message, sizes: Sequence[bytes | int], stream: int) -> Assembly:
        total = sum(size for size in sizes if isinstance(size, int))
        if self._assembly is not None or not 0 < total <= self._limits.max_message_bytes:
            raise ProtocolError(f"{type(message).__name__} announces {total} bytes of bulk; the limit is "
                                f"{self._limits.max_message_bytes}, one message at a time.")
        return Assembly(sizes, stream)

    def _deliver(self, received: Received) -> None:
        call_id = received.call_id
        if call_id < 0:
            reply = self._pending.pop(-call_id, None)
            if reply is not None and not reply.done():
                message = received.message
                if isinstance(message, Failed):
                    reply.set_exception(by_name(message.error, message.text))
                else:
                    reply.set_result(received)
            return
        handle = _INTERNAL.get(type(received.message))
        if handle is None:
            self.on_message(received)
        else:
            handle(self, received)

    def _on_ping(self, received: Received) -> None:
        assert isinstance(received.message, Ping)
        self.send(Pong(received.message.seq), (), -received.call_id)

    def _on_goodbye(self, received: Received) -> None:
        assert isinstance(received.message, Goodbye)
        reason = clean(received.message.reason)
        self._outbox.clear()
        self._end(ConnectionLostError(f"{self.name} closed the connection{f': {reason}' if reason else ''}."))

    def _on_misplaced(self, received: Received) -> None:
        raise ProtocolError(f"{type(received.message).__name__} has no place on an open connection.")


_INTERNAL: dict[type[Message], Callable[[Connection, Received], None]] = {
    Ping: Connection._on_ping, Pong: lambda connection, received: None, Goodbye: Connection._on_goodbye,
    Hello: Connection._on_misplaced, Challenge: Connection._on_misplaced, Proof: Connection._on_misplaced,
    Welcome: Connection._on_misplaced, Failed: Connection._on_misplaced,
}


def wire_text(text: object, max_chars: int = MAX_REASON_CHARS) -> str:
    """``text`` as it may travel: not too long, and valid UTF-8."""
    return str(text)[:max_chars].encode("utf-8", "backslashreplace").decode("utf-8")


def _inlined(message: Message, buffers: Sequence[bytes | int]) -> list[bytes | memoryview]:
    inlined: list[bytes | memoryview] = [buffer for buffer in buffers if isinstance(buffer, bytes)]
    if len(inlined) != len(buffers):
        raise ProtocolError(f"{type(message).__name__} announces bulk without a stream.")
    return inlined


def _flat(buffer: Any, message: Message) -> Buffer:
    """The bytes of ``buffer``, one dimension, not copied."""
    if type(buffer) is bytes:
        return buffer
    try:
        view = memoryview(buffer)
        return view if view.format == "B" and view.ndim == 1 and view.contiguous else view.cast("B")
    except TypeError as exc:
        raise ArgumentError(f"A buffer of {type(message).__name__} is no contiguous bytes: {exc}.") from exc
