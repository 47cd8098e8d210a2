"""Ordered byte streams between simulated machines: TCP as the engine's links see it.

What TCP promises is kept and nothing else: bytes of one direction arrive in order and once, in
pieces cut anywhere, as long as the connection lives. What a network does to that is set for each
direction of each pair of machines (:class:`Path`): delay, loss (which TCP turns into delay),
silence for as long as it lasts, and resets, after which either side has seen any prefix of what
was sent. A killed process's connections end; those of a machine without power just fall silent.
"""

import asyncio
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from raftkv.sim.loop import SimLoop
from raftkv.sim.scheduler import Scheduler

KERNEL_BYTES = 256 * 1024
"""What the kernels of both sides hold of one direction before the sender must wait."""

RETRANSMISSION_US = 200_000
"""What a lost segment costs: Linux's shortest retransmission time-out."""

_SPLIT = 0.05
"""Share of deliveries that are cut in two."""

Note = Callable[..., None]


@dataclass(slots=True)
class Path:
    """What the network does to one direction between two machines."""

    delay_us: int = 100
    jitter_us: int = 100
    loss: float = 0.0
    silent: bool = False
    bytes_per_s: int | None = None
    carried: int = 0
    """How many segments it has taken; this and the next three are what faults are seen by."""
    held: int = 0
    """How often something was to be sent and silence held it."""
    lost: int = 0
    """How many segments had to be sent again."""
    full: int = 0
    """How often a sender was told to pause, as the kernels took no more."""
    _free_us: int = 0

    def latency_us(self, random: Random) -> int:
        """How long the next segment is on its way."""
        self.carried += 1
        latency = self.delay_us + int(random.random() * self.jitter_us)
        while self.loss and random.random() < self.loss:
            self.lost += 1
            latency += RETRANSMISSION_US
        return latency

    def queue_us(self, now_us: int, size: int) -> int:
        """How long so many bytes wait for those before them, where the path is narrow."""
        if self.bytes_per_s is None:
            return 0
        self._free_us = max(self._free_us, now_us) + size * 1_000_000 // self.bytes_per_s
        return self._free_us - now_us


class Host(Protocol):
    """What the network asks of a machine."""

    @property
    def name(self) -> str:
        """Its name, which is its address too."""

    @property
    def powered(self) -> bool:
        """Whether its kernel answers at all."""


class Fabric(Protocol):
    """What a connection asks of the network around it; see :mod:`raftkv.sim.fabric`."""

    scheduler: Scheduler
    random: Random
    note: Note
    kernel_bytes: int

    def path(self, source: str, target: str) -> Path:
        """What the network does from one machine to another."""

    def is_silent(self, source: Host, target: Host) -> bool:
        """Whether nothing gets through; what was to be sent is held, and counted."""

    def latency_us(self, source: Host, target: Host) -> int:
        """How long the next segment is on its way."""

    def send_end(self, source: Host, target: Host, arrive: Callable[[], None]) -> None:
        """Say that nothing more comes, until it is heard."""

    def forget(self, transport: "SimTransport") -> None:
        """A connection's end is gone."""


