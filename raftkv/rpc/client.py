"""The front end's connection to its engine: one Unix socket, many calls in flight.

Every call gets exactly one truthful answer, also when the engine hangs or dies: a write that may
have left this process has an unknown outcome then, a read or a write that certainly has not left
is definite. Calls and their numbers belong to one connection, on both sides: what is answered after
its end goes nowhere. The connection is never made again behind the caller's back: when it is lost
``closed`` is set, and an HTTP worker ends with its engine.
"""

import asyncio
import contextlib
import logging
import math
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple, cast

import msgspec

from raftkv.rpc.calls import OPEN_MAX, LinkCalls
from raftkv.rpc.framing import DECODE_ERRORS, FrameDecoder, FrameError, FrameWriter
from raftkv.rpc.items import (
    WINDOW_BYTES,
    CallError,
    ItemMessage,
    ItemReader,
    decode_item_message,
)
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
from raftkv.rpc.messages import Failure, FailureCode, Reply, Request, Served, may_write

__all__ = ["EngineClient", "EngineUnavailableError", "Items"]

GRACE_S = 0.25
"""How much longer than the engine the client waits: the engine's own answer says more."""

_SWEEP_S = 0.1
_CONNECT_RETRY_S = 0.01
_WAITING_BYTES_MAX = 64 * 1024 * 1024
_REMAINING_MS_MAX = 600_000
_BUSY_RETRY_AFTER_MS = 100
_OPEN_BYTES = 16

_logger = logging.getLogger(__name__)


class EngineUnavailableError(Exception):
    """No engine answers at the socket, or it does not let this process in."""


class _Pending(NamedTuple):
    future: asyncio.Future[Reply]
    writes: bool
    deadline: float


class Items:
    """The items of one call, in order; ``async for`` ends behind the last one."""

    def __init__(self, final: asyncio.Future[Reply]) -> None:
        self._final = final
        self.reader: ItemReader | None = None
        self.changed = asyncio.Event()
        """Set when an item has come, or the end."""
        final.add_done_callback(lambda _: self.changed.set())

    @property
    def reply(self) -> Reply:
        """The final reply, a :class:`Failure` if need be; known behind the last item."""
        return self._final.result()

    def __aiter__(self) -> "Items":
        return self

    async def __anext__(self) -> bytes:
        while True:
            payload = None if self.reader is None else self.reader.take()
            if payload is not None:
                return payload
            if self._final.done():
                raise StopAsyncIteration
            self.changed.clear()
            await self.changed.wait()


