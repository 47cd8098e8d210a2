"""A crowd of clients that hold connections and ask for nothing, or for little, very slowly.

Run as ``python -m raftkv.bench.measures.crowd`` with a :class:`Crowd` (JSON) as its argument: it
says ``ready`` on standard output once everybody is connected, and keeps it so until its standard
input ends; then it writes an :class:`CrowdResult` (JSON).
"""

import asyncio
import os
import subprocess
import sys
from types import TracebackType
from typing import Self, cast

import msgspec
import uvloop

from raftkv.bench.load.generator import raise_file_limit
from raftkv.interpreter import PYTHON_M

BYTE_EVERY_S = 1.0
SLOW_BODY_BYTES = 10_000
"""Longer than any server should wait for at this pace."""

_BACK_AFTER_S = 0.2
_CONNECTING_MAX = 64
_READY = b"ready\n"
_READY_DEADLINE_S = 60.0


class Crowd(msgspec.Struct, frozen=True):
    """Who comes. Every second idle one has made a request and stays, the others never make any."""

    host: str
    port: int
    idle: int
    slow: int


class CrowdResult(msgspec.Struct):
    """Who was there in the end, and what became of the others."""

    idle_open: int = 0
    slow_open: int = 0
    idle_dropped: int = 0
    """Idle connections that the server closed; each was opened again."""
    slow_ended: dict[str, int] = {}
    """What the slow ones were answered, by status; each came again."""
    bytes_sent_slowly: int = 0


class _Client(asyncio.Protocol):
    """One connection; it remembers the last thing that it was told."""

    def __init__(self, host: str) -> None:
        self.lost = asyncio.Event()
        self.status = "closed"
        self._host = host
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.status = data[9:12].decode("ascii", "replace")

    def connection_lost(self, _error: Exception | None) -> None:
        self.lost.set()

    def ask(self) -> None:
        """Make one small request."""
        self.send(f"GET /v1/kv/crowd HTTP/1.1\r\nhost: {self._host}\r\n\r\n".encode())

    def begin_body(self) -> None:
        """Send the head of a write whose body never ends."""
        head = f"PUT /v1/kv/crowd HTTP/1.1\r\nhost: {self._host}\r\n"
        self.send(f"{head}content-length: {SLOW_BODY_BYTES}\r\n\r\n".encode())

    def send(self, data: bytes) -> None:
        self._transport.write(data)

    def close(self) -> None:
        self._transport.abort()


class _CrowdDriver:
    """Brings a crowd together and keeps it so."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._door = asyncio.Semaphore(_CONNECTING_MAX)
        self._missing = crowd.idle + crowd.slow
        self.complete = asyncio.Event()
        self.attendance = CrowdResult()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(self._crowd.idle):
                group.create_task(self._stay_idle(asks=number % 2 == 0))
            for _ in range(self._crowd.slow):
                group.create_task(self._send_slowly())

    async def _enter(self) -> _Client:
        loop = asyncio.get_running_loop()
        while True:
            client = _Client(self._crowd.host)
            try:
                async with self._door:
                    await loop.create_connection(
                        lambda client=client: client,  # type: ignore[misc]
                        self._crowd.host,
                        self._crowd.port,
                    )
            except OSError:
                await asyncio.sleep(_BACK_AFTER_S)
            else:
                return client

    def _arrived(self) -> None:
        self._missing -= 1
        if self._missing == 0:
            self.complete.set()

    async def _stay_idle(self, *, asks: bool) -> None:
        while True:
            client = await self._enter()
            self.attendance.idle_open += 1
            self._arrived()
            if asks:
                client.ask()
            await client.lost.wait()
            self.attendance.idle_open -= 1
            self.attendance.idle_dropped += 1
            await asyncio.sleep(_BACK_AFTER_S)

    async def _send_slowly(self) -> None:
        attendance = self.attendance
        while True:
            client = await self._enter()
            attendance.slow_open += 1
            self._arrived()
            client.begin_body()
            while not client.lost.is_set() and client.status == "closed":
                client.send(b"x")
                attendance.bytes_sent_slowly += 1
                await asyncio.sleep(BYTE_EVERY_S)
            attendance.slow_open -= 1
            ended = attendance.slow_ended
            ended[client.status] = ended.get(client.status, 0) + 1
            client.close()


async def _main(crowd: Crowd) -> None:
    gathering = _CrowdDriver(crowd)
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), over.set)
    running = asyncio.ensure_future(gathering.run())
    complete = asyncio.ensure_future(gathering.complete.wait())
    await asyncio.wait({running, complete}, return_when=asyncio.FIRST_COMPLETED)
    os.write(sys.stdout.fileno(), _READY)
    ended = asyncio.ensure_future(over.wait())
    await asyncio.wait({running, ended}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
    os.write(sys.stdout.fileno(), msgspec.json.encode(gathering.attendance))
    running.cancel()


def main() -> None:
    """Be the crowd that the first argument describes."""
    raise_file_limit()
    uvloop.run(_main(msgspec.json.decode(sys.argv[1], type=Crowd)))


class CrowdProcess:
    """A crowd in a process of its own, there while the ``with`` block runs."""

    def __init__(self, crowd: Crowd) -> None:
        self.attendance = CrowdResult()
        """Who was there; known when the block has ended."""
        self._crowd = crowd
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(  # noqa: S603 -- our own module
            (*PYTHON_M, "raftkv.bench.measures.crowd", msgspec.json.encode(self._crowd).decode()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert self._process.stdout is not None  # noqa: S101 -- asked for above
        if self._process.stdout.readline() != _READY:
            self._end()
            raise ConnectionError("the crowd could not connect")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        said = self._end()
        if kind is None:
            self.attendance = msgspec.json.decode(said, type=CrowdResult)

    def _end(self) -> bytes:
        try:
            said, _ = self._process.communicate(timeout=_READY_DEADLINE_S)
        finally:
            self._process.kill()
            self._process.wait()
        return said


if __name__ == "__main__":
    main()
