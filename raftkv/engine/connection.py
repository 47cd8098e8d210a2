"""One connection between two engines, from its handshake to its loss.

In order and complete, or lost: a message of Raft that cannot be queued closes the connection,
because Raft's transport may lose messages only together with the link. Whoever sends them bounds
them (:mod:`raftkv.raft.windows`), so that this tells of a peer that takes nothing. What is small
leaves at the end of the loop turn; what is large (snapshot chunks, values) leaves behind that, in
pieces and at the pace of the receiver (:mod:`raftkv.engine.lanes`), and is refused where too much
of it waits, so that a heartbeat never waits long behind it and no link is lost for it.
"""

import asyncio
import enum
import logging
import struct
from dataclasses import dataclass, replace
from typing import Protocol, cast

from raftkv.engine.handshake import (
    Acceptor,
    Dialer,
    HandshakeError,
    LinkHello,
    encode_refusal,
)
from raftkv.engine.lanes import PIECE_BYTES, BulkLanes, Pieces
from raftkv.engine.peer_wire import CHANNEL_CONTROL, Encode
from raftkv.engine.security import certificate_names
from raftkv.raft.clock import Clock
from raftkv.rpc.framing import FrameDecoder, FrameError, FrameWriter
from raftkv.rpc.sizes import SMALL_BYTES

_BULK = 0x80  # bits of the channel byte
_CHANNEL = 0x3F
_MORE = 0x40  # of a bulk message: other pieces of it follow
_HELLO_BYTES_MAX = 4096
_WRITE_HIGH_BYTES = 256 * 1024
_WRITE_LOW_BYTES = 64 * 1024
_ROUND_TRIP_SHARE = 0.125  # of a new sample in the smoothed value, as in TCP (RFC 6298)

_control = struct.Struct("<BQ")

_logger = logging.getLogger(__name__)


class _Kind(enum.IntEnum):
    """Control messages of an established link; the number means something else for each."""

    PING = 1  # when it was sent, in microseconds of the sender's own clock
    PONG = 2  # the number of the ping that is answered
    BULK_TAKEN = 3  # bulk bytes taken since the link began


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """Times and bounds of links.

    ``connect_deadline_s`` is for a connection in all; a network may give up before.
    """

    tick_s: float = 0.05
    ping_interval_s: float = 0.25
    dead_after_s: float = 1.0
    reconnect_s: float = 0.1
    refused_retry_s: float = 1.0
    connect_deadline_s: float = 30.0
    hello_deadline_s: float = 2.0
    frame_bytes_max: int = 64 * 1024 * 1024
    send_bytes_max: int = 128 * 1024 * 1024
    small_bytes: int = SMALL_BYTES
    """Calls and answers that carry more wait their turn."""
    small_waiting_bytes_max: int = 32 * 1024 * 1024
    """Beyond this small ones do so as well; below ``send_bytes_max``, so that Raft has room."""
    calls_waiting_bytes_max: int = 64 * 1024 * 1024
    """Of large calls that wait; one more is refused, before it has left."""
    answers_waiting_bytes_max: int = 256 * 1024 * 1024
    """Of large answers that wait; what one more has read is not sent. They are not encoded while
    they wait, and what they hold is mostly what the state holds as well."""
    bulk_queue_bytes_max: int = 20 * 1024 * 1024
    bulk_window_bytes: int = 512 * 1024
    bulk_piece_bytes: int = PIECE_BYTES
    unauthenticated_max: int = 64

    @classmethod
    def following(cls, election_min_s: float, election_max_s: float) -> "LinkLimits":
        """Return those for a cluster with these election time-outs.

        A link must not be lost for a silence that leaders are forgiven, as its loss begins an
        election.
        """
        usual = cls()
        dead_after_s = max(usual.dead_after_s, election_min_s)
        return replace(
            usual,
            ping_interval_s=dead_after_s / 4,
            dead_after_s=dead_after_s,
            hello_deadline_s=max(usual.hello_deadline_s, 2 * election_max_s),
        )


class Owner(Protocol):
    """What a connection asks of the links that it belongs to."""

    @property
    def limits(self) -> LinkLimits:
        """Times and bounds."""

    @property
    def clock(self) -> Clock:
        """Measures round trips."""

    def opened(self, connection: "Connection") -> None:
        """The transport is there; nobody is proven yet."""

    def dialer(self, peer: str, certified: frozenset[str] | None) -> Dialer:
        """Make the dialling side of a handshake."""

    def acceptor(self, certified: frozenset[str] | None) -> Acceptor:
        """Make the accepting side of a handshake."""

    def check_identity(self, hello: LinkHello) -> None:
        """Check that a proven peer has the identity that it is known by; raises HandshakeError."""

    def admit(self, hello: LinkHello) -> None:
        """Check it and store it durably; raises HandshakeError."""

    def established(self, connection: "Connection", hello: LinkHello) -> None:
        """Both sides are proven, agree, and have let each other in."""

    def deliver(self, peer: str, channel: int, payload: bytes) -> None:
        """Hand on a message; may raise anything."""

    def refused(self, connection: "Connection", error: HandshakeError) -> None:
        """The handshake failed."""

    def lost(self, connection: "Connection", reason: str) -> None:
        """The transport is gone."""


