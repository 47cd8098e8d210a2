"""Bodies on the event loop: bounded in size, time and total memory."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from raftkv.web.api.limits import BodyLimit
from raftkv.web.api.problems import HttpError
from raftkv.web.api.routes import declared_length
from raftkv.web.serve.intake import BodyIntake, Receive

Message = MutableMapping[str, Any]

_FOUR = BodyLimit(4)


def _client(*pieces: bytes, end: str = "complete") -> Receive:
    messages: list[Message] = [
        {"type": "http.request", "body": piece, "more_body": True} for piece in pieces
    ]
    if end == "complete":
        messages[-1]["more_body"] = False
    elif end == "gone":
        messages.append({"type": "http.disconnect"})

    async def receive() -> Message:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    return receive


def test_pieces_are_joined_and_counted() -> None:
    """A body counts as held until it is released."""

    async def run() -> None:
        intake = BodyIntake(timeout_s=5, bytes_max=100)
        assert await intake.read(_client(b"ab", b"", b"cd"), _FOUR) == b"abcd"
        assert intake.bytes_held == 4
        intake.release(4)
        assert await intake.read(_client(b""), _FOUR) == b""
        assert intake.bytes_held == 0

    asyncio.run(run())


def test_body_of_known_length_is_not_waited_for_any_longer() -> None:
    """Once all of it is here, the message that only says so is not asked for."""

    async def run() -> None:
        intake = BodyIntake(timeout_s=5, bytes_max=100)
        assert await intake.read(_client(b"abcd", end="stalled"), _FOUR, 4) == b"abcd"
        assert await intake.read(_client(b"ab", b"cd", end="stalled"), _FOUR, 4) == b"abcd"
        assert intake.bytes_held == 8

    asyncio.run(run())


def test_body_shorter_than_its_length_is_refused() -> None:
    """A client that leaves before it has sent what it announced has sent nothing."""

    async def run() -> None:
        intake = BodyIntake(timeout_s=5, bytes_max=100)
        with pytest.raises(HttpError) as caught:
            await intake.read(_client(b"ab", end="gone"), _FOUR, 4)
        assert (caught.value.status, intake.bytes_held) == (400, 0)

    asyncio.run(run())


def test_length_means_nothing_beside_a_transfer_coding() -> None:
    """The body then ends where its last chunk does (RFC 9112, section 6.3)."""
    headers = {b"content-length": b"2"}
    assert declared_length(headers, _FOUR) == 2
    assert declared_length({**headers, b"transfer-encoding": b"chunked"}, _FOUR) is None


def test_body_over_the_limit_is_not_read_on() -> None:
    """A body without a length is refused at the limit, and nothing of it stays held."""

    async def run() -> None:
        intake = BodyIntake(timeout_s=5, bytes_max=100)
        receive = _client(b"ab", b"cd", b"ef", b"gh")
        with pytest.raises(HttpError) as caught:
            await intake.read(receive, _FOUR)
        assert (caught.value.status, intake.bytes_held) == (413, 0)
        assert (await receive())["body"] == b"gh"

    asyncio.run(run())


def test_total_is_bounded() -> None:
    """All clients together cannot make a worker hold more than its bound."""

    async def run() -> None:
        intake = BodyIntake(timeout_s=5, bytes_max=6)
        await intake.read(_client(b"abcd"), _FOUR)
        with pytest.raises(HttpError) as caught:
            await intake.read(_client(b"ef", b"gh"), _FOUR)
        assert (caught.value.code, caught.value.definite) == ("overloaded", True)
        assert intake.bytes_held == 4
        intake.release(4)
        assert await intake.read(_client(b"ef", b"gh"), _FOUR) == b"efgh"

    asyncio.run(run())


def test_slow_body_is_given_up() -> None:
    """A body that is not complete in time is 408, and its task goes on to answer that."""

    async def run() -> None:
        intake = BodyIntake(timeout_s=0.01, bytes_max=100)
        with pytest.raises(HttpError) as caught:
            await intake.read(_client(b"ab", end="stalled"), _FOUR)
        assert (caught.value.status, intake.bytes_held) == (408, 0)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    asyncio.run(run())


def test_client_that_leaves() -> None:
    """A body that breaks off is refused whole; half a value is never passed on."""

    async def run() -> None:
        intake = BodyIntake(timeout_s=5, bytes_max=100)
        with pytest.raises(HttpError) as caught:
            await intake.read(_client(b"ab", end="gone"), _FOUR)
        assert (caught.value.status, intake.bytes_held) == (400, 0)

    asyncio.run(run())


def test_cancellation_from_outside_is_not_swallowed() -> None:
    """Only the intake's own cancellation becomes 408."""

    async def run() -> None:
        intake = BodyIntake(timeout_s=60, bytes_max=100)
        reading = asyncio.create_task(intake.read(_client(b"ab", end="stalled"), _FOUR))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert intake.bytes_held == 0

    asyncio.run(run())
