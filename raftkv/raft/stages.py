"""Where the time of a write goes at its leader: a few time stamps per entry, none per operation."""

from collections import deque
from typing import Literal, get_args

from raftkv.raft.clock import Clock
from raftkv.status.durations import DurationCounts

Stage = Literal["queue", "wal", "replication", "apply"]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""``queue``: the first operation of an entry waits to be proposed; ``wal``: until this node's own
disk has the entry; ``replication``: from its proposal until it is committed, beside ``wal``;
``apply``: the state machine."""

BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

FINISHED_KEPT = 16


class StageDurations:
    """How long the stages took, of all entries of a node."""

    def __init__(self) -> None:
        self.by_stage: dict[Stage, DurationCounts] = {
            stage: DurationCounts(BOUNDS_S) for stage in STAGES
        }


class EntryTimes:
    """One entry's way, in monotonic seconds."""

    __slots__ = ("applied", "durable", "index", "offered", "proposed", "reached", "term")

    def __init__(self, index: int, term: int, offered: float, proposed: float) -> None:
        self.index = index
        self.term = term
        self.offered = offered
        self.proposed = proposed
        self.durable: float | None = None
        self.reached = 0.0  # committed, and its turn to be applied
        self.applied = 0.0

    def seconds(self) -> dict[Stage, float]:
        """Return how long each stage took; without ``wal`` if a majority without us was faster."""
        took: dict[Stage, float] = {
            "queue": self.proposed - self.offered,
            "replication": self.reached - self.proposed,
            "apply": self.applied - self.reached,
        }
        if self.durable is not None:
            took["wal"] = self.durable - self.proposed
        return took


class EntryStages:
    """Follows the entries that one replica proposes as leader.

    ``following`` tells whether there are any on their way; a follower never has one.
    """

    def __init__(self, clock: Clock, durations: StageDurations) -> None:
        self._clock = clock
        self._durations = durations
        self.following: deque[EntryTimes] = deque()
        self._finished: deque[EntryTimes] = deque(maxlen=FINISHED_KEPT)

    def proposed(self, index: int, term: int, offered: float) -> None:
        """Begin to follow an entry; ``offered`` is when its oldest operation came."""
        self.following.append(EntryTimes(index, term, offered, self._clock.monotonic()))

    def durable(self, index: int) -> None:
        """Called when this node's disk has everything up to ``index``."""
        now = self._clock.monotonic()
        for entry in self.following:
            if entry.durable is None and entry.index <= index:
                entry.durable = now

    def reached(self, index: int, term: int) -> EntryTimes | None:
        """Called when an entry is committed and will be applied; None if nobody waits for it.

        Those before it, and one of another term at its place, were lost: they are forgotten.
        """
        while self.following and self.following[0].index <= index:
            entry = self.following.popleft()
            if (entry.index, entry.term) == (index, term):
                entry.reached = self._clock.monotonic()
                return entry
        return None

    def applied(self, entry: EntryTimes) -> None:
        """Called when it is applied; counts its stages."""
        entry.applied = self._clock.monotonic()
        self._finished.append(entry)
        for stage, seconds in entry.seconds().items():
            self._durations.by_stage[stage].note(seconds)

    def forget(self) -> None:
        """Follow none of them any more: this replica stopped leading."""
        self.following.clear()

    def of_write(self, since: float) -> EntryTimes | None:
        """Return the latest entry that took what came at ``since``, just applied.

        Operations enter the log in the order in which they came: it is the first one that was
        proposed after that.
        """
        return next((entry for entry in self._finished if entry.proposed >= since), None)
