"""The network as a seam: connections between nodes are made through :class:`Network`.

Production uses :class:`TcpNetwork`; a simulation gives transports of its own to the very same
protocols.
"""

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

ProtocolFactory = Callable[[], asyncio.BufferedProtocol]

_BACKLOG = 128
_HANDSHAKE_DEADLINE_S = 2.0
_HANDSHAKES_MAX = 64
_ACCEPT_RETRY_S = 0.1
_LOG_AGAIN_S = 60.0
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_UNSENT_BYTES_MAX = 256 * 1024
_TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)  # Linux; missing in Python's socket

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectDeadlines:
    """How long each step of a connection may take, in seconds: each in its own time.

    A name server that is dead costs 5 s before the next one is asked, and says nothing of the
    peer. A lost SYN comes again after a second.
    """

    resolve_s: float = 10.0
    connect_s: float = 2.0
    tls_s: float = 4.0

    @classmethod
    def following(cls, election_s: float) -> "ConnectDeadlines":
        """Return those for a cluster that waits for ``election_s`` at most for a silent leader."""
        return cls(max(10.0, 5 * election_s), max(1.0, election_s), max(2.0, 2 * election_s))

    @property
    def in_all_s(self) -> float:
        """Return the longest time for all steps, with some addresses for the name."""
        return self.resolve_s + 4 * self.connect_s + self.tls_s


class TooSlow(OSError):  # noqa: N818 -- what it says
    """A step of a connection took longer than it may."""

    def __init__(self, step: str, deadline_s: float) -> None:
        super().__init__(f"{step} took more than {deadline_s:g} s")


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

    _deadlines = ConnectDeadlines()

    def __init__(self, deadlines: ConnectDeadlines = ConnectDeadlines()) -> None:
        self._deadlines = deadlines
        self._lookups: dict[tuple[str, int], asyncio.Task[Any]] = {}

    async def connect(
        self, factory: ProtocolFactory, host: str, port: int, tls: ssl.SSLContext | None
    ) -> None:
        """See :class:`Network`; TooSlow says which step took too long."""
        loop = asyncio.get_running_loop()
        connection = await self._open(await self._resolve(host, port))
        tune(connection)
        try:
            if tls is None:
                await loop.create_connection(factory, sock=connection)
            else:
                await loop.create_connection(
                    factory,
                    sock=connection,
                    ssl=tls,
                    server_hostname=host,
                    ssl_handshake_timeout=self._deadlines.tls_s,
                )
        except BaseException:
            connection.close()
            raise

    async def _resolve(self, host: str, port: int) -> Sequence[Any]:
        """Look a name up; one look-up for each at a time.

        A look-up cannot be ended, and there are few threads for them: whoever asks again waits for
        the one that is under way. An address needs none.
        """
        with contextlib.suppress(ValueError):
            family = _FAMILIES[ipaddress.ip_address(host).version]
            if "%" not in host:
                return [(family, socket.SOCK_STREAM, 0, "", (host, port))]
        lookup = self._lookups.get((host, port))
        if lookup is None:
            lookup = asyncio.get_running_loop().create_task(self._look_up(host, port))
            self._lookups[host, port] = lookup
            lookup.add_done_callback(lambda done: self._looked_up((host, port), done))
        done, _ = await asyncio.wait({lookup}, timeout=self._deadlines.resolve_s)
        if not done:
            raise TooSlow(f"looking up the name {host}", self._deadlines.resolve_s)
        found: Sequence[Any] = lookup.result()
        return found

    def _looked_up(self, name: tuple[str, int], lookup: "asyncio.Task[Any]") -> None:
        del self._lookups[name]
        if not lookup.cancelled():
            lookup.exception()  # whoever asked may have given up

    async def _look_up(self, host: str, port: int) -> Sequence[Any]:
        found: Sequence[Any] = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )
        return found

    async def _open(self, found: Sequence[Any]) -> socket.socket:
        """Connect to the first address that answers."""
        loop, deadline_s = asyncio.get_running_loop(), self._deadlines.connect_s
        failed = OSError("the name has no address")
        for family, kind, protocol, _, address in found:
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(0)
                async with asyncio.timeout(deadline_s):
                    await loop.sock_connect(connection, address)
            except TimeoutError:
                connection.close()
                failed = TooSlow(f"connecting to {address[0]}", deadline_s)
            except OSError as error:
                connection.close()
                failed = error
            except BaseException:
                connection.close()
                raise
            else:
                return connection
        raise failed

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
        return TcpListener(listening, factory, tls, self._deadlines.tls_s)


class TcpListener:
    """Accepts by itself instead of ``create_server``, which does not bound TLS handshakes.

    Beyond the bound the oldest handshake is given up, not the newest refused: an honest one takes
    milliseconds, so it gets through while strangers hold connections open.

    A connection without TLS is taken within two turns of the loop and never given up half-way:
    uvloop would close its transport without a word to the protocol, which would wait for its end
    for ever, and the node that stops with it.
    """

    def __init__(
        self,
        listening: socket.socket,
        factory: ProtocolFactory,
        tls: ssl.SSLContext | None,
        tls_s: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listening = listening
        self._factory = factory
        self._tls = tls
        self._tls_s = max(tls_s, _HANDSHAKE_DEADLINE_S)
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
                    ssl_handshake_timeout=self._tls_s,
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
