"""A message network between named nodes, in one process, without sockets or time.

It keeps the promises that the peer links of a real cluster keep, and no others: the messages of
one direction of one link arrive in order and once, and none is lost unless the link breaks, which
at least the receiving side is told. Everything else is for the test to decide: which link
delivers next, which is held, which breaks. Nothing is delivered unless asked for, so a run is
repeated exactly by repeating the calls, or by :meth:`SimNetwork.step` with the same seed.

Payloads are opaque.
"""

from collections import deque
from collections.abc import Iterable
from random import Random
from typing import Generic, NamedTuple, Protocol, TypeVar

P = TypeVar("P")
P_contra = TypeVar("P_contra", contravariant=True)

_DELIVERIES_MAX = 100_000
"""More deliveries than this without the caller doing anything else are a loop, not a test."""


class Link(NamedTuple):
    """One direction between two nodes."""

    source: str
    target: str

    @property
    def back(self) -> "Link":
        """The other direction."""
        return Link(self.target, self.source)


class Event(NamedTuple):
    """One line of the trace.

    ``number`` is given at sending, so that the ``deliver`` or ``lose`` of a message names the
    ``send`` it belongs to; connects and disconnects have the link as seen by its source.
    """

    number: int
    what: str
    link: Link
    payload: object = None


class Endpoint(Protocol[P_contra]):
    """What the network calls on a node. Whatever these raise reaches who asked to deliver."""

    def on_message(self, peer: str, payload: P_contra) -> None:
        """A message of ``peer`` arrived."""

    def on_connected(self, peer: str) -> None:
        """Messages to ``peer`` are accepted from now on."""

    def on_disconnected(self, peer: str) -> None:
        """Messages in flight from and to ``peer`` are lost."""


