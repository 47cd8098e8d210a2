"""The engine's side of the Unix socket: decodes calls, hands them on, writes replies.

There is no task per call: the handler gets the call and a function to answer it with, now or
later. A connection that has too many calls unanswered, or does not take its replies, is not read
any further until it has caught up. Large replies wait for it unencoded; of what is read beyond a
bound only a refusal is sent, so that a slow front end costs no more memory and is not cut off.
"""

import asyncio
import contextlib
import errno
import hmac
import logging
import socket
import stat
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Never, cast

import msgspec

from raftkv.core.errors import StartError
from raftkv.rpc.calls import ItemHandler, LinkCalls
from raftkv.rpc.framing import DECODE_ERRORS, FrameDecoder, FrameError, FrameWriter
from raftkv.rpc.items import CallError, End, ItemMessage, ItemWriter, decode_item_message
from raftkv.rpc.local import (
    CHANNEL_CALL,
    CHANNEL_HELLO,
    CHANNEL_ITEMS,
    HELLO_BYTES_MAX,
    IN_FLIGHT_MAX,
    PAYLOAD_BYTES_MAX,
    PROTOCOL_VERSION,
    Hello,
    LocalCall,
    Welcome,
    socket_address,
)
from raftkv.rpc.messages import Call, Failure, Reply, Served
from raftkv.rpc.sizes import SMALL_BYTES, response_bytes, without_values

__all__ = ["Handler", "LocalServer", "Respond", "SocketInUseError"]

Respond = Callable[[Reply], None]
"""Answers one call; to be called exactly once for it, on the loop's thread."""

Handler = Callable[[Call, Respond], None]
"""Takes a call; must not block."""

_BACKLOG = 128
_CONNECTIONS_MAX = 256
_HELLO_DEADLINE_S = 5.0
_CLOSE_DEADLINE_S = 1.0
_WAITED_S = 0.25
_BUSY_RETRY_AFTER_MS = 200

OUTPUT_BYTES_MAX = 1024 * 1024
"""Of replies that are encoded and have not reached the kernel; large ones wait beyond that."""

REPLIES_WAITING_BYTES_MAX = 256 * 1024 * 1024
"""Of large replies that wait for one front end."""

_logger = logging.getLogger(__name__)


class SocketInUseError(StartError):
    """The socket's path is taken: by a living process or by something that is no socket."""


class LocalServer:
    """Serves ``handler`` on a Unix socket that only this user may open, behind a token."""

    def __init__(
        self,
        path: Path,
        token: bytes,
        handler: Handler,
        *,
        node: str,
        item_handler: ItemHandler | None = None,
        in_flight_max: int = IN_FLIGHT_MAX,
        payload_bytes_max: int = PAYLOAD_BYTES_MAX,
    ) -> None:
        if not token:
            raise ValueError("the socket's token must not be empty")
        self.path = path
        self.token = token
        self.handler = handler
        self.item_handler = item_handler
        self.node = node
        self.in_flight_max = in_flight_max
        self.payload_bytes_max = payload_bytes_max
        self.connections: set[_Connection] = set()
        self._all_gone = asyncio.Event()
        self._all_gone.set()
        self._server: asyncio.Server | None = None
        self._inode: int | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            SocketInUseError: a living process listens there, or the path is not a socket.
        """
        loop = asyncio.get_running_loop()
        listening = _bind(self.path)
        self._inode = self.path.stat().st_ino
        self._server = await loop.create_unix_server(
            lambda: self.accept(loop), sock=listening, backlog=_BACKLOG
        )

    def accept(self, loop: asyncio.AbstractEventLoop) -> asyncio.BufferedProtocol:
        """Return the protocol of a new connection."""
        return _Connection(self, loop)

    async def close(self) -> None:
        """Stop listening and close every connection once what is written has left."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self._unlink()
        for connection in tuple(self.connections):
            connection.close()
        try:
            async with asyncio.timeout(_CLOSE_DEADLINE_S):
                await self._all_gone.wait()
        except TimeoutError:
            for connection in tuple(self.connections):
                connection.abort()
            await self._all_gone.wait()

    @property
    def in_flight(self) -> int:
        """Calls of all connections that wait for their reply, or whose reply waits."""
        return sum(len(each.calls.to_answer) + len(each.waiting) for each in self.connections)

    def add(self, connection: "_Connection") -> None:
        """Count a connection, authenticated or not."""
        self.connections.add(connection)
        self._all_gone.clear()

    def remove(self, connection: "_Connection") -> None:
        """Forget a lost connection."""
        self.connections.discard(connection)
        if not self.connections:
            self._all_gone.set()

    def _unlink(self) -> None:
        """Remove the socket, unless the path is another's by now."""
        with contextlib.suppress(FileNotFoundError):
            if self._inode is not None and self.path.stat().st_ino == self._inode:
                self.path.unlink()
        self._inode = None


def _bind(path: Path) -> socket.socket:
    _remove_stale(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.settimeout(0)
    try:
        with socket_address(path) as address:
            listening.bind(address)
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)  # nobody can connect before listen()
    except BaseException:
        listening.close()
        raise
    return listening


