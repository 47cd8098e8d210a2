"""Calls that run at the same time travel together, and none of them can tell."""

import contextlib
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec
import pytest

from raftkv.client import (
    BusyError,
    Client,
    PreconditionFailedError,
    TooLargeError,
    UnknownOutcomeError,
    attempts,
    coalescing,
)
from tests.support.fake_server import (
    FakeServer,
    Received,
    answer,
    get_answer,
    problem,
    put_answer,
    serving,
)
from tests.support.front_end import FrontEnd, front_end

WAIT_S = 10.0
FAILED = {"status": 412, "code": "precondition", "definite": True, "revision": 12}
REFUSED = {"status": 503, "code": "no_leader", "definite": True}
UNKNOWN = {"status": 504, "code": "unknown", "definite": False}


@pytest.fixture(autouse=True)
def _one_flight_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What queues is then known: nobody flies beside the first, nor gets impatient."""
    monkeypatch.setattr(coalescing, "IN_FLIGHT_MAX", 1)
    monkeypatch.setattr(coalescing, "QUEUED_S_MAX", WAIT_S)
    monkeypatch.setattr(attempts, "BACKOFF_FIRST_S", 0.001)


def applied(revision: int) -> dict[str, object]:
    """The result of a put in a batch."""
    return {"op": "put", "status": 200, "revision": revision, "version": 1}


def batch_answer(*results: dict[str, object]) -> Callable[[Received, socket.socket], bool]:
    """The answer to a batch."""
    body = msgspec.msgpack.encode({"results": results})
    return answer(200, body, Content_Type="application/msgpack")


def members_of(request: Received) -> list[dict[str, object]]:
    """What a batch asked for."""
    assert request.target == "/v1/batch"
    operations: list[dict[str, object]] = msgspec.msgpack.decode(request.body)["operations"]
    return operations


class Gate:
    """A put that stays in flight until it is let go, so that others queue behind it."""

    def __init__(self) -> None:
        self._open = threading.Event()

    def __call__(self, request: Received, connection: socket.socket) -> bool:
        """Answer late."""
        assert self._open.wait(WAIT_S)
        return put_answer()(request, connection)

    def open(self) -> None:
        """Let it land."""
        self._open.set()


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def queued(client: Client) -> int:
    """How many calls wait for a batch."""
    assert client._coalescer is not None
    return len(client._coalescer._queue.waiting)


@contextlib.contextmanager
def together(
    gate: Gate, server: FakeServer, client: Client, *queue: Callable[[], object]
) -> Iterator[list[Future[object]]]:
    """Calls that have queued in this order behind one that is in flight, which is then answered."""
    with ThreadPoolExecutor(len(queue) + 1) as pool:
        first = pool.submit(client.put, "first", b"")
        until(lambda: len(server.received) == 1)
        futures = []
        for place, call in enumerate(queue):
            futures.append(pool.submit(call))
            until(lambda place=place: queued(client) == place + 1)  # type: ignore[misc]
        gate.open()
        first.result(WAIT_S)
        yield futures


def test_a_lone_call_is_a_plain_request() -> None:
    """Nothing waits, and nothing is wrapped."""
    with serving(put_answer(), put_answer()) as server, Client(server.url) as client:
        client.put("a", b"1")
        client.put("b", b"2")
    assert [request.target for request in server.received] == ["/v1/kv/a", "/v1/kv/b"]


def test_calls_that_come_during_a_flight_are_one_batch_and_each_has_its_own_result() -> None:
    """In the order in which they came, each write under its own number of one session."""
    gate = Gate()
    found = {"key": b"c", "value": b"3", "revision": 5, "version": 2, "create_revision": 4}
    results = batch_answer(
        applied(11),
        {"op": "delete", "status": 200, "deleted": True, "revision": 12},
        {"op": "get", "status": 200, "entry": found},
        {"status": 404, "code": "key_not_found", "definite": True},
        FAILED,
    )
    with serving(gate, results) as server, Client(server.url) as client:
        asked = (
            lambda: client.put("a", b"1"),
            lambda: client.delete("b"),
            lambda: client.get("c"),
            lambda: client.get("d", consistency="stale", max_age_ms=7),
            lambda: client.put_if_absent("e", b"5"),
        )
        with together(gate, server, client, *asked) as (put, delete, get, missing, failed):
            assert put.result(WAIT_S).revision == 11  # type: ignore[attr-defined]
            assert delete.result(WAIT_S).deleted  # type: ignore[attr-defined]
            assert get.result(WAIT_S).value == b"3"  # type: ignore[attr-defined]
            assert missing.result(WAIT_S) is None
            with pytest.raises(PreconditionFailedError) as caught:
                failed.result(WAIT_S)
    assert caught.value.current_revision == 12
    session, _, _, born = server.received[0].headers["raftkv-session"].split(";")
    numbered = [{"id": session, "sequence": n, "low": 1, "born": int(born)} for n in range(1, 5)]
    low = members_of(server.received[1])[0]["session"]["low"]  # type: ignore[index]
    assert low in {1, 2}  # the first call lands while the batch is made
    for place in numbered:
        place["low"] = low
    assert members_of(server.received[1]) == [
        {"op": "put", "key": b"a", "value": b"1", "session": numbered[1]},
        {"op": "delete", "key": b"b", "session": numbered[2]},
        {"op": "get", "key": b"c"},
        {"op": "get", "key": b"d", "consistency": "stale", "max_age_ms": 7},
        {"op": "put", "key": b"e", "value": b"5", "if_absent": True, "session": numbered[3]},
    ]


def test_only_what_failed_for_the_moment_is_sent_again_under_its_number() -> None:
    """The one that was refused goes again by itself; its neighbour has its result already."""
    gate = Gate()
    script = (gate, batch_answer(applied(2), REFUSED), put_answer(revision=3))
    with serving(*script) as server, Client(server.url) as client:
        puts = (lambda: client.put("a", b""), lambda: client.put("b", b""))
        with together(gate, server, client, *puts) as (first, second):
            assert first.result(WAIT_S).revision == 2  # type: ignore[attr-defined]
            assert second.result(WAIT_S).revision == 3  # type: ignore[attr-defined]
    again = server.received[2]
    assert again.target == "/v1/kv/b"
    session = members_of(server.received[1])[1]["session"]
    assert again.headers["raftkv-session"].startswith(f"{session['id']};{session['sequence']};")  # type: ignore[index]


def test_a_call_whose_session_was_forgotten_goes_on_in_another() -> None:
    """Each shard speaks for its own keys: the neighbour in the batch keeps its result."""
    gate = Gate()
    forgotten = {"status": 409, "code": "forgotten", "definite": False, "born_after": 2**51}
    script = (gate, batch_answer(applied(2), forgotten), put_answer(revision=3))
    with serving(*script) as server, Client(server.url) as client:
        puts = (lambda: client.put("a", b""), lambda: client.put("b", b""))
        with together(gate, server, client, *puts) as (first, second):
            assert first.result(WAIT_S).revision == 2  # type: ignore[attr-defined]
            assert second.result(WAIT_S).revision == 3  # type: ignore[attr-defined]
    before = members_of(server.received[1])[1]["session"]
    session, _, _, born = server.received[2].headers["raftkv-session"].split(";")
    assert session != before["id"]  # type: ignore[index]
    assert int(born) > 2**51 >= before["born"]  # type: ignore[index]


def test_once_unknown_a_later_refusal_does_not_make_a_write_definite() -> None:
    """As alone: the refusal speaks for its own attempt."""
    gate = Gate()
    too_large = problem(413, "too_large", definite=True)
    with (
        serving(gate, batch_answer(UNKNOWN, applied(2)), too_large) as server,
        Client(server.url) as client,
        together(
            gate, server, client, lambda: client.put("a", b""), lambda: client.put("b", b"")
        ) as (lost, done),
    ):
        assert done.result(WAIT_S).revision == 2  # type: ignore[attr-defined]
        with pytest.raises(UnknownOutcomeError):
            lost.result(WAIT_S)


def test_one_that_makes_no_sense_spoils_nothing_for_the_others() -> None:
    """A batch that is refused whole was not applied: each goes alone and gets its own answer."""
    gate = Gate()

    def own(request: Received, connection: socket.socket) -> bool:
        is_bad = request.target == "/v1/kv/bad"
        behave = problem(413, "too_large", definite=True) if is_bad else put_answer(revision=9)
        return behave(request, connection)

    script = (gate, problem(413, "too_large", definite=True), own, own)
    with (
        serving(*script) as server,
        Client(server.url) as client,
        together(
            gate, server, client, lambda: client.put("bad", b""), lambda: client.put("good", b"")
        ) as (bad, good),
    ):
        assert good.result(WAIT_S).revision == 9  # type: ignore[attr-defined]
        with pytest.raises(TooLargeError):
            bad.result(WAIT_S)


def test_reads_that_are_too_much_for_one_answer_go_again_by_themselves() -> None:
    """Who merges must divide: each value is within all limits, and its caller gets it."""
    gate = Gate()
    too_much = {"op": "get", "status": 413, "code": "too_large", "definite": True}
    found = {"key": b"a", "value": b"1", "revision": 5, "version": 2, "create_revision": 4}
    fits = {"op": "get", "status": 200, "entry": found}

    def own(request: Received, connection: socket.socket) -> bool:
        return get_answer(request.target.encode())(request, connection)

    script = (gate, batch_answer(fits, too_much, too_much), own, own)
    with serving(*script) as server, Client(server.url) as client:
        asked = [lambda key=key: client.get(key) for key in "abc"]
        with together(gate, server, client, *asked) as futures:
            values = [future.result(WAIT_S).value for future in futures]  # type: ignore[attr-defined]
    assert values == [b"1", b"/v1/kv/b", b"/v1/kv/c"]


def test_what_is_too_large_by_itself_is_said_once() -> None:
    """It is not asked for in company again."""
    gate = Gate()
    too_much = {"op": "get", "status": 413, "code": "too_large", "definite": True}
    alone = problem(413, "too_large", definite=True)
    with serving(gate, batch_answer(too_much, too_much), alone, alone) as server:
        client = Client(server.url)
        asked = [lambda key=key: client.get(key) for key in "ab"]
        with client, together(gate, server, client, *asked) as futures:
            for future in futures:
                with pytest.raises(TooLargeError):
                    future.result(WAIT_S)
    assert len(server.received) == 4


def test_each_raises_an_exception_of_its_own() -> None:
    """A traceback belongs to one thread."""
    gate = Gate()
    busy = problem(429, "busy", definite=True, retry_after_ms=60_000)
    with (
        serving(gate, busy) as server,
        Client(server.url) as client,
        together(gate, server, client, lambda: client.get("a"), lambda: client.get("b")) as both,
    ):
        errors = [future.exception(WAIT_S) for future in both]
    assert [type(error) for error in errors] == [BusyError, BusyError]
    assert errors[0] is not errors[1]


def test_a_call_with_little_time_goes_by_itself_and_keeps_to_it() -> None:
    """It neither waits for a batch nor cuts one short."""
    gate = Gate()
    with (
        serving(gate, put_answer(revision=4)) as server,
        Client(server.url) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(client.put, "first", b"")
        until(lambda: len(server.received) == 1)
        assert client.put("hasty", b"", timeout_s=1.0).revision == 4
        gate.open()
        first.result(WAIT_S)
    assert server.received[1].target == "/v1/kv/hasty"


def test_writes_without_idempotency_never_travel_together() -> None:
    """The answer that is lost with a batch would be lost for all of them."""
    gate = Gate()
    with (
        serving(gate, put_answer(revision=5)) as server,
        Client(server.url, idempotent=False) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(client.put, "first", b"")
        until(lambda: len(server.received) == 1)
        assert client.put("second", b"").revision == 5
        gate.open()
        first.result(WAIT_S)


def test_an_impatient_call_does_not_wait_for_a_flight_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A shard without a leader holds up a batch, not the calls behind it."""
    monkeypatch.setattr(coalescing, "QUEUED_S_MAX", 0.01)
    gate = Gate()
    with (
        serving(gate, put_answer(revision=6)) as server,
        Client(server.url) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(client.put, "first", b"")
        until(lambda: len(server.received) == 1)
        assert client.put("second", b"").revision == 6
        gate.open()
        first.result(WAIT_S)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where pytest was started with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_a_thread_that_is_interrupted_in_the_queue_takes_only_itself_away() -> None:
    """The main thread gets KeyboardInterrupt; the other call is answered."""
    gate = Gate()
    with (
        serving(gate, put_answer(revision=8)) as server,
        Client(server.url) as client,
        ThreadPoolExecutor(3) as pool,
    ):
        first = pool.submit(client.put, "first", b"")
        until(lambda: len(server.received) == 1)

        def interrupt() -> None:
            until(lambda: queued(client) == 1)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        interrupter = pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            client.put("interrupted", b"")
        interrupter.result(WAIT_S)
        assert queued(client) == 0
        other = pool.submit(client.put, "other", b"")
        until(lambda: queued(client) == 1)
        gate.open()
        assert other.result(WAIT_S).revision == 8
        first.result(WAIT_S)
    assert [request.target for request in server.received] == ["/v1/kv/first", "/v1/kv/other"]


def test_if_the_thread_that_carries_a_flight_is_interrupted_the_others_go_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their outcome is unknown, and a number makes the repetition safe."""
    gate = Gate()
    with serving(gate, put_answer(revision=3)) as server, Client(server.url) as client:

        def interrupted(*_arguments: object) -> list[coalescing.Outcome]:
            raise KeyboardInterrupt

        monkeypatch.setattr(client._coalescer, "_send", interrupted)
        with together(
            gate, server, client, lambda: client.put("leads", b""), lambda: client.put("other", b"")
        ) as (leader, other):
            assert isinstance(leader.exception(WAIT_S), KeyboardInterrupt)
            assert other.result(WAIT_S).revision == 3  # type: ignore[attr-defined]


def test_a_child_does_not_queue_behind_the_flights_of_its_parent() -> None:
    """Those land in the parent only."""
    gate = Gate()
    with (
        serving(gate, put_answer(revision=2)) as server,
        Client(server.url) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(client.put, "first", b"")
        until(lambda: len(server.received) == 1)
        queue = client._coalescer._queue  # type: ignore[union-attr]
        queue.pid = os.getpid() + 1  # as a child finds it
        assert client.put("child", b"").revision == 2
        gate.open()
        first.result(WAIT_S)


@pytest.fixture
def served() -> Iterator[FrontEnd]:
    """The real front end over a real state machine."""
    with front_end() as made:
        yield made


@pytest.mark.parametrize("in_flight", [1, 4])
def test_every_thread_gets_the_results_of_its_own_calls(
    served: FrontEnd, monkeypatch: pytest.MonkeyPatch, in_flight: int
) -> None:
    """Whatever shares a request: values read are those written, versions count own writes."""
    monkeypatch.setattr(coalescing, "IN_FLIGHT_MAX", in_flight)

    def work(client: Client, thread: int) -> None:
        chance = random.Random(thread)
        key, version, value = f"k{thread}", 0, b""
        for turn in range(25):
            match chance.choice(["put", "get", "delete", "taken"]):
                case "put":
                    version, value = version + 1, b"%d of %d" % (turn, thread)
                    assert client.put(key, value).version == version
                case "get":
                    entry = client.get(key)
                    assert (entry.value if entry else None) == (value if version else None)
                case "delete":
                    assert client.delete(key).deleted == (version > 0)
                    version = 0
                case "taken" if version:
                    with pytest.raises(PreconditionFailedError):
                        client.put_if_absent(key, b"")

    with Client(served.url) as client, ThreadPoolExecutor(16) as pool:
        for future in [pool.submit(work, client, thread) for thread in range(16)]:
            future.result(60.0)
        queue = client._coalescer._queue  # type: ignore[union-attr]
        assert (queue.in_flight, len(queue.waiting)) == (0, 0)
