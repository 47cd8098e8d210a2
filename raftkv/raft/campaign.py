"""Elections that disturb nobody: pre-vote, leader stickiness, and votes counted once.

Raft dissertation, sections 4.2.3 and 9.6. A node that cannot win does not raise its term, and a
node that still hears its leader helps nobody to depose it.

Pre-vote alone does not keep two from standing at once: when a leader is killed all its followers
see their links break in the same millisecond, and where their questions cross, each is granted the
other's, both stand, each votes for itself, and an election time-out passes before anyone stands
again. So of those that ask at the same time one goes on and the others give way. None of this is
about votes, which stay as in Raft: giving way only decides who asks for them, and when.

Rounds of pre-votes are numbered from 1 in every life. They are answered in the turn in which they
are asked, so that an answer is lost with the link, and never reaches another life.
"""

from collections.abc import Sequence

import msgspec

from raftkv.raft import messages as wire
from raftkv.raft.clock import Clock
from raftkv.raft.journal import GroupJournal
from raftkv.raft.outbox import Outbox
from raftkv.raft.quorum import majority
from raftkv.raft.ready import FOLLOWER
from raftkv.raft.stock import Stock
from raftkv.raft.timing import RandomSource, Timing


class Campaign:
    """When one replica stands for election, and whom it votes for.

    Args:
        name: this node.
        peers: the other members of the group.
        preferred: ask for the leadership first when starting; pre-vote keeps this harmless.
    """

    def __init__(
        self,
        *,
        name: str,
        peers: Sequence[str],
        stock: Stock,
        journal: GroupJournal,
        outbox: Outbox,
        clock: Clock,
        random: RandomSource,
        timing: Timing,
        preferred: bool,
    ) -> None:
        self.leader_contact = float("-inf")
        """When the current leader was last heard, in monotonic seconds."""
        self.handed_over_term = -1
        """The newest term known to have begun by a transfer, which its old leader asked for."""
        self.is_withheld = False
        """Whether this replica must not lead."""
        self._name = name
        self._peers = peers
        self._stock = stock
        self._journal = journal
        self._outbox = outbox
        self._clock = clock
        self._random = random
        self._timing = timing
        self._preferred = preferred
        self._majority = majority(len(peers) + 1)
        self._pre_vote_round = 0
        self._pre_votes: set[str] = set()
        self._pre_vote_won = False
        self._question: wire.PreVote | None = None  # what we ask the others, or won by asking
        self._asked_at = float("inf")  # when it was asked first
        self._unanswered: set[str] = set()  # who has not answered it yet
        self._settled: set[str] = set()  # with whom it is settled in this term who stands first
        self._settled_term = -1
        self._starting = True  # no leader and no candidate was seen since
        self._is_transfer = False
        self._asked_to_lead_until = 0.0  # while the leader's request to take over counts
        self._asked_to_lead_term = -1  # in which it was made
        self._voters: set[str] = set()
        self._voters_term = -1
        # Stock sets the deadline before it loads the journal, which may take long. Nobody is known
        # to lead yet, so pre-votes may go out before an election time-out is over.
        stock.election_deadline = clock.monotonic() + self._first_wait_s()

    def _first_wait_s(self) -> float:
        """How long a replica that starts waits before it asks for pre-votes."""
        if self._preferred or not self._peers:
            return 0.0
        return self._timing.election_min_s * self._random.random()

    # --- standing for election ----------------------------------------------------------------

    def begin_when_connected(self) -> None:
        """Ask for pre-votes once a majority is linked, instead of after an election time-out.

        For a replica that has seen no leader and no candidate since it started: nobody's silence
        is waited for. It is safe because only questions come earlier, votes are as ever: where a
        leader is, or a longer log, the others say no, and no term moves. The preferred leader asks
        first, so that leaders need not be moved afterwards; the others in case it is not there.
        """
        reached = len(self._stock.linked) + 1
        if reached != self._majority or not self._starting or self._stock.role != FOLLOWER:
            return
        wait_s = 0.0 if self._preferred else self._timing.heartbeat_s * (1 + self._random.random())
        soon = self._clock.monotonic() + wait_s
        self._stock.election_deadline = min(self._stock.election_deadline, soon)

    def heard_leader(self, now: float) -> None:
        """A leader of our term speaks: nothing else is asked for."""
        self.leader_contact = now
        self._starting = False
        if self._question is not None:
            self._drop_question()

    def leads(self) -> None:
        """A leadership begins here."""
        self._starting = False

    def peer_disconnected(self, peer: str) -> None:
        """The link to ``peer`` is gone, and what it would have answered.

        If that was the leader it may be dead: ask the others soon instead of waiting for the
        election time-out. Pre-vote makes this harmless where they still hear the leader.
        """
        self._unanswered.discard(peer)
        if self._stock.leader == peer:
            self._forget_request_to_lead()
            self.leader_contact = float("-inf")
            soon = self._clock.monotonic() + self._random.random() * self._timing.heartbeat_s
            self._stock.election_deadline = min(self._stock.election_deadline, soon)

    def pass_on(self, said: Sequence[tuple[str, wire.RaftMessage]]) -> None:
        """Send what stock says of votes, once the disk has the term and the vote (H8)."""
        for peer, message in said:
            if isinstance(message, wire.RequestVote) and self._is_transfer:
                self.handed_over_term = message.term
                message = msgspec.structs.replace(message, transfer=True)  # noqa: PLW2901
            self._outbox.hold(peer, message, self._stock.term)

    def gate(self) -> None:
        """Pre-vote (dissertation 9.6): stand for election only if a majority would agree.

        Stock stands as soon as its deadline has passed, so the deadline is moved until then.
        """
        now = self._clock.monotonic()
        if self._stock.election_deadline >= now:
            return
        if self.is_withheld:
            self._drop_question()
            self._stock.election_deadline = now + self._timing.election_max_s
            return
        self._is_transfer = self._asked_to_lead(now)
        won = self._pre_vote_won and now - self._asked_at <= self._timing.election_min_s
        if self._is_transfer or won or not self._peers:
            self._drop_question()
            return
        self._pre_vote_won = False  # too long ago: this node was stopped meanwhile
        # Ask again soon if refused: pre-votes disturb nobody.
        again_s = self._timing.heartbeat_s * (1.0 + self._random.random())
        self._stock.election_deadline = now + again_s
        self._ask_pre_votes()

    def _ask_pre_votes(self) -> None:
        """Ask everyone, or ask again.

        The same question again is the same round, whose earlier answers count: on links slower
        than the questions come, none would arrive in time otherwise. For an election time-out at
        most, so that what was granted long ago adds up to nothing.
        """
        now, journal, question = self._clock.monotonic(), self._journal, self._question
        if (
            question is None
            or now - self._asked_at > self._timing.election_min_s
            or (question.term, question.last_log_index, question.last_log_term)
            != (self._stock.term + 1, journal.last_index, journal.last_term)
        ):
            self._pre_vote_round += 1
            self._pre_votes.clear()
            self._asked_at = now
            self._question = question = wire.PreVote(
                self._stock.term + 1, journal.last_index, journal.last_term, self._pre_vote_round
            )
        self._unanswered = set(self._stock.linked)
        for peer in self._peers:
            self._outbox.send(peer, question)

    def withhold(self, withheld: bool) -> None:  # noqa: FBT001 -- a state, not an option
        """Neither lead nor stand for election from now on, or do so again.

        Votes are given as ever: whoever asks for one may lead.
        """
        if withheld == self.is_withheld:
            return
        self.is_withheld = withheld
        now = self._clock.monotonic()
        if withheld:
            self._drop_question()
            self._forget_request_to_lead()
            if self._stock.role != FOLLOWER:
                self._stock.follow_nobody()
            self._stock.election_deadline = now + self._timing.election_max_s
        elif self._stock.role == FOLLOWER:
            # As when it was made: nobody's silence is waited for but a leader's that it hears.
            wait_s = self._first_wait_s() if self._starting else self._stock.election_timeout_s()
            self._stock.election_deadline = now + wait_s

    def _asked_to_lead(self, now: float) -> bool:
        """Whether the leader of this term has asked us to take over, just now.

        The request skips pre-vote and stickiness, so it must not outlive what it was made for: who
        acted on it later would depose a leader that all others hear.
        """
        if not self._stock.asked_to_lead:
            return False
        if self._stock.term == self._asked_to_lead_term and now <= self._asked_to_lead_until:
            return True
        self._forget_request_to_lead()
        return False

    def _forget_request_to_lead(self) -> None:
        """Wait for the leader's silence again, like everybody else."""
        if self._stock.asked_to_lead:
            self._stock.asked_to_lead = False
            later = self._clock.monotonic() + self._stock.election_timeout_s()
            self._stock.election_deadline = later

    def _drop_question(self) -> None:
        """Take back what was asked or won: no answer to it counts any more."""
        self._pre_vote_round += 1
        self._pre_vote_won = False
        self._question = None

    # --- pre-votes and votes ------------------------------------------------------------------

    def _leader_is_near(self) -> bool:
        """Stickiness (dissertation 4.2.3): we lead, or heard a leader within the minimum."""
        if self._stock.is_leader:
            return True
        return self._clock.monotonic() - self.leader_contact < self._timing.election_min_s

    def _log_is_current(self, last_index: int, last_term: int) -> bool:
        """Raft paper 5.4.1."""
        return (last_term, last_index) >= (self._journal.last_term, self._journal.last_index)

    def on_pre_vote(self, peer: str, message: wire.PreVote) -> None:
        """Say yes if we would vote for it, and hear no leader."""
        if message.term <= self._stock.term:
            self._outbox.send(peer, wire.HigherTerm(self._stock.term))
            return
        granted = (
            not self._leader_is_near()
            and self._log_is_current(message.last_log_index, message.last_log_term)
            and not self._goes_first(peer, message)
        )
        if granted:
            self._give_way(peer)
        self._outbox.send(peer, wire.PreVoteResponse(self._stock.term, message.round, granted))

    def _goes_first(self, rival: str, message: wire.PreVote) -> bool:
        """Whether our own question crosses the rival's, and the rival is to give way.

        They cross if the rival has not answered ours yet: links keep order, so it had asked before
        it heard us, and sees the same. Both decide alike: the longer log goes first (it does not
        get here, as it refuses the shorter one), among equal ones the smaller name.
        """
        own = self._question
        return (
            own is not None
            and rival in self._unanswered
            and (own.term, own.last_log_term, own.last_log_index)
            == (message.term, message.last_log_term, message.last_log_index)
            and self._name < rival
            and self._settles_with(rival)
        )

    def _give_way(self, rival: str) -> None:
        """Ask for nothing until the rival has had the time to win."""
        if self._settles_with(rival):
            self._drop_question()
            later = self._clock.monotonic() + self._timing.heartbeat_s * (2 + self._random.random())
            self._stock.election_deadline = max(self._stock.election_deadline, later)

    def _settles_with(self, rival: str) -> bool:
        """Whether it is still to be settled in this term who of us two goes first.

        Once only: a rival that cannot win asks again and again, and might else keep us from
        leading, or be kept from it by us, for ever.
        """
        if self._settled_term != self._stock.term:
            self._settled_term = self._stock.term
            self._settled.clear()
        if rival in self._settled:
            return False
        self._settled.add(rival)
        return True

    def on_pre_vote_response(self, peer: str, message: wire.PreVoteResponse) -> None:
        """Count it if it is of this round; with a majority the next tick stands for election."""
        if self._stock.is_leader or message.round != self._pre_vote_round:
            return
        self._unanswered.discard(peer)
        if not message.granted:
            self._pre_votes.discard(peer)
            return
        self._pre_votes.add(peer)
        if len(self._pre_votes) + 1 >= self._majority and not self._leader_is_near():
            self._pre_vote_round += 1  # the rest of the answers has no meaning any more
            self._pre_vote_won = True
            self._stock.election_deadline = 0

    def on_request_vote(self, peer: str, message: wire.RequestVote) -> None:
        """Vote, unless we hear a leader that has not asked for this election itself."""
        if message.term > self._stock.term and self._leader_is_near() and not message.transfer:
            return
        if message.term < self._stock.term:
            self._outbox.send(peer, wire.HigherTerm(self._stock.term))
            return
        if not self._stock.is_near(message.term):
            return
        self._starting = False
        if message.transfer:
            self.handed_over_term = message.term
        self._stock.take_vote_request(peer, message)
        self.pass_on(self._stock.take_said())

    def on_timeout_now(self, peer: str, message: wire.TimeoutNow) -> None:
        """Stand in the next tick; one that must not lead lets the transfer run out of time.

        The request is of this term and of one moment: it is forgotten with the link over which it
        came, when the term changes, and after the time that the leader waits for us.
        """
        if self.is_withheld or message.term != self._stock.term:
            return
        self._asked_to_lead_term = message.term
        self._asked_to_lead_until = self._clock.monotonic() + self._timing.election_min_s
        self._stock.take_timeout_now(peer, message.term)

    def on_vote(self, peer: str, message: wire.VoteResponse) -> None:
        """Count each voter once per term; stock counts messages (H11)."""
        if message.term != self._stock.term:
            return
        if self._voters_term != self._stock.term:
            self._voters_term = self._stock.term
            self._voters = set()
        if peer in self._voters:
            return
        self._voters.add(peer)
        self._stock.take_vote(peer, message.term)
