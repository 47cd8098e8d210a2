"""Front end and engine over the Unix socket: every call answered once and truthfully."""

import asyncio
import logging
import socket
import stat
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import uvloop

from raftkv.core.operations import Command, Delete, GetResult, KeyValue, Put, PutResult
from raftkv.rpc import client as client_module
from raftkv.rpc import server as server_module
from raftkv.rpc.calls import ItemHandler
from raftkv.rpc.client import EngineClient, EngineUnavailableError
from raftkv.rpc.framing import FrameDecoder
from raftkv.rpc.items import Credit, End, Item, ItemWriter, Open, decode_item_message
from raftkv.rpc.local import (
    CHANNEL_CALL,
    CHANNEL_HELLO,
    CHANNEL_ITEMS,
    PROTOCOL_VERSION,
    Hello,
    LocalCall,
)
from raftkv.rpc.messages import (
    BatchRequest,
    Call,
    Facts,
    Failure,
    GetRequest,
    Reply,
    Request,
    Served,
    StatusRequest,
    TransferRequest,
    WriteRequest,
    may_write,
)
from raftkv.rpc.server import Handler, LocalServer, Respond, SocketInUseError
from tests.support.frames import encode_frame

TOKEN = b"a token of this test"
READ = GetRequest(b"key")
WRITE = WriteRequest(Command(Put(b"key", b"value")))
SERVED = Served(node="n1")

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run on the loop of production, and fail if it hangs."""

    async def bounded() -> T:
        async with asyncio.timeout(20):
            return await main

    return uvloop.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition of another part of this loop."""
    while not condition():  # noqa: ASYNC110 -- the condition has no event
        await asyncio.sleep(0.001)


def echo(call: Call, respond: Respond) -> None:
    """Answer a read with nothing found, anything else with the remaining time."""
    if isinstance(call.request, GetRequest):
        respond(Reply(call.id, GetResult(None), SERVED))
    else:
        respond(Reply(call.id, Facts.of({"remaining_ms": call.remaining_ms}), SERVED))


class Held:
    """A handler that answers when the test says so."""

    def __init__(self) -> None:
        self.calls: list[tuple[Call, Respond]] = []

    def __call__(self, call: Call, respond: Respond) -> None:
        """Keep the call."""
        self.calls.append((call, respond))

    def release(self) -> None:
        """Answer all that are kept."""
        calls, self.calls = self.calls, []
        for call, respond in calls:
            respond(Reply(call.id, GetResult(None), SERVED))


@asynccontextmanager
async def serving(path: Path, handler: Handler, **options: Any) -> AsyncIterator[LocalServer]:
    """Run a server around a block."""
    server = LocalServer(path, TOKEN, handler, node="n1", **options)
    await server.start()
    try:
        yield server
    finally:
        await server.close()


@asynccontextmanager
async def connected(
    path: Path, handler: Handler, **options: Any
) -> AsyncIterator[tuple[LocalServer, EngineClient]]:
    """Run a server and one client around a block."""
    async with serving(path, handler, **options) as server:
        client = await EngineClient.connect(path, TOKEN)
        try:
            yield server, client
        finally:
            await client.close()


def test_many_calls_are_in_flight_and_each_gets_its_own_answer(tmp_path: Path) -> None:
    """Replies find their calls, also when the engine answers in another order."""
    seen: list[tuple[Call, Respond]] = []

    def backwards(call: Call, respond: Respond) -> None:
        seen.append((call, respond))
        if len(seen) == 100:
            for held, answer in reversed(seen):
                assert isinstance(held.request, GetRequest)
                answer(Reply(held.id, Facts.of({"key": held.request.key.decode()}), SERVED))

    async def main() -> None:
        async with connected(tmp_path / "s", backwards) as (_, client):
            keys = [f"k{number}" for number in range(100)]
            replies = await asyncio.gather(
                *(client.call(GetRequest(key.encode()), 5) for key in keys)
            )
            assert [reply.response for reply in replies] == [Facts.of({"key": key}) for key in keys]
            assert client.in_flight == 0

    run(main())