class SimTransport(asyncio.Transport):
    """One end of a connection, with the direction in which it sends."""

    def __init__(self, fabric: Fabric, host: Host, loop: SimLoop, remote: Host) -> None:
        super().__init__()
        self.host = host
        self.remote = remote
        self.other: SimTransport
        self._fabric = fabric
        self._loop = loop
        self._protocol: asyncio.BufferedProtocol | None = None
        self._sent: deque[tuple[int, bytes]] = deque()  # (arrives at the earliest, what)
        self._unread_bytes = 0  # written here and not yet read there
        self._arrival_expected = False
        self._arrives_us = 0
        self._high = self._low = 64 * 1024
        self._writing_paused = False
        self._closing = False
        self._arrived: deque[memoryview] = deque()  # here, and not read yet
        self._reading_paused = False
        self._end_unread = False
        self.unheard = False
        """The other side has forgotten the connection, and what is sent meets no answer."""
        self.gone = False
        """The kernel has forgotten this end: what arrives is answered with a reset."""

    # --- asyncio ------------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The address of the other side; there is no socket and no TLS."""
        return (self.remote.name, 0) if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Where to pause and resume the protocol; small kernels go with small buffers."""
        self._high = min(self._fabric.kernel_bytes, 64 * 1024 if high is None else high)
        self._low = min(self._high // 4, self._high if low is None else low)

    def get_write_buffer_size(self) -> int:
        """Bytes that the kernel has not taken."""
        return max(0, self._unread_bytes - self._fabric.kernel_bytes)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send."""
        if self._closing or self.gone or not data:
            return
        fabric = self._fabric
        now_us, path = fabric.scheduler.now_us, fabric.path(self.host.name, self.remote.name)
        wait_us = path.queue_us(now_us, len(data)) + path.latency_us(fabric.random)
        self._arrives_us = max(self._arrives_us, now_us + wait_us)
        self._sent.append((self._arrives_us, bytes(data)))
        self._unread_bytes += len(data)
        self._expect_arrival()
        if not self._writing_paused and self.get_write_buffer_size() > self._high:
            self._writing_paused = True
            path.full += 1
            if self._protocol is not None:
                self._protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        """Send all."""
        self.write(b"".join(list_of_data))

    def pause_reading(self) -> None:
        """Leave what arrives in the kernel."""
        self._reading_paused = True

    def resume_reading(self) -> None:
        """Read on."""
        self._reading_paused = False
        self._loop.call_soon(self._read)

    def is_closing(self) -> bool:
        """Whether nothing more is sent."""
        return self._closing or self.gone

    def close(self) -> None:
        """End after what was written has arrived."""
        if not self._closing and not self.gone:
            self._closing = True
            self._finish_if_sent()

    def abort(self) -> None:
        """End at once; the other side hears of it unless the network is silent."""
        if not self.gone:
            self._forget(None)
            self._send_reset()

    # --- from the fabric ----------------------------------------------------------------------

    def expect_nothing_before(self, at_us: int) -> None:
        """What this end sends comes after its answer to the request for a connection."""
        self._arrives_us = at_us + 1

    def connected(self, protocol: asyncio.BufferedProtocol) -> None:
        """Give the connection to its protocol."""
        self._protocol = protocol
        if not self.gone:
            protocol.connection_made(self)
            self._read()

    def resume(self) -> None:
        """The network goes on: what was held arrives after the next retransmission."""
        if self._sent and not self.gone:
            pause_us = int(self._fabric.random.random() * RETRANSMISSION_US)
            self._arrives_us = max(self._arrives_us, self._fabric.scheduler.now_us + pause_us)
            self._sent = deque((self._arrives_us, data) for _, data in self._sent)
            self._arrival_expected = False
            self._expect_arrival()

    def lost(self, error: Exception | None) -> None:
        """The connection is over, and this side is told."""
        if not self.gone:
            self._forget(error)

    def vanish(self) -> None:
        """The machine lost power: this end is gone, and nobody is told."""
        self.gone = True
        self._drop_unsent()
        self._fabric.forget(self)

    def killed(self) -> None:
        """The process died: what it has written arrives, then the other side sees the end."""
        self._closing = True
        self._protocol = None
        self._finish_if_sent()

    # --- inside -------------------------------------------------------------------------------

    def _forget(self, error: Exception | None) -> None:
        self.gone = True
        self._drop_unsent()
        self._fabric.forget(self)
        if self._protocol is not None:
            self._loop.call_soon(self._protocol.connection_lost, error)

    def _drop_unsent(self) -> None:
        self._sent.clear()
        self._unread_bytes = 0

    def _send_reset(self) -> None:
        fabric = self._fabric
        if not fabric.is_silent(self.host, self.remote):
            latency_us = fabric.latency_us(self.host, self.remote)
            fabric.scheduler.after(
                latency_us, self.other.lost, ConnectionResetError("reset by peer")
            )

    def _expect_arrival(self) -> None:
        if self._arrival_expected or not self._sent or self.unheard:
            return
        fabric = self._fabric
        if fabric.is_silent(self.host, self.remote):
            return  # when it speaks again, resume is called
        self._arrival_expected = True
        wait_us = max(0, self._sent[0][0] - fabric.scheduler.now_us)
        fabric.scheduler.after(wait_us, self._arrive)

    def _arrive(self) -> None:
        """Hand over what has arrived by now, as one piece or cut somewhere."""
        self._arrival_expected = False
        fabric = self._fabric
        if not self._sent or self.unheard or fabric.is_silent(self.host, self.remote):
            return
        if not self.remote.powered:
            return  # nobody is there to answer
        if self.other.gone:
            self.lost(ConnectionResetError("reset by peer"))
            return
        now_us = fabric.scheduler.now_us
        if self._sent[0][0] > now_us:  # resumed meanwhile
            self._expect_arrival()
            return
        data = self._take(now_us)
        fabric.note("arrive", self.host.name, self.remote.name, len(data), zlib.crc32(data))
        self.other._loop.call_soon(self.other._receive, data)  # noqa: SLF001
        self._expect_arrival()
        self._finish_if_sent()

    def _take(self, now_us: int) -> bytes:
        parts = []
        while self._sent and self._sent[0][0] <= now_us:
            parts.append(self._sent.popleft()[1])
        data = b"".join(parts)
        random = self._fabric.random
        if len(data) > 1 and random.random() < _SPLIT:
            cut = random.randrange(1, len(data))
            later_us = now_us + self._fabric.latency_us(self.host, self.remote)
            self._sent.appendleft((later_us, data[cut:]))
            data = data[:cut]
        return data

    def _receive(self, data: bytes) -> None:
        self._arrived.append(memoryview(data))
        self._read()

    def _read(self) -> None:
        """Let the protocol read, as much as it takes at a time, until it pauses."""
        if self._protocol is None and not self._closing and not self.gone:
            return  # the process has not accepted yet
        while self._arrived and not self._reading_paused:
            data = rest = self._arrived.popleft()
            while rest and not self._reading_paused:
                if self.gone or self._protocol is None:
                    rest = rest[:0]
                    break
                buffer = memoryview(self._protocol.get_buffer(-1))
                count = min(len(buffer), len(rest))
                buffer[:count] = rest[:count]
                rest = rest[count:]
                self._protocol.buffer_updated(count)
            if rest:
                self._arrived.appendleft(rest)
            self.other.was_read(len(data) - len(rest))
        if self._end_unread and not self._reading_paused:
            self.lost(None)

    def was_read(self, count: int) -> None:
        """The other side has read so many bytes, which makes room in the kernels."""
        self._unread_bytes = max(0, self._unread_bytes - count)
        if self._writing_paused:
            self._loop.call_soon(self._resume_writing)

    def _resume_writing(self) -> None:
        if self._writing_paused and self.get_write_buffer_size() <= self._low:
            self._writing_paused = False
            if self._protocol is not None and not self.gone:
                self._protocol.resume_writing()

    def _finish_if_sent(self) -> None:
        """End a closed connection once everything has arrived."""
        if self._closing and not self._sent and not self.gone:
            self._forget(None)
            self._fabric.send_end(self.host, self.remote, self.other.ended_by_peer)

    def ended_by_peer(self) -> None:
        """The other side has said that nothing more comes; read after all that came before."""
        if self._loop.ended:
            self.lost(None)
        else:
            self._end_unread = True
            self._loop.call_soon(self._read)
