"""PySyncObj, hardened from outside: one member of one Raft group.

:class:`Replica` subclasses the stock ``SyncObj`` and overrides its private methods under their
mangled names. Stock code still decides elections, terms, votes, log matching and commitment; this
file stands in front of it and behind it, and each method names the hazard that it mends
(``docs/hazards.md`` has the list, with the test of each).

A replica does no I/O and reads no clock of its own: it is ticked, it is given messages, and it
speaks through its :class:`Owner`.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
from pysyncobj.config import SyncObjConf
from pysyncobj.syncobj import SyncObj
from pysyncobj.transport import Transport

from raftkv.raft import messages as wire
from raftkv.raft.clock import Clock
from raftkv.raft.journal import FIRST_INDEX, NO_OP, REGULAR, GroupJournal
from raftkv.raft.seams import TURN, NullPoller, PeerNode

MESSAGE_BYTES_MAX = 512 * 1024
"""Entries per append are cut here (a single larger entry still goes whole)."""

WINDOW_BYTES = 4 * 1024 * 1024
"""Bytes of entries in flight to one follower before the leader waits for its answers."""

PAST_DEADLINE_S = 1e-4
"""Stock compares deadlines strictly: a tick at exactly the deadline does nothing."""

APPLY_OPERATIONS_PER_TICK = 4096
"""Operations applied before the loop gets its turn again: some milliseconds."""

FOLLOWER, CANDIDATE, LEADER = 0, 1, 2
"""PySyncObj's states (S: ``_RAFT_STATE``)."""


class ReplicaError(Exception):
    """The replica cannot go on without breaking a promise; the node must stop."""


class Timing(msgspec.Struct, frozen=True):
    """Raft's times, in seconds (Raft paper 5.6: broadcast << election timeout << failures)."""

    heartbeat_s: float = 0.1
    election_min_s: float = 0.5
    election_max_s: float = 1.0


class RandomSource(Protocol):
    """Randomness as a seam: ``random.Random`` fits, seeded in simulation."""

    def random(self) -> float:
        """Return a float in [0, 1)."""


class Owner(Protocol):
    """What a replica asks of the group around it."""

    def send(self, peer: str, message: wire.RaftMessage) -> None:
        """Send now; in order, or not at all with a disconnect."""

    def take_entry(self) -> bytes | None:
        """Return the next command to propose, everything that waits as one; None for nothing."""

    def apply_entry(self, index: int, term: int, command: bytes | None) -> int:
        """Apply a committed entry (None: a no-op); return how many operations that was."""

    def state_changed(self, old: int, new: int) -> None:
        """Hear that PySyncObj changed its state."""

    def snapshot_needed(self, peer: str) -> None:
        """Hear that ``peer`` wants entries that are only in a snapshot now."""

    def disk_stalled(self) -> bool:
        """Tell whether this node's disk has not answered for an election time-out."""


class _Sink(Transport):  # type: ignore[misc]  # PySyncObj ships no types
    """Where stock code sends its messages: back to the replica, which knows what to do."""

    def __init__(self) -> None:
        super().__init__(None, None, None)
        self.replica: Replica | None = None

    def send(self, node: PeerNode, message: dict[str, Any]) -> bool:
        """Hand a stock message over for translation."""
        if self.replica is not None:
            self.replica.stock_sends(node, message)
        return True