def test_an_answer_goes_over_the_connection_of_its_call_or_nowhere(tmp_path: Path) -> None:
    """A front end that came back uses the same numbers; what it asked before answers nothing."""
    held = Held()

    async def main() -> None:
        async with serving(tmp_path / "s", held) as server:
            before = await EngineClient.connect(tmp_path / "s", TOKEN)
            lost = asyncio.ensure_future(before.call(WRITE, 5))
            await until(lambda: len(held.calls) == 1)
            await before.close()
            await until(lambda: not server.connections)
            now = await EngineClient.connect(tmp_path / "s", TOKEN)
            asked = asyncio.ensure_future(now.call(READ, 5))
            await until(lambda: len(held.calls) == 2)
            (old, answer_old), (new, answer_new) = held.calls
            assert old.id == new.id
            answer_old(Reply(old.id, Facts.of({"life": 1}), SERVED))
            answer_new(Reply(new.id, Facts.of({"life": 2}), SERVED))
            assert (await asked).response == Facts.of({"life": 2})
            assert isinstance((await lost).response, Failure)
            await now.close()

    run(main())


def test_a_call_that_waited_in_the_socket_has_less_time_left(tmp_path: Path) -> None:
    """An engine that was frozen does not begin what its front end has given up long since."""
    held = Held()

    async def main() -> None:
        async with connected(tmp_path / "s", held) as (server, client):
            (frozen,) = server.connections
            frozen._transport.pause_reading()
            given_up = await client.call(WRITE, 0.3)
            assert isinstance(given_up.response, Failure)
            assert (given_up.response.code, given_up.response.definite) == ("timeout", False)
            patient = asyncio.ensure_future(client.call(READ, 300))
            await asyncio.sleep(0)
            sent_at = asyncio.get_running_loop().time()
            await until(lambda: asyncio.get_running_loop().time() - sent_at > 0.5)
            frozen._transport.resume_reading()
            await until(lambda: len(held.calls) == 1)
            [(call, _)] = held.calls
            assert call.request == READ
            assert 290_000 < call.remaining_ms <= 299_500
            held.release()
            assert (await patient).response == GetResult(None)

    run(main())


def test_the_engine_is_told_the_remaining_time_and_the_client_its_node(tmp_path: Path) -> None:
    """Deadlines travel as milliseconds that are left; the welcome names the node."""

    async def main() -> None:
        async with connected(tmp_path / "s", echo) as (_, client):
            reply = await client.call(StatusRequest("local"), 1.5)
            assert reply.response == Facts.of({"remaining_ms": 1500})
            assert client.node == "n1"

    run(main())


def test_large_values_pass(tmp_path: Path) -> None:
    """A frame of many reads comes through whole, in both directions."""
    value = bytes(range(256)) * 4096 * 8

    def handler(call: Call, respond: Respond) -> None:
        assert isinstance(call.request, WriteRequest)
        assert isinstance(call.request.command.operation, Put)
        respond(Reply(call.id, Facts.of({"value": call.request.command.operation.value}), SERVED))

    async def main() -> None:
        async with connected(tmp_path / "s", handler) as (_, client):
            reply = await client.call(WriteRequest(Command(Put(b"k", value))), 5)
            assert reply.response == Facts.of({"value": value})

    run(main())


@pytest.mark.parametrize(
    ("request_", "writes"),
    [
        (READ, False),
        (WRITE, True),
        (TransferRequest(0), True),
        (StatusRequest("cluster"), False),
        (BatchRequest((READ, READ)), False),
        (BatchRequest((READ, Command(Delete(b"k")))), True),
    ],
)
def test_what_may_write(request_: Request, writes: bool) -> None:  # noqa: FBT001 -- a parameter
    """Only what may change something leaves an unknown outcome behind."""
    assert may_write(request_) is writes


