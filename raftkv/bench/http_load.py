"""Load from clients that cost next to nothing: raw HTTP/1.1 on many connections, in own processes.

Servers and clients share the machine, so a client that is expensive measures itself. Requests are
made ready beforehand, answers are looked at only as far as needed, and there is one callback per
answer: about a tenth of what a request costs the cluster.

Open loop: the starts of requests are laid down beforehand at a fixed rate, whatever the servers do,
and latency counts from the intended start, or a stalled server would stop the clock that judges it.
A request whose start comes while every connection is busy is not sent, and is counted as that: what
waits in a client is no queue of the servers. With many connections it shows how far they lag.

Run as ``python -m raftkv.bench.http_load`` it reads a :class:`Load` and writes a :class:`Tally`
(both MessagePack), so that clients do not share an interpreter with each other.
"""

import array
import asyncio
import contextlib
import itertools
import os
import random
import resource
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import cast

import msgspec
import uvloop

REQUESTS_PREPARED = 20_000
EXAMPLES_KEPT = 5

_TICK_S = 0.002
_DRAIN_S = 15.0
_CONNECT_DEADLINE_S = 20.0
_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length: "
_CODE = b'"code":"'
_REFUSED = ("429", "503")
_NOT_FOUND = "404"
_SPACE = 0x20


class Load(msgspec.Struct, frozen=True):
    """What to send. Without ``rate`` the loop is closed: each connection sends when answered."""

    addresses: tuple[tuple[str, int], ...]
    connections: int
    seconds: float
    rate: float | None = None
    put_share: float = 1.0
    keys: int = 10_000
    value_bytes: int = 16
    seed: int = 1
    start_at: float = 0.0
    """By the monotonic clock, which all processes of a machine share; 0: at once."""


class Window(msgspec.Struct):
    """The requests whose intended start lies in one second of the run."""

    statuses: dict[str, int] = {}
    """How many got which status; ``error``: the connection broke, ``none``: no answer came,
    ``unsent``: no connection was free."""
    latencies: bytes = b""
    """Of the accepted ones, seconds, as an array of single floats."""


class Tally(msgspec.Struct):
    """What came of a load."""

    windows: list[Window]
    refused_latencies: bytes = b""
    refusals: dict[str, int] = {}
    """How many were refused with which code of the problem document."""
    bad_refusals: list[str] = []
    """Refusals that are not definite or without Retry-After: examples."""
    bad_refusals_count: int = 0
    errors: list[str] = []
    late_s_max: float = 0.0
    """The longest time from an intended start to the sending: want of processor for the client."""
    cpu_s: float = 0.0

    def count(self, status: str) -> int:
        """How many got this status, in all windows."""
        return sum(window.statuses.get(status, 0) for window in self.windows)

    def statuses(self) -> dict[str, int]:
        """How many got which status, in all windows."""
        names = sorted({name for window in self.windows for name in window.statuses})
        return {name: self.count(name) for name in names}

    def accepted(self) -> "array.array[float]":
        """Latencies of everything that was accepted."""
        return floats(b"".join(window.latencies for window in self.windows))

    @property
    def total(self) -> int:
        """How many requests were offered."""
        return sum(self.statuses().values())


def floats(data: bytes) -> "array.array[float]":
    """Latencies as they are kept in a tally."""
    values = array.array("f")
    values.frombytes(data)
    return values


def is_accepted(status: str) -> bool:
    """Whether the request was carried out; reading a key that is not there was, too."""
    return status[0] == "2" or status == _NOT_FOUND


