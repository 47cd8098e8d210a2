"""Links between engines over real loopback sockets: order, loss, liveness, and who is let in."""

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop
from frames import encode_frame

from raftkv.cli.certs import make_certificates
from raftkv.engine.connection import Connection, _Kind
from raftkv.engine.handshake import Acceptor, Dialer, LinkHello
from raftkv.engine.links import LinkLimits, PeerLinks
from raftkv.engine.network import TcpNetwork
from raftkv.engine.peer_wire import CHANNEL_CONTROL
from raftkv.engine.security import LinkSecurity, PeerContexts, SecurityError, peer_contexts
from raftkv.raft.clock import SystemClock
from raftkv.rpc.framing import FrameDecoder
from raftkv.sim.clock import SimClock

T = TypeVar("T")

SECRET = b"the secret of this test's cluster"
FAST = LinkLimits(
    tick_s=0.01,
    ping_interval_s=0.02,
    dead_after_s=0.3,
    reconnect_s=0.01,
    refused_retry_s=0.02,
    hello_deadline_s=1.0,
)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run on the loop of production, and fail if it hangs."""

    async def bounded() -> T:
        async with asyncio.timeout(20):
            return await main

    return uvloop.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that another part of this loop makes true."""
    while not condition():  # noqa: ASYNC110 -- the condition has no event
        await asyncio.sleep(0.001)