def test_when_the_engine_is_lost_writes_are_unknown_and_reads_definite(tmp_path: Path) -> None:
    """A write that was sent may have been applied; a read never was; ``closed`` is set."""
    held = Held()

    async def main() -> None:
        async with connected(tmp_path / "s", held) as (server, client):
            calls = asyncio.gather(client.call(WRITE, 5), client.call(READ, 5))
            await until(lambda: len(held.calls) == 2)
            for connection in tuple(server.connections):
                connection.abort()
            write, read = (reply.response for reply in await calls)
            assert isinstance(write, Failure)
            assert isinstance(read, Failure)
            assert (write.code, write.definite) == ("unknown", False)
            assert (read.code, read.definite) == ("unavailable", True)
            assert client.closed.is_set()
            late = (await client.call(WRITE, 5)).response
            assert isinstance(late, Failure)
            assert (late.code, late.definite) == ("unavailable", True)

    run(main())


def test_a_write_that_never_left_is_definite(tmp_path: Path) -> None:
    """What still waits in this process when the engine is lost was certainly not applied."""

    async def main() -> None:
        async with connected(tmp_path / "s", echo) as (server, client):
            client._writer.pause()  # as the transport does when the engine does not read
            call = asyncio.ensure_future(client.call(WRITE, 5))
            await until(lambda: client.in_flight == 1)
            for connection in tuple(server.connections):
                connection.abort()
            response = (await call).response
            assert isinstance(response, Failure)
            assert (response.code, response.definite) == ("unavailable", True)

    run(main())


def test_an_engine_that_hangs_gets_a_truthful_time_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client answers by itself, after the engine's own deadline; late replies are dropped."""
    monkeypatch.setattr(client_module, "GRACE_S", 0.02)
    monkeypatch.setattr(client_module, "_SWEEP_S", 0.01)
    held = Held()

    async def main() -> None:
        async with connected(tmp_path / "s", held) as (_, client):
            started = asyncio.get_running_loop().time()
            replies = await asyncio.gather(client.call(WRITE, 0.05), client.call(READ, 0.05))
            # The loop tells time in whole milliseconds.
            assert round(asyncio.get_running_loop().time() - started, 3) >= 0.069
            write, read = (reply.response for reply in replies)
            assert isinstance(write, Failure)
            assert isinstance(read, Failure)
            assert (write.code, write.definite) == ("timeout", False)
            assert (read.code, read.definite) == ("timeout", True)
            held.release()
            again = asyncio.ensure_future(client.call(READ, 5))
            await until(lambda: len(held.calls) == 1)
            held.release()
            assert (await again).response == GetResult(None)

    run(main())


def test_more_calls_than_allowed_are_busy_and_definite(tmp_path: Path) -> None:
    """The client refuses what the engine has said it will not take at once."""
    held = Held()

    async def main() -> None:
        async with connected(tmp_path / "s", held, in_flight_max=2) as (_, client):
            calls = [asyncio.ensure_future(client.call(WRITE, 5)) for _ in range(2)]
            await until(lambda: len(held.calls) == 2)
            refused = (await client.call(WRITE, 5)).response
            assert isinstance(refused, Failure)
            assert (refused.code, refused.definite) == ("busy", True)
            assert refused.retry_after_ms is not None
            held.release()
            await asyncio.gather(*calls)

    run(main())


def test_a_request_that_is_too_large_is_definite(tmp_path: Path) -> None:
    """It is refused here, instead of costing the whole connection there."""

    async def main() -> None:
        async with connected(tmp_path / "s", echo, payload_bytes_max=1000) as (_, client):
            reply = await client.call(WriteRequest(Command(Put(b"k", bytes(1000)))), 5)
            assert isinstance(reply.response, Failure)
            assert (reply.response.code, reply.response.definite) == ("too_large", True)
            assert (await client.call(READ, 5)).response == GetResult(None)

    run(main())


def test_an_answer_that_is_too_large_is_not_called_definite(tmp_path: Path) -> None:
    """The write behind it may well have been applied."""

    def handler(call: Call, respond: Respond) -> None:
        respond(Reply(call.id, Facts.of({"x": bytes(2000)}), SERVED))

    async def main() -> None:
        async with connected(tmp_path / "s", handler, payload_bytes_max=1000) as (_, client):
            reply = await client.call(WRITE, 5)
            assert isinstance(reply.response, Failure)
            assert (reply.response.code, reply.response.definite) == ("too_large", False)

    run(main())


