"""One member of a Raft group: stock ``SyncObj`` with all that raftkv does itself switched off.

Subclasses override its private methods under their mangled names. Stock code still decides
elections, terms, votes, and how logs that differ are matched; what raftkv puts in front of it and
behind it is spread over four files, each method naming the hazard that it mends
(``docs/hazards.md`` has the list, with the test of each)::

    member.py       construction, what is read, what waits for the disk   (this file)
    elections.py    pre-vote, stickiness, votes
    replication.py  appends, on followers and on the leader; commitment
    replica.py      ticks, messages, applying: what a group drives

A member does no I/O and reads no clock of its own: it is ticked, it is given messages, and it
speaks through its :class:`Owner`.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, Protocol

import msgspec
from pysyncobj.config import SyncObjConf
from pysyncobj.syncobj import SyncObj
from pysyncobj.transport import Transport

from raftkv.raft import messages as wire
from raftkv.raft.clock import Clock
from raftkv.raft.journal import GroupJournal
from raftkv.raft.seams import TURN, NullPoller, PeerNode
from raftkv.raft.windows import PeerWindow

PAST_DEADLINE_S = 1e-4
"""Stock compares deadlines strictly: a tick at exactly the deadline does nothing."""

FOLLOWER, CANDIDATE, LEADER = 0, 1, 2
"""PySyncObj's states (S: ``_RAFT_STATE``)."""

TERM_STEP_MAX = 1024
"""By so much one message may raise the term.

With pre-vote a term rises only by elections, so that a replica lags by as many terms as there were
elections without it. One that lags by more learns the term from several messages, within seconds.
And no peer can use the terms up, whatever it says: from the first to the last of them takes 2**43
messages, which are years of them at a hundred thousand a second.
"""

_logger = logging.getLogger(__name__)


class ReplicaError(Exception):
    """The replica cannot go on without breaking a promise; the node must stop."""


class Timing(msgspec.Struct, frozen=True):
    """Raft's times, in seconds (Raft paper 5.6: broadcast << election timeout << failures)."""

    heartbeat_s: float
    election_min_s: float
    election_max_s: float

    @property
    def idle_heartbeat_s(self) -> float:
        """How long an idle leader may be silent: three of its heartbeats may be late."""
        return max(self.heartbeat_s, self.election_min_s / 4)


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

    def entries_lost(self, peer: str, first: int, last: int) -> None:
        """Hear that ``peer`` no longer has these entries, which it had acknowledged."""

    def disk_stalled(self) -> bool:
        """Tell whether this node's disk has not answered for an election time-out."""


def _own_window(_peer: str) -> PeerWindow:
    return PeerWindow(lambda: None, bytes_max=2**62)  # nobody shares it, so nobody waits


def _stock(name: str, doc: str) -> Any:
    """Return a property that reads private state of stock code, without a call in Python."""
    return property(attrgetter(f"_SyncObj__{name}"), doc=doc)


class _Sink(Transport):  # type: ignore[misc]  # PySyncObj ships no types
    """Where stock code sends its messages: back to the member, which knows what to do."""

    def __init__(self) -> None:
        super().__init__(None, None, None)
        self.member: Member | None = None

    def send(self, node: PeerNode, message: dict[str, Any]) -> bool:
        """Hand a stock message over for translation."""
        if self.member is not None:
            self.member.stock_sends(node, message)
        return True