# --- one process --------------------------------------------------------------------------------


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on it."""

    def __init__(self, driver: "_Driver", address: tuple[str, int]) -> None:
        self._driver = driver
        self._transport: asyncio.Transport
        self._rest = b""
        self.address = address
        self.is_open = False
        self.intended: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.is_open = True

    def send(self, request: bytes, intended: float) -> None:
        self.intended = intended
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        head = data.find(_HEAD_END)
        if head < 0 or len(data) < head + len(_HEAD_END) + _content_length(data, head):
            self._rest = data
            return
        self._rest = b""
        intended, self.intended = self.intended, None
        if intended is not None:
            self._driver.answered(self, data, intended)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        self._rest = b""
        self._driver.lost(self, error)

    def close(self) -> None:
        if self.is_open:
            self._transport.abort()


def _content_length(data: bytes, head: int) -> int:
    start = data.find(_LENGTH, 0, head)
    if start < 0:
        return 0
    start += len(_LENGTH)
    return int(data[start : data.find(b"\r", start)])


class _Driver:
    """Starts requests when they are due and notes what came of each."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._requests = itertools.cycle(_prepared(load))
        self._loop = asyncio.get_running_loop()
        self._connections: list[_Connection] = []
        self._free: deque[_Connection] = deque()
        self._outstanding = 0
        self._all_answered = asyncio.Event()
        self._ending = False
        self._begin = 0.0
        seconds = max(1, int(load.seconds))
        self._statuses: list[dict[str, int]] = [{} for _ in range(seconds)]
        self._accepted = [array.array("f") for _ in range(seconds)]
        self._refused = array.array("f")
        self._tally = Tally(windows=[])

    async def run(self) -> Tally:
        await self._connect()
        load = self._load
        if load.start_at:
            await asyncio.sleep(load.start_at - time.monotonic())
        cpu_before = _cpu_s()
        self._begin = time.monotonic()
        if load.rate is None:
            await self._closed_loop()
        else:
            await self._open_loop(load.rate)
        await self._drain()
        self._tally.cpu_s = _cpu_s() - cpu_before
        return self._finish()

    async def _connect(self) -> None:
        addresses = itertools.islice(itertools.cycle(self._load.addresses), self._load.connections)
        for address in addresses:
            self._connections.append(await self._open(address))
        self._free.extend(self._connections)

    async def _open(self, address: tuple[str, int]) -> _Connection:
        connection = _Connection(self, address)
        async with asyncio.timeout(_CONNECT_DEADLINE_S):
            await self._loop.create_connection(lambda: connection, *address)
        return connection

    # --- when ------------------------------------------------------------------------------

    async def _closed_loop(self) -> None:
        now = time.monotonic()
        while self._free:
            self._start(self._free.popleft(), now)
        await asyncio.sleep(self._load.seconds)
        self._ending = True

    async def _open_loop(self, rate: float) -> None:
        total = int(rate * self._load.seconds)
        started = 0
        while started < total:
            due = min(total, int((time.monotonic() - self._begin) * rate) + 1)
            for number in range(started, due):
                intended = self._begin + number / rate
                if self._free:
                    self._start(self._free.popleft(), intended)
                else:
                    self._count("unsent", intended)
            started = due
            await asyncio.sleep(_TICK_S)
        self._ending = True

    def _start(self, connection: _Connection, intended: float) -> None:
        self._tally.late_s_max = max(self._tally.late_s_max, time.monotonic() - intended)
        self._outstanding += 1
        connection.send(next(self._requests), intended)

    def _freed(self, connection: _Connection) -> None:
        if self._load.rate is None and not self._ending:
            self._start(connection, time.monotonic())
        else:
            self._free.append(connection)

    async def _drain(self) -> None:
        if not self._outstanding:
            return
        with contextlib.suppress(TimeoutError):  # what is missing then is counted as such
            await asyncio.wait_for(self._all_answered.wait(), _DRAIN_S)

    # --- what came of it -------------------------------------------------------------------

    def answered(self, connection: _Connection, data: bytes, intended: float) -> None:
        self._one_less()
        status = data[9:12].decode("ascii", "replace")
        latency_s = time.monotonic() - intended
        second = self._count(status, intended)
        if is_accepted(status):
            self._accepted[second].append(latency_s)
        elif status in _REFUSED:
            self._refused.append(latency_s)
            self._check_refusal(data)
        else:
            self._note_error(data)
        if b"connection: close" in data[: data.find(_HEAD_END)]:
            connection.close()  # and is replaced when it is gone
        else:
            self._freed(connection)

    def lost(self, connection: _Connection, error: Exception | None) -> None:
        """Note a request that was lost with its connection; put a new one in its place."""
        intended, connection.intended = connection.intended, None
        if intended is not None:
            self._one_less()
            self._count("error", intended)
            self._note_error(f"connection lost: {error}".encode())
        if self._tally.windows:
            return  # it is over
        if connection in self._free:
            self._free.remove(connection)
        task = self._loop.create_task(self._replace(connection))
        task.add_done_callback(lambda done: done.exception())

    async def _replace(self, lost: _Connection) -> None:
        self._connections.remove(lost)
        connection = await self._open(lost.address)
        self._connections.append(connection)
        self._freed(connection)

    def _one_less(self) -> None:
        self._outstanding -= 1
        if self._ending and not self._outstanding:
            self._all_answered.set()

    def _count(self, status: str, intended: float) -> int:
        second = min(len(self._statuses) - 1, int(intended - self._begin))
        statuses = self._statuses[second]
        statuses[status] = statuses.get(status, 0) + 1
        return second

    def _check_refusal(self, data: bytes) -> None:
        start = data.find(_CODE) + len(_CODE)
        code = data[start : data.find(b'"', start)].decode("ascii", "replace")
        self._tally.refusals[code] = self._tally.refusals.get(code, 0) + 1
        if b'"definite":true' in data and b"\r\nretry-after: " in data:
            return
        self._tally.bad_refusals_count += 1
        if len(self._tally.bad_refusals) < EXAMPLES_KEPT:
            self._tally.bad_refusals.append(data.decode(errors="replace"))

    def _note_error(self, data: bytes) -> None:
        if len(self._tally.errors) < EXAMPLES_KEPT:
            self._tally.errors.append(data[-300:].decode(errors="replace"))

    def _finish(self) -> Tally:
        for connection in self._connections:
            if connection.intended is not None:
                self._count("none", connection.intended)
                connection.intended = None
        tally = self._tally
        tally.windows = [
            Window(statuses, latencies.tobytes())
            for statuses, latencies in zip(self._statuses, self._accepted, strict=True)
        ]
        tally.refused_latencies = self._refused.tobytes()
        for connection in self._connections:
            connection.close()
        return tally