def test_a_cancelled_call_leaves_nothing_behind(tmp_path: Path) -> None:
    """A client that went away does not hold a place in flight."""
    held = Held()

    async def main() -> None:
        async with connected(tmp_path / "s", held) as (_, client):
            call = asyncio.ensure_future(client.call(WRITE, 5))
            await until(lambda: len(held.calls) == 1)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            assert client.in_flight == 0
            held.release()
            again = asyncio.ensure_future(client.call(READ, 5))
            await until(lambda: len(held.calls) == 1)
            held.release()
            await again

    run(main())


def test_a_handler_that_raises_is_an_internal_failure_with_a_trace(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug costs one call, not the connection, and is not called definite."""

    def handler(call: Call, respond: Respond) -> None:
        if call.request == WRITE:
            raise RuntimeError("a bug")
        echo(call, respond)

    async def main() -> None:
        async with connected(tmp_path / "s", handler) as (_, client):
            reply = await client.call(WRITE, 5)
            assert isinstance(reply.response, Failure)
            assert (reply.response.code, reply.response.definite) == ("internal", False)
            assert (await client.call(READ, 5)).response == GetResult(None)

    run(main())
    assert "RuntimeError: a bug" in caplog.text


def test_an_answer_that_cannot_be_encoded_is_an_internal_failure(tmp_path: Path) -> None:
    """Also one that is given later, from a callback that hears of no exception."""
    held = Held()

    async def main() -> None:
        async with connected(tmp_path / "s", held) as (server, client):
            waiting = asyncio.ensure_future(client.call(WRITE, 5))
            await until(lambda: bool(held.calls))
            ((call, respond),) = held.calls
            respond(Reply(call.id, PutResult(2**70, 1), SERVED))  # more than MessagePack holds
            reply = await waiting
            assert isinstance(reply.response, Failure)
            assert (reply.response.code, reply.response.definite) == ("internal", False)
            assert server.in_flight == 0

    run(main())


def test_a_second_answer_to_a_call_is_logged_and_not_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The bookkeeping of what is in flight survives a handler that answers twice."""

    def handler(call: Call, respond: Respond) -> None:
        echo(call, respond)
        echo(call, respond)

    async def main() -> None:
        async with connected(tmp_path / "s", handler) as (server, client):
            await client.call(READ, 5)
            await client.call(READ, 5)
            assert server.in_flight == 0

    run(main())
    assert "answered twice" in caplog.text


# --- the door ---------------------------------------------------------------------------------


def hello(token: bytes, protocol: int = PROTOCOL_VERSION) -> bytes:
    """Return a front end's first frame."""
    return encode_frame(CHANNEL_HELLO, msgspec.msgpack.encode(Hello(protocol, token)))


def call_frame(call_id: int, request: Request = READ) -> bytes:
    """Return the frame of a call."""
    return encode_frame(CHANNEL_CALL, msgspec.msgpack.encode(Call(call_id, 1000, request)))


async def talk(path: Path, data: bytes) -> bytes:
    """Send ``data`` and return everything that comes back until the server closes."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(data)
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("data", "logged"),
    [
        (hello(b"wrong") + call_frame(1), "wrong token"),
        (hello(b"") + call_frame(1), "wrong token"),
        (call_frame(1), "no hello"),
        (b"GET / HTTP/1.1\r\n\r\n", "malformed"),
        (b"\xff\xff\xff\x7f\0", "malformed"),
        (encode_frame(CHANNEL_HELLO, bytes(4000)), "malformed"),
        (hello(TOKEN, protocol=99), "speaks protocol 99"),
    ],
)
def test_nothing_but_the_right_token_gets_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, data: bytes, logged: str
) -> None:
    """A stranger gets not one byte, and a log line says why; the others are served on."""
    held = Held()

    async def main() -> None:
        async with connected(tmp_path / "s", held) as (_, client):
            assert await talk(tmp_path / "s", data) == b""
            assert not held.calls
            assert not client.closed.is_set()

    run(main())
    assert logged in caplog.text


@pytest.mark.parametrize(
    "data",
    [
        encode_frame(CHANNEL_CALL, b"\xc1"),
        encode_frame(CHANNEL_CALL, msgspec.msgpack.encode([1, 1000, [99]])),
        encode_frame(CHANNEL_CALL, b"\x93\x01\x0a\x92\x05\xa1\xb1"),  # a string not in UTF-8
        encode_frame(CHANNEL_CALL, b"\x96\x01\x0a\x92\x01\xc4\x01k\0\0" + b"\x91" * 100_000),
        encode_frame(7, b""),
        call_frame(1) + call_frame(1),
        hello(TOKEN),
        (2**31).to_bytes(4, "little") + b"\1",
    ],
)
def test_a_malformed_frame_closes_that_connection_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    """Behind a broken frame nothing can be understood, but the neighbours are."""

    async def main() -> None:
        async with connected(tmp_path / "s", Held()) as (server, client):
            await talk(tmp_path / "s", hello(TOKEN) + data)
            await until(lambda: len(server.connections) == 1)
            assert not client.closed.is_set()

    run(main())
    assert "malformed" in caplog.text


def test_a_connection_without_hello_is_closed_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holding the door open costs nothing."""
    monkeypatch.setattr(server_module, "_HELLO_DEADLINE_S", 0.02)

    async def main() -> None:
        async with serving(tmp_path / "s", echo):
            assert await talk(tmp_path / "s", b"") == b""

    run(main())


def test_the_wrong_token_is_an_error_that_names_the_socket(tmp_path: Path) -> None:
    """The HTTP worker can say in one line why it does not start."""

    async def main() -> None:
        async with serving(tmp_path / "s", echo):
            with pytest.raises(EngineUnavailableError, match=f"{tmp_path}/s: .*token"):
                await EngineClient.connect(tmp_path / "s", b"wrong")

    run(main())


def test_no_engine_is_an_error_that_names_the_socket(tmp_path: Path) -> None:
    """Nobody listens, or nobody answers."""

    async def main() -> None:
        with pytest.raises(EngineUnavailableError, match=f"{tmp_path}/s: No such file"):
            await EngineClient.connect(tmp_path / "s", TOKEN)
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(str(tmp_path / "s"))
            silent.listen()
            with pytest.raises(EngineUnavailableError, match="does not answer"):
                await EngineClient.connect(tmp_path / "s", TOKEN, timeout_s=0.05)

    run(main())


def test_garbage_from_the_engine_ends_the_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The client never guesses; what is in flight is answered as lost."""

    async def main() -> None:
        async with connected(tmp_path / "s", Held()) as (server, client):
            call = asyncio.ensure_future(client.call(WRITE, 5))
            await until(lambda: server.in_flight == 1)
            for connection in server.connections:
                connection._writer.send(CHANNEL_CALL, b"garbage")
            response = (await call).response
            assert isinstance(response, Failure)
            assert response.code == "unknown"
            assert client.closed.is_set()

    run(main())
    assert "not an answer" in caplog.text


def test_only_the_owner_may_open_the_socket(tmp_path: Path) -> None:
    """Permissions are the first door, the token the second."""

    async def main() -> None:
        async with serving(tmp_path / "s", echo):
            assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
        assert not (tmp_path / "s").exists()

    run(main())


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    """A killed engine leaves its socket file behind; the next one starts all the same."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))

    async def main() -> None:
        async with connected(tmp_path / "s", echo) as (_, client):
            assert (await client.call(READ, 5)).response == GetResult(None)

    run(main())


def test_a_living_socket_or_another_file_is_left_alone(tmp_path: Path) -> None:
    """Nothing that is in use or is no socket is removed."""
    (tmp_path / "file").write_text("precious")

    async def main() -> None:
        async with connected(tmp_path / "s", echo) as (_, client):
            with pytest.raises(SocketInUseError, match="another process"):
                await LocalServer(tmp_path / "s", TOKEN, echo, node="n1").start()
            assert (await client.call(READ, 5)).response == GetResult(None)
            with pytest.raises(SocketInUseError, match="not a socket"):
                await LocalServer(tmp_path / "file", TOKEN, echo, node="n1").start()

    run(main())
    assert (tmp_path / "file").read_text() == "precious"


def test_an_empty_token_is_refused(tmp_path: Path) -> None:
    """An engine without a token would be open to every process of this user."""
    with pytest.raises(ValueError, match="token"):
        LocalServer(tmp_path / "s", b"", echo, node="n1")


def test_a_path_longer_than_a_socket_address_works(tmp_path: Path) -> None:
    """Data directories may be as deep as the user likes."""
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)

    async def main() -> None:
        async with connected(deep / "engine.sock", echo) as (_, client):
            assert (await client.call(READ, 5)).response == GetResult(None)

    run(main())


