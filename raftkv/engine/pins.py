"""Leaderships that an operator has put on a node, which the balancer leaves there.

A pin lives in the memory of the node on which the leadership was put: it ends with that node's
process, when its time is up, or when an operator moves the leadership again. The node tells the
others of its pins with its state, every second; the newest one counts.
"""

import math

import msgspec

from raftkv.raft.clock import Clock


class Pin(msgspec.Struct, array_like=True, frozen=True):
    """``until_us``: the end in microseconds of the node's wall clock; None: until it stops."""

    shard: int
    since_us: int
    until_us: int | None


class Pins:
    """The pins of this node."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pins: dict[int, tuple[Pin, float]] = {}  # shard -> pin, and when it ends (monotonic)

    def put(self, shard: int, for_s: float | None) -> None:
        """Keep the leadership of ``shard`` here, for so many seconds or until this node stops."""
        now_us = self._clock.time_us()
        until_us = None if for_s is None else now_us + int(for_s * 1e6)
        ends = math.inf if for_s is None else self._clock.monotonic() + for_s
        self._pins[shard] = (Pin(shard, now_us, until_us), ends)

    def remove(self, shard: int) -> None:
        """It was moved elsewhere."""
        self._pins.pop(shard, None)

    def give_way(self, other: Pin) -> None:
        """Called with another node's pin, which counts if it is newer."""
        own = self._pins.get(other.shard)
        if own is not None and other.since_us > own[0].since_us:
            del self._pins[other.shard]

    def told(self) -> tuple[Pin, ...]:
        """Return those that count at present."""
        now = self._clock.monotonic()
        self._pins = {shard: held for shard, held in self._pins.items() if held[1] > now}
        return tuple(pin for pin, _ in self._pins.values())
