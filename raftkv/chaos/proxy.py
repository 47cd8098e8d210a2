"""The links between nodes as a process of its own: ``python -m raftkv.chaos.proxy``.

Each pair of nodes has a port here, which the one that dials takes for the other one's. Bytes are
passed on, or held, delayed, stalled or cut off, in each direction by itself. Standard input brings
one JSON object a line, standard output answers each with one; the end of the input ends it all.

::

    {"do": "open", "links": [{"dialer": "n1", "acceptor": "n2", "listen": 10001, "to": 10002}]}
    {"do": "rule", "from": "n1", "to": "n2", "rule": {"blocked": true}}
    {"do": "stats"}

What is held while a direction is blocked is passed on when it is opened again, as TCP would by
sending it again, and no new connection comes about while either direction is blocked.
"""

import asyncio
import contextlib
import json
import socket
import struct
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

from raftkv.testing.launch import die_with_parent

CHUNK_BYTES = 65_536
HOST = "127.0.0.1"
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on with no time: closing sends a reset."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to the bytes of one direction; by default nothing.

    ``delay_ms`` is a range, from which each chunk's delay is drawn. ``stall_share`` of the chunks
    wait for ``stall_ms`` more, doubled up to three times, and everything behind them too: what TCP
    makes of a lost packet. ``reset_share`` of the chunks end their connection.
    """

    blocked: bool = False
    delay_ms: tuple[float, float] = (0.0, 0.0)
    stall_share: float = 0.0
    stall_ms: float = 200.0
    reset_share: float = 0.0


@dataclass(slots=True)
class Stats:
    """What a direction has done so far."""

    forwarded_bytes: int = 0
    held_bytes: int = 0
    held_connections: int = 0
    delayed: int = 0
    stalled: int = 0
    resets: int = 0


@dataclass(slots=True)
class Direction:
    """One direction between two nodes, for all their connections."""

    rule: Rule = field(default_factory=Rule)
    stats: Stats = field(default_factory=Stats)
    open: asyncio.Event = field(default_factory=asyncio.Event)

    def set(self, rule: Rule) -> None:
        """Have another rule from now on."""
        self.rule = rule
        if rule.blocked:
            self.open.clear()
        else:
            self.open.set()

    async def pass_connection(self) -> None:
        """Hold a connection that is being made until the direction is open."""
        if not self.open.is_set():
            self.stats.held_connections += 1
            await self.open.wait()

    async def pass_bytes(self, size: int, random: Random) -> bool:
        """Hold or delay a chunk as the rule says; False if the connection is to be reset."""
        if not self.open.is_set():
            self.stats.held_bytes += size
            await self.open.wait()
        rule = self.rule
        if random.random() < rule.reset_share:
            self.stats.resets += 1
            return False
        delay_ms = random.uniform(*rule.delay_ms)
        self.stats.delayed += delay_ms > 0
        if random.random() < rule.stall_share:
            self.stats.stalled += 1
            delay_ms += rule.stall_ms * 2 ** random.randrange(4)
        if delay_ms > 0:
            await asyncio.sleep(delay_ms / 1000)
        # A rule may have come while the chunk was delayed.
        if not self.open.is_set():
            self.stats.held_bytes += size
            await self.open.wait()
        self.stats.forwarded_bytes += size
        return True


class Proxy:
    """All links, by the names of the nodes at their ends."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._directions: dict[tuple[str, str], Direction] = {}
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def direction(self, source: str, target: str) -> Direction:
        """The direction from one node to another."""
        key = (source, target)
        if key not in self._directions:
            self._directions[key] = direction = Direction()
            direction.set(Rule())
        return self._directions[key]

    async def open(self, dialer: str, acceptor: str, listen: int, to: int) -> None:
        """Listen for one node's connections to another one."""

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._carry(dialer, acceptor, to, (reader, writer)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._servers.append(await asyncio.start_server(accept, HOST, listen))

    async def _carry(
        self,
        dialer: str,
        acceptor: str,
        to: int,
        near: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        """Carry one connection until either end closes it."""
        there, back = self.direction(dialer, acceptor), self.direction(acceptor, dialer)
        await there.pass_connection()
        await back.pass_connection()
        try:
            far = await asyncio.open_connection(HOST, to)
        except OSError:
            near[1].transport.abort()
            return
        pumps = {
            asyncio.ensure_future(self._pump(there, near[0], far[1])),
            asyncio.ensure_future(self._pump(back, far[0], near[1])),
        }
        done, rest = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        reset = any(pump.result() for pump in done)
        for pump in rest:
            pump.cancel()
        await asyncio.gather(_end(there, far[1], reset=reset), _end(back, near[1], reset=reset))

    async def _pump(
        self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Carry the bytes of one direction; whether the connection is to end with a reset."""
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(CHUNK_BYTES):
                if not await direction.pass_bytes(len(chunk), self._random):
                    return True
                writer.write(chunk)
                await writer.drain()
        return False

    async def execute(self, command: Mapping[str, Any]) -> Any:
        """Carry out one command and return its answer."""
        match command["do"]:
            case "open":
                for link in command["links"]:
                    await self.open(**link)
            case "rule":
                rule = Rule(**command["rule"])
                self.direction(command["from"], command["to"]).set(rule)
            case "stats":
                return [
                    {"from": source, "to": target, **asdict(direction.stats)}
                    for (source, target), direction in self._directions.items()
                ]
            case unknown:
                raise ValueError(f"no such command: {unknown}")
        return None


async def _end(direction: Direction, writer: asyncio.StreamWriter, *, reset: bool) -> None:
    """Let the end of a connection be seen, but not through a partition."""
    if not reset:
        await direction.pass_connection()
    _close(writer, reset=reset)


def _close(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    sock = writer.get_extra_info("socket")
    if reset and sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.transport.abort()
    else:
        writer.close()


async def serve(seed: int) -> None:
    """Take commands until the input ends."""
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    proxy = Proxy(Random(seed))  # noqa: S311 -- faults are drawn, not secrets
    while line := await commands.readline():
        answer = await proxy.execute(json.loads(line))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    die_with_parent()
    asyncio.run(serve(int(sys.argv[1])))