class EngineClient:
    """Calls to the engine over one pipelined connection; belongs to the loop that made it.

    Made by :meth:`connect`. ``closed`` is set once the connection is lost, for whatever reason.
    """

    def __init__(self, protocol: "_ClientProtocol", welcome: Welcome) -> None:
        self._protocol = protocol
        self._writer = protocol.writer
        self._loop = asyncio.get_running_loop()
        self._encode = msgspec.msgpack.Encoder().encode
        self._served = Served(node=welcome.node)
        self._in_flight_max = welcome.in_flight_max
        self._payload_bytes_max = welcome.payload_bytes_max
        self._calls: LinkCalls[_Pending] = LinkCalls(self._send_about_items)
        self._pending = self._calls.asked
        self._sweeper: asyncio.TimerHandle | None = None
        self.node = welcome.node
        self.closed = asyncio.Event()
        protocol.client = self

    @classmethod
    async def connect(
        cls,
        path: Path,
        token: bytes,
        *,
        in_flight_max: int = IN_FLIGHT_MAX,
        timeout_s: float = 5.0,
    ) -> "EngineClient":
        """Connect to the engine that listens at ``path``.

        Raises:
            EngineUnavailableError: nobody listens, or the engine refused the token.
        """
        loop = asyncio.get_running_loop()

        async def connect(protocol: asyncio.BufferedProtocol) -> None:
            await loop.create_unix_connection(lambda: protocol, sock=await _dial(path))

        return await cls.connect_by(
            connect, token, where=str(path), in_flight_max=in_flight_max, timeout_s=timeout_s
        )

    @classmethod
    async def connect_by(
        cls,
        connect: Callable[[asyncio.BufferedProtocol], Awaitable[None]],
        token: bytes,
        *,
        where: str,
        in_flight_max: int = IN_FLIGHT_MAX,
        timeout_s: float = 5.0,
    ) -> "EngineClient":
        """Connect over whatever ``connect`` gives the protocol; errors name ``where``.

        Raises:
            EngineUnavailableError: as :meth:`connect`.
        """
        protocol = _ClientProtocol(asyncio.get_running_loop())
        try:
            async with asyncio.timeout(timeout_s):
                await connect(protocol)
                protocol.writer.send(
                    CHANNEL_HELLO,
                    msgspec.msgpack.encode(Hello(protocol=PROTOCOL_VERSION, token=token)),
                )
                welcome = await protocol.welcomed
        except TimeoutError:
            protocol.abort()
            raise EngineUnavailableError(f"{where}: the engine does not answer") from None
        except OSError as error:
            raise EngineUnavailableError(f"{where}: {error.strerror or error}") from error
        except EngineUnavailableError as error:
            protocol.abort()
            raise EngineUnavailableError(f"{where}: {error}") from None
        bounded = min(in_flight_max, welcome.in_flight_max)
        return cls(protocol, msgspec.structs.replace(welcome, in_flight_max=bounded))

    @property
    def in_flight(self) -> int:
        """Calls without an answer yet."""
        return len(self._pending)

    async def call(self, request: Request, timeout_s: float, request_id: str = "") -> Reply:
        """Ask the engine; a reply always comes, a :class:`Failure` if need be."""
        if self.closed.is_set():
            return self._failed("unavailable", "the engine is gone", definite=True)
        if (
            len(self._pending) >= self._in_flight_max
            or self._writer.waiting_bytes >= _WAITING_BYTES_MAX
        ):
            return self._failed("busy", "too many requests wait for the engine", definite=True)
        now = self._loop.time()
        call = LocalCall(
            id=self._writer.frames_queued + 1,  # an id is its frame's number
            remaining_ms=min(max(int(timeout_s * 1000), 0), _REMAINING_MS_MAX),
            request=request,
            request_id=request_id,
            sent_s=now,
        )
        payload = self._encode(call)
        if len(payload) > self._payload_bytes_max:
            return self._failed("too_large", "larger than a request may be", definite=True)
        future: asyncio.Future[Reply] = self._loop.create_future()
        deadline = now + timeout_s + GRACE_S
        self._pending[call.id] = _Pending(future, may_write(request), deadline)
        self._writer.send(CHANNEL_CALL, payload)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)
        try:
            return await future
        finally:
            self._pending.pop(call.id, None)

    @contextlib.contextmanager
    def items(
        self,
        request: Request,
        timeout_s: float = _REMAINING_MS_MAX / 1000,
        request_id: str = "",
        *,
        window_bytes: int = WINDOW_BYTES,
    ) -> Iterator["Items"]:
        """Ask for items; leaving the block cancels the call if it has not ended.

        ``timeout_s`` is what the engine is told. This side waits for as long as it is asked to.
        """
        final: asyncio.Future[Reply] = self._loop.create_future()
        items = Items(final)
        call = LocalCall(
            id=self._writer.frames_queued + 1,
            remaining_ms=min(max(int(timeout_s * 1000), 0), _REMAINING_MS_MAX),
            request=request,
            request_id=request_id,
            sent_s=self._loop.time(),
        )
        refused = self._refused(call)
        if refused is None:
            waiting = _Pending(final, may_write(request), math.inf)
            items.reader = self._calls.open(call, window_bytes, waiting, items.changed.set)
        else:
            final.set_result(refused)
        try:
            yield items
        finally:
            self._calls.cancel(call.id)

    def _refused(self, call: LocalCall) -> Reply | None:
        """Answer a call with items that is not even sent."""
        if self.closed.is_set():
            return self._failed("unavailable", "the engine is gone", definite=True)
        if self._calls.reading >= OPEN_MAX:
            return self._failed("busy", "too many calls with items are open", definite=True)
        if len(self._encode(call)) + _OPEN_BYTES > self._payload_bytes_max:
            return self._failed("too_large", "larger than a request may be", definite=True)
        return None

    def _send_about_items(self, message: ItemMessage) -> None:
        self._writer.send(CHANNEL_ITEMS, self._encode(message))

    async def close(self) -> None:
        """Close the connection; calls in flight get their answer as if it had been lost."""
        self._protocol.abort()
        await self.closed.wait()

    def deliver(self, reply: Reply) -> None:
        """Hand a reply to its call; an answer that comes after its time is dropped."""
        pending = self._pending.pop(reply.id, None)
        if pending is not None and not pending.future.done():
            pending.future.set_result(reply)

    def deliver_about_items(self, message: ItemMessage) -> None:
        """Hand an item to its call, or the final reply behind the items."""
        answered = self._calls.take(message)
        if answered is not None:
            pending, reply = answered
            if not pending.future.done():
                pending.future.set_result(reply)

    def connection_lost(self) -> None:
        """Answer every call in flight truthfully."""
        self.closed.set()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for call_id, call in self._calls.lose():
            if call.future.done():
                continue
            if call.writes and call_id <= self._writer.frames_flushed:
                reply = self._failed("unknown", "the engine was lost", definite=False)
            else:
                reply = self._failed("unavailable", "the engine was lost", definite=True)
            call.future.set_result(reply)

    def _sweep(self) -> None:
        """Answer for an engine that has not: one timer for all calls, each may be late by it."""
        now = self._loop.time()
        late = [call_id for call_id, call in self._pending.items() if call.deadline <= now]
        for call_id in late:
            call = self._pending.pop(call_id)
            if not call.future.done():
                call.future.set_result(
                    self._failed("timeout", "the engine did not answer", definite=not call.writes)
                )
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep) if self._pending else None

    def _failed(self, code: FailureCode, detail: str, *, definite: bool) -> Reply:
        retry_after_ms = _BUSY_RETRY_AFTER_MS if code == "busy" else None
        failure = Failure(code, detail, definite=definite, retry_after_ms=retry_after_ms)
        return Reply(id=0, response=failure, served=self._served)


