"""How old a follower's data is, by its own clock (docs/design.md, "A read").

A deposed leader's heartbeats look fresh and prove nothing. So a follower notes the time and asks;
the leader completes a quorum round after that and answers with the commit index of then; once that
index is applied here, the local state is no older than the question.

Ages are measured by the clock that goes on while the machine is suspended.
"""

from raftkv.core.cluster_map import GroupId
from raftkv.raft import messages as wire
from raftkv.raft.clock import Clock
from raftkv.raft.host import Host
from raftkv.raft.proposals import GroupFailure
from raftkv.raft.reads import ReadDone, ReadIndex
from raftkv.raft.replica import Replica
from raftkv.raft.timing import RandomSource

ASK_AGAIN_S = 0.1
"""A question that is not answered by then is asked again while a read waits."""

QUESTIONS_MAX = 32
"""Questions that may be unanswered; an answer to an older one is not waited for."""

NO_LEADER = "no leader can confirm how old the local data is"


class Freshness:
    """What one replica knows about the age of its state, and the reads that wait to know.

    Questions are numbered from a random start: an answer to a question of an earlier life of this
    node would speak of a clock that has been set anew since. A leader may hold its answer until a
    round is complete, and send it over a later link.

    Args:
        election_s: for so long after a leader was heard its successor is waited for.
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
        election_s: float,
    ) -> None:
        self._group = group
        self._replica = replica
        self._reads = reads
        self._host = host
        self._clock = clock
        self._waiting_max = waiting_max
        self._election_s = election_s
        self._number = int(random.random() * 2**52)
        self._questions: dict[int, int] = {}  # number -> when it was asked, in microseconds
        self._proven_us: int | None = None
        self._echoed: tuple[int, int] | None = None  # (stamp, commit index), not applied yet
        self._asked: tuple[str, int] | None = None  # the last question unless it is answered
        self._ask_again_at = 0.0  # in monotonic seconds, unless it is answered by then
        self._waiting: list[tuple[int, ReadDone]] = []  # (oldest stamp that will do, read)

    def _now_us(self) -> int:
        return int(self._clock.boottime() * 1e6)

    def age_ms(self) -> int | None:
        """Milliseconds, rounded up, or None if nothing was ever proven."""
        if self._proven_us is None:
            return None
        return -((self._proven_us - self._now_us()) // 1000)

    def ensure(self, max_age_ms: int, done: ReadDone) -> None:
        """Call ``done(None)`` once the local state is at most ``max_age_ms`` old.

        Asks the leader for a confirmed commit index if need be, and again until there is an answer
        that will do; a follower that reaches no leader says so at once.
        """
        if self._replica.is_leader:
            self._reads.confirm(done)
            return
        age = self.age_ms()
        if age is not None and age <= max_age_ms:
            done(None)
        elif self._is_cut_off():
            done(GroupFailure("not_leader", NO_LEADER))
        elif len(self._waiting) >= self._waiting_max:
            done(GroupFailure("busy", "too many reads are waiting for this shard"))
        else:
            self._waiting.append((self._now_us() - max_age_ms * 1000, done))
            self._ask()
            self._host.wake(self._group)  # for the time when to ask again

    def _leader(self) -> str | None:
        """Return the leader, if it can be asked."""
        leader = self._replica.leader
        return leader if leader is not None and self._replica.is_linked(leader) else None

    def _is_cut_off(self) -> bool:
        """Whether there is no leader to ask, and none that is about to be elected."""
        if self._replica.leader is not None:
            return self._leader() is None
        return self._clock.monotonic() - self._replica.leader_contact > self._election_s

    @property
    def is_waiting(self) -> bool:
        """Whether a read waits for an answer."""
        return bool(self._waiting)

    def next_deadline(self) -> float:
        """When the leader is to be asked again, in monotonic seconds."""
        return float("inf") if self._asked is None else self._ask_again_at

    def tick(self) -> list[tuple[ReadDone, GroupFailure | None]]:
        """Take out the reads that can be answered, and ask again for the others if need be."""
        if self._echoed is not None:
            self._prove()
        if not self._waiting:
            return []
        if self._is_cut_off():
            return [(done, GroupFailure("not_leader", NO_LEADER)) for done in self.fail_all()]
        served: list[tuple[ReadDone, GroupFailure | None]] = []
        if (proven := self._proven_us) is not None:
            served += [(done, None) for oldest, done in self._waiting if oldest <= proven]
            self._waiting = [(oldest, done) for oldest, done in self._waiting if oldest > proven]
        self._ask()
        return served

    def _ask(self) -> None:
        """Ask the leader, unless a question to it is on its way or an answer only to be applied.

        One question at a time, as many reads share it. Those that came after it was asked, and want
        data that is newer, are asked for as soon as it is answered.
        """
        leader, now = self._leader(), self._clock.monotonic()
        if leader is None or not self._waiting:
            return
        if self._asked is not None:
            if self._asked[0] == leader and now < self._ask_again_at:
                return
        elif self._echoed is not None and self._echoed[0] >= max(at for at, _ in self._waiting):
            return
        stamp_us = self._now_us()
        self._asked, self._ask_again_at = (leader, stamp_us), now + ASK_AGAIN_S
        self._number += 1
        self._questions[self._number] = stamp_us
        self._questions.pop(self._number - QUESTIONS_MAX, None)
        self._host.send(self._group, leader, wire.FreshnessQuery(self._number))

    def on_query(self, peer: str, message: wire.FreshnessQuery) -> None:
        """Answer a follower with the commit index, once we are confirmed to lead."""

        def confirmed(failure: GroupFailure | None) -> None:
            if failure is None:
                echo = wire.FreshnessEcho(message.question, self._replica.commit_index)
                self._host.send(self._group, peer, echo)

        self._reads.confirm(confirmed)

    def on_echo(self, message: wire.FreshnessEcho) -> None:
        """Hear the answer to a question of ours; it counts once its commit index is applied."""
        self._host.wake(self._group)
        stamp_us = self._questions.pop(message.question, None)
        if stamp_us is None:
            return
        if self._asked is not None and self._asked[1] == stamp_us:
            self._asked = None
        if self._echoed is None or stamp_us > self._echoed[0]:
            self._echoed = (stamp_us, message.commit_index)
        self._prove()

    def _prove(self) -> None:
        if self._echoed is not None and self._echoed[1] <= self._replica.applied_index:
            self._proven_us = max(self._echoed[0], self._proven_us or 0)
            self._echoed = None

    def fail_all(self) -> list[ReadDone]:
        """Take out all that wait."""
        failed, self._waiting = [done for _, done in self._waiting], []
        return failed
