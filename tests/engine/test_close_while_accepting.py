"""Links that are closed while somebody is just connecting."""

import asyncio
import contextlib
import socket

import uvloop

from raftkv.engine.handshake import LinkHello
from raftkv.engine.links import PeerLinks
from raftkv.engine.security import LinkSecurity

ROUNDS = 20
KNOCKS = 10
CLOSED_WITHIN_S = 5.0
"""Closing takes two deadlines of a second at most; without an end it took for ever."""


class NoBook:
    """Nobody gets far enough to have an identity."""

    def known(self, name: str) -> str | None:
        """Nobody."""
        raise AssertionError(name)

    def remember(self, name: str, identity: str) -> None:
        """Never."""
        raise AssertionError((name, identity))


class NoHandler:
    """Nobody is ever met."""

    def on_connected(self, peer: str) -> None:
        """Never."""
        raise AssertionError(peer)

    def on_disconnected(self, peer: str) -> None:
        """Never."""
        raise AssertionError(peer)

    def on_message(self, peer: str, channel: int, payload: bytes) -> None:
        """Never."""
        raise AssertionError((peer, channel, payload))


def knock(port: int) -> socket.socket:
    """Begin to connect; whether that succeeds does not matter."""
    caller = socket.socket()
    caller.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        caller.connect(("127.0.0.1", port))
    return caller


async def close_while_somebody_knocks(turns: int) -> None:
    """Close the links so many turns of the loop after the knocks."""
    links = PeerLinks(
        hello=LinkHello("c", "n2", "i"),
        peers={"n1": ("127.0.0.1", 1)},
        listen=("127.0.0.1", 0),
        security=LinkSecurity(secret=b"s" * 16),
        identities=NoBook(),
        handler=NoHandler(),
    )
    await links.start()
    callers = [knock(links.port) for _ in range(KNOCKS)]
    for _ in range(turns):
        await asyncio.sleep(0)
    async with asyncio.timeout(CLOSED_WITHIN_S):
        await links.close()
    for caller in callers:
        caller.close()


def test_links_close_although_somebody_is_just_connecting() -> None:
    """Chaos found a node that hung when it was stopped while its peers came back to it."""

    async def main() -> None:
        for turns in range(ROUNDS):
            await close_while_somebody_knocks(turns % 4)

    uvloop.run(main())
