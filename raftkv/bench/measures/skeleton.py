"""The way of a put with no store on it: what sockets, event loops and the disk alone take.

``python -m raftkv.bench.measures.skeleton engine|worker`` is one process of a node that does
nothing but pass requests on, as :mod:`raftkv.engine` and :mod:`raftkv.web` pass on a put::

    client -> worker -> engine -> leader's engine -> both others, a sync on each -> and back

Same HTTP server, event loop, scheduling and kinds of sockets, and for an entry as many messages and
syncs; what waits travels together and is synced together. But a request is a number, its shard a
remainder, its answer fixed: no Raft, no state, no log that could be read again, nothing is checked,
encoded or measured. No store built like this can be faster (:mod:`raftkv.bench.measures.floor`). A
process ends with its standard input, hence also with whoever started it.
"""

import asyncio
import contextlib
import os
import struct
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import uvloop
from granian.constants import HTTPModes, Interfaces
from granian.log import LogLevels
from granian.server.embed import Server

CALL, FORWARD, APPEND, COPIED, REPLY, HELLO = range(6)
"""What a message is. Its number is that of a request; for APPEND and COPIED of an entry, for HELLO
of the node that dials."""

MAJORITY = 2
"""Of three."""

LOG_BYTES = 64 * 2**20
"""As a segment of the real log: allocated beforehand, written from the start again when full."""

WORKER_NICENESS = 5
ANSWER = b'{"key":"key-000000000000","revision":1764000000000000,"version":1}'

_message = struct.Struct("<IBQ")  # bytes of the payload, kind, number
_CONNECT_S = 10.0
_AGAIN_S = 0.02


class Node(msgspec.Struct, frozen=True):
    """One node of the skeleton; a line of JSON on the standard input of its processes."""

    number: int
    peers: tuple[int, ...]
    """Ports of all engines on loopback, this one's among them."""
    http_port: int
    directory: str

    @property
    def engine_socket(self) -> str:
        """Where the worker finds its engine."""
        return str(Path(self.directory) / "engine.sock")


class Stream(asyncio.Protocol):
    """A connection; what is sent in one pass of the loop leaves together."""

    def __init__(self, take: Callable[["Stream", int, int, bytes], None]) -> None:
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._rest = b""
        self._out: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep where to write."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take every message that is there in full."""
        data, at = self._rest + data, 0
        while len(data) - at >= _message.size:
            length, kind, number = _message.unpack_from(data, at)
            end = at + _message.size + length
            if end > len(data):
                break
            self._take(self, kind, number, data[at + _message.size : end])
            at = end
        self._rest = data[at:]

    def send(self, kind: int, number: int, payload: bytes = b"") -> None:
        """Send before the loop waits again."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(_message.pack(len(payload), kind, number) + payload)

    def _flush(self) -> None:
        self._transport.write(b"".join(self._out))
        self._out.clear()


class Engine:
    """Leads a third of all requests, and copies those of the other two engines."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._worker: Stream | None = None
        self._peers: dict[int, Stream] = {}
        self._joined = asyncio.Event()
        self._waiting: list[tuple[Stream, int, bytes]] = []
        self._entry = 0
        self._asked: dict[int, list[tuple[Stream, int]]] = {}  # entry -> who waits for it
        self._copies: dict[int, int] = {}
        self._unsynced: list[tuple[Stream | None, int, bytes]] = []  # (whose, entry, bytes)
        self._turn_scheduled = False
        self._at = 0
        self._log = os.open(Path(node.directory) / "log", os.O_RDWR | os.O_CREAT, 0o600)
        os.posix_fallocate(self._log, 0, LOG_BYTES)
        os.fsync(self._log)

    async def start(self) -> None:
        """Join the peers; only then is there something for a worker to connect to."""
        node, loop = self._node, self._loop
        await loop.create_server(
            lambda: Stream(self._take), "127.0.0.1", node.peers[node.number], backlog=16
        )
        for number in range(node.number):
            stream = await _connect(partial(self._dial, node.peers[number]))
            stream.send(HELLO, node.number)
            self._join(number, stream)
        async with asyncio.timeout(_CONNECT_S):
            await self._joined.wait()
        await loop.create_unix_server(lambda: Stream(self._take), node.engine_socket)

    def _join(self, number: int, stream: Stream) -> None:
        self._peers[number] = stream
        if len(self._peers) == len(self._node.peers) - 1:
            self._joined.set()

    async def _dial(self, port: int) -> Stream:
        _, stream = await self._loop.create_connection(
            lambda: Stream(self._take), "127.0.0.1", port
        )
        return stream

    def _take(self, stream: Stream, kind: int, number: int, payload: bytes) -> None:
        if kind == CALL:
            self._worker = stream
            leader = number % len(self._node.peers)
            if leader == self._node.number:
                self._propose(stream, number, payload)
            else:
                self._peers[leader].send(FORWARD, number, payload)
        elif kind == FORWARD:
            self._propose(stream, number, payload)
        elif kind == APPEND:
            self._record(stream, number, payload)
        elif kind == COPIED:
            self._copied(number)
        elif kind == HELLO:
            self._join(number, stream)
        elif self._worker is not None:
            self._worker.send(REPLY, number)

    def _propose(self, stream: Stream, number: int, payload: bytes) -> None:
        self._waiting.append((stream, number, payload))
        self._schedule_turn()

    def _record(self, whose: Stream | None, entry: int, payload: bytes) -> None:
        self._unsynced.append((whose, entry, payload))
        self._schedule_turn()

    def _schedule_turn(self) -> None:
        if not self._turn_scheduled:
            self._turn_scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_scheduled = False
        if self._waiting:
            self._entry += 1
            payload = b"".join([payload for _, _, payload in self._waiting])
            self._asked[self._entry] = [(stream, number) for stream, number, _ in self._waiting]
            self._waiting.clear()
            self._copies[self._entry] = 0
            for peer in self._peers.values():
                peer.send(APPEND, self._entry, payload)
            self._record(None, self._entry, payload)  # its turn is the next, with the message gone
        elif self._unsynced:
            self._sync()

    def _sync(self) -> None:
        # On the loop: that costs least, and whatever comes meanwhile is done together after it.
        unsynced, self._unsynced = self._unsynced, []
        data = b"".join([payload for _, _, payload in unsynced])
        if self._at + len(data) > LOG_BYTES:
            self._at = 0
        os.pwrite(self._log, data, self._at)
        os.fdatasync(self._log)
        self._at += len(data)
        for whose, entry, _ in unsynced:
            if whose is None:
                self._copied(entry)
            else:
                whose.send(COPIED, entry)

    def _copied(self, entry: int) -> None:
        """Answer once two of three have it."""
        copies = self._copies[entry] = self._copies.get(entry, 0) + 1
        if copies == MAJORITY:
            for stream, number in self._asked.pop(entry):
                stream.send(REPLY, number)
        elif copies == len(self._node.peers):
            del self._copies[entry]


