"""A replica as its group drives it: ticks, messages, links, and applying what is committed."""

from typing import Any

from raftkv.raft import messages as wire
from raftkv.raft.journal import NO_OP, REGULAR
from raftkv.raft.member import CANDIDATE, FOLLOWER, LEADER, ReplicaError
from raftkv.raft.replication import Replication
from raftkv.raft.seams import TURN

APPLY_OPERATIONS_PER_TICK = 4096
"""Operations applied before the loop gets its turn again: some milliseconds."""


class Replica(Replication):
    """One hardened member of a Raft group.

    Args:
        apply_operations_per_tick: as :data:`APPLY_OPERATIONS_PER_TICK`; otherwise as
            :class:`Replication`.
    """

    def __init__(self, *, apply_operations_per_tick: int, **member: Any) -> None:
        self._apply_operations_per_tick = apply_operations_per_tick
        super().__init__(**member)

    def tick(self) -> None:
        """Let stock code run its timers, commit, apply, and propose what waits."""
        previous, TURN.clock = TURN.clock, self._clock
        try:
            self._onTick()
        finally:
            TURN.clock = previous

    def receive(self, peer: str, message: wire.RaftMessage) -> None:
        """Take one message from an authenticated member; others are not listened to (H10, H11)."""
        node = self.peers.get(peer)
        if node is None:
            return
        previous, TURN.clock = TURN.clock, self._clock
        try:
            match message:
                case wire.AppendEntries():
                    self._on_append(node, message)
                case wire.AppendResponse():
                    self._on_append_response(node, message)
                case wire.RequestVote():
                    self._on_request_vote(node, message)
                case wire.VoteResponse():
                    self._on_vote(node, message)
                case wire.PreVote():
                    self._on_pre_vote(node, message)
                case wire.PreVoteResponse():
                    self._on_pre_vote_response(node, message)
                case wire.TimeoutNow():
                    self._on_timeout_now(node, message)
                case wire.HigherTerm():
                    self.learn_term(message.term)
                case _:
                    raise TypeError(f"not for a replica: {type(message).__name__}")
        finally:
            TURN.clock = previous

    def peer_connected(self, peer: str) -> None:
        """Hear that messages to ``peer`` go out from now on."""
        if (node := self.peers.get(peer)) is not None:
            self._nothing_in_flight(peer)
            self._SyncObj__onNodeConnected(node)
            self._SyncObj__newAppendEntriesTime = 0  # a leader speaks to it at once
            self._begin_when_connected()

    def peer_disconnected(self, peer: str) -> None:
        """Hear that the link to ``peer`` is gone, with whatever was in flight.

        If that was the leader it may be dead: ask the others soon instead of waiting for the
        election time-out. Pre-vote makes this harmless where they still hear the leader.
        """
        if (node := self.peers.get(peer)) is None:
            return
        self._nothing_in_flight(peer)
        self._unanswered.discard(peer)
        self._SyncObj__onNodeDisconnected(node)
        if self.leader_name == peer:
            self._forget_request_to_lead()
            self._leader_contact = float("-inf")
            soon = self._clock.monotonic() + self._random.random() * self._timing.heartbeat_s
            self._SyncObj__raftElectionDeadline = min(self._SyncObj__raftElectionDeadline, soon)

    @property
    def has_work(self) -> bool:
        """Whether a tick would do something now, beside what time alone asks for.

        Nearly every entry brings a leader an acknowledgement and a sync that change nothing any
        more, and a follower a sync after which it only has to answer.
        """
        if self.commit_index > self.applied_index or self.state == CANDIDATE:
            return True
        return self.is_leader and self._committable() > self.commit_index

    @property
    def awaits_sync(self) -> bool:
        """Whether something here waits for the disk."""
        return bool(self._held) or self.journal.durable_index < self.journal.last_index

    def wal_synced(self) -> None:
        """Let go what waited for the disk, and count our own copies."""
        self.journal.wal_synced()
        durable, held = self.journal.durable_lsn, self._held
        while held and held[0][0] <= durable:
            _, term, peer, message = held.popleft()
            if term != self.term:
                continue  # an acknowledgement of an older term proves nothing now (H2)
            if held and held[0][0] <= durable and _supersedes(held[0][3], message):
                continue
            self._answer(peer, message)

    def start_transfer(self, peer: str) -> bool:
        """Ask ``peer``, which must be fully caught up, to take over; false if it is not."""
        outcome: list[int] = []
        node, matches = self.peers[peer], self._SyncObj__raftMatchIndex
        previous, TURN.clock = TURN.clock, self._clock
        # Told for this call alone, see _advance_commit, and no more than our own disk has.
        matches[node] = min(self.match_index(peer), self.journal.durable_index)
        try:
            self.transferLeadership(node, lambda _, error: outcome.append(error))
        finally:
            matches[node] = 0
            TURN.clock = previous
        return outcome == [0]

    def step_down(self) -> None:
        """Stop leading without an election of our own: another node will notice the silence."""
        if self.is_leader:
            self._SyncObj__setState(FOLLOWER)
            self._SyncObj__raftLeader = None
            self._SyncObj__raftElectionDeadline = (
                self._clock.monotonic() + self._timing.election_max_s + self._election_timeout_s()
            )

    def installed(self, index: int, term: int) -> None:
        """Take over a durable snapshot that the state machine has just loaded (H7)."""
        self.journal.restart_at(index, term)
        self._SyncObj__raftLastApplied = index
        self._SyncObj__raftCommitIndex = max(self.commit_index, index)

    # --- ticks --------------------------------------------------------------------------------

    def _onTick(self, timeToWait: float = 0.0) -> None:  # noqa: ARG002, N802, N803 - stock name
        """Run a stock tick behind pre-vote, exact commitment and the disk's state."""
        if self.is_leader:
            if self._owner.disk_stalled():
                self.step_down()
            else:
                self._advance_commit()
        elif self.peers or self._withheld:
            self._gate_campaign()
        elif not self.journal.synced:
            # Nobody else remembers the term that it leads in: the disk first (H8).
            self._SyncObj__raftElectionDeadline = self._clock.monotonic() + self._timing.heartbeat_s
            return
        elif self.state == CANDIDATE:
            self._SyncObj__onBecomeLeader()
        if self._nothing_is_due():
            # Nearly every tick: all that stock would do beside this is to look at the time.
            self._SyncObj__applyLogEntries()
            self._checkCommandsToApply()
            return
        super()._onTick(0.0)

    def _nothing_is_due(self) -> bool:
        """Whether time asks for nothing of a leader or follower.

        That is no heartbeat, no election, and no end of a leadership whose followers have been
        silent for too long (H15).
        """
        now = self._clock.monotonic()
        if self.state == LEADER:
            silent = now - self._timing.election_max_s
            heard = [at for at in self._SyncObj__lastResponseTime.values() if at > silent]
            has_majority = 1 + len(heard) >= self._majority
            return has_majority and now <= self._SyncObj__newAppendEntriesTime
        return self.state == FOLLOWER and now <= self._SyncObj__raftElectionDeadline

    # --- applying -----------------------------------------------------------------------------

    def _SyncObj__applyLogEntries(self) -> bool:  # noqa: N802
        """Apply committed entries in order, each exactly once, some at a time (H12).

        Stock applies all at once, and applies again what raised. The state machine never raises;
        a command that is neither regular nor a no-op stops the replica.
        """
        budget = self._apply_operations_per_tick
        applied, commit = self.applied_index, self.commit_index
        while applied < commit and budget > 0:
            command, index, term = self.journal.entry(applied + 1)
            if command == NO_OP:
                body = None
            elif command[:1] == REGULAR:
                body = command[1:]
            else:
                raise ReplicaError(f"entry {index} is of a kind that this version does not know")
            budget -= 1 + self._owner.apply_entry(index, term, body)
            applied = index
            self._SyncObj__raftLastApplied = applied
        self.apply_budget_spent = applied < commit
        return False


def _supersedes(later: wire.RaftMessage, earlier: wire.RaftMessage) -> bool:
    """Whether ``later``, sent to the same leader, says all that ``earlier`` says."""
    return isinstance(later, wire.AppendResponse) and isinstance(earlier, wire.AppendResponse)
