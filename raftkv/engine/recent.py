"""What a node remembers of its recent past for its operators: bounded, and in memory only."""

from collections import deque

import msgspec

from raftkv.raft.clock import Clock
from raftkv.status.facts import Event, Leadership

LEADERSHIPS_KEPT = 20
EVENTS_KEPT = 200
TRAIL_KEPT = 300


class Leaderships:
    """The latest leaders of one group, as this replica came to know them."""

    def __init__(self, began_us: int | None = None) -> None:
        self._latest: deque[Leadership] = deque(maxlen=LEADERSHIPS_KEPT)
        self._began_us = began_us
        self.leader: str | None = None
        """Who is known to lead now."""
        self.term = -1
        """In which term the last that is known has led."""
        self.last: str | None = None
        """Who was the last that is known to have led."""
        self.changes = 0
        """How often a leader was learnt of, since the start."""

    def note(self, term: int, leader: str | None, at_us: int) -> None:
        """Remember that ``leader`` leads from now on, or that nobody is known to."""
        self._latest.append(Leadership(term, leader, at_us))
        self.leader = leader
        if leader is not None:
            self.changes += (leader, term) != (self.last, self.term)  # heard again is no change
            self.last, self.term = leader, term

    @property
    def since_us(self) -> int | None:
        """Since when the present leader is known, in microseconds of wall clock."""
        return None if self.leader is None else self._latest[-1].at_us

    @property
    def nobody_since_us(self) -> int | None:
        """Since when nobody is known to lead; None: somebody does."""
        if self.leader is not None:
            return None
        return self._latest[-1].at_us if self._latest else self._began_us

    def facts(self) -> tuple[Leadership, ...]:
        """Return them, newest last."""
        return tuple(self._latest)


class RecentEvents:
    """What happened on this node lately, of every kind that operators ask for."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._latest: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._noted_at: dict[str, float] = {}

    def add(
        self, kind: str, detail: str = "", *, shard: int | None = None, term: int | None = None
    ) -> None:
        """Remember that something happened now."""
        at_us = self._clock.time_us()
        self._latest.append(Event(at_us=at_us, kind=kind, shard=shard, term=term, detail=detail))

    def add_at_most_every(self, seconds: float, kind: str, detail: str) -> bool:
        """Remember it unless the same kind was noted just before; tell whether it was.

        One kind of trouble that comes a hundred times a second must not drive out all others.
        """
        now = self._clock.monotonic()
        if now - self._noted_at.get(kind, float("-inf")) < seconds:
            return False
        self._noted_at[kind] = now
        self.add(kind, detail)
        return True

    def facts(self, count: int, node: str) -> tuple[Event, ...]:
        """Return the newest ``count`` as those of ``node``, newest last."""
        newest = tuple(self._latest)[-count:]
        return tuple(msgspec.structs.replace(event, node=node) for event in newest)


class CommitTrail:
    """When a leader had committed how far, once a second: says how old a missing entry is."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=TRAIL_KEPT)

    def note(self, now: float, commit_index: int) -> None:
        """Take one sample; call every second."""
        if not self._samples or commit_index != self._samples[-1][1]:
            self._samples.append((now, commit_index))

    def clear(self) -> None:
        """Forget everything: somebody else leads."""
        self._samples.clear()

    def lag_s(self, now: float, match_index: int, commit_index: int) -> float:
        """How long ago the first entry after ``match_index`` was seen committed, in seconds.

        0 if nothing that is committed is missing. True to a second, and at most as old as the
        trail: what was committed before it counts from its beginning.
        """
        if match_index >= commit_index:
            return 0.0
        for at, index in self._samples:
            if index > match_index:
                return round(now - at, 1)
        return 0.0  # committed after the last sample
