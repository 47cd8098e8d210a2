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

from raftkv.raft import messages as wire
from raftkv.raft.member import FOLLOWER, Member
from raftkv.raft.seams import PeerNode


class Elections(Member):
    """The part of a replica that votes and stands for election."""

    def _begin_when_connected(self) -> None:
        """Ask for pre-votes once a majority is linked, instead of after an election time-out.

        For a replica that has seen no leader and no candidate since it started: nobody's silence
        is waited for. It is safe because only questions come earlier, votes are as ever: where a
        leader is, or a longer log, the others say no, and no term moves. The preferred leader asks
        first, so that leaders need not be moved afterwards; the others in case it is not there.
        """
        reached = len(self._SyncObj__connectedNodes) + 1
        if reached != self._majority or not self._starting or self.state != FOLLOWER:
            return
        wait_s = 0.0 if self._preferred else self._timing.heartbeat_s * (1 + self._random.random())
        soon = self._clock.monotonic() + wait_s
        self._SyncObj__raftElectionDeadline = min(self._SyncObj__raftElectionDeadline, soon)

    def _gate_campaign(self) -> None:
        """Pre-vote (dissertation 9.6): stand for election only if a majority would agree.

        Stock stands as soon as its deadline has passed, so the deadline is moved until then.
        """
        now = self._clock.monotonic()
        if self._SyncObj__raftElectionDeadline >= now:
            return
        if self._withheld:
            self._drop_question()
            self._SyncObj__raftElectionDeadline = now + self._timing.election_max_s
            return
        self._campaign_is_transfer = self._asked_to_lead(now)
        won = self._pre_vote_won and now - self._asked_at <= self._timing.election_min_s
        if self._campaign_is_transfer or won or not self.peers:
            self._drop_question()
            return
        self._pre_vote_won = False  # too long ago: this node was stopped meanwhile
        # Ask again soon if refused: pre-votes disturb nobody.
        again_s = self._timing.heartbeat_s * (1.0 + self._random.random())
        self._SyncObj__raftElectionDeadline = now + again_s
        self._ask_pre_votes()

    def _ask_pre_votes(self) -> None:
        """Ask everyone, or ask again.

        The same question again is the same round, whose earlier answers count: on links slower
        than the questions come, none would arrive in time otherwise. For an election time-out at
        most, so that what was granted long ago adds up to nothing.
        """
        now, journal, question = self._clock.monotonic(), self.journal, self._question
        if (
            question is None
            or now - self._asked_at > self._timing.election_min_s
            or (question.term, question.last_log_index, question.last_log_term)
            != (self.term + 1, journal.last_index, journal.last_term)
        ):
            self._pre_vote_round += 1
            self._pre_votes.clear()
            self._asked_at = now
            self._question = question = wire.PreVote(
                self.term + 1, journal.last_index, journal.last_term, self._pre_vote_round
            )
        self._unanswered = {node.name for node in self._SyncObj__connectedNodes}
        for peer in self.peers:
            self._owner.send(peer, question)

    def withhold(self, withheld: bool) -> None:  # noqa: FBT001 - a state, not an option
        """Neither lead nor stand for election from now on, or do so again.

        Votes are given as ever: whoever asks for one may lead.
        """
        if withheld == self._withheld:
            return
        self._withheld = withheld
        now = self._clock.monotonic()
        if withheld:
            self._drop_question()
            self._forget_request_to_lead()
            if self.state != FOLLOWER:
                self._SyncObj__setState(FOLLOWER)
                self._SyncObj__raftLeader = None
            self._SyncObj__raftElectionDeadline = now + self._timing.election_max_s
        elif self.state == FOLLOWER:
            # As when it was made: nobody's silence is waited for but a leader's that it hears.
            wait_s = self._first_wait_s() if self._starting else self._election_timeout_s()
            self._SyncObj__raftElectionDeadline = now + wait_s

    def _asked_to_lead(self, now: float) -> bool:
        """Whether the leader of this term has asked us to take over, just now.

        The request skips pre-vote and stickiness, so it must not outlive what it was made for: who
        acted on it later would depose a leader that all others hear.
        """
        if not self._SyncObj__transferInProgress:
            return False
        if self.term == self._asked_to_lead_term and now <= self._asked_to_lead_until:
            return True
        self._forget_request_to_lead()
        return False

    def _forget_request_to_lead(self) -> None:
        """Wait for the leader's silence again, like everybody else."""
        if self._SyncObj__transferInProgress:
            self._SyncObj__transferInProgress = False
            later = self._clock.monotonic() + self._election_timeout_s()
            self._SyncObj__raftElectionDeadline = later

    def _drop_question(self) -> None:
        """Take back what was asked or won: no answer to it counts any more."""
        self._pre_vote_round += 1
        self._pre_vote_won = False
        self._question = None

    def _leader_is_near(self) -> bool:
        """Stickiness (dissertation 4.2.3): we lead, or heard a leader within the minimum."""
        if self.is_leader:
            return True
        return self._clock.monotonic() - self._leader_contact < self._timing.election_min_s

    def _log_is_current(self, last_index: int, last_term: int) -> bool:
        """Raft paper 5.4.1."""
        return (last_term, last_index) >= (self.journal.last_term, self.journal.last_index)

    def _on_pre_vote(self, node: PeerNode, message: wire.PreVote) -> None:
        if message.term <= self.term:
            self._owner.send(node.name, wire.HigherTerm(self.term))
            return
        granted = (
            not self._leader_is_near()
            and self._log_is_current(message.last_log_index, message.last_log_term)
            and not self._goes_first(node.name, message)
        )
        if granted:
            self._give_way(node.name)
        self._owner.send(node.name, wire.PreVoteResponse(self.term, message.round, granted))

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
            and self.selfNode.id < rival
            and self._settles_with(rival)
        )

    def _give_way(self, rival: str) -> None:
        """Ask for nothing until the rival has had the time to win."""
        if self._settles_with(rival):
            self._drop_question()
            later = self._clock.monotonic() + self._timing.heartbeat_s * (2 + self._random.random())
            self._SyncObj__raftElectionDeadline = max(self._SyncObj__raftElectionDeadline, later)

    def _settles_with(self, rival: str) -> bool:
        """Whether it is still to be settled in this term who of us two goes first.

        Once only: a rival that cannot win asks again and again, and might else keep us from
        leading, or be kept from it by us, for ever.
        """
        if self._settled_term != self.term:
            self._settled_term = self.term
            self._settled.clear()
        if rival in self._settled:
            return False
        self._settled.add(rival)
        return True

    def _on_pre_vote_response(self, node: PeerNode, message: wire.PreVoteResponse) -> None:
        if self.is_leader or message.round != self._pre_vote_round:
            return
        self._unanswered.discard(node.name)
        if not message.granted:
            self._pre_votes.discard(node.name)
            return
        self._pre_votes.add(node.name)
        if len(self._pre_votes) + 1 >= self._majority and not self._leader_is_near():
            self._pre_vote_round += 1  # the rest of the answers has no meaning any more
            self._pre_vote_won = True
            self._SyncObj__raftElectionDeadline = 0

    def _on_request_vote(self, node: PeerNode, message: wire.RequestVote) -> None:
        if message.term > self.term and self._leader_is_near() and not message.transfer:
            return
        if message.term < self.term:
            self._owner.send(node.name, wire.HigherTerm(self.term))
            return
        if not self._is_near(message.term):
            return
        self._starting = False
        if message.transfer:
            self.handed_over_term = message.term
        self._SyncObj__onMessageReceived(
            node,
            {
                "type": "request_vote",
                "term": message.term,
                "last_log_index": message.last_log_index,
                "last_log_term": message.last_log_term,
            },
        )

    def _on_timeout_now(self, node: PeerNode, message: wire.TimeoutNow) -> None:
        """Stand in the next tick; one that must not lead lets the transfer run out of time.

        The request is of this term and of one moment: it is forgotten with the link over which it
        came, when the term changes, and after the time that the leader waits for us.
        """
        if self._withheld or message.term != self.term:
            return
        self._asked_to_lead_term = message.term
        self._asked_to_lead_until = self._clock.monotonic() + self._timing.election_min_s
        self._SyncObj__onMessageReceived(node, {"type": "timeout_now", "term": message.term})

    def _on_vote(self, node: PeerNode, message: wire.VoteResponse) -> None:
        """Count each voter once per term; stock counts messages (H11)."""
        if message.term != self.term:
            return
        if self._voters_term != self.term:
            self._voters_term = self.term
            self._voters = set()
        if node.name in self._voters:
            return
        self._voters.add(node.name)
        self._SyncObj__onMessageReceived(node, {"type": "response_vote", "term": message.term})