class Member(SyncObj):  # type: ignore[misc]  # PySyncObj ships no types
    """What all parts of a replica share.

    Args:
        name: this node.
        members: all nodes of the group, this one among them.
        journal: the log, recovered.
        applied_index: what the state machine around it has applied (its snapshot's index).
        owner: where messages, entries and events go.
        preferred: ask for the leadership first when starting; pre-vote keeps this harmless.
        window_to: the window to a peer that this replica shares with others; its own by default.
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
    _heard_nobody_s = 0.0  # the contact of who has not answered this leadership yet
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
        window_to: Callable[[str], PeerWindow] | None = None,
    ) -> None:
        self._owner = owner
        self._clock = clock
        self._random = random
        self._timing = timing
        self.journal = journal
        self.peers = {peer: PeerNode(peer) for peer in members if peer != name}
        self._majority = len(members) // 2 + 1
        self._preferred = preferred
        self._leader_contact = float("-inf")
        self._pre_vote_round = 0
        self._pre_votes: set[str] = set()
        self._pre_vote_won = False
        self._question: wire.PreVote | None = None  # what we ask the others, or won by asking
        self._asked_at = float("inf")  # when it was asked first
        self._unanswered: set[str] = set()  # who has not answered it yet
        self._settled: set[str] = set()  # with whom it is settled in this term who stands first
        self._settled_term = -1
        self._starting = True  # no leader and no candidate was seen since
        self._campaign_is_transfer = False
        self._asked_to_lead_until = 0.0  # while the leader's request to take over counts
        self._asked_to_lead_term = -1  # in which it was made
        self.handed_over_term = -1
        """The newest term known to have begun by a transfer, which its old leader asked for."""
        self._withheld = False  # must not lead
        self._voters: set[str] = set()
        self._voters_term = -1
        self._match: dict[str, int] = {}
        self._in_flight: dict[str, deque[tuple[int, int]]] = {}  # peer -> (last index, bytes)
        self._went_back: dict[str, tuple[int, float]] = {}  # peer -> (to which index, when)
        self._windows = {peer: (window_to or _own_window)(peer) for peer in self.peers}
        self._turns = {peer: partial(self._take_turn, peer) for peer in self.peers}
        self._ack_limit = 0
        self._shown_index = 0  # prev_index of the append that stock code was shown last
        self._answered = float("-inf")  # when this follower last answered, in monotonic seconds
        self._sent_last_index = 0
        self._told = (-1, 0, 0)  # term, last and commit index at the last heartbeat
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
            self._SyncObj__raftElectionDeadline = clock.monotonic() + self._first_wait_s()
        finally:
            TURN.clock = previous
        sink.member = self

    def _take_turn(self, peer: str) -> None:
        """Send ``peer`` one message of entries; see :class:`PeerWindow`."""
        raise NotImplementedError

    def _first_wait_s(self) -> float:
        """How long a replica that starts waits before it asks for pre-votes."""
        if self._preferred or not self.peers:
            return 0.0
        return self._timing.election_min_s * self._random.random()

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

    term: int = _stock("raftCurrentTerm", "Current term.")
    state: int = _stock("raftState", "FOLLOWER, CANDIDATE or LEADER.")
    commit_index: int = _stock("raftCommitIndex", "Highest index known to be committed.")
    applied_index: int = _stock("raftLastApplied", "Highest index applied.")

    leader_node: PeerNode | None = _stock("raftLeader", "The leader as far as it is known.")

    is_leader = False
    """Whether this replica believes that it leads; a read must confirm it first."""

    def _SyncObj__setState(self, newState: int) -> None:  # noqa: N802, N803 - stock name
        """Take every change of state along for those who ask most: whether it leads."""
        self.is_leader = newState == LEADER
        super()._SyncObj__setState(newState)

    @property
    def leader_name(self) -> str | None:
        """The leader as far as this replica knows."""
        node = self.leader_node
        return None if node is None else node.name

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

    def is_linked(self, peer: str) -> bool:
        """Whether messages to ``peer`` go out at present."""
        return self.peers.get(peer) in self._SyncObj__connectedNodes

    def has_answered(self, peer: str) -> bool:
        """Leader only: whether ``peer`` has answered in this term."""
        return self._SyncObj__lastResponseTime[self.peers[peer]] > self._heard_nobody_s

    def follower_contact(self, peer: str) -> float | None:
        """Leader only: when ``peer`` last answered, or this leadership began, monotonic seconds."""
        return self._SyncObj__lastResponseTime.get(self.peers[peer])

    def next_deadline(self) -> float:
        """When this replica must be ticked at the latest, in monotonic seconds."""
        if self.is_leader:
            return self._SyncObj__newAppendEntriesTime + PAST_DEADLINE_S
        return self._SyncObj__raftElectionDeadline + PAST_DEADLINE_S

    # --- terms and time ---

    def learn_term(self, term: int) -> bool:
        """Adopt a higher ``term`` as a follower, granting nothing; whether it is ours now.

        Not if it is further away than ``TERM_STEP_MAX``: then this is a step towards it, and a
        message of that term must not be taken yet. Any step is safe (Raft paper 5.1: terms only
        rise), it is an election more.

        Stock code has no message for this, but a vote request from a log that nobody votes for
        has exactly this effect.
        """
        if term <= self.term:
            return term == self.term
        aim, term = term, min(term, self.term + TERM_STEP_MAX)
        if term < aim:
            _logger.warning("told of term %d, and goes from %d to %d only", aim, self.term, term)
        anyone = next(iter(self.peers.values()))
        self._SyncObj__onMessageReceived(
            anyone,
            {"type": "request_vote", "term": term, "last_log_index": 0, "last_log_term": -1},
        )
        return term == aim

    def _is_near(self, term: int) -> bool:
        """Whether a message of ``term`` may be taken; if not, this was a step towards it."""
        return term - self.term <= TERM_STEP_MAX or self.learn_term(term)

    def _election_timeout_s(self) -> float:
        low, high = self._timing.election_min_s, self._timing.election_max_s
        return low + (high - low) * self._random.random()

    def _SyncObj__generateRaftTimeout(self) -> float:  # noqa: N802
        """Election time-outs come from the seam, so that a simulated run repeats."""
        return self._election_timeout_s()

    def _SyncObj__tryLogCompaction(self) -> None:  # noqa: N802
        """Nothing: snapshots are the group's work, and the log is cut after them (H3, H5, H16)."""

    # --- what leaves only after the disk has it -----------------------------------------------

    def _answer(self, peer: str, message: wire.RaftMessage) -> None:
        self._answered = self._clock.monotonic()
        self._owner.send(peer, message)

    def _hold(self, peer: str, message: wire.RaftMessage) -> None:
        """Send once everything recorded so far is durable (H8), if the term is still the same.

        By then ``peer`` may have started anew, and be on another link. What is held is true all the
        same: a term has one leader and one vote of ours, and neither a leader nor a candidate of it
        is one again in that term in its next life. So a vote or acknowledgement counts for nobody
        but whom it was meant for.
        """
        if self.journal.synced:
            self._owner.send(peer, message)
        else:
            self._held.append((self.journal.lsn, self.term, peer, message))

    # --- what stock code sends ----------------------------------------------------------------

    def stock_sends(self, node: PeerNode, message: dict[str, Any]) -> None:
        """Translate the few messages that stock code still sends by itself."""
        match message["type"]:
            case "request_vote":
                if self._campaign_is_transfer:
                    self.handed_over_term = message["term"]
                self._hold(
                    node.name,
                    wire.RequestVote(
                        message["term"],
                        message["last_log_index"],
                        message["last_log_term"],
                        self._campaign_is_transfer,
                    ),
                )
            case "response_vote":
                self._hold(node.name, wire.VoteResponse(message["term"]))
            case "timeout_now":
                self._owner.send(node.name, wire.TimeoutNow(message["term"]))
            case other:
                raise ReplicaError(f"stock code sends {other!r}, which should be unreachable")