# --- back-pressure ------------------------------------------------------------------------------


def test_a_connection_with_too_much_in_flight_is_not_read(tmp_path: Path) -> None:
    """The server stops taking calls at the bound and goes on when replies make room."""
    held = Held()

    async def main() -> None:
        async with serving(tmp_path / "s", held, in_flight_max=3):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(hello(TOKEN) + b"".join(call_frame(number) for number in range(10)))
            await until(lambda: len(held.calls) == 3)
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(held.calls) == 3
            answered = 0
            while answered < 10:
                await until(lambda: len(held.calls) in {1, 3})
                assert len(held.calls) <= 3
                answered += len(held.calls)
                held.release()
            decoder, replies = FrameDecoder(4096), 0
            while replies < 11:  # the welcome and ten replies
                decoder.feed(await reader.read(4096))
                replies += sum(1 for _ in decoder.frames())
            writer.close()

    run(main())


def test_a_front_end_that_takes_no_replies_is_not_read(tmp_path: Path) -> None:
    """Replies do not pile up for a reader that has stopped."""
    calls = 0

    def handler(call: Call, respond: Respond) -> None:
        nonlocal calls
        calls += 1
        respond(Reply(call.id, Facts.of({"x": bytes(2**20)}), SERVED))

    async def main() -> None:
        async with serving(tmp_path / "s", handler) as server:
            stuck = socket.socket(socket.AF_UNIX)
            stuck.connect(str(tmp_path / "s"))
            stuck.sendall(hello(TOKEN))
            with stuck:
                stuck.setblocking(False)  # noqa: FBT003 -- its own signature
                sent = 0
                for number in range(50):
                    stuck.send(call_frame(number))
                    sent += 1
                    await asyncio.sleep(0.001)
                (connection,) = server.connections
                await until(lambda: not connection._reading)
                seen = calls
                assert seen < sent
                for _ in range(20):
                    await asyncio.sleep(0)
                assert calls == seen

    run(main())


