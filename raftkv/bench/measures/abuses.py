"""Abuses, each of another kind: what ``raftkv bench abuse`` puts beside a normal client.

Run as ``python -m raftkv.bench.measures.abuses`` with an :class:`Order` (JSON) as its argument: it
says ``ready`` on standard output, begins at a line on standard input, and goes on until that ends
or its time is up; then it writes what came of it (JSON: how often each answer came). All clients of
an abuse are tasks of this one process, which leaves the processor to the servers wherever both want
it: it stands for other machines.
"""

import asyncio
import itertools
import os
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from types import MappingProxyType, TracebackType
from typing import Self

import msgspec
import uvloop

from raftkv.bench.load.generator import raise_file_limit
from raftkv.bench.measures.bad_clients import (
    CLIENT_HELLO,
    Address,
    Deeds,
    ask,
    crowd,
    get_of,
    head_of,
    leave_unread,
    post_of,
    request_of,
    stay,
    trickle,
)
from raftkv.interpreter import PYTHON_M

WIDE_PREFIX = "wide/"
"""Large values live under it; the bench puts them there."""

TAG = "{abuse}"
"""Whatever has it in its key lives in one shard, so that its tables of names fill up soonest."""

TOO_MANY = 500
"""So many more connections than places."""

_NICENESS = 19
_CONNECTING_MAX = 64
_HEAD_BYTES = 380_000
_NOISE = bytes(range(256)) * 8
_LARGE_VALUE = bytes(range(256)) * 4096
_NAMES_A_BATCH = 2_000
_READY, _BEGIN = b"ready\n", b"\n"
_END_S = 30.0


class AbuseTarget(msgspec.Struct, frozen=True):
    """Where an abuse happens."""

    http: Address
    """Of the node that is abused."""
    peer: Address
    """Where the same node listens for other nodes."""
    far_keys: tuple[str, ...]
    """Keys of large values that other nodes lead."""
    places: int
    """Connections that the node takes from clients."""


class Order(msgspec.Struct, frozen=True):
    """Which abuse to be, where, and for how long at most."""

    name: str
    target: AbuseTarget
    seconds_max: float


Abuse = Callable[[AbuseTarget, Deeds], Awaitable[None]]


# --- too much of something good -------------------------------------------------------------------


async def large_gets(target: AbuseTarget, deeds: Deeds) -> None:
    """Two hundred clients read one large value that another node leads, again and again."""
    await crowd(
        200, lambda _: ask(target.http, deeds, itertools.repeat(get_of(target.far_keys[0])))
    )


async def large_puts(target: AbuseTarget, deeds: Deeds) -> None:
    """Thirty-two clients write large values that other nodes lead, again and again."""
    puts = [request_of("PUT", f"/v1/kv/{key}", _LARGE_VALUE) for key in target.far_keys[:8]]
    await crowd(32, lambda _: ask(target.http, deeds, itertools.cycle(puts)))


async def wide_scans(target: AbuseTarget, deeds: Deeds) -> None:
    """Sixteen clients read pages of large values that lie on all shards."""
    scan = request_of("GET", f"/v1/kv?prefix={WIDE_PREFIX}&limit=10000")
    await crowd(16, lambda _: ask(target.http, deeds, itertools.repeat(scan)))


async def new_idempotency_keys(target: AbuseTarget, deeds: Deeds) -> None:
    """Batches of writes, each with an idempotency key of its own, to one shard."""
    await crowd(4, lambda _: ask(target.http, deeds, _batches(_free_name)))


async def new_sessions(target: AbuseTarget, deeds: Deeds) -> None:
    """Batches of writes, each in a session of its own, to one shard."""
    await crowd(4, lambda _: ask(target.http, deeds, _batches(_session_name)))


async def more_connections_than_places(target: AbuseTarget, deeds: Deeds) -> None:
    """Open more connections than a node has places for, and ask for nothing, or for one thing."""
    door = asyncio.Semaphore(_CONNECTING_MAX)
    await crowd(target.places + TOO_MANY, lambda number: stay(target.http, deeds, door, number))


# --- clients that do not read ---------------------------------------------------------------------


