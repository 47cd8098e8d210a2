"""How old a follower's data is, by its own clock (design, section 5).

A deposed leader's heartbeats look fresh and prove nothing. So a follower sends a stamp of its own
clock, the leader completes a quorum round after that and sends the stamp back with the commit
index of then; once that index is applied here, the local state is no older than the stamp.
"""

from raftkv.raft.clock import Clock
from raftkv.raft.messages import FreshnessEcho
from raftkv.raft.reads import ReadDone

ASK_AGAIN_US = 100_000
"""A question that is not answered by then is asked again by the next read that needs it."""


class Freshness:
    """What one follower knows about the age of its state, and the reads that wait to know."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._proven_us: int | None = None
        self._echoed: tuple[int, int] | None = None  # (stamp, commit index), not applied yet
        self._asked_us: int | None = None
        self._waiting: list[tuple[int, ReadDone]] = []  # (oldest stamp that will do, read)

    def _now_us(self) -> int:
        return int(self._clock.monotonic() * 1e6)

    @property
    def waiting(self) -> int:
        """How many reads wait."""
        return len(self._waiting)

    def age_ms(self) -> int | None:
        """Milliseconds, rounded up, or None if nothing was ever proven."""
        if self._proven_us is None:
            return None
        return -((self._proven_us - self._now_us()) // 1000)

    def ask(self, max_age_ms: int, done: ReadDone) -> int | None:
        """Let ``done`` wait; return the stamp to send to the leader, None if one is on its way."""
        now = self._now_us()
        self._waiting.append((now - max_age_ms * 1000, done))
        if self._asked_us is not None and now - self._asked_us < ASK_AGAIN_US:
            return None
        self._asked_us = now
        return now

    def on_echo(self, message: FreshnessEcho, applied_index: int) -> None:
        """Hear the stamp back; it counts once its commit index is applied."""
        self._asked_us = None
        if self._echoed is None or message.stamp_us > self._echoed[0]:
            self._echoed = (message.stamp_us, message.commit_index)
        self._prove(applied_index)

    def _prove(self, applied_index: int) -> None:
        if self._echoed is not None and self._echoed[1] <= applied_index:
            self._proven_us = max(self._echoed[0], self._proven_us or 0)
            self._echoed = None

    def satisfied(self, applied_index: int) -> list[ReadDone]:
        """Take out the reads for which the local state is fresh enough now."""
        self._prove(applied_index)
        if not self._waiting or self._proven_us is None:
            return []
        proven = self._proven_us
        served = [done for oldest, done in self._waiting if oldest <= proven]
        self._waiting = [(oldest, done) for oldest, done in self._waiting if oldest > proven]
        return served

    def fail_all(self) -> list[ReadDone]:
        """Take out all that wait."""
        failed, self._waiting = [done for _, done in self._waiting], []
        return failed