async def pings(link: Connection, count: int) -> None:
    """Wait until so many more pings of a link were answered."""
    answered: set[int] = set()

    def enough() -> bool:
        answered.add(link._echoed_us)
        return len(answered) > count

    await until(enough)


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Book:
    """An identity book in memory."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.broken = False

    def known(self, name: str) -> str | None:
        """Look up."""
        return self.names.get(name)

    def remember(self, name: str, identity: str) -> None:
        """Store, unless the disk of this test is full."""
        if self.broken:
            raise OSError(28, "No space left on device")
        self.names[name] = identity


class Recorder:
    """A handler that writes down what happens to it."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.messages: list[tuple[str, int, bytes]] = []
        self.on: Callable[[str, int, bytes], None] | None = None
        self.on_down: Callable[[str], None] | None = None

    def on_connected(self, peer: str) -> None:
        """Write down."""
        self.events.append(("up", peer))

    def on_disconnected(self, peer: str) -> None:
        """Write down and do what the test wants."""
        self.events.append(("down", peer))
        if self.on_down is not None:
            self.on_down(peer)

    def on_message(self, peer: str, channel: int, payload: bytes) -> None:
        """Write down and do what the test wants."""
        self.messages.append((peer, channel, payload))
        if self.on is not None:
            self.on(peer, channel, payload)

    def downs(self, peer: str) -> int:
        """How often the link to ``peer`` was lost."""
        return self.events.count(("down", peer))

    def check_alternation(self) -> None:
        """For each peer, up and down come by turns, up first."""
        for peer in {peer for _, peer in self.events}:
            kinds = [kind for kind, name in self.events if name == peer]
            assert kinds == ["up", "down"] * (len(kinds) // 2) + ["up"] * (len(kinds) % 2)


class Node:
    """Links with a recorder and a book; addresses are shared by all nodes of a test."""

    def __init__(
        self,
        name: str,
        addresses: dict[str, tuple[str, int]],
        *,
        secret: bytes | None = SECRET,
        tls: PeerContexts | None = None,
        identity: str | None = None,
        cluster_id: str = "c",
        limits: LinkLimits = FAST,
        facts: dict[str, str] | None = None,
    ) -> None:
        self.refused: list[tuple[str, str]] = []
        self.agreed: list[str] = []
        self.recorder = Recorder()
        self.book = Book()
        self.links = PeerLinks(
            hello=LinkHello(cluster_id, name, identity or f"identity of {name}", facts or {}),
            peers={peer: address for peer, address in addresses.items() if peer != name},
            listen=addresses[name],
            security=LinkSecurity(secret=secret, tls=tls),
            identities=self.book,
            handler=self.recorder,
            limits=limits,
            agreement=self,
        )

    def agrees(self, peer: str) -> None:
        """Write down who goes by the same facts."""
        self.agreed.append(peer)

    def differs(self, peer: str, reason: str) -> None:
        """Write down who does not."""
        self.refused.append((peer, reason))

    def connected_to(self, *peers: str) -> bool:
        """Whether exactly these peers can be sent to."""
        return self.links.connected == set(peers)


def addresses(*names: str) -> dict[str, tuple[str, int]]:
    """Return a free port for each name."""
    return {name: ("127.0.0.1", free_port()) for name in names}


@contextlib.asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[None]:
    """Run nodes around a block and check their callbacks afterwards."""
    for node in nodes:
        await node.links.start()
    try:
        yield
    finally:
        for node in nodes:
            await node.links.close()
            node.recorder.check_alternation()
            assert not node.links._connections


@contextlib.asynccontextmanager
async def pair(**options: Any) -> AsyncIterator[tuple[Node, Node]]:
    """Run two nodes that are linked."""
    where = addresses("n1", "n2")
    one, two = Node("n1", where, **options), Node("n2", where, **options)
    async with running(one, two):
        await until(lambda: one.connected_to("n2") and two.connected_to("n1"))
        yield one, two


# --- peers that come and go --------------------------------------------------------------------


def others(node: Node, where: dict[str, tuple[str, int]], *names: str) -> None:
    """Let a node have these peers from now on."""
    node.links.set_peers({name: where[name] for name in names})


def test_new_peers_are_dialled_or_let_in() -> None:
    """Who has the greater name is dialled, who has the smaller is let in; other links stay."""

    async def main() -> None:
        where = addresses("n1", "n2", "n3", "n4")
        old = {name: where[name] for name in ("n2", "n3")}
        two, three = Node("n2", old), Node("n3", old)
        one, four = Node("n1", where), Node("n4", where)
        async with running(two, three, one, four):
            await until(lambda: two.connected_to("n3") and three.connected_to("n2"))
            await until(lambda: "n2" in one.links.refusals)  # it is in no list of n2 yet
            others(two, where, "n1", "n3", "n4")
            others(three, where, "n1", "n2", "n4")
            await until(lambda: all(len(n.links.connected) == 3 for n in (one, two, three, four)))
            assert two.recorder.downs("n3") == three.recorder.downs("n2") == 0

    run(main())


def test_links_to_peers_that_are_gone_end() -> None:
    """Both sides hear of it, what was sent before arrives, and there is no way back in."""

    async def main() -> None:
        where = addresses("n1", "n2", "n3")
        one, two, three = (Node(name, where) for name in where)
        async with running(one, two, three):
            nodes = (one, two, three)
            await until(lambda: all(len(node.links.connected) == 2 for node in nodes))
            assert two.links.send("n1", 1, b"the newest map")
            assert two.links.send("n3", 1, b"the newest map")
            others(two, where)
            assert two.connected_to()  # from this turn on
            await until(lambda: one.recorder.downs("n2") == three.recorder.downs("n2") == 1)
            for node in (one, three):
                assert ("n2", 1, b"the newest map") in node.recorder.messages
            await until(lambda: "n2" in one.links.refusals)  # n1 dials it still
            assert not two.links._dialing
            assert two.links.changed_us("n3") is None
            assert one.connected_to("n3")
            assert three.connected_to("n1")
            others(two, where, "n1", "n3")  # and back
            await until(lambda: all(len(node.links.connected) == 2 for node in nodes))

    run(main())


def test_a_handshake_under_way_makes_no_link_with_a_peer_that_is_gone() -> None:
    """Also where the peer goes in the last step of it, while its identity is stored."""

    async def main() -> None:
        where = addresses("n1", "n2")
        one, two = Node("n1", where), Node("n2", where)
        remember = two.book.remember

        def remember_and_forget(name: str, identity: str) -> None:
            remember(name, identity)
            two.links.set_peers({})

        two.book.remember = remember_and_forget  # type: ignore[method-assign]
        async with running(one, two):
            await until(lambda: "n2" in one.links.refusals)
            assert two.recorder.events == []

    run(main())


def test_a_peer_that_has_moved_is_dialled_where_it_is() -> None:
    """Its old link ends when it leaves there; the next goes to the new address."""

    async def main() -> None:
        where = addresses("n1", "n2")
        moved = {**where, "n2": ("127.0.0.1", free_port())}
        one, two, again = Node("n1", where), Node("n2", where), Node("n2", moved)
        async with running(one, two):
            await until(lambda: one.connected_to("n2"))
            others(one, moved, "n2")
            assert one.connected_to("n2")
            await two.links.close()
            async with running(again):
                await until(lambda: one.connected_to("n2") and again.connected_to("n1"))

    run(main())


def test_peers_off_loopback_need_tls_also_later() -> None:
    """They are refused as at the start, and the peers stay as they were."""

    async def main() -> None:
        async with pair() as (one, two):
            with pytest.raises(SecurityError):
                one.links.set_peers({"n2": ("192.0.2.1", 1)})
            assert one.connected_to("n2")
            assert two.connected_to("n1")

    run(main())


# --- carrying messages ------------------------------------------------------------------------


def test_three_nodes_have_one_link_per_pair() -> None:
    """The smaller name dials; every node can send to every other."""

    async def main() -> None:
        where = addresses("n1", "n2", "n3")
        nodes = [Node(name, where) for name in where]
        async with running(*nodes):
            await until(lambda: all(len(node.links.connected) == 2 for node in nodes))
            for sender in nodes:
                for peer in sender.links.connected:
                    assert sender.links.send(peer, 3, b"hello")
            await until(lambda: all(len(node.recorder.messages) == 2 for node in nodes))
            assert sum(len(node.links._connections) for node in nodes) == 6  # three links
        assert all(len(node.recorder.events) == 4 for node in nodes)

    run(main())


def test_messages_arrive_in_order_and_whole() -> None:
    """Whatever their sizes, in both directions at once."""
    sizes = [0, 1, 100, 70_000, 3, 2_000_000, 5] * 5

    async def main() -> None:
        async with pair() as (one, two):
            payloads = [os.urandom(size) for size in sizes]
            for number, payload in enumerate(payloads):
                assert one.links.send("n2", number % 127, payload)
                assert two.links.send("n1", number % 127, payload)
            await until(lambda: len(one.recorder.messages) == len(two.recorder.messages) == 35)
            for node, peer in ((one, "n2"), (two, "n1")):
                assert node.recorder.messages == [
                    (peer, number % 127, payload) for number, payload in enumerate(payloads)
                ]

    run(main())


def test_sending_without_a_link_says_so() -> None:
    """No link, an unknown peer and this node itself are all just False."""

    async def main() -> None:
        where = addresses("n1", "n2")
        one = Node("n1", where)
        async with running(one):
            assert not any(one.links.send(peer, 0, b"") for peer in ("n1", "n2", "n9"))
            assert one.links.backlog_bytes("n2") == 0
            assert one.links.round_trip_s("n2") is None

    run(main())


def test_what_is_said_of_a_lost_link_does_not_go_over_the_next() -> None:
    """A link that failed takes nothing, and who hears of it finds no newer link to the peer yet."""
    taken: list[bool] = []

    async def main() -> None:
        async with pair() as (one, two):
            one.recorder.on_down = lambda peer: taken.append(one.links.send(peer, 1, b"late"))
            (link,) = one.links._connections
            link.fail("lost")
            taken.append(one.links.send("n2", 1, b"late"))
            await until(lambda: one.recorder.downs("n2") == 1)
            await until(lambda: one.connected_to("n2") and two.connected_to("n1"))
            assert taken == [False, False]
            one.recorder.on_down = None

    run(main())


def test_nonsense_to_send_is_refused_at_once() -> None:
    """The link's own channel and a message that the peer would refuse never leave."""

    async def main() -> None:
        async with pair(limits=msgspec_limits(frame_bytes_max=1000)) as (one, _):
            for channel in (-1, CHANNEL_CONTROL, 128):
                with pytest.raises(ValueError, match="channel"):
                    one.links.send("n2", channel, b"")
            with pytest.raises(ValueError, match="larger"):
                one.links.send("n2", 0, bytes(1001))

    run(main())


def msgspec_limits(**changes: Any) -> LinkLimits:
    """Return the fast limits with changes."""
    values = {name: getattr(FAST, name) for name in FAST.__dataclass_fields__}
    return LinkLimits(**{**values, **changes})


def test_a_queue_over_its_bound_closes_the_link_instead_of_dropping_a_message() -> None:
    """Raft's transport may lose messages only by losing the link, and hears of it."""

    async def main() -> None:
        async with pair(limits=msgspec_limits(send_bytes_max=1_000_000)) as (one, two):
            sent = 0
            while one.links.send("n2", 0, bytes(100_000)):
                sent += 1
            assert sent == 9  # ten and their headers are one too many
            assert not one.links.connected
            assert not one.links.is_connected("n2")
            assert one.recorder.downs("n2") == 0  # not from inside send()
            await until(lambda: one.recorder.downs("n2") == 1)
            await until(lambda: one.connected_to("n2") and two.recorder.downs("n1") == 1)
            assert len(two.recorder.messages) < sent

    run(main())


def test_what_a_peer_does_not_take_counts_from_turn_to_turn() -> None:
    """The bound is on all that waits in this process, also behind a socket that is full."""

    async def main() -> None:
        async with pair(limits=msgspec_limits(send_bytes_max=1_000_000)) as (one, two):
            (deaf,) = two.links._connections
            assert deaf._transport is not None
            deaf._transport.pause_reading()
            for _ in range(1_000):  # the kernel takes some megabytes
                if not one.links.send("n2", 0, bytes(100_000)):
                    break
                await asyncio.sleep(0)
            assert not one.links.is_connected("n2")

    run(main())


def test_a_message_that_cannot_be_handled_closes_the_link_with_a_trace(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The messages behind it are lost with the link; the next link works."""

    def fail(_peer: str, channel: int, _payload: bytes) -> None:
        if channel == 9:
            raise RuntimeError("a bug")

    async def main() -> None:
        async with pair() as (one, two):
            two.recorder.on = fail
            one.links.send("n2", 9, b"bad")
            one.links.send("n2", 1, b"never seen")
            await until(lambda: one.recorder.downs("n2") == 1)
            await until(lambda: one.connected_to("n2"))
            one.links.send("n2", 1, b"good")
            await until(lambda: ("n1", 1, b"good") in two.recorder.messages)
            assert ("n1", 1, b"never seen") not in two.recorder.messages

    run(main())
    assert "RuntimeError: a bug" in caplog.text


# --- bulk -----------------------------------------------------------------------------------------


def test_small_messages_overtake_bulk() -> None:
    """A heartbeat queued behind a snapshot arrives after one window of it at most."""
    limits = msgspec_limits(bulk_window_bytes=100_000)

    async def main() -> None:
        async with pair(limits=limits) as (one, two):
            for _ in range(100):
                assert one.links.send("n2", 2, bytes(50_000), bulk=True)
            await until(lambda: len(two.recorder.messages) >= 4)
            assert one.links.backlog_bytes("n2") > 1_000_000
            one.links.send("n2", 1, b"heartbeat")
            seen = len(two.recorder.messages)
            await until(lambda: ("n1", 1, b"heartbeat") in two.recorder.messages)
            place = two.recorder.messages.index(("n1", 1, b"heartbeat"))
            assert place <= seen + 2
            await until(lambda: len(two.recorder.messages) == 101)

    run(main())


def test_bulk_leaves_behind_what_is_sent_in_the_same_turn() -> None:
    """Also when it was queued first."""

    async def main() -> None:
        async with pair() as (one, two):
            one.links.send("n2", 2, b"bulk", bulk=True)
            one.links.send("n2", 1, b"heartbeat")
            await until(lambda: len(two.recorder.messages) == 2)
            assert [payload for *_, payload in two.recorder.messages] == [b"heartbeat", b"bulk"]

    run(main())


def test_a_full_bulk_queue_is_refused_and_costs_no_link() -> None:
    """The sender of a snapshot waits and tries again."""
    limits = msgspec_limits(bulk_queue_bytes_max=100_000, bulk_window_bytes=10_000)

    async def main() -> None:
        async with pair(limits=limits) as (one, two):
            sent = 0
            while one.links.send("n2", 2, bytes(30_000), bulk=True):
                sent += 1
            assert sent == 3
            await until(lambda: len(two.recorder.messages) == sent)
            assert one.links.send("n2", 2, bytes(30_000), bulk=True)
            assert one.connected_to("n2")

    run(main())


def test_a_large_message_leaves_in_pieces_between_urgent_ones() -> None:
    """A heartbeat waits for a piece of a large answer, not for all; the answer comes whole."""
    answer = os.urandom(5_000_000)
    limits = msgspec_limits(bulk_window_bytes=200_000)

    async def main() -> None:
        async with pair(limits=limits) as (one, two):
            assert one.links.offer("n2", 3, len(answer), lambda: answer, bytes_max=1)
            (link,) = two.links._connections
            await until(lambda: link._pieces.received_bytes > 0)
            assert one.links.send("n2", 1, b"heartbeat")
            await until(lambda: len(two.recorder.messages) == 2)
            assert two.recorder.messages == [("n1", 1, b"heartbeat"), ("n1", 3, answer)]

    run(main())


def test_lanes_take_turns() -> None:
    """A snapshot's chunk does not wait for all large answers that were there before it."""

    async def main() -> None:
        async with pair(limits=msgspec_limits(bulk_window_bytes=100_000)) as (one, two):
            for number in range(20):
                make = partial(bytes.__mul__, bytes([number]), 200_000)
                assert one.links.offer("n2", 3, 200_000, make, bytes_max=2**30)
            assert one.links.send("n2", 1, b"chunk", bulk=True)
            await until(lambda: len(two.recorder.messages) == 21)
            channels = [channel for _, channel, _ in two.recorder.messages]
            assert channels.index(1) <= 1
            answers = [payload for _, channel, payload in two.recorder.messages if channel == 3]
            assert answers == [bytes([number]) * 200_000 for number in range(20)]

    run(main())


def test_a_message_that_cannot_be_made_costs_its_link_only() -> None:
    """Too little memory for one large answer, say; nothing escapes into the loop."""
    escaped: list[dict[str, Any]] = []

    def make() -> bytes:
        raise MemoryError

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: escaped.append(what))
        async with pair() as (one, _):
            assert one.links.offer("n2", 3, 100_000, make, bytes_max=300_000)
            await until(lambda: one.recorder.downs("n2") == 1)
            await until(lambda: one.links.is_connected("n2"))

    run(main())
    assert escaped == []


def test_a_large_message_is_made_when_it_leaves() -> None:
    """What waits costs no encoding; what nobody wants by then is not sent; a full lane refuses."""
    made: list[int] = []

    def make(number: int) -> bytes | None:
        made.append(number)
        return None if number == 1 else bytes([number]) * 100_000

    async def main() -> None:
        async with pair(limits=msgspec_limits(bulk_window_bytes=1)) as (one, two):
            (deaf,) = two.links._connections
            assert deaf._transport is not None
            deaf._transport.pause_reading()
            for number in range(4):
                offered = one.links.offer(
                    "n2", 3, 100_000, partial(make, number), bytes_max=300_000
                )
                assert offered == (number < 3)
            assert one.links.offer("n2", 3, 0, lambda: b"refused", bytes_max=300_000)
            await until(lambda: len(made) == 1)
            for _ in range(20):
                await asyncio.sleep(0)
            assert made == [0], "the peer has taken nothing yet"
            assert one.links.backlog_bytes("n2") > 200_000
            deaf._transport.resume_reading()
            await until(lambda: len(two.recorder.messages) == 3)
            assert [payload[:7] for *_, payload in two.recorder.messages] == [
                bytes(7),
                b"\2" * 7,
                b"refused",
            ]
            assert one.recorder.downs("n2") == 0
            assert one.links.backlog_bytes("n2") == 0

    run(main())


def test_small_messages_never_close_a_link() -> None:
    """Beyond their bound they are refused, and Raft still has room."""
    limits = msgspec_limits(small_waiting_bytes_max=100_000, send_bytes_max=1_000_000)

    async def main() -> None:
        async with pair(limits=limits) as (one, two):
            sent = 0
            while one.links.send_small("n2", 3, bytes(10_000)):
                sent += 1
            assert 10 <= sent <= 11
            assert one.links.send("n2", 1, bytes(10_000))
            await until(lambda: len(two.recorder.messages) == sent + 1)
            assert one.connected_to("n2")
            (deaf,) = two.links._connections
            assert deaf._transport is not None
            deaf._transport.pause_reading()
            for _ in range(10_000):  # the kernel takes some megabytes
                if not one.links.send_small("n2", 3, bytes(10_000)):
                    break
                await asyncio.sleep(0)
            assert not one.links.send_small("n2", 3, bytes(10_000))
            assert one.links.send("n2", 1, b"heartbeat")
            assert one.connected_to("n2")
            assert not one.links.send_small("n9", 3, b"")
            assert not one.links.offer("n9", 3, 1, lambda: b"", bytes_max=1)

    run(main())


def test_how_late_a_message_of_several_pieces_may_be_counts_from_its_first() -> None:
    """It was made when that left, however prompt its last piece is."""
    lags: list[float] = []
    limits = msgspec_limits(bulk_window_bytes=1, dead_after_s=20)

    async def main() -> None:
        async with pair(limits=limits) as (one, two):
            two.recorder.on = lambda *_: lags.append(two.links.lag_s("n1"))
            (slow,) = two.links._connections
            slow._report_bulk = lambda: None  # type: ignore[method-assign] # gives no credit
            assert one.links.offer("n2", 3, 100_000, lambda: bytes(100_000), bytes_max=1)
            await until(lambda: slow._pieces.received_bytes > 0)
            begun = time.monotonic()
            await until(lambda: time.monotonic() - begun > 0.3)
            assert two.links.lag_s("n1") < 0.3, "the link itself is prompt"
            Connection._report_bulk(slow)
            await until(lambda: len(lags) == 1)
            assert lags[0] > 0.3
            await until(lambda: two.links.lag_s("n1") < 0.3)

    run(main())


# --- liveness -------------------------------------------------------------------------------------


def test_round_trips_are_measured_while_the_link_is_idle() -> None:
    """Pings keep an idle link alive well past the time of death, and measure it."""

    async def main() -> None:
        async with pair(limits=msgspec_limits(dead_after_s=0.1)) as (one, two):
            (link,) = one.links._connections
            await pings(link, 10)
            round_trip_s = one.links.round_trip_s("n2")
            assert round_trip_s is not None
            assert 0 < round_trip_s < 1
            assert one.recorder.events == [("up", "n2")]
            assert two.recorder.events == [("up", "n1")]

    run(main())


def test_how_late_messages_may_be_is_known_without_a_common_clock() -> None:
    """A message that waited is known to be that late at most; afterwards the link is prompt again.

    It does not matter where it waited: here it is in the receiver's socket, as behind a freeze.
    """
    lags: list[tuple[float, float]] = []
    sent_at: list[float] = []

    async def main() -> None:
        async with pair(limits=msgspec_limits(dead_after_s=20)) as (one, two):
            two.recorder.on = lambda *_: lags.append(
                (time.monotonic() - sent_at[0], two.links.lag_s("n1"))
            )
            await until(lambda: two.links.lag_s("n1") < 0.05)
            (frozen,) = two.links._connections
            assert frozen._transport is not None
            frozen._transport.pause_reading()
            await until(lambda: two.links.lag_s("n1") > 0.2)  # what was sent before is read
            one.links.send("n2", 1, b"late")
            sent_at.append(time.monotonic())
            await until(lambda: time.monotonic() - sent_at[0] > 0.2)
            frozen._transport.resume_reading()
            await until(lambda: len(lags) == 1)
            [(late_s, at_most_s)] = lags
            assert 0.2 < late_s < at_most_s
            await until(lambda: two.links.lag_s("n1") < 0.05)
            assert two.links.lag_s("n9") == 0.0, "nothing comes from whom there is no link to"

    run(main())


def test_a_machine_that_was_suspended_knows_how_late_its_messages_may_be() -> None:
    """Its monotonic clock stood still meanwhile; what is in its sockets waited all the same."""

    async def main() -> None:
        async with pair(limits=msgspec_limits(ping_interval_s=20)) as (_, two):
            clock = Suspended()
            (link,) = two.links._connections
            link._owner.clock = clock  # type: ignore[misc] # of these links alone
            clock.suspended_s = 60.0
            assert two.links.lag_s("n1") > 60.0

    run(main())


class Suspended(SystemClock):
    """The clocks of a machine that has slept for ``suspended_s``."""

    suspended_s = 0.0

    def boottime(self) -> float:
        """Go on meanwhile."""
        return super().boottime() + self.suspended_s


def test_an_answer_to_a_ping_that_was_not_sent_closes_the_link() -> None:
    """It would make late messages look prompt."""

    async def main() -> None:
        async with pair() as (one, two):
            (link,) = two.links._connections
            link._send_control(_Kind.PONG, 2**63)
            await until(lambda: one.recorder.downs("n2") == 1)

    run(main())


def test_a_silent_peer_is_given_up() -> None:
    """A stopped process keeps its sockets open; only silence shows it."""

    async def main() -> None:
        async with pair() as (one, two):
            (stopped,) = two.links._connections
            assert stopped._transport is not None
            stopped._transport.pause_reading()  # reads no pings, so sends no pongs
            two.links._ticker.cancel()  # type: ignore[union-attr] # and no pings
            await until(lambda: one.recorder.downs("n2") == 1)

    run(main())


def test_our_own_stall_is_not_the_peers_silence() -> None:
    """However long this process was stopped, a peer is judged by what it says afterwards."""
    clock = SimClock()

    class Ears:
        def __init__(self) -> None:
            self.elapsed: list[float] = []

        closing = False

        def tick(self, elapsed_s: float) -> None:
            self.elapsed.append(elapsed_s)

    async def main() -> None:
        where = addresses("n1")
        links = PeerLinks(
            hello=LinkHello("c", "n1", "i"),
            peers={},
            listen=where["n1"],
            security=LinkSecurity(secret=SECRET),
            identities=Book(),
            handler=Recorder(),
            clock=clock,
            limits=FAST,
        )
        ears = Ears()
        await links.start()
        links._links["n2"] = ears  # type: ignore[assignment] # only listens to ticks
        clock.advance(3600)
        await until(lambda: any(ears.elapsed))
        assert max(ears.elapsed) <= 2 * FAST.tick_s
        del links._links["n2"]
        await links.close()

    run(main())


def test_a_stalled_loop_keeps_its_links() -> None:
    """The same with real sockets: both sides stall for longer than the time of death."""

    async def main() -> None:
        async with pair() as (one, two):
            (link,) = one.links._connections
            for _ in range(3):
                blocking_sleep(FAST.dead_after_s * 1.2)
                await pings(link, 2)
            assert one.recorder.events == [("up", "n2")]
            assert two.recorder.events == [("up", "n1")]

    run(main())


def blocking_sleep(seconds: float) -> None:
    """Stall the loop, as a long garbage collection does."""
    import time  # noqa: PLC0415 -- nothing else here may sleep like this

    time.sleep(seconds)


def test_a_lost_link_is_back_within_200_ms() -> None:
    """With the limits of production."""

    async def main() -> None:
        async with pair(limits=LinkLimits()) as (one, two):
            loop = asyncio.get_running_loop()
            for losses in range(1, 4):
                (link,) = two.links._connections
                link.abort()
                await until(lambda n=losses: one.recorder.downs("n2") == n)  # type: ignore[misc]
                began = loop.time()
                await until(lambda: one.connected_to("n2") and two.connected_to("n1"))
                assert loop.time() - began < 0.2

    run(main())


def test_a_node_that_starts_later_is_found() -> None:
    """Dialling goes on until somebody is there, and after a restart again."""

    async def main() -> None:
        where = addresses("n1", "n2")
        one = Node("n1", where)
        async with running(one):
            for round_ in range(1, 3):
                two = Node("n2", where)
                async with running(two):
                    await until(lambda two=two: two.connected_to("n1"))  # type: ignore[misc]
                    await until(lambda: one.connected_to("n2"))
                await until(lambda n=round_: one.recorder.downs("n2") == n)  # type: ignore[misc]

    run(main())


def test_a_newer_connection_replaces_the_older() -> None:
    """A peer that came back before its death was noticed is down first, then up.

    Whoever hears that it is down cannot send to it: what is said of the older link stays there.
    """
    taken: list[bool] = []

    async def main() -> None:
        where = addresses("n1", "n2")
        two = Node("n2", where, limits=msgspec_limits(dead_after_s=60.0))
        two.recorder.on_down = lambda peer: taken.append(two.links.send(peer, 1, b"late"))
        first, second = Node("n1", where), Node("n1", {**where, "n1": ("127.0.0.1", free_port())})
        async with running(two, first):
            await until(lambda: two.connected_to("n1"))
            async with running(second):
                await until(lambda: two.recorder.downs("n1") >= 1)
                assert two.recorder.events[:3] == [("up", "n1"), ("down", "n1"), ("up", "n1")]
                assert not taken[0]

    run(main())


def test_what_was_sent_before_closing_arrives() -> None:
    """A node that stops hands over its last messages."""

    async def main() -> None:
        async with pair() as (one, two):
            one.links.send("n2", 1, b"goodbye")
            await one.links.close()
            await until(lambda: two.recorder.messages == [("n1", 1, b"goodbye")])
            assert one.recorder.events == [("up", "n2"), ("down", "n2")]

    run(main())


# --- identities (H19) -----------------------------------------------------------------------------


def test_identities_are_stored_before_the_link_counts() -> None:
    """Both sides know each other's identity from the first contact on."""

    async def main() -> None:
        async with pair() as (one, two):
            assert one.book.names == {"n2": "identity of n2"}
            assert two.book.names == {"n1": "identity of n1"}

    run(main())


@pytest.mark.parametrize("returning", ["n1", "n2"])
def test_a_node_with_an_emptied_disk_is_not_let_in(
    returning: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Another identity under a known name never counts, whoever dials; one log line says so."""
    other = "n2" if returning == "n1" else "n1"

    async def main() -> None:
        where = addresses("n1", "n2")
        stayed = Node(other, where)
        stayed.book.names[returning] = "the identity before"
        emptied = Node(returning, where)
        async with running(stayed, emptied):
            await until(lambda: "refuses this node" in caplog.text)
            attempts = len(seen_connections(stayed))
            await until(lambda: len(seen_connections(stayed)) > attempts + 3)
            lines = [record.getMessage() for record in caplog.records]
            said = [line for line in lines if "another identity" in line]
            assert len(said) == len(set(said)) == 2, said  # one by each node
            assert not stayed.recorder.events
            assert not emptied.recorder.events
        assert stayed.book.names[returning] == "the identity before"

    seen = count_opened()
    try:
        run(main())
    finally:
        seen.close()


_OPENED: dict[int, list[object]] = {}


def seen_connections(node: Node) -> list[object]:
    """Return the connections that a node has had so far."""
    return _OPENED.setdefault(id(node.links), [])


def count_opened() -> contextlib.ExitStack:
    """Write down every connection that is opened, until the stack is closed."""
    stack = contextlib.ExitStack()
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    opened = PeerLinks.opened

    def counted(self: PeerLinks, connection: Any) -> None:
        _OPENED.setdefault(id(self), []).append(connection)
        opened(self, connection)

    patch.setattr(PeerLinks, "opened", counted)
    stack.callback(_OPENED.clear)
    return stack


def test_no_link_counts_without_a_durable_identity(caplog: pytest.LogCaptureFixture) -> None:
    """A disk that cannot store the peer's identity keeps the peer out until it can."""

    async def main() -> None:
        where = addresses("n1", "n2")
        one, two = Node("n1", where), Node("n2", where)
        two.book.broken = True
        async with running(one, two):
            await until(lambda: "could not be stored" in caplog.text)
            assert not one.recorder.events
            assert not two.recorder.events
            two.book.broken = False
            await until(lambda: two.connected_to("n1"))

    run(main())


# --- what all must agree on ---------------------------------------------------------------------


def test_nodes_whose_facts_differ_never_link_and_both_say_what_differs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One line by each, though they try again and again; neither identity is remembered."""

    async def main() -> None:
        where = addresses("n1", "n2")
        one = Node("n1", where, facts={"cluster.shards": "4"})
        two = Node("n2", where, facts={"cluster.shards": "5"})
        async with running(one, two):
            await until(lambda: len(one.refused) > 2 and len(two.refused) > 2)
            assert one.links.refusal("n2") == f"{DIFFERS}: cluster.shards is 5 there and 4 here"
            assert two.links.refusal("n1") == f"{DIFFERS}: cluster.shards is 4 there and 5 here"
            for node in (one, two):
                assert not node.recorder.events
                assert not node.book.names
                assert not node.agreed
        said = [r.getMessage() for r in caplog.records if DIFFERS in r.getMessage()]
        assert len(said) == len(set(said)) == 2, said

    run(main())


DIFFERS = "differs in what all nodes must agree on"


def test_a_node_that_is_set_up_anew_with_the_right_facts_links() -> None:
    """It comes under a new identity, and the old one was never remembered."""

    async def main() -> None:
        where = addresses("n1", "n2")
        one = Node("n1", where, facts={"cluster.shards": "4"})
        wrong = Node("n2", where, facts={"cluster.shards": "5"})
        async with running(one):
            async with running(wrong):
                await until(lambda: bool(one.refused))
            mended = Node("n2", where, identity="a new one", facts={"cluster.shards": "4"})
            async with running(mended):
                await until(lambda: one.connected_to("n2") and mended.connected_to("n1"))
                assert one.links.refusal("n2") is None
                assert (one.agreed, mended.agreed) == (["n2"], ["n1"])

    run(main())


def test_a_dialer_of_another_protocol_is_named_by_both(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An upgrade that is half done says so in words, on both sides."""

    async def main() -> None:
        async with pair() as (one, two):
            await two.links.close()
            challenge = Acceptor.challenge
            newer = bytearray(challenge(two.links.acceptor(None)))
            newer[2] = 99
            monkeypatch.setattr(Acceptor, "challenge", lambda _: bytes(newer))
            await two.links.start()
            await until(lambda: "peer n2: speaks link protocol 99" in caplog.text)
            await until(lambda: "speaks link protocol 2, this node" in caplog.text)
            assert one.links.refusal("n2") == "speaks link protocol 99, this node speaks 2"

    run(main())


# --- doors ----------------------------------------------------------------------------------------


def test_a_node_with_another_secret_gets_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    """Neither side counts a link, and the log says what is wrong."""

    async def main() -> None:
        where = addresses("n1", "n2")
        one = Node("n1", where)
        two = Node("n2", where, secret=b"quite another secret")
        async with running(one, two):
            await until(lambda: "does not know the cluster's secret" in caplog.text)
            assert not one.recorder.events
            assert not two.recorder.events
            assert not one.book.names
            assert not two.book.names

    run(main())


@pytest.mark.parametrize(
    ("stranger", "logged"),
    [
        ({"cluster_id": "other"}, "belongs to cluster 'other'"),
        ({"name": "n0"}, "'n0' is not a node that dials"),
    ],
)
def test_a_node_of_another_cluster_or_of_no_map_gets_nowhere(
    stranger: dict[str, str], logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also with the right secret; both remember why, and the stranger's own log says it."""

    async def main() -> None:
        where = addresses("n1", "n2")
        two = Node("n2", where)
        options = {"name": "n1", **stranger}
        name = options.pop("name")
        other = Node(name, {**where, name: ("127.0.0.1", free_port())}, **options)  # type: ignore[arg-type]
        async with running(two, other):
            await until(lambda: "refuses this node: " + logged in caplog.text)
            assert not two.recorder.events
            assert "n2" not in other.links.connected
            assert logged in two.links.refusals[name]
            assert logged in other.links.refusals["n2"]

    run(main())


class Stranger:
    """A raw connection to a peer port."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.decoder = FrameDecoder(4096)

    @classmethod
    async def connect(cls, node: Node, tls: ssl.SSLContext | None = None) -> "Stranger":
        """Connect to a node."""
        return cls(*await asyncio.open_connection("127.0.0.1", node.links.port, ssl=tls))

    async def frame(self) -> bytes:
        """Return the next frame's payload."""
        while True:
            for _, payload in self.decoder.frames():
                return bytes(payload)
            data = await self.reader.read(4096)
            if not data:
                raise EOFError
            self.decoder.feed(data)

    def send(self, payload: bytes, channel: int = CHANNEL_CONTROL) -> None:
        """Send a frame."""
        self.writer.write(encode_frame(channel, payload))

    async def is_shut_out(self) -> bool:
        """Wait until the node closes; whether it said anything before."""
        try:
            data = await self.reader.read()
        except ConnectionResetError:
            data = b""
        return data == b""

    def close(self) -> None:
        """Go away."""
        self.writer.close()


def dialer(secret: bytes = SECRET, name: str = "n1") -> Dialer:
    """Return the dialling side of a handshake with n2."""
    hello = LinkHello("c", name, f"identity of {name}")
    return Dialer(hello, os.urandom(32), peer="n2", secret=secret)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\xff\xff\xff\xff\x7f",
        b"\0\0\0\0\0",
        encode_frame(CHANNEL_CONTROL, bytes(4000)),
        encode_frame(CHANNEL_CONTROL, bytes(5000)),
        encode_frame(1, b"a message before any hello"),
        encode_frame(CHANNEL_CONTROL, b"\x91\x04"),  # Ready, before Hello
        b"\x80\x04\x95readonly",
    ],
)
def test_garbage_at_the_peer_port_is_shut_out(data: bytes) -> None:
    """A stranger gets a random number and is closed; the links of others stay."""

    async def main() -> None:
        async with pair() as (one, two):
            stranger = await Stranger.connect(two)
            await stranger.frame()
            stranger.writer.write(data)
            assert await stranger.is_shut_out()
            stranger.close()
            assert two.recorder.events == [("up", "n1")]
            assert not two.recorder.messages
            assert one.connected_to("n2")

    run(main())


def test_a_wrong_proof_is_shut_out_without_a_reason() -> None:
    """Only those who know the secret are told anything."""

    async def main() -> None:
        async with pair() as (_, two):
            stranger = await Stranger.connect(two)
            stranger.send(dialer(b"not the right secret").receive_challenge(await stranger.frame()))
            assert await stranger.is_shut_out()
            stranger.close()

    run(main())


def test_a_recorded_hello_cannot_be_used_again() -> None:
    """Every connection has a challenge of its own, which the hello must fit."""

    async def main() -> None:
        where = addresses("n1", "n2")
        two = Node("n2", where)
        async with running(two):
            honest = await Stranger.connect(two)
            side = dialer()
            recorded = side.receive_challenge(await honest.frame())
            honest.send(recorded)
            assert side.receive_welcome(await honest.frame()).node_name == "n2"
            replayed = await Stranger.connect(two)
            await replayed.frame()
            replayed.send(recorded)
            replayed.send(side.ready())
            assert await replayed.is_shut_out()
            assert not two.recorder.events
            honest.send(side.ready())
            await until(lambda: two.connected_to("n1"))
            honest.close()
            replayed.close()

    run(main())


def test_a_connection_without_hello_is_closed_in_time() -> None:
    """Doing nothing is not a way to stay."""

    async def main() -> None:
        async with pair(limits=msgspec_limits(hello_deadline_s=0.03)) as (_, two):
            stranger = await Stranger.connect(two)
            await stranger.frame()
            assert await stranger.is_shut_out()
            stranger.close()

    run(main())


def test_strangers_cannot_keep_a_peer_out() -> None:
    """Beyond the bound the oldest unproven connection goes; a peer still gets in."""

    async def main() -> None:
        where = addresses("n1", "n2")
        limits = msgspec_limits(unauthenticated_max=5, hello_deadline_s=60.0)
        two = Node("n2", where, limits=limits)
        async with running(two):
            strangers = [await Stranger.connect(two) for _ in range(20)]
            await until(lambda: len(two.links._connections) == 5)
            one = Node("n1", where)
            async with running(one):
                await until(lambda: two.connected_to("n1"))
            for stranger in strangers:
                stranger.close()

    run(main())


@pytest.mark.parametrize(
    "data",
    [
        encode_frame(CHANNEL_CONTROL, b"\x01"),
        encode_frame(CHANNEL_CONTROL, b"\x09" + bytes(8)),
        encode_frame(CHANNEL_CONTROL, b"\x03" + b"\xff" * 8),  # took bulk that was never sent
        encode_frame(0xC3, bytes(2**20)) * 65,  # pieces without end
        (2**30).to_bytes(4, "little") + b"\1",
    ],
)
def test_a_proven_peer_that_talks_nonsense_is_closed(data: bytes) -> None:
    """Trust ends where understanding does."""

    async def main() -> None:
        where = addresses("n1", "n2")
        two = Node("n2", where)
        async with running(two):
            stranger = await Stranger.connect(two)
            side = dialer()
            stranger.send(side.receive_challenge(await stranger.frame()))
            side.receive_welcome(await stranger.frame())
            stranger.send(side.ready())
            await until(lambda: two.connected_to("n1"))
            stranger.writer.write(data)
            await until(lambda: two.recorder.downs("n1") == 1)
            stranger.close()

    run(main())


def test_secrets_are_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """Not even at the finest level."""
    caplog.set_level(logging.DEBUG)

    async def main() -> None:
        async with pair() as (one, _):
            assert SECRET.decode() not in repr(one.links._security)

    run(main())
    assert SECRET.decode() not in caplog.text


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of two CAs: ``good`` and ``evil``."""
    directory = tmp_path_factory.mktemp("certificates")
    for ca in ("good", "evil"):
        make_certificates(directory / ca, {name: ["127.0.0.1"] for name in ("n1", "n2", "n3")})
    return directory


def contexts(directory: Path, name: str, ca: str = "good") -> PeerContexts:
    """Return the contexts of the node with this certificate."""
    of = directory / ca
    return peer_contexts(directory / "good" / "ca.crt", of / f"{name}.crt", of / f"{name}.key")


@pytest.mark.parametrize("secret", [None, SECRET])
def test_nodes_talk_over_mutual_tls(certificates: Path, secret: bytes | None) -> None:
    """With certificates alone, and with the secret as well; large and small messages."""

    async def main() -> None:
        where = addresses("n1", "n2")
        one = Node("n1", where, secret=secret, tls=contexts(certificates, "n1"))
        two = Node("n2", where, secret=secret, tls=contexts(certificates, "n2"))
        async with running(one, two):
            await until(lambda: one.connected_to("n2") and two.connected_to("n1"))
            payloads = [os.urandom(size) for size in (0, 10, 3_000_000, 1)]
            for payload in payloads:
                assert one.links.send("n2", 1, payload)
                assert two.links.send("n1", 2, payload)
                assert one.links.send("n2", 3, payload, bulk=True)
            await until(lambda: len(one.recorder.messages) == 4)
            await until(lambda: len(two.recorder.messages) == 8)
            assert [payload for *_, payload in one.recorder.messages] == payloads
            await until(lambda: one.links.round_trip_s("n2") is not None)

    run(main())


@pytest.mark.parametrize(
    ("name", "ca", "logged"),
    [
        ("n3", "good", "claims to be 'n1' with a certificate for n3"),
        ("n1", "evil", "TLS handshake"),
    ],
)
def test_a_certificate_of_another_name_or_ca_gets_nowhere(
    certificates: Path, name: str, ca: str, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A dialer is who its certificate says, even with the right secret."""

    async def main() -> None:
        where = addresses("n1", "n2")
        liar = Node("n1", where, tls=contexts(certificates, name, ca))
        two = Node("n2", where, tls=contexts(certificates, "n2"))
        async with running(liar, two):
            await until(lambda: logged in caplog.text)
            assert not two.recorder.events
            assert not two.book.names

    run(main())


def test_a_node_with_another_nodes_certificate_is_not_dialled(
    certificates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The dialer checks the name too, and says nothing of itself before."""

    async def main() -> None:
        where = addresses("n1", "n2")
        one = Node("n1", where, tls=contexts(certificates, "n1"))
        liar = Node("n2", where, tls=contexts(certificates, "n3"))
        async with running(one, liar):
            await until(lambda: "claims to be 'n2' with a certificate for n3" in caplog.text)
            assert not one.recorder.events
            assert not liar.recorder.events

    run(main())


def test_without_a_client_certificate_nothing_is_said(certificates: Path) -> None:
    """Not even a challenge comes back; neither to TLS without certificate nor to plain text."""

    async def main() -> None:
        where = addresses("n1", "n2")
        two = Node("n2", where, secret=None, tls=contexts(certificates, "n2"))
        bare = ssl.create_default_context(cafile=str(certificates / "good" / "ca.crt"))
        async with running(two):
            stranger = await Stranger.connect(two, bare)
            with contextlib.suppress(ssl.SSLError):  # "certificate required"
                assert await stranger.is_shut_out()
            stranger.close()
            plain = await Stranger.connect(two)
            plain.writer.write(b"no TLS at all\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                answer = await plain.reader.read()
                assert len(answer) < 20  # a TLS alert at most
            plain.close()
            assert not two.links._connections
            assert not two.recorder.events

    run(main())


def test_unfinished_tls_handshakes_cannot_keep_a_peer_out(
    certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are bounded before asyncio's protocols hear of them."""
    monkeypatch.setattr("raftkv.engine.network._HANDSHAKES_MAX", 5)
    monkeypatch.setattr("raftkv.engine.network._HANDSHAKE_DEADLINE_S", 60.0)

    async def main() -> None:
        where = addresses("n1", "n2")
        two = Node("n2", where, tls=contexts(certificates, "n2"))
        async with running(two):
            strangers = [await Stranger.connect(two) for _ in range(20)]
            one = Node("n1", where, tls=contexts(certificates, "n1"))
            async with running(one):
                await until(lambda: two.connected_to("n1"))
            for stranger in strangers[:15]:
                assert await stranger.is_shut_out()
            for stranger in strangers:
                stranger.close()

    run(main())


def test_links_off_loopback_need_tls() -> None:
    """Even a node built without a configuration file refuses to start."""

    async def main() -> None:
        for where in ({"n1": ("0.0.0.0", 1)}, {"n1": ("127.0.0.1", 1), "n2": ("10.0.0.1", 1)}):
            with pytest.raises(SecurityError, match="is not loopback"):
                await Node("n1", where).links.start()

    run(main())


def test_a_port_in_use_is_an_error() -> None:
    """Two nodes on one address do not both start."""

    async def main() -> None:
        where = addresses("n1")
        async with running(Node("n1", where)):
            with pytest.raises(OSError, match=r"[Aa]ddress already in use"):
                await Node("n1", where).links.start()

    run(main())


def test_sockets_are_tuned() -> None:
    """Small messages leave at once, in both directions."""

    async def main() -> None:
        async with pair() as (one, two):
            for node in (one, two):
                (link,) = node.links._connections
                assert link._transport is not None
                raw = link._transport.get_extra_info("socket")
                assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    run(main())


def test_the_network_is_a_seam() -> None:
    """Everything goes through the network that was given in."""
    seen: list[str] = []

    class Watched(TcpNetwork):
        async def connect(self, *arguments: Any) -> None:
            seen.append("connect")
            await super().connect(*arguments)

        async def listen(self, *arguments: Any) -> Any:
            seen.append("listen")
            return await super().listen(*arguments)

    async def main() -> None:
        where = addresses("n1", "n2")
        links = PeerLinks(
            hello=LinkHello("c", "n1", "i"),
            peers={"n2": where["n2"]},
            listen=where["n1"],
            security=LinkSecurity(secret=SECRET),
            identities=Book(),
            handler=Recorder(),
            network=Watched(),
            limits=FAST,
            random_bytes=bytes,
        )
        await links.start()
        await until(lambda: "connect" in seen)
        await links.close()
        assert seen[0] == "listen"

    run(main())


def test_new_certificates_are_for_new_links(certificates: Path) -> None:
    """A link that is up stays; the next is proven by what was renewed, in both directions."""

    async def main() -> None:
        where = addresses("n1", "n2")
        nodes = [Node(name, where, tls=contexts(certificates, name)) for name in ("n1", "n2")]
        one, two = nodes
        evil = certificates / "evil"
        async with running(*nodes):
            await until(lambda: one.connected_to("n2") and two.connected_to("n1"))
            for name, node in (("n1", one), ("n2", two)):
                renewed = peer_contexts(evil / "ca.crt", evil / f"{name}.crt", evil / f"{name}.key")
                node.links.renew(LinkSecurity(secret=SECRET, tls=renewed))
            await pings(one.links._links["n2"], 3)
            assert one.recorder.downs("n2") == 0
            one.links._links["n2"].close("this test")
            await until(lambda: one.recorder.events.count(("up", "n2")) == 2)

    run(main())
