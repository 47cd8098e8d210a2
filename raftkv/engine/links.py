"""Links to the other engines: one per pair of nodes, for all groups and for forwarded requests.

The node with the smaller name dials. A link counts once both sides have proven themselves and
each has stored the other's identity; from then on messages arrive in order, and are lost only by
losing the link, of which both sides hear.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from typing import Protocol

from raftkv.engine.config import Address
from raftkv.engine.connection import Connection, LinkLimits
from raftkv.engine.handshake import (
    NONCE_BYTES,
    Acceptor,
    Dialer,
    FactsDiffer,
    HandshakeError,
    LinkHello,
)
from raftkv.engine.network import Listener, Network, TcpNetwork
from raftkv.engine.peer_wire import CHANNEL_MAX, Encode
from raftkv.engine.security import LinkSecurity, check_addresses
from raftkv.raft.clock import Clock, SystemClock

__all__ = ["IdentityBook", "LinkHandler", "LinkHello", "LinkLimits", "PeerLinks"]

_LOG_AGAIN_S = 60.0
_LOG_KEYS_MAX = 1000
_REFUSALS_MAX = 100
"""Of peers and of nodes in no map: those have the cluster's secret, but may change their name."""
_CLOSE_DEADLINE_S = 1.0

_logger = logging.getLogger(__name__)


class LinkHandler(Protocol):
    """Who gets what the links bring. Called on the loop; must not block."""

    def on_connected(self, peer: str) -> None:
        """The link to ``peer`` counts from now on; alternates strictly with the next."""

    def on_disconnected(self, peer: str) -> None:
        """The link is lost, and with it any messages that were under way."""

    def on_message(self, peer: str, channel: int, payload: bytes) -> None:
        """A message came. If this raises, the link is closed."""


class IdentityBook(Protocol):
    """Remembers, durably, under which identity each node was first met (H19)."""

    def known(self, name: str) -> str | None:
        """Return the identity stored for ``name``."""

    def remember(self, name: str, identity: str) -> None:
        """Store it; on disk when this returns. Raises if that failed."""


class Agreement(Protocol):
    """Hears of every proven peer whether it goes by what all nodes must agree on."""

    def agrees(self, peer: str) -> None:
        """It goes by the same facts, and its link is about to count."""

    def differs(self, peer: str, reason: str) -> None:
        """It goes by others, and is refused."""


