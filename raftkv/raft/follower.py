"""What a follower accepts of its leader's log, and acknowledges (Raft paper 5.3, figure 2).

The receiver's rules are decided here. Stock code is left with appends that do not simply go on:
those of a new leader or term, and those that conflict or leave a gap.
"""

from raftkv.raft import messages as wire
from raftkv.raft.campaign import Campaign
from raftkv.raft.clock import Clock
from raftkv.raft.errors import ReplicaError
from raftkv.raft.journal import GroupJournal, LogEntry
from raftkv.raft.outbox import Outbox
from raftkv.raft.stock import Matched, Mismatch, Stock
from raftkv.raft.timing import Timing


class Follower:
    """The receiving end of replication."""

    def __init__(
        self,
        *,
        stock: Stock,
        journal: GroupJournal,
        outbox: Outbox,
        campaign: Campaign,
        clock: Clock,
        timing: Timing,
    ) -> None:
        self._stock = stock
        self._journal = journal
        self._outbox = outbox
        self._campaign = campaign
        self._clock = clock
        self._timing = timing
        self._answered = float("-inf")  # when it last answered, in monotonic seconds

    def on_append(self, peer: str, message: wire.AppendEntries) -> None:
        """Accept entries by the receiver's rules of the Raft paper (figure 2, steps 1 to 5).

        Stock deletes everything after ``prev_index`` without looking for a conflict (H2). So it
        is only shown what is really new, and not even that where nothing can conflict: the part
        that our log already holds is cut off here, and both the commit index and the
        acknowledgement stop where this message's proof stops.
        """
        stock = self._stock
        if message.term < stock.term:
            self._outbox.send(peer, wire.HigherTerm(stock.term))
            return
        if stock.is_leader and message.term == stock.term:
            raise ReplicaError(f"{peer} and this node both lead in term {stock.term}")
        for _, term in message.entries:
            if term > message.term:  # it would raise ours with the next start
                return
        if message.term != stock.term and not stock.is_near(message.term):
            return
        now = self._clock.monotonic()
        self._campaign.heard_leader(now)
        if self._goes_on(peer, message):
            self._take_next(peer, message, now)
            return
        prev_index, prev_term, entries = self._unknown_part(message)
        proven = max(message.prev_index + len(message.entries), self._journal.first_index)
        commit_index = min(message.commit_index, proven)
        previous = prev_index, prev_term
        match stock.take_append(peer, message.term, commit_index, previous, entries):
            case Matched(index):
                self._acknowledge(peer, min(index, proven))
            case Mismatch(index):
                self._refuse(peer, prev_index, index)

    def _goes_on(self, peer: str, message: wire.AppendEntries) -> bool:
        """Whether the leader that we follow sends what comes after our last entry, if anything.

        As nearly always: nothing about it is new but the entries, and nothing can conflict.
        """
        journal, stock = self._journal, self._stock
        return (
            message.prev_index == journal.last_index
            and message.prev_term == journal.last_term
            and message.term == stock.term
            and stock.leader == peer
            and not stock.asked_to_lead
        )

    def _take_next(self, peer: str, message: wire.AppendEntries, now: float) -> None:
        """Do what stock code would come to, for a message that only goes on."""
        stock, journal, index = self._stock, self._journal, message.prev_index
        stock.election_deadline = now + stock.election_timeout_s()
        for command, term in message.entries:
            index += 1
            journal.add(command, index, term)
        self._acknowledge(peer, index)
        stock.commit_index = max(stock.commit_index, min(message.commit_index, index))

    def _unknown_part(self, message: wire.AppendEntries) -> tuple[int, int, list[LogEntry]]:
        """(prev index, prev term, entries) with what the log already has cut off the front."""
        journal, prev, first = self._journal, message.prev_index, self._journal.first_index
        entries = message.entries
        numbered = [(command, prev + 1 + i, term) for i, (command, term) in enumerate(entries)]
        if prev >= first and journal.term_at(prev) != message.prev_term:
            return prev, message.prev_term, []  # stock refuses this and asks for earlier entries
        known = 0
        for _, index, term in numbered:
            if index > first and journal.term_at(index) != term:
                break
            known += 1
        if known == len(numbered):
            return journal.last_index, journal.last_term, []
        conflict = numbered[known][1]
        if conflict <= self._stock.commit_index:
            raise ReplicaError(
                f"entry {conflict} is committed here with term {journal.term_at(conflict)}, but "
                f"the leader of term {message.term} sends term {numbered[known][2]}"
            )
        return conflict - 1, journal.term_at(conflict - 1) or 0, numbered[known:]

    def _acknowledge(self, peer: str, proven: int) -> None:
        """Say that the log is the leader's up to ``proven``, in our term, once it is durable."""
        journal, term = self._journal, self._stock.term
        if proven <= journal.durable_index:
            self._answer(peer, wire.AppendResponse(term, proven + 1, success=True))
            return
        self._outbox.hold(peer, wire.AppendResponse(term, proven + 1, success=True), term)
        if self._clock.monotonic() - self._answered > self._timing.heartbeat_s / 2:
            # A slow disk is not a lost node: tell the leader that we are here, and how far.
            self._answer(peer, wire.AppendResponse(term, journal.durable_index + 1, success=True))

    def _refuse(self, peer: str, shown_index: int, other_at: int | None) -> None:
        """Say where to go on: where the log ends, or before the term that is not the leader's.

        That is a term at a time (Raft paper 5.3); stock goes one entry a round.
        """
        journal, stock = self._journal, self._stock
        next_index = journal.last_index + 1
        if other_at is not None:
            next_index = journal.first_index_of_term_at(other_at, stock.commit_index)
        refusal = wire.AppendResponse(stock.term, next_index, success=False, refused=shown_index)
        self._answer(peer, refusal)

    def _answer(self, peer: str, message: wire.AppendResponse) -> None:
        self.answered()
        self._outbox.send(peer, message)

    def answered(self) -> None:
        """Something leaves for the leader now: it hears that we are here."""
        self._answered = self._clock.monotonic()