class Replica(SyncObj):  # type: ignore[misc]  # PySyncObj ships no types
    """One hardened member of a Raft group.

    Args:
        name: this node.
        members: all nodes of the group, this one among them.
        journal: the log, recovered.
        applied_index: what the state machine around it has applied (its snapshot's index).
        owner: where messages, entries and events go.
        preferred: ask for the leadership at once when starting; pre-vote keeps this harmless.
    """

    # The private state of stock code that is read or written here.
    _SyncObj__raftState: int
    _SyncObj__raftCurrentTerm: int
    _SyncObj__raftLeader: PeerNode | None
    _SyncObj__raftElectionDeadline: float
    _SyncObj__raftCommitIndex: int
    _SyncObj__raftLastApplied: int
    _SyncObj__noopIDx: int | None
    _SyncObj__newAppendEntriesTime: float
    _SyncObj__transferInProgress: bool
    _SyncObj__raftNextIndex: dict[PeerNode, int]
    _SyncObj__raftMatchIndex: dict[PeerNode, int]
    _SyncObj__lastResponseTime: dict[PeerNode, float]
    _SyncObj__connectedNodes: set[PeerNode]

    def __init__(
        self,
        *,
        name: str,
        members: Sequence[str],
        journal: GroupJournal,
        applied_index: int,
        owner: Owner,
        clock: Clock,
        random: RandomSource,
        timing: Timing,
        preferred: bool = False,
    ) -> None:
        self._owner = owner
        self._clock = clock
        self._random = random
        self._timing = timing
        self.journal = journal
        self.peers = {peer: PeerNode(peer) for peer in members if peer != name}
        self._majority = len(members) // 2 + 1
        self._leader_contact = float("-inf")
        self._pre_vote_round = 0
        self._pre_votes: set[str] = set()
        self._pre_vote_won = False
        self._campaign_is_transfer = False
        self._voters: set[str] = set()
        self._voters_term = -1
        self._match: dict[str, int] = {}
        self._in_flight: dict[str, deque[tuple[int, int]]] = {}  # peer -> (last index, bytes)
        self._ack_limit = 0
        self._answered = float("-inf")  # when this follower last answered, in monotonic seconds
        self._sent_last_index = 0
        self._held: deque[tuple[int, int, str, wire.RaftMessage]] = deque()  # (lsn, term, to, what)
        self.apply_budget_spent = False
        sink = _Sink()
        previous, TURN.clock = TURN.clock, clock
        try:
            super().__init__(
                PeerNode(name), list(self.peers.values()), self._stock_conf(), transport=sink
            )
            self._poller = NullPoller()
            self._SyncObj__raftLastApplied = applied_index
            self._SyncObj__raftCommitIndex = max(applied_index, journal.first_index)
            # Stock sets the deadline before it loads the journal, which may take long. Nobody is
            # known to lead yet, so pre-votes may go out before an election time-out is over.
            wait_s = 0.0 if preferred or not self.peers else timing.election_min_s * random.random()
            self._SyncObj__raftElectionDeadline = clock.monotonic() + wait_s
        finally:
            TURN.clock = previous
        sink.replica = self

    def _stock_conf(self) -> SyncObjConf:
        """Switch off in stock code all that raftkv does itself."""
        timing = self._timing
        return SyncObjConf(
            autoTick=False,
            raftMinTimeout=timing.election_min_s,
            raftMaxTimeout=timing.election_max_s,
            appendEntriesPeriod=timing.heartbeat_s,
            # A leader that hears from no majority for an election time-out stops leading (H15).
            leaderFallbackTimeout=timing.election_max_s,
            connectionTimeout=max(timing.election_max_s, 3.5),
            appendEntriesUseBatch=True,
            # Above any entry, so that stock never cuts one in pieces (H13).
            appendEntriesBatchSizeBytes=2**31,
            dynamicMembershipChange=False,
            commandsWaitLeader=False,
            journalFile=self.journal,
            fullDumpFile=None,
            onStateChanged=self._owner.state_changed,
        )

    # --- what the group around it reads -------------------------------------------------------

    @property
    def term(self) -> int:
        """Current term."""
        return self._SyncObj__raftCurrentTerm

    @property
    def state(self) -> int:
        """FOLLOWER, CANDIDATE or LEADER."""
        return self._SyncObj__raftState

    @property
    def is_leader(self) -> bool:
        """Whether this replica believes that it leads; a read must confirm it first."""
        return self.state == LEADER

    @property
    def leader_name(self) -> str | None:
        """The leader as far as this replica knows."""
        node = self._SyncObj__raftLeader
        return None if node is None else str(node.id)

    @property
    def commit_index(self) -> int:
        """Highest index known to be committed."""
        return self._SyncObj__raftCommitIndex

    @property
    def applied_index(self) -> int:
        """Highest index applied."""
        return self._SyncObj__raftLastApplied

    @property
    def no_op_applied(self) -> bool:
        """Whether the entry that opened this leadership is applied (dissertation 6.4, step 1)."""
        no_op = self._SyncObj__noopIDx
        return no_op is not None and self.applied_index >= no_op

    @property
    def leader_contact(self) -> float:
        """When the current leader was last heard, in monotonic seconds."""
        return self._leader_contact

    def match_index(self, peer: str) -> int:
        """Leader only: up to where ``peer`` durably agrees."""
        return self._match.get(peer, 0)

    def next_deadline(self) -> float:
        """When this replica must be ticked at the latest, in monotonic seconds."""
        if self.is_leader:
            return self._SyncObj__newAppendEntriesTime + PAST_DEADLINE_S
        return self._SyncObj__raftElectionDeadline + PAST_DEADLINE_S

    # --- driving ------------------------------------------------------------------------------

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
                    self._SyncObj__onMessageReceived(
                        node, {"type": "timeout_now", "term": message.term}
                    )
                case wire.HigherTerm():
                    self.learn_term(message.term)
                case _:
                    raise TypeError(f"not for a replica: {type(message).__name__}")
        finally:
            TURN.clock = previous

    def peer_connected(self, peer: str) -> None:
        """Hear that messages to ``peer`` go out from now on."""
        if (node := self.peers.get(peer)) is not None:
            self._in_flight.pop(peer, None)
            self._SyncObj__onNodeConnected(node)
            self._SyncObj__newAppendEntriesTime = 0  # a leader speaks to it at once

    def peer_disconnected(self, peer: str) -> None:
        """Hear that the link to ``peer`` is gone, with whatever was in flight.

        If that was the leader it may be dead: ask the others soon instead of waiting for the
        election time-out. Pre-vote makes this harmless where they still hear the leader.
        """
        if (node := self.peers.get(peer)) is None:
            return
        self._in_flight.pop(peer, None)
        self._SyncObj__onNodeDisconnected(node)
        if self.leader_name == peer:
            self._leader_contact = float("-inf")
            soon = self._clock.monotonic() + self._random.random() * self._timing.heartbeat_s
            self._SyncObj__raftElectionDeadline = min(self._SyncObj__raftElectionDeadline, soon)

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
        if self.is_leader:
            for peer in self.peers:
                self._publish_match(peer)

    def learn_term(self, term: int) -> None:
        """Adopt a higher ``term`` as a follower, granting nothing.

        Stock code has no message for this, but a vote request from a log that nobody votes for
        has exactly this effect.
        """
        if term <= self.term:
            return
        anyone = next(iter(self.peers.values()))
        self._SyncObj__onMessageReceived(
            anyone,
            {"type": "request_vote", "term": term, "last_log_index": 0, "last_log_term": -1},
        )

    def start_transfer(self, peer: str) -> bool:
        """Ask ``peer``, which must be fully caught up, to take over; false if it is not."""
        outcome: list[int] = []
        previous, TURN.clock = TURN.clock, self._clock
        try:
            self.transferLeadership(self.peers[peer], lambda _, error: outcome.append(error))
        finally:
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
        else:
            self._gate_campaign()
        if not self.peers and self.journal.durable_index < self.journal.last_index:
            return  # alone, stock counts its own copy before the disk has it (H9)
        super()._onTick(0.0)

    def _advance_commit(self) -> None:
        """Commit what a majority holds durably, this node's own disk included (H10).

        Stock counts the leader's copy unconditionally; it only ever sees followers' match indexes
        cut at our durable index (:meth:`_publish_match`), so its own count agrees or lags.
        """
        durable = [self.journal.durable_index, *(self._match.get(p, 0) for p in self.peers)]
        durable.sort(reverse=True)
        candidate = min(durable[self._majority - 1], self.journal.last_index)
        if candidate > self.commit_index and self.journal.term_at(candidate) == self.term:
            self._SyncObj__raftCommitIndex = candidate

    def _gate_campaign(self) -> None:
        """Pre-vote (dissertation 9.6): stand for election only if a majority would agree.

        Stock stands as soon as its deadline has passed, so the deadline is moved until then.
        """
        now = self._clock.monotonic()
        if self._SyncObj__raftElectionDeadline >= now:
            return
        self._campaign_is_transfer = self._SyncObj__transferInProgress
        if self._campaign_is_transfer or self._pre_vote_won or not self.peers:
            self._pre_vote_won = False
            return
        # Ask again soon if refused: pre-votes disturb nobody.
        again_s = self._timing.heartbeat_s * (1.0 + self._random.random())
        self._SyncObj__raftElectionDeadline = now + again_s
        self._ask_pre_votes()

    def _ask_pre_votes(self) -> None:
        self._pre_vote_round += 1
        self._pre_votes.clear()
        question = wire.PreVote(
            self.term + 1, self.journal.last_index, self.journal.last_term, self._pre_vote_round
        )
        for peer in self.peers:
            self._owner.send(peer, question)

    def _SyncObj__generateRaftTimeout(self) -> float:  # noqa: N802
        """Election time-outs come from the seam, so that a simulated run repeats."""
        return self._election_timeout_s()

    def _election_timeout_s(self) -> float:
        low, high = self._timing.election_min_s, self._timing.election_max_s
        return low + (high - low) * self._random.random()

    def _SyncObj__onBecomeLeader(self) -> None:  # noqa: N802
        """Start a leadership with nothing known of the followers."""
        self._match = dict.fromkeys(self.peers, 0)
        self._in_flight.clear()
        self._sent_last_index = 0
        super()._SyncObj__onBecomeLeader()

    def _SyncObj__tryLogCompaction(self) -> None:  # noqa: N802
        """Nothing: snapshots are the group's work, and the log is cut after them (H3, H5, H16)."""

    # --- votes --------------------------------------------------------------------------------

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
            self._owner.send(node.id, wire.HigherTerm(self.term))
            return
        granted = not self._leader_is_near() and self._log_is_current(
            message.last_log_index, message.last_log_term
        )
        if granted:
            # Two that stand at the same moment split the vote: let the other go first.
            later = self._clock.monotonic() + self._timing.heartbeat_s * (2 + self._random.random())
            self._SyncObj__raftElectionDeadline = max(self._SyncObj__raftElectionDeadline, later)
        self._owner.send(node.id, wire.PreVoteResponse(self.term, message.round, granted))

    def _on_pre_vote_response(self, node: PeerNode, message: wire.PreVoteResponse) -> None:
        if self.is_leader or message.round != self._pre_vote_round or not message.granted:
            return
        self._pre_votes.add(node.id)
        if len(self._pre_votes) + 1 >= self._majority and not self._leader_is_near():
            self._pre_vote_round += 1  # the rest of the answers has no meaning any more
            self._pre_vote_won = True
            self._SyncObj__raftElectionDeadline = 0

    def _on_request_vote(self, node: PeerNode, message: wire.RequestVote) -> None:
        if message.term > self.term and self._leader_is_near() and not message.transfer:
            return
        if message.term < self.term:
            self._owner.send(node.id, wire.HigherTerm(self.term))
            return
        self._SyncObj__onMessageReceived(
            node,
            {
                "type": "request_vote",
                "term": message.term,
                "last_log_index": message.last_log_index,
                "last_log_term": message.last_log_term,
            },
        )

    def _on_vote(self, node: PeerNode, message: wire.VoteResponse) -> None:
        """Count each voter once per term; stock counts messages (H11)."""
        if message.term != self.term:
            return
        if self._voters_term != self.term:
            self._voters_term = self.term
            self._voters = set()
        if node.id in self._voters:
            return
        self._voters.add(node.id)
        self._SyncObj__onMessageReceived(node, {"type": "response_vote", "term": message.term})

    # --- follower: appends --------------------------------------------------------------------

    def _on_append(self, node: PeerNode, message: wire.AppendEntries) -> None:
        """Accept entries by the receiver's rules of the Raft paper (figure 2, steps 1 to 5).

        Stock deletes everything after ``prev_index`` without looking for a conflict (H2). So it
        is only shown what is really new: the part that our log already holds is cut off here, and
        both the commit index and the acknowledgement stop where this message's proof stops.
        """
        if message.term < self.term:
            self._owner.send(node.id, wire.HigherTerm(self.term))
            return
        if self.is_leader and message.term == self.term:
            raise ReplicaError(f"{node.id} and this node both lead in term {self.term}")
        self._leader_contact = self._clock.monotonic()
        self._pre_vote_won = False
        prev_index, prev_term, entries = self._unknown_part(message)
        proven = max(message.prev_index + len(message.entries), self.journal.first_index)
        self._ack_limit = proven
        self._SyncObj__onMessageReceived(
            node,
            {
                "type": "append_entries",
                "term": message.term,
                "commit_index": min(message.commit_index, proven),
                "prevLogIdx": prev_index,
                "prevLogTerm": prev_term,
                "entries": entries,
            },
        )

    def _unknown_part(
        self, message: wire.AppendEntries
    ) -> tuple[int, int, list[tuple[bytes, int, int]]]:
        """(prev index, prev term, entries) with what the log already has cut off the front."""
        journal, prev, first = self.journal, message.prev_index, self.journal.first_index
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
        if conflict <= self.commit_index:
            raise ReplicaError(
                f"entry {conflict} is committed here with term {journal.term_at(conflict)}, but "
                f"the leader of term {message.term} sends term {numbered[known][2]}"
            )
        return conflict - 1, journal.term_at(conflict - 1) or 0, numbered[known:]

    def _SyncObj__sendNextNodeIdx(  # noqa: N802
        self,
        node: PeerNode,
        reset: bool = False,  # noqa: FBT001, FBT002 - stock signature
        nextNodeIdx: int | None = None,  # noqa: N803
        success: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        """Answer an append, with our term (H10), and only for what is durable."""
        journal, peer = self.journal, node.id
        if not success:
            next_index = journal.last_index + 1
            if reset and nextNodeIdx is not None:
                # Back off by a term at a time (Raft paper 5.3); stock goes one entry a round.
                next_index = journal.first_index_of_term_at(nextNodeIdx, self.commit_index)
            self._answer(peer, wire.AppendResponse(self.term, next_index, success=False))
            return
        proven = min((nextNodeIdx or 1) - 1, self._ack_limit)
        if proven <= journal.durable_index:
            self._answer(peer, wire.AppendResponse(self.term, proven + 1, success=True))
            return
        self._hold(peer, wire.AppendResponse(self.term, proven + 1, success=True))
        if self._clock.monotonic() - self._answered > self._timing.heartbeat_s / 2:
            # A slow disk is not a lost node: tell the leader that we are here, and how far.
            durable = wire.AppendResponse(self.term, journal.durable_index + 1, success=True)
            self._answer(peer, durable)

    def _answer(self, peer: str, message: wire.RaftMessage) -> None:
        self._answered = self._clock.monotonic()
        self._owner.send(peer, message)

    def _hold(self, peer: str, message: wire.RaftMessage) -> None:
        """Send once everything recorded so far is durable (H8)."""
        if self.journal.synced:
            self._owner.send(peer, message)
        else:
            self._held.append((self.journal.lsn, self.term, peer, message))

    # --- leader: appends ----------------------------------------------------------------------

    def _on_append_response(self, node: PeerNode, message: wire.AppendResponse) -> None:
        """Believe answers of this term only, and never move backwards on success (H2, H10)."""
        if message.term > self.term:
            self.learn_term(message.term)
        if not self.is_leader or message.term != self.term:
            return
        peer = node.id
        self._SyncObj__lastResponseTime[node] = self._clock.monotonic()
        next_index = self._SyncObj__raftNextIndex
        if message.success:
            if message.next_index - 1 > self.journal.last_index:
                return  # nobody can hold what we never sent
            match = self._match[peer] = max(self._match[peer], message.next_index - 1)
            next_index[node] = max(next_index[node], match + 1)
            window = self._in_flight.get(peer)
            while window and window[0][0] <= match:
                window.popleft()
            self._publish_match(peer)
            if next_index[node] <= self.journal.last_index:
                self._append_to(peer, node)
        else:
            self._in_flight.pop(peer, None)
            floor = max(self._match[peer], FIRST_INDEX) + 1
            next_index[node] = max(floor, min(message.next_index, self.journal.last_index + 1))
            if next_index[node] > self.journal.first_index:
                self._append_to(peer, node)
            else:
                self._owner.snapshot_needed(peer)

    def _publish_match(self, peer: str) -> None:
        """Show stock code no more of a follower's log than our own disk has as well (H9)."""
        shown = min(self._match[peer], self.journal.durable_index)
        self._SyncObj__raftMatchIndex[self.peers[peer]] = shown

    def _SyncObj__sendAppendEntries(self) -> None:  # noqa: N802
        """Send to every connected follower what it lacks, or a heartbeat.

        Replaces stock's method: no pickled snapshot chunks (H1, H6), no pieces of entries (H13),
        a bounded window per follower, no copy of the log's tail.
        """
        self._SyncObj__newAppendEntriesTime = self._clock.monotonic() + self._timing.heartbeat_s
        self._sent_last_index = self.journal.last_index
        connected = self._SyncObj__connectedNodes
        for peer, node in self.peers.items():
            if node in connected and not self._append_to(peer, node):
                self._send_append(peer, self._SyncObj__raftNextIndex[node], ())

    def _append_to(self, peer: str, node: PeerNode) -> bool:
        """Send entries within the window; whether anything was sent."""
        journal, next_index = self.journal, self._SyncObj__raftNextIndex
        if next_index[node] <= journal.first_index:
            self._owner.snapshot_needed(peer)
            # A heartbeat that proves nothing: the follower says again where its log ends.
            self._send_append(peer, journal.first_index + 1, ())
            return True
        window = self._in_flight.setdefault(peer, deque())
        sent = False
        while next_index[node] <= journal.last_index:
            if sum(size for _, size in window) >= WINDOW_BYTES:
                break
            start = next_index[node]
            entries = journal.entries_from(start, MESSAGE_BYTES_MAX)
            self._send_append(peer, start, entries)
            next_index[node] = start + len(entries)
            window.append((next_index[node] - 1, sum(len(command) for command, _ in entries)))
            sent = True
        return sent

    def _send_append(self, peer: str, start: int, entries: tuple[tuple[bytes, int], ...]) -> None:
        prev_term = self.journal.term_at(start - 1)
        self._owner.send(
            peer,
            wire.AppendEntries(self.term, start - 1, prev_term or 0, self.commit_index, entries),
        )

    def _checkCommandsToApply(self) -> None:  # noqa: N802 - stock name
        """Propose what waits as one entry, and send it at once (H14, H17, H21).

        Stock's command queue is never used: nothing is forwarded by PySyncObj, and no callback
        is lost in it.
        """
        if not self.is_leader:
            return
        while (command := self._owner.take_entry()) is not None:
            self.journal.add(REGULAR + command, self.journal.last_index + 1, self.term)
        if self.journal.last_index > self._sent_last_index:
            self._SyncObj__sendAppendEntries()

    # --- applying -----------------------------------------------------------------------------

    def _SyncObj__applyLogEntries(self) -> bool:  # noqa: N802
        """Apply committed entries in order, each exactly once, some at a time (H12).

        Stock applies all at once, and applies again what raised. The state machine never raises;
        a command that is neither regular nor a no-op stops the replica.
        """
        budget = APPLY_OPERATIONS_PER_TICK
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

    # --- what stock code sends ----------------------------------------------------------------

    def stock_sends(self, node: PeerNode, message: dict[str, Any]) -> None:
        """Translate the few messages that stock code still sends by itself."""
        match message["type"]:
            case "request_vote":
                self._hold(
                    node.id,
                    wire.RequestVote(
                        message["term"],
                        message["last_log_index"],
                        message["last_log_term"],
                        self._campaign_is_transfer,
                    ),
                )
            case "response_vote":
                self._hold(node.id, wire.VoteResponse(message["term"]))
            case "timeout_now":
                self._owner.send(node.id, wire.TimeoutNow(message["term"]))
            case other:
                raise ReplicaError(f"stock code sends {other!r}, which should be unreachable")


def _supersedes(later: wire.RaftMessage, earlier: wire.RaftMessage) -> bool:
    """Whether ``later``, sent to the same leader, says all that ``earlier`` says."""
    return isinstance(later, wire.AppendResponse) and isinstance(earlier, wire.AppendResponse)
