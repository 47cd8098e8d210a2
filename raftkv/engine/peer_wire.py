"""What engines send each other on a link: the channels, and what whoever sends needs of the links.

A message is bytes on a channel. The links (:mod:`raftkv.engine.links`) carry it; the engine
(:mod:`raftkv.engine.engine`) hands it to whom the channel belongs to.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

CHANNEL_RAFT = 1
"""A list of envelopes (:mod:`raftkv.raft.messages`)."""

CHANNEL_CALL = 2
"""A :class:`raftkv.rpc.messages.Call` that is forwarded."""

CHANNEL_REPLY = 3
"""The :class:`raftkv.rpc.messages.Reply` to one."""

CHANNEL_NODE_STATE = 4
"""A :class:`raftkv.engine.balancer.NodeState`, every second and when a link comes or goes."""

CHANNEL_STATUS = 5
"""(number, facts or None): a question has no facts, an answer does."""

CHANNEL_LEADERSHIP = 6
"""A :class:`raftkv.engine.balancer.Placed` or ``Lost``, when it happens."""

CHANNEL_MAX = 62
"""The highest of these channels."""

CHANNEL_CONTROL = 127
"""The link's own: its handshake, pings, and how much of what is large was taken."""

Encode = Callable[[], bytes | None]
"""Makes the message when it leaves; None if nobody wants it any more."""


class Links(Protocol):
    """The links of this node to its peers, as those see them who send and who report."""

    @property
    def connected(self) -> frozenset[str]:
        """Peers that can be sent to."""

    def is_connected(self, peer: str) -> bool:
        """Whether ``peer`` can be sent to."""

    def send(self, peer: str, channel: int, payload: bytes, *, bulk: bool = False) -> bool:
        """Queue a message; in order, or lost with the link. False: no link, or a full queue."""

    def send_small(self, peer: str, channel: int, payload: bytes) -> bool:
        """Queue a small message; False: no link, or so much waits that it should be offered."""

    def offer(
        self, peer: str, channel: int, size_bytes: int, encode: Encode, *, bytes_max: int
    ) -> bool:
        """Let a message wait until the peer has room; False: no link, or ``bytes_max`` wait."""

    def lag_s(self, peer: str) -> float:
        """At most so many seconds ago was sent what comes from ``peer`` now."""

    def round_trip_s(self, peer: str) -> float | None:
        """Smoothed round trip time; None before the first ping was answered."""

    def changed_us(self, peer: str) -> int | None:
        """When the link came up or was lost, in microseconds of wall clock; None if neither."""

    def refusal(self, peer: str) -> str | None:
        """Why the last handshake with ``peer`` failed; None if it did not."""

    @property
    def refusals(self) -> Mapping[str, str]:
        """The same of all peers, and of proven nodes that are not in the map."""
