"""Clients that do not read their answers: what they hold is bounded, ends, and costs no thread."""

import asyncio
import threading
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest

from raftkv.core.operations import Command, Put
from raftkv.rpc.messages import Reply, Request, WriteRequest
from raftkv.rpc.web_config import Limits, WebConfig
from raftkv.web.app import create_app
from raftkv.web.serve import unread
from raftkv.web.serve.lane import Lane
from raftkv.web.serve.unread import PIECE_BYTES, ClientTooSlowError, UnreadAnswers
from raftkv.web.serve.worker_metrics import WorkerMetrics
from tests.support.fake_engine import AsyncFace, FakeEngine, SyncFace
from tests.web.carriers import HOST
from tests.web.conftest import LIMITS

Message = MutableMapping[str, Any]
_PATIENCE_S = 20.0
JSON = {"content-type": "application/json", "transfer-encoding": "chunked"}


class Client:
    """Takes so many pieces of its answer and then reads nothing until ``resume``."""

    def __init__(self, pieces: int = 10**9) -> None:
        self.got: list[Message] = []
        self.stuck = asyncio.Event()
        self.resume = asyncio.Event()
        self._pieces = pieces

    async def send(self, message: Message) -> None:
        """What the server gives."""
        if message["type"] == "http.response.body":
            if not self._pieces:
                self.stuck.set()
                await self.resume.wait()
            else:
                self._pieces -= 1
        self.got.append(message)

    @property
    def body(self) -> bytes:
        """What was read."""
        return b"".join(message.get("body", b"") for message in self.got)


# --- the account of one worker ---


def test_a_large_answer_comes_whole_and_is_counted_until_then() -> None:
    """In pieces, of which only the last says that it is the last."""

    async def run() -> None:
        answers = UnreadAnswers(wait_s=_PATIENCE_S, bytes_max=10**9)
        client, body = Client(2), bytes(range(256)) * 1024
        sending = asyncio.ensure_future(answers.send(client.send, body))
        await client.stuck.wait()
        assert answers.bytes_held == len(body)
        client.resume.set()
        await sending
        assert client.body == body
        assert [m["more_body"] for m in client.got] == [True] * (len(client.got) - 1) + [False]
        assert all(len(m["body"]) <= PIECE_BYTES for m in client.got)
        assert answers.bytes_held == 0

    asyncio.run(run())


def test_a_client_that_takes_nothing_is_given_up() -> None:
    """After its time, and what was held for it is free again."""

    async def run() -> None:
        answers = UnreadAnswers(wait_s=0.05, bytes_max=10**9)
        with pytest.raises(ClientTooSlowError):
            await answers.send(Client(1).send, bytes(3 * PIECE_BYTES))
        assert (answers.bytes_held, answers.given_up) == (0, 1)

    asyncio.run(run())


def test_over_the_bound_who_is_stuck_longest_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only as many as needed; as long as nobody is stuck the worker is full."""

    async def run() -> None:
        size = 2 * PIECE_BYTES
        answers = UnreadAnswers(wait_s=_PATIENCE_S, bytes_max=2 * size)
        clients = [Client(1) for _ in range(2)]
        sending = [asyncio.ensure_future(answers.send(c.send, bytes(size))) for c in clients]
        for client in clients:
            await client.stuck.wait()
        full = [answers.is_full]
        monkeypatch.setattr(unread, "STUCK_S", 0.0)
        full.append(answers.is_full)
        assert full == [True, False]
        assert answers.bytes_held == size
        with pytest.raises(ClientTooSlowError):
            await sending[0]
        clients[1].resume.set()
        await sending[1]
        assert answers.bytes_held == 0

    asyncio.run(run())


# --- the lane ---


class Door:
    """A lane over a fake engine, asked from one loop; ``held``: the Flask side's calls wait."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.engine = FakeEngine()
        self.released = threading.Event()
        self.held = False
        self.waiting = threading.Semaphore(0)
        config = WebConfig(node_name="n1", limits=limits)
        metrics = WorkerMetrics(config.worker)
        app = create_app(self, config, metrics)
        self.flask_requests: list[str] = []

        def operators(environ: Any, start_response: Any) -> Any:
            self.flask_requests.append(environ["PATH_INFO"])
            return app.wsgi_app(environ, start_response)

        self.lane = Lane(AsyncFace(self.engine), config, operators, metrics)

    def call(self, request: Request, timeout_s: float, request_id: str = "") -> Reply:
        """Answer the Flask side, as SyncEngine does."""
        if self.held and getattr(request, "scope", "") == "cluster":
            self.waiting.release()
            self.released.wait(_PATIENCE_S)
        return SyncFace(self.engine).call(request, timeout_s, request_id)

    async def ask(
        self, client: Client, path: bytes, *, method: str = "GET", body: bytes = b"", **headers: str
    ) -> int:
        """Make one request and return its status."""
        pairs = [(b"host", HOST.encode())]
        pairs += [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": path.partition(b"?")[0].decode(),
            "raw_path": path.partition(b"?")[0],
            "query_string": path.partition(b"?")[2],
            "headers": pairs,
        }

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        await self.lane(scope, receive, client.send)
        return int(client.got[0]["status"])

    async def probes(self) -> list[int]:
        """What whoever watches the node hears."""
        paths = (b"/healthz", b"/readyz", b"/metrics", b"/%72eadyz")
        return [await asyncio.wait_for(self.ask(Client(), p), _PATIENCE_S) for p in paths]


@pytest.fixture
def door() -> Iterator[Door]:
    """A lane."""
    made = Door()
    yield made
    made.released.set()
    made.lane.close()


