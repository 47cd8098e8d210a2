"""Load from clients that cost next to nothing: raw HTTP/1.1 on many connections, in own processes.

Servers and clients share the machine, so a client that is expensive measures itself. Answers are
looked at only as far as needed, and there is one callback per answer: about a tenth of what a
request costs the cluster.

Closed loop: a connection sends again when it is answered. Open loop: the starts of requests are
laid down beforehand at a fixed rate, whatever the servers do, and latency counts from the intended
start, or a stalled server would stop the clock that judges it. A request whose start comes while
every connection is busy is not sent, and is counted as that: what waits in a client is no queue of
the servers. With many connections it shows how far they lag.
"""

import array
import asyncio
import contextlib
import itertools
import sys
import time
from collections import deque
from typing import cast

import uvloop

from raftkv.bench.load.dialects import DIALECTS
from raftkv.bench.load.generator import (
    EXAMPLES_KEPT,
    REPORT_EVERY_S,
    Load,
    Recorder,
    begin_together,
    cpu_s,
    read_load,
    write,
)
from raftkv.bench.load.tally import Tally, is_accepted

_TICK_S = 0.002
_DRAIN_S = 15.0
_CONNECT_DEADLINE_S = 20.0
_HEAD_END = b"\r\n\r\n"
_LENGTHS = (b"content-length: ", b"Content-Length: ")
_CHUNKED = b"ransfer-"
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_CODE = b'"code":"'
_REFUSED = ("429", "503")


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
        if not is_complete(data):
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


def is_complete(data: bytes) -> bool:
    """Whether this is a whole answer; there is never more, as one is asked for at a time."""
    head = data.find(_HEAD_END)
    if head < 0:
        return False
    for name in _LENGTHS:
        start = data.find(name, 0, head)
        if start >= 0:
            start += len(name)
            length = int(data[start : data.find(b"\r", start)])
            return len(data) >= head + len(_HEAD_END) + length
    return data.find(_CHUNKED, 0, head) < 0 or data.endswith(_LAST_CHUNK)


class _Driver:
    """Starts requests when they are due and notes what came of each."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._dialect = DIALECTS[load.dialect]
        self._part_failed = self._dialect.part_failed if load.workload.kind == "batch" else None
        self._requests = load.workload.requests(self._dialect, load.seed)
        self._loop = asyncio.get_running_loop()
        self._connections: list[_Connection] = []
        self._free: deque[_Connection] = deque()
        self._outstanding = 0
        self._all_answered = asyncio.Event()
        self._ending = False
        self.recorder = Recorder(load)
        self._refused = array.array("f")
        self._tally = Tally(windows=[])

    async def run(self) -> Tally:
        await self._connect()
        load = self._load
        self.recorder.begin = begin_together()
        await asyncio.sleep(self.recorder.begin - load.warmup_s - time.monotonic())
        cpu = asyncio.ensure_future(self._cpu_when_measuring_begins())
        if load.rate is None:
            await self._closed_loop()
        else:
            await self._open_loop(load.rate)
        await self._drain()
        self._tally.cpu_s = cpu_s() - await cpu
        return self._finish()

    async def _cpu_when_measuring_begins(self) -> float:
        await asyncio.sleep(self.recorder.begin - time.monotonic())
        return cpu_s()

    async def _connect(self) -> None:
        wanted = max(self._load.connections, len(self._load.addresses))
        for address in itertools.islice(itertools.cycle(self._load.addresses), wanted):
            self._connections.append(await self._open(address))
        self._free.extend(self._connections)

    async def _open(self, address: tuple[str, int]) -> _Connection:
        connection = _Connection(self, address)
        async with asyncio.timeout(_CONNECT_DEADLINE_S):
            await self._loop.create_connection(lambda: connection, *address)
        return connection

    # --- when ------------------------------------------------------------------------------

    async def _closed_loop(self) -> None:
        for _ in range(self._load.connections):
            self._start(self._free.popleft(), time.monotonic())
        await asyncio.sleep(self.recorder.begin + self._load.seconds - time.monotonic())
        self._ending = True

    async def _open_loop(self, rate: float) -> None:
        first = self.recorder.begin - self._load.warmup_s
        total = int(rate * (self._load.seconds + self._load.warmup_s))
        started = 0
        while started < total:
            due = min(total, int((time.monotonic() - first) * rate) + 1)
            for number in range(started, due):
                intended = first + number / rate
                if self._free and self._outstanding < self._load.connections:
                    self._start(self._free.popleft(), intended)
                else:
                    self._lacking("unsent", intended)
            started = due
            await asyncio.sleep(_TICK_S)
        self._ending = True

    def _start(self, connection: _Connection, intended: float) -> None:
        late_s = time.monotonic() - intended
        if late_s > self._tally.late_s_max and intended >= self.recorder.begin:
            self._tally.late_s_max = late_s
        self._outstanding += 1
        connection.send(next(self._requests), intended)

    def _freed(self, connection: _Connection) -> None:
        self._free.append(connection)
        if self._load.rate is None and not self._ending:
            self._start(self._free.popleft(), time.monotonic())

    async def _drain(self) -> None:
        if not self._outstanding:
            return
        with contextlib.suppress(TimeoutError):  # what is missing then is counted as such
            await asyncio.wait_for(self._all_answered.wait(), _DRAIN_S)

    # --- what came of it -------------------------------------------------------------------

    def answered(self, connection: _Connection, data: bytes, intended: float) -> None:
        self._one_less()
        latency_s = time.monotonic() - intended
        status = data[9:12].decode("ascii", "replace")
        if self._part_failed is not None and self._part_failed in data:
            status = "part"
        is_measured = self.recorder.note(status, intended, latency_s)
        if status in _REFUSED:
            if is_measured:
                self._refused.append(latency_s)
            self._check_refusal(data)
        elif not is_accepted(status):
            self._note_error(data)
        if data.find(b"connection: close", 0, data.find(_HEAD_END)) >= 0:
            connection.close()  # and is replaced when it is gone
        else:
            self._freed(connection)

    def lost(self, connection: _Connection, error: Exception | None) -> None:
        """Note a request that was lost with its connection; put a new one in its place."""
        intended, connection.intended = connection.intended, None
        if intended is not None:
            self._one_less()
            self._lacking("error", intended)
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

    def _lacking(self, status: str, intended: float) -> None:
        self.recorder.note(status, intended, 0.0)

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
                self._lacking("none", connection.intended)
                connection.intended = None
        tally = self._tally
        tally.windows = self.recorder.windows()
        tally.refused_latencies = self._refused.tobytes()
        for connection in self._connections:
            connection.close()
        return tally


async def _run(load: Load) -> Tally:
    driver = _Driver(load)
    running = asyncio.ensure_future(driver.run())
    while not running.done():
        await asyncio.wait({running}, timeout=REPORT_EVERY_S)
        write(driver.recorder.progress)
    return running.result()


def main() -> None:
    """Be a generator."""
    load = read_load()
    try:
        tally = uvloop.run(_run(load))
    except OSError as error:  # also of a connection that is not made in time
        sys.exit(f"the load could not be made: {error!r}")
    write(tally)


if __name__ == "__main__":
    main()
