"""How old a follower's data is, by its own clock (design, section 5).

A deposed leader's heartbeats look fresh and prove nothing. So a follower notes the time and asks;
the leader completes a quorum round after that and answers with the commit index of then; once that
index is applied here, the local state is no older than the question.
"""

from raftkv.core.cluster_map import GroupId
from raftkv.raft import messages as wire
from raftkv.raft.clock import Clock
from raftkv.raft.host import Host
from raftkv.raft.member import RandomSource
from raftkv.raft.proposals import Rejection
from raftkv.raft.reads import ReadDone, ReadIndex
from raftkv.raft.replica import Replica

ASK_AGAIN_US = 100_000
"""A question that is not answered by then is asked again by the next read that needs it."""

QUESTIONS_MAX = 32
"""Questions that may be unanswered; an answer to an older one is not waited for."""


class Freshness:
    """What one replica knows about the age of its state, and the reads that wait to know.

    Questions are numbered from a random start: an answer to a question of an earlier life of this
    node would speak of a clock that has been set anew since. A leader may hold its answer until a
    round is complete, and send it over a later link.
    """

    def __init__(
        self,
        group: GroupId,
        *,
        replica: Replica,
        reads: ReadIndex,
        host: Host,
        clock: Clock,
        random: RandomSource,
        waiting_max: int,
    ) -> None:
        self._group = group
        self._replica = replica
        self._reads = reads
        self._host = host
        self._clock = clock
        self._waiting_max = waiting_max
        self._number = int(random.random() * 2**52)
        self._questions: dict[int, int] = {}  # number -> when it was asked, in microseconds
        self._proven_us: int | None = None
        self._echoed: tuple[int, int] | None = None  # (stamp, commit index), not applied yet
        self._asked_us: int | None = None
        self._waiting: list[tuple[int, ReadDone]] = []  # (oldest stamp that will do, read)

    def _now_us(self) -> int:
        return int(self._clock.monotonic() * 1e6)

    def age_ms(self) -> int | None:
        """Milliseconds, rounded up, or None if nothing was ever proven."""
        if self._proven_us is None:
            return None
        return -((self._proven_us - self._now_us()) // 1000)

    def ensure(self, max_age_ms: int, done: ReadDone) -> None:
        """Call ``done(None)`` once the local state is at most ``max_age_ms`` old.

        Asks the leader for a confirmed commit index if need be; a follower that cannot reach one
        is told so at once, one whose leader is silent waits until the caller gives up.
        """
        if self._replica.is_leader:
            self._reads.confirm(done)
            return
        age, leader = self.age_ms(), self._replica.leader_name
        if age is not None and age <= max_age_ms:
            done(None)
        elif leader is None:
            done(Rejection("not_leader", "no leader can confirm how old the local data is"))
        elif len(self._waiting) >= self._waiting_max:
            done(Rejection("busy", "too many reads are waiting for this shard"))
        else:
            now = self._now_us()
            self._waiting.append((now - max_age_ms * 1000, done))
            self._ask(leader, now)

    def _ask(self, leader: str, now_us: int) -> None:
        """Ask the leader, unless a question is on its way."""
        if self._asked_us is not None and now_us - self._asked_us < ASK_AGAIN_US:
            return
        self._asked_us = now_us
        self._number += 1
        self._questions[self._number] = now_us
        self._questions.pop(self._number - QUESTIONS_MAX, None)
        self._host.send(self._group, leader, wire.FreshnessQuery(self._number))

    def on_query(self, peer: str, message: wire.FreshnessQuery) -> None:
        """Answer a follower with the commit index, once we are confirmed to lead."""

        def confirmed(rejection: Rejection | None) -> None:
            if rejection is None:
                echo = wire.FreshnessEcho(message.question, self._replica.commit_index)
                self._host.send(self._group, peer, echo)

        self._reads.confirm(confirmed)

    def on_echo(self, message: wire.FreshnessEcho) -> None:
        """Hear the answer to a question of ours; it counts once its commit index is applied."""
        self._host.wake(self._group)
        stamp_us = self._questions.pop(message.question, None)
        if stamp_us is None:
            return
        if self._asked_us == stamp_us:
            self._asked_us = None
        if self._echoed is None or stamp_us > self._echoed[0]:
            self._echoed = (stamp_us, message.commit_index)
        self._prove()

    def _prove(self) -> None:
        if self._echoed is not None and self._echoed[1] <= self._replica.applied_index:
            self._proven_us = max(self._echoed[0], self._proven_us or 0)
            self._echoed = None

    def satisfied(self) -> list[ReadDone]:
        """Take out the reads for which the local state is fresh enough now."""
        if self._echoed is not None:
            self._prove()
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