async def _dial(path: Path) -> socket.socket:
    """Connect by hand, because the address of a long path only lives while it is used."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(0)
    try:
        with socket_address(path) as address:
            while True:
                try:
                    connection.connect(address)
                except BlockingIOError:  # the engine's backlog is full
                    await asyncio.sleep(_CONNECT_RETRY_S)
                else:
                    return connection
    except BaseException:
        connection.close()
        raise


class _ClientProtocol(asyncio.BufferedProtocol):
    """The socket's side of :class:`EngineClient`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._decoder = FrameDecoder(HELLO_BYTES_MAX)
        self._decode = msgspec.msgpack.Decoder(Reply).decode
        self.client: EngineClient | None = None
        self.welcomed: asyncio.Future[Welcome] = loop.create_future()
        self.writer: FrameWriter

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A stream's transport always is one; uvloop's do not inherit from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self.writer = FrameWriter(self._loop, self._transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._decoder.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        self._decoder.received(nbytes)
        try:
            for channel, payload in self._decoder.frames():
                if channel == CHANNEL_CALL and self.client is not None:
                    self.client.deliver(self._decode(payload))
                elif channel == CHANNEL_ITEMS and self.client is not None:
                    self.client.deliver_about_items(decode_item_message(payload))
                else:
                    self._take_welcome(channel, payload)
        except (CallError, FrameError, *DECODE_ERRORS) as error:
            _logger.error("the engine sent what is not an answer: %s", error)  # noqa: TRY400 -- no bug of ours
            self.abort()

    def pause_writing(self) -> None:
        self.writer.pause()

    def resume_writing(self) -> None:
        self.writer.resume()

    def connection_lost(self, _exc: Exception | None) -> None:
        if not self.welcomed.done():
            self.welcomed.set_exception(
                EngineUnavailableError("the engine closed the connection: is the token right?")
            )
            self.welcomed.exception()  # nobody may be waiting for it any more
        if self.client is not None:
            self.client.connection_lost()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _take_welcome(self, channel: int, payload: memoryview) -> None:
        if channel != CHANNEL_HELLO or self.welcomed.done():
            raise FrameError(f"unexpected frame on channel {channel}")
        welcome = msgspec.msgpack.decode(payload, type=Welcome)
        if welcome.protocol != PROTOCOL_VERSION:
            raise FrameError(f"speaks protocol {welcome.protocol}, this is {PROTOCOL_VERSION}")
        self._decoder.payload_bytes_max = PAYLOAD_BYTES_MAX
        self.welcomed.set_result(welcome)
