"""What becomes of an exception that nobody caught: it hurts one connection, or it ends the node."""

import asyncio
import gc
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvloop
from host_world import GROUP, HostWorld

from raftkv.engine import node
from raftkv.engine.engine import Engine
from raftkv.engine.jobs import OwnThread, ThreadJobs
from raftkv.engine.network import TcpNetwork

ERRORS = [OSError("disk"), ZeroDivisionError("bug"), TimeoutError("late")]


def fatal_errors(
    monkeypatch: pytest.MonkeyPatch, scenario: Callable[[asyncio.AbstractEventLoop], Any]
) -> list[BaseException]:
    """Run a scenario on a node's loop until something ends the node, or it has come to its end."""
    fatal: list[BaseException] = []
    ended = asyncio.Event()

    def die(error: BaseException) -> None:
        fatal.append(error)
        ended.set()

    monkeypatch.setattr(node, "die", die)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(node._on_loop_error)
        done = scenario(loop)
        async with asyncio.timeout(10):
            await (done if done is not None else ended.wait())

    uvloop.run(run())
    return fatal


def raises(error: BaseException) -> Callable[..., None]:
    """A function that raises this, whatever it is called with."""

    def function(*_: object) -> None:
        raise error

    return function


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_a_callback_that_raises_ends_the_node(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by an OSError: whoever the callback would have answered is left unanswered."""
    for begin in (
        lambda loop: loop.call_soon(raises(error)) and None,
        lambda loop: loop.call_later(0.001, raises(error)) and None,
        lambda loop: ThreadJobs(loop, 1, "test").run(lambda: 1, raises(error)),
        lambda loop: OwnThread(loop, "test").run(lambda: 1, raises(error)),
    ):
        assert fatal_errors(monkeypatch, begin) == [error]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_a_task_whose_exception_nobody_sees_ends_the_node(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as it is dropped."""

    async def fails() -> None:
        raise error

    def begin(loop: asyncio.AbstractEventLoop) -> None:
        loop.create_task(fails())
        loop.call_later(0.01, gc.collect)

    assert fatal_errors(monkeypatch, begin) == [error]


class Raising(asyncio.BufferedProtocol):
    """A connection that raises where it is told to."""

    def __init__(self, where: str, error: Exception) -> None:
        self.lost = asyncio.get_running_loop().create_future()
        self._buffer = bytearray(100)
        setattr(self, where, raises(error))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Write more than a socket takes."""
        stream = cast("asyncio.Transport", transport)
        stream.set_write_buffer_limits(1000, 100)
        stream.write(bytes(4 << 20))

    def get_buffer(self, _: int) -> bytearray:
        """Somewhere."""
        return self._buffer

    def connection_lost(self, _: Exception | None) -> None:
        """Tell."""
        self.lost.set_result(None)


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("where", ["buffer_updated", "get_buffer", "pause_writing"])
def test_a_connection_that_raises_is_closed(
    where: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It alone: its protocol hears of the loss and tells whoever waits for something on it."""

    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)  # noqa: FBT003 -- its order
        theirs.sendall(b"x")
        protocol: Raising
        _, protocol = await loop.create_connection(lambda: Raising(where, error), sock=ours)
        await protocol.lost
        theirs.close()

    assert fatal_errors(monkeypatch, scenario) == []


def test_a_loss_that_cannot_be_handled_ends_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for something on the connection has not heard of its end, and never would."""
    error = OSError("cannot be told")

    def begin(loop: asyncio.AbstractEventLoop) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)  # noqa: FBT003 -- its order

        async def connect() -> None:
            await loop.create_connection(lambda: Raising("connection_lost", error), sock=ours)
            theirs.close()

        kept.append(loop.create_task(connect()))

    kept: list[object] = []
    assert fatal_errors(monkeypatch, begin) == [error]


def test_a_peer_that_cannot_be_taken_is_hurt_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket is closed."""

    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        listener = await TcpNetwork().listen(raises(ZeroDivisionError()), "127.0.0.1", 0, None)  # type: ignore[arg-type]
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        assert await reader.read() == b""
        writer.close()
        await listener.close()
        gc.collect()

    assert fatal_errors(monkeypatch, scenario) == []


@pytest.mark.parametrize("what", ["peer_connected", "peer_disconnected"])
def test_a_group_that_fails_to_hear_of_a_link_ends_the_node(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it believes to be in flight may be lost."""
    machine = HostWorld().leader()
    engine = object.__new__(Engine)
    engine.host = machine.host
    engine.links = SimpleNamespace(  # type: ignore[assignment]
        send=lambda *_: True, connected=frozenset({"n2"})
    )
    engine._own_state = dict  # type: ignore[method-assign, assignment]
    engine.router = SimpleNamespace(leader_changed=lambda: None)  # type: ignore[assignment]
    engine._balancer = SimpleNamespace(  # type: ignore[assignment]
        peers={}, full_peers=frozenset
    )
    monkeypatch.setattr(machine.group(GROUP), what, raises(error := OSError("half-way")))
    engine.on_connected("n2")
    if machine.alive:
        engine.on_disconnected("n2")
    assert machine.fatal == [error]
