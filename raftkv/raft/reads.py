"""Linearizable reads without the log: ReadIndex (Raft dissertation, section 6.4).

The leader, having applied its own term's no-op, notes its commit index and asks the members
whether they still follow it in this term. When a majority has said so, after the question was
sent, no newer leader can have committed anything before the read arrived. One round serves every
read that was waiting when it was sent; later ones wait for the next.

Rounds are numbered from 1 in every life. An answer to a round of an earlier life proves nothing by
mistake: it names its term, and nobody leads in one term in two lives. It goes out in the turn in
which the question came, with the link or not at all.

A read that another member forwards brings that member's answer along: its term when it forwarded,
which is after the read arrived. Where leader and forwarder are a majority no round is needed.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from raftkv.core.cluster_map import GroupId
from raftkv.raft import messages as wire
from raftkv.raft.clock import Clock
from raftkv.raft.host import Host
from raftkv.raft.proposals import GroupFailure
from raftkv.raft.quorum import majority
from raftkv.raft.replica import Replica

ReadDone = Callable[[GroupFailure | None], None]
"""Called once; None: read the state machine now, before anything else is applied."""


@dataclass(frozen=True, slots=True)
class Voucher:
    """A member's word: ``term`` was its term when it forwarded a read that it had received."""

    member: str
    term: int


class ReadIndex:
    """The reads of one replica that wait to be confirmed or for their index to be applied.

    Args:
        resend_s: a question that is not answered is asked again after this long.
        waiting_max: more reads than this are not taken.
    """

    def __init__(
        self,
        group: GroupId,
        *,
        replica: Replica,
        host: Host,
        clock: Clock,
        resend_s: float,
        waiting_max: int,
    ) -> None:
        self._group = group
        self._replica = replica
        self._host = host
        self._clock = clock
        self._resend_s = resend_s
        self._waiting_max = waiting_max
        self._majority = majority(len(replica.peers) + 1)
        self._round = 0
        self._waiting: list[ReadDone] = []
        self._asking: list[ReadDone] = []
        self._asking_index = 0
        self._asking_term = 0
        self._asked_at = 0.0
        self._confirmed: set[str] = set()
        self._ready: deque[tuple[int, ReadDone]] = deque()  # (index to be applied, read)

    def __len__(self) -> int:
        """Return how many reads are not answered yet."""
        return len(self._waiting) + len(self._asking) + len(self._ready)

    # --- at the leader ------------------------------------------------------------------------

    def confirm(self, done: ReadDone, voucher: Voucher | None = None) -> None:
        """Call ``done(None)`` once the state may be read linearizably, at that very moment.

        ``voucher`` is of the member that forwarded the read, if one did.
        """
        if voucher is not None and self._is_confirmed_by(voucher):
            done(None)
        elif not self._replica.is_leader:
            done(GroupFailure("not_leader"))
        elif len(self) >= self._waiting_max:
            done(GroupFailure("busy", "too many reads are waiting for this shard"))
        else:
            self._waiting.append(done)
            self._host.wake(self._group)

    def _is_confirmed_by(self, voucher: Voucher) -> bool:
        """Whether a read may be served at once: we lead with the forwarder's consent.

        A newer leader would have needed one of us two: not us, as we are in this term still, and
        not the forwarder before the read arrived. Larger groups ask, as do all while something
        committed is not applied.
        """
        replica = self._replica
        return (
            replica.is_leader
            and voucher.term == replica.term
            and voucher.member in replica.peers
            and self._majority <= 2  # noqa: PLR2004 -- us and the forwarder
            and replica.no_op_applied
            and replica.applied_index >= replica.commit_index
        )

    def tick(self) -> list[ReadDone]:
        """Start a round if one is due; return the reads that may be served now."""
        if not (self._waiting or self._asking or self._ready):
            return []
        replica = self._replica
        if not replica.is_leader or not (self._waiting or self._asking):
            return self._served()
        if self._asking:
            if self._clock.monotonic() >= self.next_deadline():
                self._ask_members()  # lost with a link, perhaps; an answer to either will do
        elif replica.no_op_applied:
            self._start_round()
        return self._served()

    def _start_round(self) -> None:
        """Ask about everything that waits; what comes later waits for the next round."""
        self._round += 1
        self._asking, self._waiting = self._waiting, []
        self._asking_index = self._replica.commit_index
        self._asking_term = self._replica.term
        self._confirmed = set()
        if self._majority == 1:
            self._complete()
        else:
            self._ask_members()

    def _ask_members(self) -> None:
        self._asked_at = self._clock.monotonic()
        question = wire.ConfirmLeader(self._asking_term, self._round)
        for peer in self._replica.peers:
            self._host.send(self._group, peer, question)

    @property
    def is_asking(self) -> bool:
        """Whether a round is under way."""
        return bool(self._asking)

    def next_deadline(self) -> float:
        """When an unanswered round is asked anew, in monotonic seconds."""
        return self._asked_at + self._resend_s if self._asking else float("inf")

    def on_confirmed(self, peer: str, message: wire.LeaderConfirmed) -> bool:
        """Count a member's yes to this very round; whether the round is complete now (H15)."""
        if (
            not self._asking
            or message.round != self._round
            or message.term != self._asking_term
            or peer not in self._replica.peers
        ):
            return False
        self._confirmed.add(peer)
        if len(self._confirmed) + 1 < self._majority:
            return False
        if not self._replica.is_leader or self._replica.term != self._asking_term:
            return False
        self._complete()
        return True

    def _complete(self) -> None:
        self._ready.extend((self._asking_index, done) for done in self._asking)
        self._asking = []

    def _served(self) -> list[ReadDone]:
        served = []
        applied = self._replica.applied_index
        while self._ready and self._ready[0][0] <= applied:
            served.append(self._ready.popleft()[1])
        return served

    def fail_all(self) -> list[ReadDone]:
        """Give up every read that is not confirmed: this replica stopped leading.

        Confirmed reads stay: their index is fixed, and is applied whoever leads.
        """
        failed, self._asking, self._waiting = self._asking + self._waiting, [], []
        return failed

    # --- at the other members -----------------------------------------------------------------

    def on_confirm(self, peer: str, message: wire.ConfirmLeader) -> None:
        """Say yes to a leader only in the same term: no newer one exists for this member."""
        term = self._replica.term
        if message.term == term:
            self._host.send(self._group, peer, wire.LeaderConfirmed(term, message.round))
        elif message.term < term:
            self._host.send(self._group, peer, wire.HigherTerm(term))