def _remove_stale(path: Path) -> None:
    """Remove a socket that a dead process left; refuse to touch anything else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketInUseError(f"{path}: is there and is not a socket")
    with (
        contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe,
        socket_address(path) as address,
    ):
        probe.settimeout(0)
        result = probe.connect_ex(address)
    if result != errno.ECONNREFUSED:
        raise SocketInUseError(f"{path}: another process listens there")
    path.unlink()


def _a_bug() -> Failure:
    """Say so; not definite, as nobody knows how far the call came."""
    return Failure("internal", "a bug in the engine; its log has the trace")


class _Connection(asyncio.BufferedProtocol):
    """One front end process."""

    def __init__(self, server: LocalServer, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._decoder = FrameDecoder(HELLO_BYTES_MAX)
        self._decode = msgspec.msgpack.Decoder(LocalCall).decode
        self._encode = msgspec.msgpack.Encoder().encode
        self._authenticated = False
        self._reading = True
        self._writable = True
        self._respond: Respond = self.respond  # one bound method for all calls
        self._hello_deadline: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport
        self._writer: FrameWriter
        self.waiting: deque[tuple[int, Reply]] = deque()  # large replies, with their sizes
        self._waiting_bytes = 0
        self._drain_scheduled = False
        self.calls: LinkCalls[Never] = LinkCalls(
            self._send_about_items,
            has_room=self._has_room_for_items,
            take_call=self._take_call_for_items,
        )
        self._to_answer = self.calls.to_answer

    # --- asyncio ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A stream's transport always is one; uvloop's do not inherit from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._writer = FrameWriter(self._loop, self._transport)
        self._server.add(self)
        self._hello_deadline = self._loop.call_later(
            _HELLO_DEADLINE_S, self._refuse, "no hello in time"
        )
        if len(self._server.connections) > _CONNECTIONS_MAX:
            self._refuse("too many connections")

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._decoder.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        self._decoder.received(nbytes)
        self._take_frames()

    def pause_writing(self) -> None:
        self._writable = False
        self._pace()

    def resume_writing(self) -> None:
        self._writable = True
        self._schedule_drain()
        self._pace()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._cancel_deadline()
        self._server.remove(self)
        self.waiting.clear()
        self.calls.lose()

    # --- calls and replies -----------------------------------------------------------------

    def respond(self, reply: Reply) -> None:
        """Write the reply to a call of this connection."""
        if self._transport.is_closing():
            return
        try:
            self._to_answer.remove(reply.id)
        except KeyError:
            _logger.exception("call %d was answered twice", reply.id)
            return
        size = response_bytes(reply.response)
        if size > SMALL_BYTES and (self.waiting or not self._has_room()):
            self._let_wait(reply, size)
        else:
            self._send(reply)
        if not self._reading:
            self._pace()

    def _send(self, reply: Reply) -> None:
        try:
            payload = self._encode(reply)
        except Exception:  # nobody else would ever answer this call
            _logger.exception("the answer to call %d cannot be encoded", reply.id)
            payload = self._encode(Reply(reply.id, _a_bug(), Served(node=self._server.node)))
        if len(payload) > self._server.payload_bytes_max:
            payload = self._encode(self._too_large(reply))
        self._writer.send(CHANNEL_CALL, payload)

    def _has_room(self) -> bool:
        return self._writable and self._writer.waiting_bytes < OUTPUT_BYTES_MAX

    def _let_wait(self, reply: Reply, size: int) -> None:
        """Encode it when there is room; keep what was read only if not too much waits."""
        if self._waiting_bytes + size > REPLIES_WAITING_BYTES_MAX:
            detail = "too many answers wait for this front end"
            refused = without_values(reply.response, detail, _BUSY_RETRY_AFTER_MS)
            reply = Reply(reply.id, refused, reply.served, reply.map_epoch)
            size = response_bytes(refused)
            if size <= SMALL_BYTES:
                self._send(reply)
                return
        self.waiting.append((size, reply))
        self._waiting_bytes += size
        self._schedule_drain()

    def _schedule_drain(self) -> None:
        if self._writable and not self._drain_scheduled and self._something_waits():
            self._drain_scheduled = True
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        """Let go as much as the socket takes; the rest in the next turn, or when it is writable."""
        self._drain_scheduled = False
        while self.waiting and self._has_room() and not self._transport.is_closing():
            size, reply = self.waiting.popleft()
            self._waiting_bytes -= size
            self._send(reply)
        if not self._transport.is_closing():
            self.calls.made_room()
            self._schedule_drain()

    def _something_waits(self) -> bool:
        return bool(self.waiting) or self.calls.waits_for_room

    def close(self) -> None:
        while self.waiting:
            self._send(self.waiting.popleft()[1])
        self._writer.flush()
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def _take_frames(self) -> None:
        try:
            for channel, payload in self._decoder.frames():
                if not self._authenticated:
                    self._take_hello(channel, payload)
                elif channel == CHANNEL_CALL:
                    self._take_call(self._decode(payload))
                elif channel == CHANNEL_ITEMS:
                    self.calls.take(decode_item_message(payload))
                else:
                    raise FrameError(f"unexpected frame on channel {channel}")  # noqa: TRY301 -- one place closes
                if self._transport.is_closing() or not self._may_read():
                    break
        except (CallError, FrameError, *DECODE_ERRORS) as error:
            self._refuse(f"malformed: {error}")
        self._pace()

    def _take_hello(self, channel: int, payload: memoryview) -> None:
        if channel != CHANNEL_HELLO:
            raise FrameError("no hello")
        hello = msgspec.msgpack.decode(payload, type=Hello)
        if not hmac.compare_digest(hello.token, self._server.token):
            self._refuse("wrong token")
            return
        if hello.protocol != PROTOCOL_VERSION:
            self._refuse(f"speaks protocol {hello.protocol}, this is {PROTOCOL_VERSION}")
            return
        self._authenticated = True
        self._cancel_deadline()
        self._decoder.payload_bytes_max = self._server.payload_bytes_max
        welcome = Welcome(
            protocol=PROTOCOL_VERSION,
            node=self._server.node,
            in_flight_max=self._server.in_flight_max,
            payload_bytes_max=self._server.payload_bytes_max,
        )
        self._writer.send(CHANNEL_HELLO, msgspec.msgpack.encode(welcome))

    def _take_call(self, call: LocalCall) -> None:
        self.calls.begin(call.id)
        if call.sent_s is not None and self._loop.time() - call.sent_s > _WAITED_S:
            waited_ms = int((self._loop.time() - call.sent_s) * 1000)
            if waited_ms >= call.remaining_ms:
                # Its front end has given it up, and a write may have been sent elsewhere since.
                late = Failure("unavailable", "its time was up when it was read", definite=True)
                self.respond(Reply(call.id, late, Served(node=self._server.node)))
                return
            call = msgspec.structs.replace(call, remaining_ms=call.remaining_ms - waited_ms)
        try:
            self._server.handler(call, self._respond)
        except Exception:
            _logger.exception("a %s failed", type(call.request).__name__)
            if call.id in self._to_answer:
                self.respond(Reply(call.id, _a_bug(), Served(node=self._server.node)))

    # --- items -----------------------------------------------------------------------------

    def _send_about_items(self, message: ItemMessage) -> None:
        if self._transport.is_closing():
            return
        try:
            payload = self._encode(message)
            if isinstance(message, End) and len(payload) > self._server.payload_bytes_max:
                payload = self._encode(End(message.items, self._too_large(message.reply)))
        except Exception:
            if not isinstance(message, End):
                raise
            _logger.exception("the answer to call %d cannot be encoded", message.reply.id)
            bug = Reply(message.reply.id, _a_bug(), Served(node=self._server.node))
            payload = self._encode(End(message.items, bug))
        self._writer.send(CHANNEL_ITEMS, payload)

    def _has_room_for_items(self) -> bool:
        """Whether items may be sent; who is refused is asked again when there is room."""
        if self._has_room():
            return True
        if self._writable and not self._drain_scheduled:
            self._drain_scheduled = True
            self._loop.call_soon(self._drain)
        return False

    def _take_call_for_items(self, call: Call, writer: ItemWriter) -> None:
        served = Served(node=self._server.node)
        if self._server.item_handler is None:
            none = Failure("invalid", "nothing is answered with items here", definite=True)
            writer.end(none, served)
            return
        try:
            self._server.item_handler(call, writer)
        except Exception:
            _logger.exception("a %s failed", type(call.request).__name__)
            writer.end(_a_bug(), served)

    def _too_large(self, reply: Reply) -> Reply:
        """Say so, and not that nothing was done: the reply may be a write's."""
        failure = Failure(
            "too_large", f"the answer is larger than {self._server.payload_bytes_max} bytes"
        )
        return Reply(reply.id, failure, reply.served, reply.map_epoch)

    # --- pace ------------------------------------------------------------------------------

    def _may_read(self) -> bool:
        return self._writable and len(self._to_answer) < self._server.in_flight_max

    def _pace(self) -> None:
        """Stop or go on reading. Frames already read are taken before new ones are."""
        if self._transport.is_closing() or self._reading == self._may_read():
            return
        self._reading = not self._reading
        if self._reading:
            self._transport.resume_reading()
            if self._decoder.buffered_bytes:
                # Not at once: respond() may be running inside a handler.
                self._loop.call_soon(self._take_frames_kept)
        else:
            self._transport.pause_reading()

    def _take_frames_kept(self) -> None:
        if self._reading and not self._transport.is_closing():
            self._take_frames()

    def _refuse(self, why: str) -> None:
        if not self._transport.is_closing():
            _logger.warning("front end connection closed: %s", why)
            self._transport.abort()

    def _cancel_deadline(self) -> None:
        if self._hello_deadline is not None:
            self._hello_deadline.cancel()
            self._hello_deadline = None
