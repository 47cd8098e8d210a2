"""A connection that is made at the very moment when its maker gives up."""

import asyncio
import socket
import ssl
from typing import Any, cast

import pytest
import uvloop

from raftkv.engine.connection import Connection
from raftkv.engine.handshake import LinkHello
from raftkv.engine.links import LinkLimits, PeerLinks
from raftkv.engine.network import ProtocolFactory, TcpNetwork
from raftkv.engine.security import LinkSecurity


class LateNetwork(TcpNetwork):
    """Connects, and then finds that the time was up; something is queued already."""

    def __init__(self, how: str) -> None:
        self.made: list[Connection] = []
        self._how = how

    async def connect(
        self, factory: ProtocolFactory, host: str, port: int, tls: ssl.SSLContext | None
    ) -> None:
        """Give up, in the turn after the connection was made."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        async with asyncio.timeout(None) as time_is_up:

            def made() -> asyncio.BaseProtocol:
                connection = cast("Connection", factory())
                self.made.append(connection)
                stock = connection.connection_made

                def connection_made(transport: asyncio.BaseTransport) -> None:
                    stock(transport)
                    if self._how == "time-out":
                        time_is_up.reschedule(loop.time() - 1)
                    else:
                        loop.call_soon(task.cancel)
                    # Sent in the next turn, so that it is flushed after the connect has ended.
                    loop.call_soon(connection.send, 0, b"late")

                connection.connection_made = connection_made  # type: ignore[method-assign]
                return connection

            await loop.create_connection(made, host, port, ssl=tls)


class NoHandler:
    """Nobody is ever met."""

    def on_connected(self, peer: str) -> None:
        """Never."""

    def on_disconnected(self, peer: str) -> None:
        """Never."""

    def on_message(self, peer: str, channel: int, payload: bytes) -> None:
        """Never."""


class NoBook:
    """Nobody is known."""

    def known(self, name: str) -> str | None:
        """Nobody."""

    def remember(self, name: str, identity: str) -> None:
        """Never."""


@pytest.mark.parametrize("how", ["time-out", "cancelled"])
def test_a_connect_that_is_given_up_late_is_forgotten(how: str) -> None:
    """No error in the loop, which would end the node, and nothing that a stop would wait for."""
    network = LateNetwork(how)
    errors: list[dict[str, Any]] = []

    async def main(listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: errors.append(context))
        links = PeerLinks(
            hello=LinkHello("c", "a", "identity"),
            peers={"b": listening.getsockname()},
            listen=("127.0.0.1", 0),
            security=LinkSecurity(secret=b"the secret of this test", tls=None),
            identities=NoBook(),
            handler=NoHandler(),
            network=network,
            limits=LinkLimits(reconnect_s=0.01),
        )
        async with asyncio.timeout(20):
            await links.start()
            wanted = 3 if how == "time-out" else 1  # cancelled, it dials no more
            while len(network.made) < wanted or links._connections:  # noqa: ASYNC110 -- no event
                await asyncio.sleep(0.01)
            await links.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        uvloop.run(main(listening))
    assert errors == []
    assert all(connection.finished.done() for connection in network.made)