class Worker:
    """The ASGI application: a request becomes a number, its answer is always the same."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._asked: dict[int, asyncio.Future[None]] = {}
        headers = [(b"content-type", b"application/json"), (b"etag", b'"1764000000000000"')]
        headers.append((b"content-length", str(len(ANSWER)).encode()))
        self._start = {"type": "http.response.start", "status": 200, "headers": headers}
        self._body = {"type": "http.response.body", "body": ANSWER}

    async def start(self) -> None:
        """Connect to the engine."""
        self._engine = await _connect(self._dial)

    async def _dial(self) -> Stream:
        _, stream = await self._loop.create_unix_connection(
            lambda: Stream(self._answered), self._node.engine_socket
        )
        return stream

    def _answered(self, _stream: Stream, _kind: int, number: int, _payload: bytes) -> None:
        self._asked.pop(number).set_result(None)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Pass one request on, and answer it."""
        del scope
        body = (await receive())["body"]
        self._number += 1
        # Requests take turns at the leaders; numbers of one worker are its own.
        number = self._number * len(self._node.peers) + self._number % len(self._node.peers)
        self._asked[number] = future = self._loop.create_future()
        self._engine.send(CALL, number, body)
        await future
        await send(self._start)
        await send(self._body)


async def _connect(dial: Callable[[], Any]) -> Stream:
    """Until the other side listens."""
    async with asyncio.timeout(_CONNECT_S):
        while True:
            try:
                return cast("Stream", await dial())
            except OSError:
                await asyncio.sleep(_AGAIN_S)


async def serve_engine(node: Node) -> None:
    """Run an engine until the process ends."""
    await Engine(node).start()
    await asyncio.Event().wait()


async def serve_worker(node: Node) -> None:
    """Run a worker until the process ends."""
    worker = Worker(node)
    await worker.start()
    server = Server(
        worker,
        address="127.0.0.1",
        port=node.http_port,
        interface=Interfaces.ASGINL,
        http=HTTPModes.http1,
        websockets=False,
        log_level=LogLevels.error,
    )
    await server.serve()


def main() -> None:
    """Run one process; what the real ones do about scheduling, these do too."""
    node = msgspec.json.decode(sys.stdin.buffer.readline(), type=Node)
    with contextlib.suppress(OSError):  # a sandbox may forbid it: for the real ones as well
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    if sys.argv[1] == "engine":
        uvloop.run(_until_eof(serve_engine(node)))
    else:
        os.nice(WORKER_NICENESS)
        uvloop.run(_until_eof(serve_worker(node)))


async def _until_eof(serving: Coroutine[Any, Any, None]) -> None:
    """Serve; end at once when the standard input does."""
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), os._exit, 0)
    await serving


if __name__ == "__main__":
    main()
