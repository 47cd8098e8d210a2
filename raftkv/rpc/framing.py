"""Frames on a byte stream: a length, a channel, a payload.

A frame is a 4-byte little-endian length, one channel byte and the payload; the length counts the
channel byte and the payload. The same framing carries the calls of the front end to its engine
and the links between engines. Both sides bound what they take before they have read it, because
a length is the first thing that a stranger can send.
"""

import asyncio
import struct
from collections.abc import Iterator

HEADER_BYTES = 5
"""Bytes of a frame beside its payload."""

DECODE_ERRORS = (ValueError, RecursionError)
"""What decoding a stranger's bytes with msgspec may raise.

Not only its own errors (which are ValueErrors): a string that is not UTF-8 is a
UnicodeDecodeError, and deep nesting a RecursionError.
"""

_BUFFER_BYTES_KEPT = 1024 * 1024
_JOIN_BYTES_MAX = 128 * 1024

_header = struct.Struct("<IB")


class FrameError(Exception):
    """The peer sent what cannot be a frame; nothing after it can be understood."""


class FrameDecoder:
    """Cuts a stream into frames; made for :class:`asyncio.BufferedProtocol`.

    The socket writes straight into the decoder's buffer, and payloads are handed out as views of
    it: an allocation and a copy less per read. A view is valid until the next ``get_buffer``.

    ``payload_bytes_max`` may be changed at any time, also between two frames of one read: it is
    small until the peer has said who it is. The buffer grows only as bytes really arrive, so a
    length alone costs nothing.
    """

    __slots__ = ("_buffer", "_end", "_start", "_view", "payload_bytes_max")

    def __init__(self, payload_bytes_max: int, *, buffer_bytes: int = 64 * 1024) -> None:
        self.payload_bytes_max = payload_bytes_max
        self._start = 0
        self._end = 0
        self._allocate(buffer_bytes)

    def get_buffer(self, sizehint: int = -1) -> memoryview:
        """Return where the next bytes go; never empty."""
        del sizehint  # the buffer that is there is better than one of the size asked for
        if self._start == self._end:
            self._start = self._end = 0
            if len(self._buffer) > _BUFFER_BYTES_KEPT:
                self._allocate(_BUFFER_BYTES_KEPT)
        elif self._end == len(self._buffer):
            self._make_room()
        return self._view[self._end :]

    def received(self, count: int) -> None:
        """Take note of ``count`` bytes written to the buffer."""
        self._end += count

    def feed(self, data: bytes) -> None:
        """Take ``data`` as if it had been read from a socket."""
        rest = memoryview(data)
        while rest:
            room = self.get_buffer()
            count = min(len(room), len(rest))
            room[:count] = rest[:count]
            self.received(count)
            rest = rest[count:]

    def frames(self) -> Iterator[tuple[int, memoryview]]:
        """Yield the whole frames that are there; may be left early and taken up again.

        Raises:
            FrameError: a length that no frame may have.
        """
        while self._end - self._start >= HEADER_BYTES:
            length, channel = _header.unpack_from(self._buffer, self._start)
            if not 1 <= length <= self.payload_bytes_max + 1:
                raise FrameError(
                    f"frame of {length} bytes where 1 to {self.payload_bytes_max + 1} are allowed"
                )
            begin = self._start + HEADER_BYTES
            end = begin + length - 1
            if end > self._end:
                return
            self._start = end
            yield channel, self._view[begin:end]

    @property
    def buffered_bytes(self) -> int:
        """Bytes read and not yet handed out."""
        return self._end - self._start

    def _allocate(self, size: int) -> None:
        self._buffer = bytearray(size)
        self._view = memoryview(self._buffer)

    def _make_room(self) -> None:
        """Move what is left to the front; double the buffer where that gains too little."""
        rest = bytes(self._view[self._start : self._end])
        if len(rest) > len(self._buffer) // 2:
            self._allocate(len(self._buffer) * 2)
        self._view[: len(rest)] = rest
        self._start, self._end = 0, len(rest)


class FrameWriter:
    """Collects the frames of one loop turn and writes them with one system call.

    While ``paused`` nothing is handed to the transport; whoever pauses bounds ``waiting_bytes``.
    ``frames_queued`` counts all frames, ``frames_flushed`` those handed to the transport: a later
    one has certainly not been sent.
    """

    __slots__ = (
        "_loop",
        "_parts",
        "_paused",
        "_scheduled",
        "_transport",
        "frames_flushed",
        "frames_queued",
        "waiting_bytes",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.WriteTransport) -> None:
        self._loop = loop
        self._transport = transport
        self._parts: list[bytes | memoryview] = []
        self._scheduled = False
        self._paused = False
        self.frames_queued = 0
        self.frames_flushed = 0
        self.waiting_bytes = 0

    def send(self, channel: int, payload: bytes | memoryview) -> None:
        """Queue one frame for the end of this loop turn."""
        size = len(payload)
        self._parts += (_header.pack(size + 1, channel), payload)
        self.frames_queued += 1
        self.waiting_bytes += size + HEADER_BYTES
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush_turn)

    def flush(self) -> None:
        """Hand what waits to the transport now."""
        if self._paused or not self._parts:
            return
        parts, self._parts = self._parts, []
        waiting_bytes, self.waiting_bytes = self.waiting_bytes, 0
        self.frames_flushed = self.frames_queued
        if self._transport.is_closing():
            return
        if waiting_bytes <= _JOIN_BYTES_MAX:
            self._transport.write(b"".join(parts))
        else:
            self._transport.writelines(parts)  # large values are not copied once more

    def pause(self) -> None:
        """Keep frames back from now on."""
        self._paused = True

    def resume(self) -> None:
        """Hand on what was kept back."""
        self._paused = False
        self.flush()

    def backlog_bytes(self) -> int:
        """Bytes that have not reached the kernel."""
        return self.waiting_bytes + self._transport.get_write_buffer_size()

    def _flush_turn(self) -> None:
        self._scheduled = False
        self.flush()