def test_large_answers_wait_for_a_slow_front_end_and_cost_it_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait unencoded; beyond a bound what was read is refused, definitely; small ones pass."""
    monkeypatch.setattr(server_module, "REPLIES_WAITING_BYTES_MAX", 20 * 2**20)
    value = KeyValue(b"key", bytes(2**20), 1, 1, 1)
    held = Held()

    async def main() -> None:
        async with serving(tmp_path / "s", held) as server:
            slow = socket.socket(socket.AF_UNIX)
            slow.connect(str(tmp_path / "s"))
            slow.sendall(hello(TOKEN) + b"".join(call_frame(number) for number in range(40)))
            with slow:
                await until(lambda: len(held.calls) == 40)
                for call, respond in held.calls[:39]:
                    respond(Reply(call.id, GetResult(value), SERVED))
                call, respond = held.calls[39]
                respond(Reply(call.id, PutResult(1, 1), SERVED))
                (connection,) = server.connections
                assert connection._writer.backlog_bytes() < 3 * 2**20, "few are encoded"
                assert server.in_flight > 0, "a node that stops waits for them"
                slow.setblocking(False)  # noqa: FBT003 -- its own signature
                loop, decoder = asyncio.get_running_loop(), FrameDecoder(2**21)
                replies: list[Reply] = []
                while len(replies) < 40:
                    decoder.feed(await loop.sock_recv(slow, 2**20))
                    for channel, payload in decoder.frames():
                        if channel == CHANNEL_CALL:
                            replies.append(msgspec.msgpack.decode(payload, type=Reply))
                assert {reply.id for reply in replies} == set(range(40))
                kinds = Counter(type(reply.response) for reply in replies)
                assert kinds[PutResult] == 1
                assert 20 <= kinds[GetResult] <= 22
                refused = [r.response for r in replies if isinstance(r.response, Failure)]
                assert {(failure.code, failure.definite) for failure in refused} == {("busy", True)}
                assert replies.index(next(r for r in replies if r.id == 39)) < 20
                assert server.in_flight == 0

    run(main())


def test_the_log_names_no_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the right token nor a wrong one reaches the log."""
    caplog.set_level(logging.DEBUG)

    async def main() -> None:
        async with connected(tmp_path / "s", echo):
            await talk(tmp_path / "s", hello(b"nearly right"))

    run(main())
    assert TOKEN.decode() not in caplog.text
    assert "nearly right" not in caplog.text


