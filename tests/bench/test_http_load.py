"""The load generator and the crowd of idle clients, against a server that answers by a script."""

import asyncio
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from raftkv.bench.load.generator import Load
from raftkv.bench.load.run_load import generate
from raftkv.bench.load.workload import Workload
from raftkv.bench.measures.crowd import Crowd, CrowdProcess

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
DEFINITE = b'{"code":"overloaded","definite":true}'
REFUSED = b"HTTP/1.1 503 Full\r\ncontent-length: %d\r\nretry-after: 1\r\n\r\n%s" % (
    len(DEFINITE),
    DEFINITE,
)
REFUSED_WITHOUT_ADVICE = REFUSED.replace(b"retry-after: 1\r\n", b"")
SILENCE = b""
TURNS_TO_ACCEPT = 5
"""Of the loop; more than asyncio needs for what clients have left behind."""


@contextmanager
def server(*answers: bytes) -> Iterator[tuple[str, int]]:
    """Serve the answers in turn, each in two pieces; silence closes the connection instead."""
    script = itertools.cycle(answers)
    address: list[tuple[str, int]] = []
    begun, over = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"PUT"):
                    await reader.readexactly(16)
                data = next(script)
                if not data:
                    break
                writer.write(data[:20])
                await asyncio.sleep(0.001)
                writer.write(data[20:])
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has what it came for
        finally:
            writer.close()

    async def serve() -> None:
        listening = await asyncio.start_server(answer, "127.0.0.1", 0)
        address.append(listening.sockets[0].getsockname())
        begun.set()
        await over.wait()
        for _ in range(TURNS_TO_ACCEPT):  # asyncio loses what it accepts while it closes
            await asyncio.sleep(0)
        listening.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    begun.wait()
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
            loop.run_until_complete(asyncio.wait({task}))
        loop.close()


def test_open_loop_offers_its_rate_and_tells_answers_apart() -> None:
    """Everything offered is counted once, by status; refusals without advice are found."""
    with server(OK, REFUSED, OK, REFUSED_WITHOUT_ADVICE) as address:
        load = Load((address,), 100, 1.0, rate=200.0, workload=Workload("a", value_bytes=16))
        tally = generate(load, 2)
    assert tally.total == 200
    assert tally.count("200") == len(tally.accepted()) == 100
    assert tally.count("503") == 100
    assert tally.refusals == {"overloaded": 100}
    assert tally.bad_refusals_count == 50
    assert all(0 < latency_s < 10 for latency_s in tally.accepted())


def test_lost_connections_are_errors_and_replaced() -> None:
    """A request whose connection closes is an error, and the load goes on."""
    with server(OK, SILENCE) as address:
        tally = generate(Load((address,), 2, 1.0, rate=40.0), 1)
    assert tally.total == 40
    assert tally.count("error") >= 10
    assert tally.count("200") >= 10
    assert tally.count("none") == 0


def test_starts_without_a_free_connection_are_counted() -> None:
    """An open loop whose clients all wait does not wait: it says what it could not send."""
    with server(OK) as address:
        tally = generate(Load((address,), 1, 1.0, rate=5000.0), 1)
    assert tally.total == 5000
    assert tally.count("unsent") > 1000
    assert tally.count("200") == len(tally.accepted()) == 5000 - tally.count("unsent")


def test_closed_loop_sends_when_answered() -> None:
    """Each connection has one request at a time, and nothing is left over."""
    with server(OK) as address:
        tally = generate(Load((address,), 2, 1.0), 1)
    assert tally.statuses() == {"200": len(tally.accepted())}
    assert tally.total > 10


def test_a_crowd_is_there_and_idle() -> None:
    """All are connected when the block begins, and are counted when it ends."""
    with server(OK) as address, CrowdProcess(Crowd(*address, 6, 2)) as crowd:
        pass
    assert (crowd.attendance.idle_open, crowd.attendance.slow_open) == (6, 2)
    assert crowd.attendance.idle_dropped == 0
    assert crowd.attendance.bytes_sent_slowly >= 2