@pytest.mark.parametrize("path", [b"/openapi.json", b"/v1/status", b"/"])
def test_answers_that_nobody_reads_hold_no_thread(door: Door, path: bytes) -> None:
    """Many more than there are threads, and every operator's route still answers."""

    async def run() -> None:
        clients = [Client(0) for _ in range(3 * LIMITS.operator_threads)]
        asking = [asyncio.ensure_future(door.ask(client, path)) for client in clients]
        for client in clients:
            await client.stuck.wait()
        assert await door.probes() == [200] * 4
        assert await asyncio.wait_for(door.ask(Client(), b"/v1/status"), _PATIENCE_S) == 200
        for client in clients:
            client.resume.set()
        assert await asyncio.gather(*asking) == [200] * len(asking)

    asyncio.run(run())


def test_probes_wait_for_no_other_route(door: Door) -> None:
    """Not while all of the operators' threads wait for an engine, and more requests behind them."""
    door.held = True

    async def run() -> None:
        count = 2 * LIMITS.operator_threads
        asking = [asyncio.ensure_future(door.ask(Client(), b"/v1/nodes")) for _ in range(count)]
        for _ in range(LIMITS.operator_threads):
            assert await asyncio.to_thread(door.waiting.acquire, timeout=_PATIENCE_S)
        assert await door.probes() == [200] * 4
        door.released.set()
        await asyncio.gather(*asking)
        assert door.lane.answering == 0

    asyncio.run(run())


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (b"/%761/kv", 200),
        (b"/v1%2Fkv?keys_only=true", 200),
        (b"/%76%31/k%76/a%2Fb%00%25", 404),
        (b"/v1%2fkv%2Fx", 404),
        (b"/v1/batc%68", 405),
        (b"/v1/%74xn", 405),
    ],
)
def test_every_spelling_of_a_data_route_takes_the_lane(
    door: Door, path: bytes, status: int
) -> None:
    """Percent-encoding changes nothing (RFC 3986, 6.2.2.2), and gets nobody a thread."""

    async def run() -> None:
        assert await door.ask(Client(), path) == status

    asyncio.run(run())
    assert door.flask_requests == []


def test_an_encoded_spelling_names_the_same_key(door: Door) -> None:
    """Byte for byte, also where the key itself has bytes that are encoded."""
    asyncio.run(door.ask(Client(), b"/%76%31/k%76/a%2Fb%00%25%FF"))
    assert getattr(door.engine.asked[-1], "key", None) == b"a/b\0%\xff"


def test_a_stream_that_nobody_reads_ends() -> None:
    """After its time, with an end that no client takes for the end of the stream."""
    door = Door(Limits(unread_wait_s=0.05))

    async def run() -> None:
        client = Client(0)
        assert await door.ask(client, b"/%761/kv", accept="application/x-ndjson") == 200
        assert [message["type"] for message in client.got] == ["http.response.start"]

    asyncio.run(run())
    door.lane.close()


def test_a_worker_that_holds_too_much_refuses_reads_and_no_writes() -> None:
    """Definite, before the engine is asked, until what is held was read.

    A batch of very many writes has an answer that has to be held as well.
    """
    door = Door(Limits(unread_bytes_max=1))
    value = bytes(4 * PIECE_BYTES)
    door.engine.answer(WriteRequest(Command(Put(b"large", value))), 1.0)

    async def run() -> None:
        client = Client(1)
        asking = asyncio.ensure_future(door.ask(client, b"/v1/kv/large"))
        await client.stuck.wait()
        refused = Client()
        assert await door.ask(refused, b"/v1/kv/large") == 503
        assert b'"definite":true' in refused.body
        written = Client()
        assert await door.ask(written, b"/v1/kv/other", method="PUT") == 201
        for then, status in ((b'"get"', 503), (b'"delete"', 200)):
            txn = b'{"then": [{"op": %b, "key": "other"}]}' % then
            asked = door.ask(Client(), b"/v1/txn", method="POST", body=txn, **JSON)
            assert await asked == status
        write, read = b'{"op": "delete", "key": "other"}', b'{"op": "get", "key": "other"}'
        for members, status in (([write], 200), ([write, read], 503), ([write] * 600, 503)):
            batch = b'{"operations": [%b]}' % b",".join(members)
            asked = door.ask(Client(), b"/v1/batch", method="POST", body=batch, **JSON)
            assert await asked == status, members[-1]
        client.resume.set()
        assert await asking == 200
        assert client.body == value
        assert await door.ask(Client(), b"/v1/kv/large") == 200

    asyncio.run(run())
    door.lane.close()


@pytest.mark.parametrize("path", [b"/openapi.json", b"/v1/status", b"/"])
def test_a_worker_that_holds_too_much_makes_no_pages_either(path: bytes) -> None:
    """Some need no token. Who watches the node is answered all the same."""
    door = Door(Limits(unread_bytes_max=1))

    async def run() -> None:
        client = Client(0)
        asking = asyncio.ensure_future(door.ask(client, b"/openapi.json"))
        await client.stuck.wait()
        assert await asyncio.wait_for(door.ask(Client(), path), _PATIENCE_S) == 503
        assert await door.probes() == [200] * 4
        client.resume.set()
        assert await asking == 200
        assert await door.ask(Client(), path) == 200

    asyncio.run(run())
    door.lane.close()


def test_an_answer_that_is_too_large_is_a_bug_and_no_torn_connection(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No page is so large; one that was would take the worker's memory."""
    monkeypatch.setattr("raftkv.web.serve.mounted.ANSWER_BYTES_MAX", 1)
    assert asyncio.run(door.ask(Client(), b"/openapi.json")) == 500