def _prepared(load: Load) -> list[bytes]:
    random_ = random.Random(load.seed)  # noqa: S311 -- load, not secrets
    return [_request(load, random_) for _ in range(REQUESTS_PREPARED)]


def _request(load: Load, random_: random.Random) -> bytes:
    target = b"/v1/kv/load-%06d HTTP/1.1\r\nhost: raftkv\r\n" % random_.randrange(load.keys)
    if random_.random() >= load.put_share:
        return b"GET " + target + b"\r\n"
    value = random_.randbytes(load.value_bytes)
    return b"PUT " + target + b"content-length: %d\r\n\r\n" % len(value) + value


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def raise_file_limit() -> None:
    """Take all the descriptors that this process may have: every connection needs one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _run(load: Load) -> Tally:
    return await _Driver(load).run()


def main() -> None:
    """Read a load from standard input, make it, write the tally to standard output."""
    raise_file_limit()
    load = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Load)
    tally = msgspec.msgpack.encode(uvloop.run(_run(load)))
    # Not sys.stdout.buffer: unbuffered (PYTHONUNBUFFERED) it may write only a part.
    with open(sys.stdout.fileno(), "wb", closefd=False) as output:
        output.write(tally)


# --- several processes ----------------------------------------------------------------------------


def generate(load: Load, processes: int) -> Tally:
    """Make ``load`` from several processes at once, and put together what came of it."""
    running = [_spawn(part) for part in _split(load, processes)]
    try:
        return _merged([_result(process) for process in running])
    finally:
        for process in running:
            process.kill()
            process.wait()
            assert process.stdout is not None  # noqa: S101 -- asked for when it was started
            process.stdout.close()


def _split(load: Load, processes: int) -> Iterator[Load]:
    # Connecting takes its time: all begin together, once the last is surely done.
    start_at = time.monotonic() + 1.5 + load.connections / 2000
    for number in range(processes):
        yield msgspec.structs.replace(
            load,
            connections=max(1, load.connections // processes),
            rate=None if load.rate is None else load.rate / processes,
            seed=load.seed + number,
            start_at=start_at,
        )


def _spawn(load: Load) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        (sys.executable, "-m", "raftkv.bench.http_load"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stdin is not None  # noqa: S101 -- asked for above
    process.stdin.write(msgspec.msgpack.encode(load))
    process.stdin.close()
    return process


def _result(process: "subprocess.Popen[bytes]") -> Tally:
    assert process.stdout is not None  # noqa: S101 -- asked for when it was started
    data = process.stdout.read()
    if process.wait() != 0:
        raise RuntimeError(f"a load process ended with code {process.returncode}")
    return msgspec.msgpack.decode(data, type=Tally)


def _merged(tallies: Sequence[Tally]) -> Tally:
    windows = []
    for parts in zip(*(tally.windows for tally in tallies), strict=True):
        statuses: dict[str, int] = {}
        for part in parts:
            _add(statuses, part.statuses)
        windows.append(Window(statuses, b"".join(part.latencies for part in parts)))
    refusals: dict[str, int] = {}
    for tally in tallies:
        _add(refusals, tally.refusals)
    return Tally(
        windows=windows,
        refusals=refusals,
        refused_latencies=b"".join(tally.refused_latencies for tally in tallies),
        bad_refusals=[text for tally in tallies for text in tally.bad_refusals],
        bad_refusals_count=sum(tally.bad_refusals_count for tally in tallies),
        errors=[text for tally in tallies for text in tally.errors],
        late_s_max=max(tally.late_s_max for tally in tallies),
        cpu_s=sum(tally.cpu_s for tally in tallies),
    )


def _add(sums: dict[str, int], part: dict[str, int]) -> None:
    for name, count in part.items():
        sums[name] = sums.get(name, 0) + count


if __name__ == "__main__":
    main()
