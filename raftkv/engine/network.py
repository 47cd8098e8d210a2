"""The network as a seam: connections between nodes are made through :class:`Network`.

Production uses :class:`TcpNetwork`; a simulation gives transports of its own to the very same
protocols.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Protocol

ProtocolFactory = Callable[[], asyncio.BufferedProtocol]

_BACKLOG = 128
_HANDSHAKE_DEADLINE_S = 2.0
_HANDSHAKES_MAX = 64
_ACCEPT_RETRY_S = 0.1
_LOG_AGAIN_S = 60.0
_UNSENT_BYTES_MAX = 256 * 1024
_TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)  # Linux; missing in Python's socket

_logger = logging.getLogger(__name__)


class Listener(Protocol):
    """A port that is listened on."""

    port: int

    def renew(self, tls: ssl.SSLContext | None) -> None:
        """Use another context for handshakes that begin from now on."""

    async def close(self) -> None:
        """Stop accepting; connections that were made go on."""


class Network(Protocol):
    """Makes ordered byte streams between nodes; transports are as asyncio's."""

    async def connect(
        self, factory: ProtocolFactory, host: str, port: int, tls: ssl.SSLContext | None
    ) -> None:
        """Connect, and hand the transport to the factory's protocol; OSError if it fails."""

    async def listen(
        self, factory: ProtocolFactory, host: str, port: int, tls: ssl.SSLContext | None
    ) -> Listener:
        """Accept connections from now on; OSError if the address cannot be had."""


class TcpNetwork:
    """TCP, with TLS if a context is given, on the running loop."""

    async def connect(
        self, factory: ProtocolFactory, host: str, port: int, tls: ssl.SSLContext | None
    ) -> None:
        """See :class:`Network`."""
        loop = asyncio.get_running_loop()
        if tls is None:
            transport, _ = await loop.create_connection(factory, host, port)
        else:
            transport, _ = await loop.create_connection(
                factory,
                host,
                port,
                ssl=tls,
                server_hostname=host,
                ssl_handshake_timeout=_HANDSHAKE_DEADLINE_S,
            )
        connection = transport.get_extra_info("socket")
        if connection is not None:
            tune(connection)

    async def listen(
        self, factory: ProtocolFactory, host: str, port: int, tls: ssl.SSLContext | None
    ) -> "TcpListener":
        """See :class:`Network`."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.settimeout(0)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:  # [::] is those of IPv4 too, whatever bindv6only says
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listening.bind(address)
            listening.listen(_BACKLOG)
        except BaseException:
            listening.close()
            raise
        return TcpListener(listening, factory, tls)


class TcpListener:
    """Accepts by itself instead of ``create_server``, which does not bound TLS handshakes.

    Beyond the bound the oldest handshake is given up, not the newest refused: an honest one takes
    milliseconds, so it gets through while strangers hold connections open.

    A connection without TLS is taken within two turns of the loop and never given up half-way:
    uvloop would close its transport without a word to the protocol, which would wait for its end
    for ever, and the node that stops with it.
    """

    def __init__(
        self, listening: socket.socket, factory: ProtocolFactory, tls: ssl.SSLContext | None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listening = listening
        self._factory = factory
        self._tls = tls
        self._handshakes: dict[asyncio.Task[None], None] = {}  # oldest first
        self._said_at: float | None = None
        self._again: asyncio.TimerHandle | None = None
        self.port: int = listening.getsockname()[1]
        self._watch()

    def renew(self, tls: ssl.SSLContext | None) -> None:
        """See :class:`Listener`."""
        self._tls = tls

    async def close(self) -> None:
        """Stop accepting, and give up the TLS handshakes that are under way."""
        self._loop.remove_reader(self._listening)
        if self._again is not None:
            self._again.cancel()
        self._listening.close()
        if self._tls is not None:
            for task in self._handshakes:
                task.cancel()
        await asyncio.gather(*self._handshakes, return_exceptions=True)

    def _watch(self) -> None:
        self._loop.add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        """Take one connection; more make the port readable again."""
        try:
            connection, _ = self._listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # whoever it was has gone
        except OSError as error:  # too many open files, and the like
            self._say(f"cannot accept peer connections: {error.strerror}")
            self._loop.remove_reader(self._listening)
            self._again = self._loop.call_later(_ACCEPT_RETRY_S, self._watch)
            return
        connection.settimeout(0)
        tune(connection)
        if self._tls is not None and len(self._handshakes) >= _HANDSHAKES_MAX:
            next(iter(self._handshakes)).cancel()
        task = self._loop.create_task(self._take(connection))
        self._handshakes[task] = None
        task.add_done_callback(self._handshakes.pop)

    async def _take(self, connection: socket.socket) -> None:
        try:
            if self._tls is None:
                await self._loop.connect_accepted_socket(self._factory, connection)
            else:
                await self._loop.connect_accepted_socket(
                    self._factory,
                    connection,
                    ssl=self._tls,
                    ssl_handshake_timeout=_HANDSHAKE_DEADLINE_S,
                )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            self._say(f"peer connection refused in its TLS handshake: {error}")
            connection.close()
        except Exception:  # of this connection only
            _logger.exception("a peer connection could not be taken")
            connection.close()
        except asyncio.CancelledError:
            connection.close()
            raise

    def _say(self, text: str) -> None:
        """Log what strangers can cause, once a minute at most."""
        now = self._loop.time()
        if self._said_at is None or now - self._said_at >= _LOG_AGAIN_S:
            self._said_at = now
            _logger.warning(text)


def tune(connection: socket.socket) -> None:
    """Set the options of a link: small messages leave at once, and little waits in the kernel.

    What is not sent yet should wait in this process, where a heartbeat still overtakes bulk data.
    """
    with contextlib.suppress(OSError):  # it may be closed already; then it does not matter
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _UNSENT_BYTES_MAX)
