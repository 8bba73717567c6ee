"""Frames: a 12-byte header, then a control body or one chunk of bulk. Sans-IO, both directions.

Header ``>IBxxxI``: length of the body, kind, stream. A control body is one message (codec.py). Buffers that are too big to travel inside it
follow as bulk chunks under the stream number of its frame. ``FrameDecoder`` hands out the memory to receive into: its own small
buffer for headers and control bodies, the final place of the bytes for bulk, so that bulk is not copied. ``Outbox`` is the other direction.
"""

from __future__ import annotations

import mmap
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

from runtime.errors import ProtocolError

__all__ = ["Assembly", "BULK", "CONTROL", "Buffer", "FrameDecoder", "FrameSink", "HEADER", "Outbox", "control_frame"]

Buffer = bytes | bytearray | memoryview

HEADER = struct.Struct(">IBxxxI")
CONTROL, BULK = 0, 1

# 32 KiB: hundreds of small messages a read; of each bulk chunk of 1 MiB at most 3 % are received here and copied.
RECEIVE_BYTES = 32 * 1024

# 16 MiB: beyond it clearing a bytearray would block the loop for milliseconds, and memory is better had page by page as bytes arrive.
MAPPED_BYTES = 16 * 1024 * 1024


class FrameSink(Protocol):
    """Who takes the frames."""

    def control(self, body: memoryview, stream: int) -> None:
        """A control frame came; ``body`` is valid during this call only."""

    def bulk(self, stream: int, num_bytes: int) -> memoryview:
        """A bulk frame begins; returns the ``num_bytes`` of memory that its body belongs into."""

    def bulk_end(self) -> None:
        """The body of the bulk frame is complete."""


class FrameDecoder:
    """Bytes to frames: receive into ``get_buffer()``, then say how many bytes by ``received()``."""

    def __init__(self, sink: FrameSink, *, max_control_bytes: int, max_bulk_bytes: int) -> None:
        self._sink = sink
        self.set_limits(max_control_bytes=max_control_bytes, max_bulk_bytes=max_bulk_bytes)
        self._memory = memoryview(bytearray(self._usual_bytes))
        self._start = self._end = 0  # of what was received and not yet consumed
        self._rest: memoryview | None = None  # of the bulk chunk that is being received in place
        self._stopped = False

    def set_limits(self, *, max_control_bytes: int, max_bulk_bytes: int) -> None:
        """Bodies longer than these are refused from here on, before anything is allocated for them."""
        self._max_bytes = (max_control_bytes, max_bulk_bytes)
        self._usual_bytes = min(RECEIVE_BYTES, HEADER.size + max_control_bytes)

    @property
    def missing(self) -> str:
        """What the end of the stream would cut off, "" between frames."""
        if self._rest is not None:
            return f"mid-frame, {len(self._rest)} bytes of a bulk chunk missing"
        have = self._end - self._start
        if have < HEADER.size:
            return f"mid-frame, {have} of {HEADER.size} bytes of a header" if have else ""
        size = HEADER.unpack_from(self._memory, self._start)[0]
        return f"mid-frame, {have - HEADER.size} of {size} bytes"

    def stop(self) -> None:
        """Ignore all further bytes."""
        self._stopped = True
        self._rest = None
        self._start = self._end = 0

    def get_buffer(self) -> memoryview:
        """Where the next bytes shall be received, never empty."""
        return self._memory[self._end:] if self._rest is None else self._rest

    def feed(self, data: Buffer) -> None:
        """Copying ``received``, for who has the bytes already."""
        view = memoryview(data)
        while len(view):
            space = self.get_buffer()
            num_bytes = min(len(space), len(view))
            space[:num_bytes] = view[:num_bytes]
            self.received(num_bytes)
            view = view[num_bytes:]

    def received(self, num_bytes: int) -> None:
        """``num_bytes`` were written to the start of ``get_buffer()``.

        Raises: ProtocolError: they are no frame; also whatever the sink raises. Nothing may be received after that but by ``stop()``.
        """
        if self._stopped:
            return
        if self._rest is not None:
            self._rest = self._rest[num_bytes:]
            if not len(self._rest):
                self._rest = None
                self._sink.bulk_end()
            return
        self._end += num_bytes
        while self._end - self._start >= HEADER.size and not self._stopped:
            if not self._next_frame():
                break
        self._make_space()

    def _next_frame(self) -> bool:
        size, kind, stream = HEADER.unpack_from(self._memory, self._start)
        if kind > BULK or size > self._max_bytes[kind]:
            raise ProtocolError(f"Frame of kind {kind} with {size} bytes: allowed are kinds 0 and 1 with at most "
                                f"{self._max_bytes[0]} and {self._max_bytes[1]}.")
        body = self._start + HEADER.size
        if kind == CONTROL:
            if self._end - body < size:
                return False
            self._sink.control(self._memory[body:body + size], stream)
            self._start = body + size
        else:
            place = self._sink.bulk(stream, size)
            here = min(size, self._end - body)
            place[:here] = self._memory[body:body + here]
            self._start = body + here
            if here < size:
                self._rest = place[here:]
                return False
            self._sink.bulk_end()
        return True

    def _make_space(self) -> None:
        """Move what is left to the front; grow for a control body beyond the usual size, and shrink again after it."""
        left = self._end - self._start if not self._stopped else 0
        needed = self._usual_bytes
        if left >= HEADER.size:
            needed = max(needed, HEADER.size + HEADER.unpack_from(self._memory, self._start)[0])
        if needed != len(self._memory):
            memory = memoryview(bytearray(max(needed, left)))
            memory[:left] = self._memory[self._start:self._start + left]
            self._memory = memory
        elif self._start and left:
            self._memory[:left] = self._memory[self._start:self._start + left]
        self._start, self._end = 0, left