class PeerLinks:
    """All links of one node. ``listen`` and ``peers`` are (host, port)."""

    def __init__(
        self,
        *,
        hello: LinkHello,
        peers: Mapping[str, tuple[str, int]],
        listen: tuple[str, int],
        security: LinkSecurity,
        identities: IdentityBook,
        handler: LinkHandler,
        clock: Clock | None = None,
        network: Network | None = None,
        limits: LinkLimits | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
        agreement: Agreement | None = None,
    ) -> None:
        self._hello = hello
        self._peers = _addresses(peers)
        self._listen = Address(*listen)
        self._security = security
        self._identities = identities
        self._handler = handler
        self._network: Network = TcpNetwork() if network is None else network
        self._random_bytes = random_bytes
        self._dialers = self._smaller()
        self._links: dict[str, Connection] = {}
        self._connections: dict[Connection, None] = {}  # oldest first, proven or not
        self._unproven: dict[Connection, None] = {}  # accepted ones only, oldest first
        self._dialing: dict[str, asyncio.Task[None]] = {}
        self._listener: Listener | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._ticked_at = 0.0
        self._logged_at: dict[tuple[str, str], float] = {}
        self._changed_us: dict[str, int] = {}
        self._refusals: dict[str, str] = {}
        self._agreement = agreement
        self.clock: Clock = SystemClock() if clock is None else clock
        self.limits = LinkLimits() if limits is None else limits

    # --- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen and begin to dial.

        Raises:
            SecurityError: an address off loopback without mutual TLS.
            OSError: the address cannot be listened on.
        """
        check_addresses(self._listen, self._peers.values(), self._security)
        loop = asyncio.get_running_loop()
        tls = self._security.tls
        self._listener = await self._network.listen(
            lambda: Connection(self, loop), *self._listen, None if tls is None else tls.server
        )
        self._ticked_at = self.clock.monotonic()
        self._ticker = loop.call_later(self.limits.tick_s, self._tick)
        self._dial_the_greater()

    def set_peers(self, peers: Mapping[str, tuple[str, int]]) -> None:
        """Have links to these nodes from now on, and to no others.

        New ones are dialled or let in. A link to a node that is gone ends, after what was queued on
        it (bulk excepted) has been sent. One to a node that has another address now stays until it
        is lost; the new address is dialled then.

        Raises:
            SecurityError: an address off loopback without mutual TLS; nothing has changed.
        """
        addresses = _addresses(peers)
        check_addresses(self._listen, addresses.values(), self._security)
        gone = self._peers.keys() - addresses.keys()
        self._peers = addresses
        self._dialers = self._smaller()
        for connection in tuple(self._connections):
            if connection.peer in gone or connection.dialing in gone:
                self._end(connection, "it is no peer of this node any more")
        for peer in sorted(gone):
            if (task := self._dialing.pop(peer, None)) is not None:
                task.cancel()
            self._refusals.pop(peer, None)
            self._changed_us.pop(peer, None)
        if self._listener is not None:
            self._dial_the_greater()

    def _smaller(self) -> frozenset[str]:
        """Those who dial this node."""
        return frozenset(name for name in self._peers if name < self._hello.node_name)

    def _dial_the_greater(self) -> None:
        """Begin to dial those whom this node dials, as far as it does not yet."""
        loop = asyncio.get_running_loop()
        for peer in self._peers:
            if peer > self._hello.node_name and peer not in self._dialing:
                dialing = self._keep_dialing(peer)
                self._dialing[peer] = loop.create_task(dialing, name=f"dial {peer}")

    def _end(self, connection: Connection, reason: str) -> None:
        """Close a connection, and abort it where its peer does not take what is queued."""
        connection.close(reason)
        loop = asyncio.get_running_loop()
        patience = loop.call_later(_CLOSE_DEADLINE_S, connection.abort)
        connection.finished.add_done_callback(lambda _: patience.cancel())

    def renew(self, security: LinkSecurity) -> None:
        """Prove ourselves and peers by this from now on; links that are up stay."""
        self._security = security
        if self._listener is not None:
            self._listener.renew(None if security.tls is None else security.tls.server)

    async def close(self) -> None:
        """End all links, after what was queued on them (bulk excepted) has been sent."""
        if self._ticker is not None:
            self._ticker.cancel()
        dialing, self._dialing = list(self._dialing.values()), {}
        for task in dialing:
            task.cancel()
        await asyncio.gather(*dialing, return_exceptions=True)
        if self._listener is not None:
            await self._listener.close()
            self._listener = None
        ending = list(self._connections)
        for connection in ending:
            connection.close("this node stops")
        if ending:
            finished = [connection.finished for connection in ending]
            await asyncio.wait(finished, timeout=_CLOSE_DEADLINE_S)
            for connection in ending:
                connection.abort()
            await asyncio.wait(finished)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        if self._listener is None:
            raise RuntimeError("the links are not started")
        return self._listener.port

    # --- use -------------------------------------------------------------------------------------

    @property
    def connected(self) -> frozenset[str]:
        """Peers that can be sent to."""
        return frozenset(filter(self.is_connected, self._links))

    def is_connected(self, peer: str) -> bool:
        """Whether ``peer`` can be sent to."""
        link = self._links.get(peer)
        return link is not None and not link.closing

    def send(self, peer: str, channel: int, payload: bytes, *, bulk: bool = False) -> bool:
        """Queue a message for the end of this loop turn.

        ``bulk`` messages are overtaken by all others and leave only as fast as the peer takes
        them; False for one of them may mean that their queue is full. False for any other means
        that there is no link, or none any more: where a peer takes so little that Raft's own
        messages come to the link's bound, it is closed, and ``on_disconnected`` follows.
        """
        if not 0 <= channel <= CHANNEL_MAX:
            raise ValueError(f"channel {channel} is not between 0 and {CHANNEL_MAX}")
        if len(payload) > self.limits.frame_bytes_max:
            raise ValueError(f"a message of {len(payload)} bytes is larger than a frame may be")
        link = self._links.get(peer)
        if link is None:
            return False
        if not bulk:
            return link.send(channel, payload)
        return link.offer(channel, len(payload), lambda: payload, self.limits.bulk_queue_bytes_max)

    def send_small(self, peer: str, channel: int, payload: bytes) -> bool:
        """Queue a small message for the end of this loop turn, unless it should wait its turn.

        False: there is no link, or so much waits for it that the message should be offered.
        """
        link = self._links.get(peer)
        return link is not None and link.send_small(channel, payload)

    def offer(
        self, peer: str, channel: int, size_bytes: int, encode: Encode, *, bytes_max: int
    ) -> bool:
        """Let a message of about ``size_bytes`` wait until the peer has room for it.

        ``encode`` makes it when it leaves, or returns None if nobody wants it any more. False:
        there is no link, or ``bytes_max`` bytes of this channel wait for it already; what has no
        size is always taken.
        """
        link = self._links.get(peer)
        return link is not None and link.offer(channel, size_bytes, encode, bytes_max)

    def backlog_bytes(self, peer: str) -> int:
        """Bytes for ``peer`` that wait in this process."""
        link = self._links.get(peer)
        return 0 if link is None else link.backlog_bytes()

    def round_trip_s(self, peer: str) -> float | None:
        """Smoothed round trip time; None before the first ping was answered."""
        link = self._links.get(peer)
        return None if link is None else link.round_trip_s

    def lag_s(self, peer: str) -> float:
        """At most so long ago was sent what comes from ``peer`` now, in seconds; 0 without a link.

        Measured by pings, on this node's clock; about a ping's interval on a link without delay.
        """
        link = self._links.get(peer)
        return 0.0 if link is None else link.lag_s()

    def changed_us(self, peer: str) -> int | None:
        """When the link came up or was lost, in microseconds of wall clock; None if neither."""
        return self._changed_us.get(peer)

    def refusal(self, peer: str) -> str | None:
        """Why the last handshake with ``peer`` failed; None if it did not."""
        return self._refusals.get(peer)

    @property
    def refusals(self) -> Mapping[str, str]:
        """Why the last handshakes failed: of peers, and of proven nodes that are not in the map."""
        return self._refusals

    # --- for connections (see connection.Owner) -----------------------------------------------

    def opened(self, connection: Connection) -> None:
        """Bound what strangers can hold open; the oldest goes, as honest handshakes are short."""
        self._connections[connection] = None
        if connection.dialing is None:
            self._unproven[connection] = None
            if len(self._unproven) > self.limits.unauthenticated_max:
                oldest = next(iter(self._unproven))
                del self._unproven[oldest]
                self._say("flood", oldest.remote, "too many unauthenticated peer connections")
                oldest.fail("too many unauthenticated connections")

    def dialer(self, peer: str, certified: frozenset[str] | None) -> Dialer:
        """Make the dialling side of a handshake."""
        return Dialer(
            self._hello,
            self._random_bytes(NONCE_BYTES),
            peer=peer,
            secret=self._security.secret,
            certified=certified,
        )

    def acceptor(self, certified: frozenset[str] | None) -> Acceptor:
        """Make the accepting side of a handshake."""
        return Acceptor(
            self._hello,
            self._random_bytes(NONCE_BYTES),
            dialers=self._dialers,
            secret=self._security.secret,
            certified=certified,
        )

    def admit(self, hello: LinkHello) -> None:
        """Let a peer in under the identity that it was first met with, and under no other."""
        self.check_identity(hello)
        name = hello.node_name
        if self._identities.known(name) is None:
            try:
                self._identities.remember(name, hello.identity)
            except Exception as error:
                _logger.exception("the identity of %s could not be stored", name)
                raise HandshakeError("its identity could not be stored", proven=True) from error

    def check_identity(self, hello: LinkHello) -> None:
        """Refuse a peer that comes back under another identity."""
        name = hello.node_name
        known = self._identities.known(name)
        if known is not None and known != hello.identity:
            raise HandshakeError(
                f"node {name} came back with another identity ({hello.identity}, was {known}): "
                "its data directory was emptied or replaced, and it must not vote or count",
                proven=True,
            )

    def established(self, connection: Connection, hello: LinkHello) -> None:
        """Count the link; a newer one replaces an older one, which may be dead unnoticed."""
        peer = hello.node_name
        self._unproven.pop(connection, None)
        if peer not in self._peers:  # it was when the handshake began
            connection.fail("it is no peer of this node any more")
            return
        old = self._links.get(peer)
        if old is not None:
            old.fail("replaced by a newer connection")
            self._drop(peer, "replaced by a newer connection")
        self._links[peer] = connection
        self._changed_us[peer] = self.clock.time_us()
        self._logged_at = {key: at for key, at in self._logged_at.items() if key[1] != peer}
        self._refusals.pop(peer, None)
        _logger.info("link to %s is up", peer)
        if self._agreement is not None and hello.facts:
            self._agreement.agrees(peer)
        try:
            self._handler.on_connected(peer)
        except Exception:
            _logger.exception("the new link to %s could not be handled", peer)
            connection.fail("the new link could not be handled")

    def deliver(self, peer: str, channel: int, payload: bytes) -> None:
        """Hand a message on."""
        self._handler.on_message(peer, channel, payload)

    def refused(self, connection: Connection, error: HandshakeError) -> None:
        """Say why, but not ten times a second."""
        peer, reason = connection.remote, str(error)
        self._say("refused", peer, reason)
        if peer in self._peers or (error.proven and len(self._refusals) < _REFUSALS_MAX):
            self._refusals[peer] = reason
        if self._agreement is not None and isinstance(error, FactsDiffer):
            self._agreement.differs(peer, reason)

    def lost(self, connection: Connection, reason: str) -> None:
        """Forget a connection; if it was a link that counted, tell."""
        self._connections.pop(connection, None)
        self._unproven.pop(connection, None)
        peer = connection.peer
        if peer is not None and self._links.get(peer) is connection:
            self._drop(peer, reason)

    # --- inside --------------------------------------------------------------------------------

    def _drop(self, peer: str, reason: str) -> None:
        del self._links[peer]
        if peer in self._peers:
            self._changed_us[peer] = self.clock.time_us()
        _logger.info("link to %s is down: %s", peer, reason)
        try:
            self._handler.on_disconnected(peer)
        except Exception:
            _logger.exception("the loss of the link to %s could not be handled", peer)

    async def _keep_dialing(self, peer: str) -> None:
        """Connect to ``peer`` again and again, for as long as this node runs."""
        while True:
            refused = False
            try:
                refused = await self._dial(peer)
            except Exception:
                _logger.exception("dialling %s failed", peer)
            limits = self.limits
            await asyncio.sleep(limits.refused_retry_s if refused else limits.reconnect_s)

    async def _dial(self, peer: str) -> bool:
        """Make one connection and stay until it is lost; tell whether it was refused."""
        address, tls = self._peers[peer], self._security.tls
        connection = Connection(self, asyncio.get_running_loop(), dialing=peer)
        try:
            async with asyncio.timeout(self.limits.connect_deadline_s):
                await self._network.connect(
                    lambda: connection, *address, None if tls is None else tls.client
                )
        except asyncio.CancelledError:
            connection.give_up()
            raise
        except OSError as error:  # TimeoutError is one
            connection.give_up()
            why = (
                error.strerror or str(error) or f"no answer in {self.limits.connect_deadline_s:g} s"
            )
            self._say("unreachable", peer, f"cannot be reached at {address}: {why}")
            return False
        await connection.finished
        return connection.was_refused

    def _tick(self) -> None:
        """Let time pass for all links, but never more than two ticks' worth at once.

        Silence is what a peer did not say while this process was listening. After a stall its
        messages are still in the socket, and they are read between this tick and the next.
        """
        now = self.clock.monotonic()
        elapsed_s = min(now - self._ticked_at, 2 * self.limits.tick_s)
        self._ticked_at = now
        for link in tuple(self._links.values()):
            link.tick(elapsed_s)
        self._ticker = asyncio.get_running_loop().call_later(self.limits.tick_s, self._tick)

    def _say(self, what: str, who: str, text: str) -> None:
        """Log a warning, the same for one peer once a minute at most."""
        now = self.clock.monotonic()
        said_at = self._logged_at.get((what, who))
        if said_at is not None and now - said_at < _LOG_AGAIN_S:
            return
        if len(self._logged_at) >= _LOG_KEYS_MAX:
            self._logged_at.clear()
        self._logged_at[what, who] = now
        _logger.warning("peer %s: %s", who, text)


def _addresses(peers: Mapping[str, tuple[str, int]]) -> dict[str, Address]:
    return {name: Address(*address) for name, address in peers.items()}