async def unread_values(target: AbuseTarget, deeds: Deeds) -> None:
    """Fifty clients ask for large values on and on, and read no answer."""
    await crowd(50, lambda _: leave_unread(target.http, deeds, get_of(target.far_keys[0])))


async def unread_pages(target: AbuseTarget, deeds: Deeds) -> None:
    """Sixteen clients ask for a document that needs no token, and read no answer."""
    await crowd(16, lambda _: leave_unread(target.http, deeds, request_of("GET", "/openapi.json")))


async def unread_scans(target: AbuseTarget, deeds: Deeds) -> None:
    """Sixteen clients stream a scan, half of them by another spelling of its path, unread."""
    accept = {"accept": "application/x-ndjson"}
    paths = [f"/{kv}?prefix={WIDE_PREFIX}" for kv in ("v1/kv", "%761/kv")]
    scans = [request_of("GET", path, headers=accept) for path in paths]
    await crowd(16, lambda number: leave_unread(target.http, deeds, scans[number % 2]))


# --- what is no request, or hardly one ------------------------------------------------------------


async def large_heads(target: AbuseTarget, deeds: Deeds) -> None:
    """Eight clients send heads of 380 KB: what they would accept, or their cookies."""
    ranges = ",".join(f"a/b{n};q=0.{n % 10}" for n in range(_HEAD_BYTES // 13))[:_HEAD_BYTES]
    cookies = ";".join(f"c{n}=v" for n in range(_HEAD_BYTES // 9))[:_HEAD_BYTES]
    heads = [
        request_of("GET", "/v1/status", headers={"accept": ranges}),
        request_of("GET", "/", headers={"cookie": cookies}),
    ]
    await crowd(8, lambda number: ask(target.http, deeds, itertools.repeat(heads[number % 2])))


async def nonsense(target: AbuseTarget, deeds: Deeds) -> None:
    """Four clients send deep JSON, bad base64, cut MessagePack, and what is no HTTP at all."""
    requests = _nonsense()
    await crowd(4, lambda _: ask(target.http, deeds, itertools.cycle(requests)))


async def foreign_pages(target: AbuseTarget, deeds: Deeds) -> None:
    """Sixteen browsers whose page is another site's: foreign hosts, foreign origins."""
    key = f"/v1/kv/{TAG}/page"
    requests = [
        request_of("GET", key, headers={"host": "evil.example"}),
        request_of("PUT", key, b"x", {"origin": "http://evil.example"}),
        request_of("DELETE", key, headers={"sec-fetch-site": "cross-site"}),
    ]
    await crowd(16, lambda _: ask(target.http, deeds, itertools.cycle(requests)))


async def slow_bodies(target: AbuseTarget, deeds: Deeds) -> None:
    """Three hundred clients announce a large value, and send two bytes of it a second."""
    head = head_of("PUT", f"/v1/kv/{TAG}/slow", {"content-length": str(len(_LARGE_VALUE))})
    await crowd(300, lambda _: trickle(target.http, deeds, head))


async def half_heads(target: AbuseTarget, deeds: Deeds) -> None:
    """Three hundred clients who begin a request, or a TLS handshake with a node that has no TLS."""
    begun = (b"GET /v1/kv/x HTTP/1.1\r\nhost: localhost\r\nx: ", CLIENT_HELLO)
    await crowd(300, lambda number: trickle(target.http, deeds, begun[number % 2]))


async def strangers_at_the_peer_port(target: AbuseTarget, deeds: Deeds) -> None:
    """A hundred strangers where nodes meet: silent, talking nonsense, or beginning TLS."""
    begun = (b"", _NOISE, CLIENT_HELLO)
    await crowd(100, lambda number: trickle(target.peer, deeds, begun[number % 3]))


ABUSES: Mapping[str, Abuse] = MappingProxyType(
    {
        "large-gets": large_gets,
        "large-puts": large_puts,
        "wide-scans": wide_scans,
        "unread-values": unread_values,
        "unread-pages": unread_pages,
        "unread-scans": unread_scans,
        "large-heads": large_heads,
        "nonsense": nonsense,
        "foreign-pages": foreign_pages,
        "slow-bodies": slow_bodies,
        "half-heads": half_heads,
        "peer-port": strangers_at_the_peer_port,
        "connections": more_connections_than_places,
        # Last: what they leave behind is remembered for two minutes.
        "idempotency-keys": new_idempotency_keys,
        "sessions": new_sessions,
    }
)
"""In the order in which they are tried."""


# --- what they send -------------------------------------------------------------------------------


def _nonsense() -> list[bytes]:
    """Requests that are refused, or are none; the same in every process."""
    deep = b"[" * 200_000
    bad_base64 = b'{"operations":[{"op":"put","key":"a","value_base64":"%%%="}]}'
    return [
        post_of("/v1/batch", deep),
        post_of("/v1/txn", b'{"compare":' + deep),
        post_of("/v1/batch", bad_base64),
        post_of("/v1/batch", b"\xdd\xff\xff\xff\xff", "application/msgpack"),
        post_of("/v1/batch", b'{"op":\n' * 1000, "application/x-ndjson"),
        get_of("%zz%00" + "x" * 3000),
        request_of("GET", "/v1/kv?cursor=" + "A" * 1000),
        head_of("PUT", f"/v1/kv/{TAG}/x", {"content-length": "-1"}),
        head_of("PUT", f"/v1/kv/{TAG}/x", {"transfer-encoding": "chunked"}) + b"zz\r\n",
        _NOISE + b"\r\n\r\n",
    ]


def _batches(name: Callable[[], dict[str, object]]) -> Iterator[bytes]:
    """Batches without end, of puts that each have another name to be remembered by."""
    while True:
        operations = [
            {"op": "put", "key": f"{TAG}/{number % 100}", "value": "x", **name()}
            for number in range(_NAMES_A_BATCH)
        ]
        yield post_of("/v1/batch", msgspec.json.encode({"operations": operations}))


def _free_name() -> dict[str, object]:
    return {"idempotency_key": secrets.token_hex(8)}


def _session_name() -> dict[str, object]:
    born = time.time_ns() // 1000
    return {"session": {"id": secrets.token_hex(8), "sequence": 1, "low": 1, "born": born}}


# --- the process ----------------------------------------------------------------------------------


async def _main(order: Order) -> None:
    deeds: Deeds = Counter()
    over = asyncio.Event()
    os.write(sys.stdout.fileno(), _READY)
    if not os.read(sys.stdin.fileno(), len(_BEGIN)):
        return  # whoever ordered it is gone
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), over.set)
    abuse = asyncio.ensure_future(ABUSES[order.name](order.target, deeds))
    ended = asyncio.ensure_future(over.wait())
    await asyncio.wait(
        {abuse, ended}, timeout=order.seconds_max, return_when=asyncio.FIRST_COMPLETED
    )
    if abuse.done():
        abuse.result()  # none ends by itself: it says why
    os.write(sys.stdout.fileno(), msgspec.json.encode(dict(deeds)))


def main() -> None:
    """Be the abuse that the first argument names."""
    raise_file_limit()
    os.nice(_NICENESS)
    uvloop.run(_main(msgspec.json.decode(sys.argv[1], type=Order)))


class AbuseProcess:
    """An abuse in a process of its own, which ends with the ``with`` block at the latest."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(  # noqa: S603 -- our own module
            (*PYTHON_M, "raftkv.bench.measures.abuses", msgspec.json.encode(self._order).decode()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def begin(self) -> None:
        """Have it begin, once it can.

        Raises:
            ConnectionError: It could not even start; it has said why on standard error.
        """
        assert self._process.stdout is not None  # noqa: S101 -- asked for above
        assert self._process.stdin is not None  # noqa: S101 -- asked for above
        if self._process.stdout.readline() != _READY:
            raise ConnectionError(f"the abuse {self._order.name} could not begin")
        self._process.stdin.write(_BEGIN)
        self._process.stdin.flush()

    def end(self) -> dict[str, int]:
        """End it, and return what came of it."""
        said, _ = self._process.communicate(timeout=_END_S)
        if not said:
            raise ConnectionError(f"the abuse {self._order.name} failed")
        return msgspec.json.decode(said, type=dict[str, int])


if __name__ == "__main__":
    main()