class SimNetwork(Generic[P]):
    """Queues per directed pair of nodes, and the switchboard between them."""

    def __init__(self, *, trace_length: int = 10_000) -> None:
        self._endpoints: dict[str, Endpoint[P]] = {}
        self._queues: dict[Link, deque[tuple[int, P]]] = {}
        self._told: set[Link] = set()  # (me, peer): me was told that it is connected to peer
        self._held: set[Link] = set()
        self._number = 0
        self.trace: deque[Event] = deque(maxlen=trace_length)

    # --- nodes and links ---------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """The attached nodes, sorted."""
        return tuple(sorted(self._endpoints))

    def attach(self, name: str, endpoint: Endpoint[P]) -> None:
        """Add a node, or the next life of one; its links are down until connected."""
        if name in self._endpoints:
            raise ValueError(f"{name} is attached already")
        self._endpoints[name] = endpoint

    def detach(self, name: str, *, silently: bool = False) -> None:
        """Take a dead node away: it is called no more and all its messages are lost.

        The peers see their links break at once, as when a process dies; ``silently`` leaves them
        believing, as when the power of a machine fails.
        """
        del self._endpoints[name]
        for peer in self._linked_to(name):
            self._lose_queue(Link(name, peer))
            self._lose_queue(Link(peer, name))
            self._told.discard(Link(name, peer))
            if not silently:
                self._tell_disconnected(Link(peer, name))

    def connect(self, one: str, other: str) -> None:
        """Bring the link up; a side that still believes in an older one loses that first."""
        if self.connected(one, other):
            return
        self.cut(one, other)
        for link in (Link(one, other), Link(other, one)):
            self._told.add(link)
            self._record("connect", link)
        # Both sides are up before either is told: a node may send from its callback.
        self._endpoints[one].on_connected(other)
        self._endpoints[other].on_connected(one)

    def connect_all(self, names: Iterable[str] | None = None) -> None:
        """Bring up every link among ``names`` (default: all attached nodes)."""
        chosen = sorted(self._endpoints if names is None else names)
        for position, one in enumerate(chosen):
            for other in chosen[position + 1 :]:
                self.connect(one, other)

    def cut(self, one: str, other: str) -> None:
        """Break the link: both sides are told, and what was queued is lost."""
        for link in (Link(one, other), Link(other, one)):
            self._lose_queue(link)
        for link in (Link(one, other), Link(other, one)):
            self._tell_disconnected(link)

    def isolate(self, name: str) -> None:
        """Break every link of ``name``."""
        for other in self.names:
            if other != name:
                self.cut(name, other)

    def partition(self, *sides: Iterable[str]) -> None:
        """Break every link between nodes of different ``sides`` and bring up those within."""
        groups = [frozenset(side) for side in sides]
        for position, side in enumerate(groups):
            for other_side in groups[position + 1 :]:
                for one in sorted(side):
                    for other in sorted(other_side):
                        self.cut(one, other)
            self.connect_all(side)

    def half_open(self, source: str, target: str) -> None:
        """Break the link in such a way that only ``target`` notices.

        What ``source`` sends from then on goes nowhere, until :meth:`cut` or :meth:`connect`
        tells it: a machine that froze, or a firewall that forgot the connection.
        """
        for link in (Link(source, target), Link(target, source)):
            self._lose_queue(link)
        self._tell_disconnected(Link(target, source))

    def hold(self, source: str, target: str) -> None:
        """Let messages of this direction pile up: a slow link, or one that only works one way.

        Lasts until :meth:`release`, also over a new connection.
        """
        self._held.add(Link(source, target))

    def release(self, source: str, target: str) -> None:
        """End a :meth:`hold`; what piled up becomes deliverable, in order."""
        self._held.discard(Link(source, target))

    def connected(self, one: str, other: str) -> bool:
        """Whether the link works, which is more than one side believing that it does."""
        return Link(one, other) in self._told and Link(other, one) in self._told

    # --- messages ----------------------------------------------------------------------------

    def send(self, source: str, target: str, payload: P) -> bool:
        """Queue a message; False if ``source`` knows that it has no link to ``target``."""
        link = Link(source, target)
        if link not in self._told:
            return False
        self._number += 1
        self._record("send", link, payload, self._number)
        if link.back in self._told:
            self._queues.setdefault(link, deque()).append((self._number, payload))
        else:
            self._record("lose", link, payload, self._number)
        return True

    def queued(self, source: str, target: str) -> tuple[P, ...]:
        """What is in flight in this direction, oldest first."""
        return tuple(payload for _, payload in self._queues.get(Link(source, target), ()))

    def ready(self) -> list[Link]:
        """The directions that have something to deliver and are not held, sorted."""
        return sorted(
            link for link, queue in self._queues.items() if queue and link not in self._held
        )

    def deliver_oldest(self) -> Link | None:
        """Deliver what was sent first of all that is ready; None if nothing is."""
        ready = self.ready()
        if not ready:
            return None
        oldest = min(ready, key=lambda link: self._queues[link][0][0])
        self._deliver_head(oldest)
        return oldest

    def deliver(self, count: int = 1) -> int:
        """Deliver up to ``count`` messages in the order of sending; returns how many."""
        delivered = 0
        while delivered < count and self.deliver_oldest():
            delivered += 1
        return delivered

    def deliver_all(self) -> int:
        """Deliver until nothing is ready, answers included; returns how many."""
        delivered = self.deliver(_DELIVERIES_MAX)
        if delivered == _DELIVERIES_MAX:
            raise RuntimeError(f"the nodes exchanged {delivered} messages and did not come to rest")
        return delivered

    def deliver_link(self, source: str, target: str, count: int = 1) -> int:
        """Deliver up to ``count`` messages of one direction, held or not; returns how many."""
        link = Link(source, target)
        delivered = 0
        while delivered < count and self._queues.get(link):  # a delivery may break the link
            self._deliver_head(link)
            delivered += 1
        return delivered

    def step(self, random: Random) -> Link | None:
        """Deliver one message of a direction chosen by ``random``; None if nothing is ready."""
        ready = self.ready()
        if not ready:
            return None
        link = random.choice(ready)
        self._deliver_head(link)
        return link

    # --- inside ------------------------------------------------------------------------------

    def _deliver_head(self, link: Link) -> None:
        number, payload = self._queues[link].popleft()
        self._record("deliver", link, payload, number)
        self._endpoints[link.target].on_message(link.source, payload)

    def _lose_queue(self, link: Link) -> None:
        for number, payload in self._queues.pop(link, ()):
            self._record("lose", link, payload, number)

    def _tell_disconnected(self, link: Link) -> None:
        """Tell the source of ``link`` that it has lost its target, if it believes otherwise."""
        if link not in self._told:
            return
        self._told.discard(link)
        self._record("disconnect", link)
        endpoint = self._endpoints.get(link.source)
        if endpoint is not None:
            endpoint.on_disconnected(link.target)

    def _linked_to(self, name: str) -> list[str]:
        """The nodes that believe in a link with ``name``, or that ``name`` believes in."""
        return sorted(
            {link.target for link in self._told if link.source == name}
            | {link.source for link in self._told if link.target == name}
        )

    def _record(self, what: str, link: Link, payload: object = None, number: int = 0) -> None:
        self.trace.append(Event(number, what, link, payload))