class Assembly:
    """The buffers of one message, of which some arrive as bulk: an int is the size of such a one."""

    def __init__(self, sizes: Sequence[bytes | int], stream: int) -> None:
        self.stream = stream
        self.buffers: list[bytes | memoryview] = []
        self._sizes = iter(sizes)
        self._rest = memoryview(b"")  # of the buffer that is being filled
        self.chunk_ended()

    def place(self, num_bytes: int) -> memoryview:
        """Memory for the next chunk.

        Raises: ProtocolError: the chunk is empty, or longer than what is missing of the buffer.
        """
        if not 0 < num_bytes <= len(self._rest):
            raise ProtocolError(f"Bulk chunk of {num_bytes} bytes where {len(self._rest)} are missing.")
        place, self._rest = self._rest[:num_bytes], self._rest[num_bytes:]
        return place

    def chunk_ended(self) -> bool:
        """Go on to the next buffer if this one is full; True when all are."""
        while not len(self._rest):
            size = next(self._sizes, None)
            if size is None:
                return True
            self.buffers.append(_allocate(size) if isinstance(size, int) else size)
            if isinstance(size, int):
                self._rest = memoryview(self.buffers[-1])
        return False


def _allocate(num_bytes: int) -> memoryview:
    try:
        if num_bytes < MAPPED_BYTES:
            return memoryview(bytearray(num_bytes))
        return memoryview(mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    except (MemoryError, OSError, OverflowError) as exc:
        raise ProtocolError(f"No memory for an announced buffer of {num_bytes} bytes.") from exc


def control_frame(body: bytes, stream: int = 0) -> bytes:
    """The frame of one control body."""
    return HEADER.pack(len(body), CONTROL, stream) + body


class Outbox:
    """Frames that wait to be written: first in, first out, but urgent ones may go between the chunks of a big message."""

    def __init__(self, *, max_bulk_bytes: int) -> None:
        self._max_bulk_bytes = max_bulk_bytes
        self._urgent: deque[bytes] = deque()
        self._messages: deque[tuple[bytes, int, Sequence[Buffer]]] = deque()
        self._num_big = 0  # messages with chunks that were not all taken
        self._chunks: Iterator[tuple[bytes, memoryview]] | None = None  # of the big message that is being sent
        self.queued_bytes = 0
        self.max_message_bytes = 0  # the biggest message since the box was last empty

    def push(self, frame: bytes, stream: int = 0, buffers: Sequence[Buffer] = (), *, urgent: bool = False) -> None:
        """Queue a control frame and the buffers that follow it; they are referenced, not copied, until they are taken."""
        num_bytes = len(frame) + (sum(map(len, buffers)) if buffers else 0)
        self.max_message_bytes = num_bytes if not self.queued_bytes else max(num_bytes, self.max_message_bytes)
        self.queued_bytes += num_bytes
        if urgent and self._num_big:
            self._urgent.append(frame)
        else:
            self._messages.append((frame, stream, buffers))
            self._num_big += bool(buffers)

    def take(self, max_bytes: int) -> list[Buffer]:
        """What to write next: whole frames, at least one if there is any, no more once ``max_bytes`` are reached."""
        taken: list[Buffer] = []
        num_bytes = 0
        while num_bytes < max_bytes and self.queued_bytes > num_bytes:
            if self._chunks is None:
                frame, stream, buffers = self._messages.popleft()
                taken.append(frame)
                num_bytes += len(frame)
                if buffers:
                    self._chunks = self._split(stream, buffers)
            elif self._urgent:
                taken.append(self._urgent.popleft())
                num_bytes += len(taken[-1])
            elif (chunk := next(self._chunks, None)) is not None:
                taken += chunk
                num_bytes += len(chunk[1])
            else:
                self._chunks = None
                self._num_big -= 1
        self.queued_bytes -= num_bytes
        if not self.queued_bytes:
            self.clear()  # lets go of the buffers
        return taken

    def clear(self) -> None:
        """Forget all that was not taken. The other end is left without the rest of a message: only a closing frame may follow."""
        self._urgent.clear()
        self._messages.clear()
        self._chunks = None
        self._num_big = self.queued_bytes = 0

    def _split(self, stream: int, buffers: Sequence[Buffer]) -> Iterator[tuple[bytes, memoryview]]:
        for buffer in buffers:
            view = memoryview(buffer)
            for start in range(0, len(view), self._max_bulk_bytes):
                chunk = view[start:start + self._max_bulk_bytes]
                yield HEADER.pack(len(chunk), BULK, stream), chunk