# --- calls with items -----------------------------------------------------------------------------


class Feeder:
    """Answers each call with items: as many as the test wants, each when there is room for it."""

    def __init__(self, count: int, size_bytes: int) -> None:
        self.count = count
        self.size_bytes = size_bytes
        self.writers: list[ItemWriter] = []
        self.sent: dict[int, int] = {}
        self.cancelled: list[int] = []

    def __call__(self, call: Call, writer: ItemWriter) -> None:
        """Take a call, and send what goes at once."""
        self.writers.append(writer)
        self.sent[call.id] = 0
        writer.room = lambda: self.feed(writer)
        writer.cancelled = lambda: self.cancelled.append(call.id)
        self.feed(writer)

    def feed(self, writer: ItemWriter) -> None:
        """Go on until the writer refuses, or all is sent."""
        while self.sent[writer.id] < self.count:
            if not writer.send(bytes([self.sent[writer.id] % 256]) * self.size_bytes):
                return
            self.sent[writer.id] += 1
        writer.end(GetResult(None), SERVED)


def test_items_come_in_order_and_then_the_reply(tmp_path: Path) -> None:
    """Far more than the window, on several calls of one connection, beside an ordinary call."""

    async def main() -> None:
        feeder = Feeder(500, 1000)
        async with connected(tmp_path / "s", echo, item_handler=feeder) as (_, client):

            async def read_all() -> None:
                with client.items(READ, window_bytes=16 * 1024) as items:
                    got = [payload async for payload in items]
                    assert got == [bytes([number % 256]) * 1000 for number in range(500)]
                    assert items.reply.response == GetResult(None)

            await asyncio.gather(read_all(), read_all(), client.call(READ, 5), read_all())
            assert feeder.cancelled == []

    run(main())


def test_what_one_call_does_not_read_waits_at_its_source(tmp_path: Path) -> None:
    """Nothing beyond the window leaves the engine for it, and others go on; leaving cancels."""

    async def main() -> None:
        feeder = Feeder(100, 1000)
        async with connected(tmp_path / "s", echo, item_handler=feeder) as (server, client):
            with client.items(READ, window_bytes=4096) as idle:
                with client.items(READ) as busy:
                    assert len([payload async for payload in busy]) == 100
                assert list(feeder.sent.values()) == [3, 100]
                assert await anext(idle) == bytes(1000)
            await until(lambda: len(feeder.cancelled) == 1)
            (connection,) = server.connections
            assert (client._calls.reading, connection.calls.writing) == (0, 0)

    run(main())