class Connection(asyncio.BufferedProtocol):
    """A connection that this node makes to ``dialing``, or accepts if that is None.

    ``peer`` is who is at the other end once that is proven; ``finished`` is done when the
    connection is lost.
    """

    def __init__(
        self, owner: Owner, loop: asyncio.AbstractEventLoop, dialing: str | None = None
    ) -> None:
        self._owner = owner
        self._loop = loop
        self._limits = owner.limits
        self._decoder = FrameDecoder(_HELLO_BYTES_MAX, buffer_bytes=_HELLO_BYTES_MAX)
        self._transport: asyncio.Transport | None = None
        self._writer: FrameWriter
        self._dialer: Dialer | None = None
        self._acceptor: Acceptor | None = None
        self._hello: LinkHello | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._reason = "closed by the peer"
        self._silent_s = 0.0
        self._since_ping_s = 0.0
        self._pinged_us = 0  # when we pinged last, or the connection was made
        self._echoed_us = 0  # which of our pings was answered last
        self._lanes = BulkLanes(self._limits.bulk_window_bytes, self._limits.bulk_piece_bytes)
        self._pieces = Pieces(self._limits.frame_bytes_max)
        self._message_echoed_us: int | None = None  # of the one of several pieces taken now
        self._bulk_pump_scheduled = False
        self._bulk_report_scheduled = False
        self._write_paused = False
        self.dialing = dialing
        self.peer: str | None = None
        self.remote = dialing or "?"
        self.closing = False
        self.was_refused = False
        self.round_trip_s: float | None = None
        self.finished: asyncio.Future[None] = loop.create_future()

    # --- asyncio ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        # A stream's transport always is one; uvloop's do not inherit from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(_WRITE_HIGH_BYTES, _WRITE_LOW_BYTES)
        self._pinged_us = self._echoed_us = self._now_us()
        self._writer = FrameWriter(self._loop, self._transport)
        if self.dialing is None:
            self.remote = _host(transport.get_extra_info("peername"))
        certified = None
        if transport.get_extra_info("ssl_object") is not None:
            certified = certificate_names(transport.get_extra_info("peercert"))
        self._deadline = self._loop.call_later(
            self._limits.hello_deadline_s, self._refuse, HandshakeError("sent no hello in time")
        )
        self._owner.opened(self)
        if self.dialing is not None:
            self._dialer = self._owner.dialer(self.dialing, certified)
        else:
            self._acceptor = self._owner.acceptor(certified)
            self._writer.send(CHANNEL_CONTROL, self._acceptor.challenge())

    def get_buffer(self, sizehint: int) -> memoryview:
        """Let the transport write into the decoder."""
        return self._decoder.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        """Take what has been read; nothing that a peer sends raises out of here."""
        self._decoder.received(nbytes)
        self._silent_s = 0.0
        try:
            for channel, payload in self._decoder.frames():
                if self.closing:
                    return
                if self.peer is None:
                    self._shake_hands(channel, bytes(payload))
                elif channel == CHANNEL_CONTROL:
                    self._take_control(payload)
                else:
                    self._take_message(self.peer, channel, bytes(payload))
        except HandshakeError as error:
            self._refuse(error)
        except FrameError as error:
            if self.peer is None:
                self._refuse(HandshakeError(f"sent what is no handshake: {error}"))
            else:
                self.fail(f"malformed: {error}")

    def pause_writing(self) -> None:
        """Hold bulk messages back while the socket is full."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """Go on with bulk messages."""
        self._write_paused = False
        self._schedule_bulk_pump()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owner."""
        self.closing = True
        if self._deadline is not None:
            self._deadline.cancel()
        if exc is not None and self._reason == "closed by the peer":
            self._reason = str(exc)
        self._owner.lost(self, self._reason)
        if not self.finished.done():
            self.finished.set_result(None)

    # --- sending -----------------------------------------------------------------------------

    def send(self, channel: int, payload: bytes) -> bool:
        """Queue a message; one too many closes the connection instead of being dropped."""
        if self.closing:
            return False
        waiting_bytes = self._writer.waiting_bytes + len(payload)
        if self._write_paused:  # else the transport holds next to nothing, and need not be asked
            waiting_bytes = self._writer.backlog_bytes() + len(payload)
        if waiting_bytes > self._limits.send_bytes_max:
            self.fail(f"{self._writer.backlog_bytes()} bytes wait to be sent, which is too many")
            return False
        self._writer.send(channel, payload)
        return True

    def send_small(self, channel: int, payload: bytes) -> bool:
        """Queue a message that may as well wait its turn; False: so much waits that it should.

        It never closes the connection, and leaves room for Raft.
        """
        if self.closing or self._writer.waiting_bytes > self._limits.small_waiting_bytes_max:
            return False
        if (
            self._write_paused
            and self._writer.backlog_bytes() > self._limits.small_waiting_bytes_max
        ):
            return False
        self._writer.send(channel, payload)
        return True

    def offer(self, channel: int, size_bytes: int, encode: Encode, bytes_max: int) -> bool:
        """Queue a message that everything else may overtake, and that is made when it leaves.

        False: ``bytes_max`` bytes of its channel wait already; see :meth:`BulkLanes.offer`.
        """
        if self.closing or not self._lanes.offer(channel, size_bytes, encode, bytes_max=bytes_max):
            return False
        self._schedule_bulk_pump()
        return True

    def backlog_bytes(self) -> int:
        """Bytes that wait in this process, bulk among them."""
        return self._writer.backlog_bytes() + self._lanes.waiting_bytes

    def _schedule_bulk_pump(self) -> None:
        """Send bulk at the end of a turn, when everything more urgent of it is queued already."""
        if not self._bulk_pump_scheduled and not self._lanes.is_empty:
            self._bulk_pump_scheduled = True
            self._loop.call_soon(self._pump_bulk)

    def _pump_bulk(self) -> None:
        self._bulk_pump_scheduled = False
        lanes = self._lanes
        # One piece may always be under way, so that Raft slows bulk down and does not stop it.
        while not self.closing and not (self._write_paused and lanes.under_way_bytes):
            try:
                taken = lanes.next_piece()
            except Exception:
                # Such as too little memory to encode an answer: it costs this link, not the node.
                _logger.exception("a message to %s could not be encoded", self.peer)
                self.fail("a message could not be encoded")
                return
            if taken is None:
                return
            channel, piece, more = taken
            self._writer.send(channel | (_BULK | _MORE if more else _BULK), piece)

    # --- receiving ---------------------------------------------------------------------------

    def _take_message(self, peer: str, channel: int, payload: bytes) -> None:
        if channel & _BULK:
            if not self._bulk_report_scheduled:
                self._bulk_report_scheduled = True
                self._loop.call_soon(self._report_bulk)
            if channel & _MORE:
                if not self._pieces.begin(channel & _CHANNEL, payload, self._echoed_us):
                    raise FrameError("a message in pieces is larger than a message may be")
                return
            channel &= _CHANNEL
            payload, self._message_echoed_us = self._pieces.end(channel, payload, self._echoed_us)
        try:
            self._owner.deliver(peer, channel, payload)
        except Exception:
            _logger.exception("a message of %s on channel %d failed", peer, channel)
            self.fail("a message could not be handled")
        finally:
            self._message_echoed_us = None

    def _report_bulk(self) -> None:
        self._bulk_report_scheduled = False
        if not self.closing:
            self._send_control(_Kind.BULK_TAKEN, self._pieces.received_bytes)

    def _take_control(self, payload: memoryview) -> None:
        if len(payload) != _control.size:
            raise FrameError(f"control message of {len(payload)} bytes")
        kind, number = _control.unpack(payload)
        if kind == _Kind.PING:
            self._send_control(_Kind.PONG, number)
        elif kind == _Kind.PONG:
            self._take_pong(number)
        elif kind == _Kind.BULK_TAKEN:
            if not self._lanes.taken(number):
                raise FrameError(f"{number} bulk bytes taken of {self._lanes.sent_bytes}")
            self._schedule_bulk_pump()
        else:
            raise FrameError(f"control message of kind {kind}")

    def _send_control(self, kind: _Kind, number: int) -> None:
        self._writer.send(CHANNEL_CONTROL, _control.pack(kind, number))

    # --- keep-alive --------------------------------------------------------------------------

    def tick(self, elapsed_s: float) -> None:
        """Let time pass; pings are sent and silence is counted from here.

        ``elapsed_s`` is bounded by the caller: when this process was stopped or stalled, the
        peer's messages wait in the socket, and they are read before the next tick.
        """
        if self.closing or self.peer is None:
            return
        self._silent_s += elapsed_s
        if self._silent_s >= self._limits.dead_after_s:
            self.fail(f"silent for {self._limits.dead_after_s:g} s")
            return
        self._since_ping_s += elapsed_s
        if self._since_ping_s >= self._limits.ping_interval_s:
            self._since_ping_s = 0.0
            self._pinged_us = self._now_us()
            self._send_control(_Kind.PING, self._pinged_us)

    def lag_s(self) -> float:
        """At most so long ago was sent what comes now, by this node's clock alone.

        A link keeps order: what comes behind an answer to a ping was sent after that ping. Before
        the first, everything comes behind a proof that the peer made for this very connection.
        It grows while the peer's messages wait on their way here, in a process that is frozen, or
        in a machine that is suspended.
        A message of several pieces was made when the first of them left.
        """
        echoed_us = self._message_echoed_us
        if echoed_us is None:
            echoed_us = self._echoed_us
        return self._owner.clock.boottime() - echoed_us / 1e6

    def _now_us(self) -> int:
        return int(self._owner.clock.boottime() * 1e6)

    def _take_pong(self, number: int) -> None:
        if not self._echoed_us <= number <= self._pinged_us:
            raise FrameError("answers a ping that was not sent, or was answered")
        self._echoed_us = number
        sample_s = self.lag_s()
        if self.round_trip_s is None:
            self.round_trip_s = sample_s
        else:
            self.round_trip_s += _ROUND_TRIP_SHARE * (sample_s - self.round_trip_s)

    # --- ending ------------------------------------------------------------------------------

    def fail(self, reason: str) -> None:
        """Give the connection up; what waits is lost with it. The owner hears of it next turn."""
        if self.closing:
            return
        self.closing = True
        self._reason = reason
        if self._transport is not None:
            self._transport.abort()

    def close(self, reason: str) -> None:
        """Close after what waits (bulk excepted) has been sent."""
        if self.closing or self._transport is None:
            return
        self.closing = True
        self._reason = reason
        self._writer.flush()
        self._transport.close()

    def abort(self) -> None:
        """End at once, also while closing."""
        self.closing = True
        if self._transport is not None:
            self._transport.abort()

    def give_up(self) -> None:
        """End a connection that could not be made in time.

        uvloop closes the transport of a cancelled connect without a word: no ``connection_lost``
        follows, and its ``is_closing`` goes on saying no, so that what is queued for the end of
        this turn would be written and raise.
        """
        if self._transport is not None:
            self._writer.pause()
        self.abort()
        self.connection_lost(None)

    # --- handshake -----------------------------------------------------------------------------

    def _shake_hands(self, channel: int, payload: bytes) -> None:
        if channel != CHANNEL_CONTROL:
            raise HandshakeError("sent a message before its hello")
        if self._dialer is not None:
            self._step_as_dialer(self._dialer, payload)
        elif self._acceptor is not None:
            self._step_as_acceptor(self._acceptor, payload)

    def _step_as_dialer(self, dialer: Dialer, payload: bytes) -> None:
        if not dialer.challenged:
            self._writer.send(CHANNEL_CONTROL, dialer.receive_challenge(payload))
            return
        if self._hello is None:
            hello = dialer.receive_welcome(payload)
            self._owner.admit(hello)
            self._hello = hello
            self._writer.send(CHANNEL_CONTROL, dialer.ready())
            return
        dialer.receive_accepted(payload)
        self._establish(self._hello)

    def _step_as_acceptor(self, acceptor: Acceptor, payload: bytes) -> None:
        if self._hello is None:
            hello = acceptor.receive_hello(payload)
            self._owner.check_identity(hello)
            self._hello = hello
            self._writer.send(CHANNEL_CONTROL, acceptor.welcome())
            return
        hello = acceptor.receive_ready(payload)
        self._owner.admit(hello)
        self._writer.send(CHANNEL_CONTROL, acceptor.accepted())
        self._establish(hello)

    def _establish(self, hello: LinkHello) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self.peer = hello.node_name
        self._decoder.payload_bytes_max = self._limits.frame_bytes_max
        self._owner.established(self, hello)

    def _refuse(self, error: HandshakeError) -> None:
        """End a handshake; the peer is told why only if it has proven itself."""
        if self.closing:
            return
        self.was_refused = True
        if self._acceptor is not None and self._acceptor.proven is not None:
            self.remote = self._acceptor.proven
        self._owner.refused(self, error)
        answer = error.answer
        if answer is None and error.proven:
            say = encode_refusal if self._acceptor is None else self._acceptor.refusal
            answer = say(str(error))
        if answer is not None:
            self._writer.send(CHANNEL_CONTROL, answer)
            self.close(str(error))
        else:
            self.fail(str(error))


def _host(peername: object) -> str:
    if isinstance(peername, tuple) and peername:
        return str(peername[0])
    return "?"
