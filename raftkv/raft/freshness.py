"""How old a follower's data is, by its own clock (design, section 5).

A deposed leader's heartbeats look fresh and prove nothing. So a follower notes the time and asks;
the leader completes a quorum round after that and answers with the commit index of then; once that
index is applied here, the local state is no older than the question.
"""

from raftkv.raft.clock import Clock
from raftkv.raft.member import RandomSource
from raftkv.raft.messages import FreshnessEcho
from raftkv.raft.reads import ReadDone

ASK_AGAIN_US = 100_000
"""A question that is not answered by then is asked again by the next read that needs it."""

QUESTIONS_MAX = 32
"""Questions that may be unanswered; an answer to an older one is not waited for."""


class Freshness:
    """What one follower knows about the age of its state, and the reads that wait to know.

    Questions are numbered from a random start: an answer to a question of an earlier life of this
    node would speak of a clock that has been set anew since.
    """

    def __init__(self, clock: Clock, random: RandomSource) -> None:
        self._clock = clock
        self._number = int(random.random() * 2**52)
        self._questions: dict[int, int] = {}  # number -> when it was asked, in microseconds
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
        """Let ``done`` wait; return the question's number, None if one is on its way."""
        now = self._now_us()
        self._waiting.append((now - max_age_ms * 1000, done))
        if self._asked_us is not None and now - self._asked_us < ASK_AGAIN_US:
            return None
        self._asked_us = now
        self._number += 1
        self._questions[self._number] = now
        self._questions.pop(self._number - QUESTIONS_MAX, None)
        return self._number

    def on_echo(self, message: FreshnessEcho, applied_index: int) -> None:
        """Hear the answer to a question of ours; it counts once its commit index is applied."""
        stamp_us = self._questions.pop(message.question, None)
        if stamp_us is None:
            return
        if self._asked_us == stamp_us:
            self._asked_us = None
        if self._echoed is None or stamp_us > self._echoed[0]:
            self._echoed = (stamp_us, message.commit_index)
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