def test_a_front_end_that_reads_nothing_of_its_socket_bounds_all_its_calls_together(
    tmp_path: Path,
) -> None:
    """However many windows it has opened; once it reads, each of its calls gets everything."""

    async def main() -> None:
        feeder = Feeder(20, 100_000)
        async with serving(tmp_path / "s", echo, item_handler=feeder) as server:
            slow = socket.socket(socket.AF_UNIX)
            slow.connect(str(tmp_path / "s"))
            calls = [LocalCall(number, 1000, READ) for number in range(40)]
            opened = [msgspec.msgpack.encode(Open(call, 2**22)) for call in calls]
            frames = b"".join(encode_frame(CHANNEL_ITEMS, payload) for payload in opened)
            slow.sendall(hello(TOKEN) + frames)
            with slow:
                await until(lambda: len(feeder.writers) == 40)
                (connection,) = server.connections
                assert connection._writer.backlog_bytes() < 4 * 2**20
                slow.setblocking(False)  # noqa: FBT003 -- its own signature
                loop, decoder = asyncio.get_running_loop(), FrameDecoder(2**21)
                numbers: dict[int, list[int]] = {number: [] for number in range(40)}
                ended: dict[int, int] = {}
                while len(ended) < 40:
                    decoder.feed(await loop.sock_recv(slow, 2**20))
                    for channel, payload in decoder.frames():
                        if channel == CHANNEL_ITEMS:
                            message = decode_item_message(payload)
                            if isinstance(message, Item):
                                numbers[message.id].append(message.number)
                            elif isinstance(message, End):
                                ended[message.reply.id] = message.items
                assert set(ended.values()) == {20}
                assert all(each == list(range(20)) for each in numbers.values())

    run(main())


def test_when_the_engine_is_lost_a_reader_gets_what_has_come_and_a_clear_end(
    tmp_path: Path,
) -> None:
    """A gap is never read over: behind the last item stands why there are no more."""

    async def main() -> None:
        feeder = Feeder(100, 1000)
        async with connected(tmp_path / "s", echo, item_handler=feeder) as (server, client):
            with client.items(READ, window_bytes=4096) as items:
                assert await anext(items) == bytes(1000)
                (connection,) = server.connections
                connection.abort()
                await client.closed.wait()
                assert [payload async for payload in items] == [b"\1" * 1000, b"\2" * 1000]
                failure = items.reply.response
                assert isinstance(failure, Failure)
                assert (failure.code, failure.definite) == ("unavailable", True)
            await until(lambda: len(feeder.cancelled) == 1)
            with client.items(READ) as items:
                assert [payload async for payload in items] == []
                assert isinstance(items.reply.response, Failure)

    run(main())


def test_a_call_with_items_that_fails_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that raises, and none at all, end the call with a failure; the connection stays."""

    def failing(call: Call, writer: ItemWriter) -> None:
        raise RuntimeError(f"a bug with {call.id} and {writer.id}")

    async def codes(handler: ItemHandler | None) -> str:
        async with connected(tmp_path / "s", echo, item_handler=handler) as (_, client):
            with client.items(READ) as items:
                assert [payload async for payload in items] == []
            assert (await client.call(READ, 5)).response == GetResult(None)
            assert isinstance(items.reply.response, Failure)
            return items.reply.response.code

    assert run(codes(failing)) == "internal"
    assert run(codes(None)) == "invalid"
    assert "a GetRequest failed" in caplog.text


def test_credit_that_was_never_given_closes_the_connection(tmp_path: Path) -> None:
    """Who breaks the protocol of items is not spoken to any more."""

    async def main() -> None:
        async with serving(tmp_path / "s", echo, item_handler=Feeder(9, 1000)) as server:
            call = LocalCall(1, 1000, READ)
            messages = [Open(call, 4096), Credit(1, 2**40)]
            frames = [encode_frame(CHANNEL_ITEMS, msgspec.msgpack.encode(m)) for m in messages]
            await talk(tmp_path / "s", hello(TOKEN) + b"".join(frames))
            await until(lambda: not server.connections)

    run(main())


def test_facts_that_are_kept_stay_what_they_were(tmp_path: Path) -> None:
    """Pages are rendered from an answer again and again, while others arrive in the same buffer."""

    def handler(call: Call, respond: Respond) -> None:
        assert isinstance(call.request, GetRequest)
        respond(Reply(call.id, Facts.of({"key": call.request.key.decode()}), SERVED))

    async def main() -> None:
        async with connected(tmp_path / "s", handler) as (_, client):
            kept = (await client.call(GetRequest(b"first"), 5)).response
            for number in range(50):
                await client.call(GetRequest(b"another %d" % number), 5)
            assert isinstance(kept, Facts)
            assert kept.read(dict[str, str]) == {"key": "first"}

    run(main())
