"""What clients that behave badly have in common: how they ask, and how they keep connections.

Each goes on until it is called off, and comes back when the server throws it out. What came of it
is counted, by the status of answers.
"""

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from types import MappingProxyType

Address = tuple[str, int]
Deeds = Counter[str]
"""How often each answer came, by status; ``lost``: the server closed the connection."""

_BACK_AFTER_S = 0.1
"""Before a client that was thrown out is there again."""

_BYTE_EVERY_S = 0.5
_PIPELINED = 200
_RECEIVE_BYTES = 4096

CLIENT_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(32)
"""The beginning of one (RFC 8446, section 4.1.2), whose rest does not come."""


def head_of(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    """The head of a request to this machine, whatever its ``headers`` say instead."""
    fields = {"host": "localhost", **headers}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {text}" for name, text in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def request_of(
    method: str,
    target: str,
    body: bytes = b"",
    headers: Mapping[str, str] = MappingProxyType({}),
) -> bytes:
    """A whole request."""
    length = {"content-length": str(len(body))} if body else {}
    return head_of(method, target, {**headers, **length}) + body


def get_of(key: str) -> bytes:
    """Reads one key."""
    return request_of("GET", f"/v1/kv/{key}")


def post_of(path: str, body: bytes, kind: str = "application/json") -> bytes:
    """A body of this ``kind``."""
    return request_of("POST", path, body, {"content-type": kind})


# --- clients --------------------------------------------------------------------------------------


async def crowd(size: int, client: Callable[[int], Awaitable[None]]) -> None:
    """So many clients at once, until they are all called off."""
    await asyncio.gather(*(client(number) for number in range(size)))


async def ask(address: Address, deeds: Deeds, requests: Iterator[bytes]) -> None:
    """One client that sends when it is answered, and comes back when it is thrown out."""
    while True:
        try:
            reader, writer = await asyncio.open_connection(*address)
            with contextlib.closing(writer):
                for request in requests:
                    writer.write(request)
                    deeds[await read_answer(reader)] += 1
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            deeds["lost"] += 1
        await asyncio.sleep(_BACK_AFTER_S)


async def read_answer(reader: asyncio.StreamReader) -> str:
    """Read one answer whole and return its status.

    Raises:
        EOFError: The connection ended before.
        ValueError: It is no answer.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    _, _, rest = head.partition(b"\r\ncontent-length:")
    if rest:
        await reader.readexactly(int(rest.partition(b"\r\n")[0]))
    elif b"\r\ntransfer-encoding: chunked" in head:
        while size := int(await reader.readline(), 16):
            await reader.readexactly(size + len(b"\r\n"))
        await reader.readline()
    return head[9:12].decode("latin-1")


async def leave_unread(address: Address, deeds: Deeds, request: bytes) -> None:
    """One client that asks on and on, takes next to nothing, and comes back when thrown out."""
    loop = asyncio.get_running_loop()
    while True:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
            connection.setblocking(False)  # noqa: FBT003 -- the standard library's own order
            try:
                await loop.sock_connect(connection, address)
                deeds["connections"] += 1
                await loop.sock_sendall(connection, request * _PIPELINED)
                while True:
                    await asyncio.sleep(_BYTE_EVERY_S)
                    await loop.sock_sendall(connection, request)
            except OSError:
                deeds["lost"] += 1
        await asyncio.sleep(_BACK_AFTER_S)


async def trickle(address: Address, deeds: Deeds, begun: bytes) -> None:
    """One client that begins something and goes on with it very slowly, until it is thrown out."""
    while True:
        try:
            reader, writer = await asyncio.open_connection(*address)
            with contextlib.closing(writer):
                deeds["connections"] += 1
                writer.write(begun)
                answer = asyncio.ensure_future(reader.read(_RECEIVE_BYTES))
                while not (await asyncio.wait({answer}, timeout=_BYTE_EVERY_S))[0]:
                    if begun:
                        writer.write(b"x")
                deeds[_told(await answer)] += 1
        except OSError:
            deeds["lost"] += 1
        await asyncio.sleep(_BACK_AFTER_S)


def _told(data: bytes) -> str:
    """What came back to one that hardly asked: a status, something else, or nothing."""
    if not data:
        return "lost"
    return data[9:12].decode("latin-1") if data.startswith(b"HTTP/") else "answers"


async def stay(address: Address, deeds: Deeds, door: asyncio.Semaphore, number: int) -> None:
    """One client that keeps a connection; every second one has asked for something on it."""
    while True:
        try:
            async with door:
                reader, writer = await asyncio.open_connection(*address)
            with contextlib.closing(writer):
                deeds["connections"] += 1
                if number % 2 == 0:
                    writer.write(get_of("x"))
                while await reader.read(_RECEIVE_BYTES):
                    deeds["answers"] += 1
            deeds["lost"] += 1
        except OSError:
            deeds["lost"] += 1
        await asyncio.sleep(_BACK_AFTER_S)
