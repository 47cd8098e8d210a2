"""Stock PySyncObj as an engine that takes and gives plain values.

The only file that speaks PySyncObj's private names. What raftkv does itself is switched off here;
what stock still decides is elections, terms, votes, and how logs that differ are matched. Each
override names the hazard that it mends (``docs/hazards.md``).

Where stock would act (send, append, apply), it leaves word here, and whoever called it looks:
:meth:`Stock.take_said`, :meth:`Stock.take_changes`, ``appends_due``.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import msgspec
from pysyncobj.config import SyncObjConf
from pysyncobj.syncobj import SyncObj
from pysyncobj.transport import Transport

from raftkv.raft import messages as wire
from raftkv.raft.clock import Clock
from raftkv.raft.errors import ReplicaError
from raftkv.raft.journal import GroupJournal, LogEntry
from raftkv.raft.ready import CANDIDATE, FOLLOWER, LEADER, Role, RoleChange
from raftkv.raft.seams import TURN, NullPoller, PeerNode
from raftkv.raft.timing import RandomSource, Timing

ROLES: tuple[Role, ...] = (FOLLOWER, CANDIDATE, LEADER)
"""By PySyncObj's numbers (S: ``_RAFT_STATE``)."""

TERM_STEP_MAX = 1024
"""By so much one message may raise the term.

With pre-vote a term rises only by elections, so that a replica lags by as many terms as there were
elections without it. One that lags by more learns the term from several messages, within seconds.
And no peer can use the terms up, whatever it says: from the first to the last of them takes 2**43
messages, which are years of them at a hundred thousand a second.
"""

_logger = logging.getLogger(__name__)


class Matched(msgspec.Struct, frozen=True):
    """Stock found that the log agrees with an append, up to ``index``."""

    index: int


class Mismatch(msgspec.Struct, frozen=True):
    """Stock found no agreement: its entry at ``index`` is another, or None: it has none there."""

    index: int | None


def _plain(name: str) -> Any:
    """Let stock code keep a private value under a plain name, where it costs us no call."""
    return property(attrgetter(name), lambda self, value: setattr(self, name, value))


class _Sink(Transport):  # type: ignore[misc] # PySyncObj ships no types
    """Where stock code sends its messages."""

    def __init__(self) -> None:
        super().__init__(None, None, None)
        self.said: list[tuple[str, wire.RaftMessage]] = []

    def send(self, node: PeerNode, message: dict[str, Any]) -> bool:
        """Keep a stock message, translated: these few it still sends by itself."""
        term = message["term"]
        translated: wire.RaftMessage
        match message["type"]:
            case "request_vote":
                log = message["last_log_index"], message["last_log_term"]
                translated = wire.RequestVote(term, *log)
            case "response_vote":
                translated = wire.VoteResponse(term)
            case "timeout_now":
                translated = wire.TimeoutNow(term)
            case other:
                raise ReplicaError(f"stock code sends {other!r}, which should be unreachable")
        self.said.append((node.name, translated))
        return True


class Stock(SyncObj):  # type: ignore[misc] # PySyncObj ships no types
    """One stock member of a group.

    Args:
        name: this node.
        peers: the other nodes of the group.
        journal: the log, recovered.
        applied_index: what the state machine has applied (its snapshot's index).
    """

    term: int = 0
    """Current term."""
    leader: str | None = None
    """The leader as far as it is known."""
    role: Role = FOLLOWER
    is_leader = False
    """Whether this replica believes that it leads; a read must confirm it first."""
    commit_index: int = 1
    """Highest index known to be committed."""
    applied_index: int = 1
    """Highest index applied."""
    no_op_index: int | None = None
    """The entry that opened the latest leadership here."""
    election_deadline: float = 0.0
    """When stock stands for election unless this is moved, in monotonic seconds."""
    heartbeat_deadline: float = 0.0
    """When a leader's next heartbeat is due, in monotonic seconds."""
    asked_to_lead = False
    """Whether the leader has asked for an election here; its appends do not put that off."""
    appends_due = False
    """Whether stock wants appends to be sent: a heartbeat is due, or a leadership begins."""

    _SyncObj__raftCurrentTerm = _plain("term")
    _SyncObj__raftCommitIndex = _plain("commit_index")
    _SyncObj__raftLastApplied = _plain("applied_index")
    _SyncObj__noopIDx = _plain("no_op_index")
    _SyncObj__raftElectionDeadline = _plain("election_deadline")
    _SyncObj__newAppendEntriesTime = _plain("heartbeat_deadline")
    _SyncObj__transferInProgress = _plain("asked_to_lead")
    _SyncObj__raftMatchIndex: dict[PeerNode, int]
    _SyncObj__lastResponseTime: dict[PeerNode, float]

    def __init__(
        self,
        *,
        name: str,
        peers: Sequence[str],
        journal: GroupJournal,
        applied_index: int,
        clock: Clock,
        random: RandomSource,
        timing: Timing,
    ) -> None:
        self._journal = journal
        self._clock = clock
        self._random = random
        self._timing = timing
        self._nodes = {peer: PeerNode(peer) for peer in peers}
        self._leader_node: PeerNode | None = None
        self._outcome: Matched | Mismatch = Mismatch(None)
        self._sink = _Sink()
        self.changes: list[RoleChange] = []
        """Changes of its role that nobody has taken out yet."""
        self.linked: set[str] = set()
        """Peers to whom messages go out at present."""
        with self._turn():
            super().__init__(
                PeerNode(name), list(self._nodes.values()), self._conf(), transport=self._sink
            )
        self._poller = NullPoller()
        self.applied_index = applied_index
        self.commit_index = max(applied_index, journal.first_index)

    def _conf(self) -> SyncObjConf:
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
            journalFile=self._journal,
            fullDumpFile=None,
        )

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Have stock code read our clock."""
        previous, TURN.clock = TURN.clock, self._clock
        try:
            yield
        finally:
            TURN.clock = previous

    # --- what stock left word of --------------------------------------------------------------

    def take_said(self) -> list[tuple[str, wire.RaftMessage]]:
        """Take out (peer, message) of what stock wants to be sent."""
        said, self._sink.said = self._sink.said, []
        return said

    def take_changes(self) -> list[RoleChange]:
        """Take out the changes of its role."""
        changes, self.changes = self.changes, []
        return changes

    # --- what it is given ---------------------------------------------------------------------

    def tick(self, heard_at: Mapping[str, float]) -> None:
        """Run stock's timers.

        Args:
            heard_at: a leader's: when each peer last answered, in monotonic seconds.
        """
        if self.is_leader:
            self._SyncObj__lastResponseTime.update(
                {self._nodes[peer]: at for peer, at in heard_at.items()}
            )
        with self._turn():
            self._onTick(0.0)

    def take_append(
        self,
        leader: str,
        term: int,
        commit_index: int,
        previous: tuple[int, int],
        entries: Sequence[LogEntry],
    ) -> Matched | Mismatch:
        """Match an append with the log: what conflicts is cut, what is new is added.

        Args:
            leader: who sent it.
            term: not lower than ours.
            commit_index: up to where it commits.
            previous: (index, term) of the entry before ``entries``.
            entries: stock deletes all that is behind ``previous`` for them, without a look (H2).
        """
        self._deliver(
            leader,
            type="append_entries",
            term=term,
            commit_index=commit_index,
            prevLogIdx=previous[0],
            prevLogTerm=previous[1],
            entries=entries,
        )
        return self._outcome  # stock has answered it, once

    def take_vote_request(self, candidate: str, message: wire.RequestVote) -> None:
        """Vote as the Raft paper has it; a vote that is granted is said."""
        self._deliver(
            candidate,
            type="request_vote",
            term=message.term,
            last_log_index=message.last_log_index,
            last_log_term=message.last_log_term,
        )

    def take_vote(self, voter: str, term: int) -> None:
        """Count a vote; stock counts messages, not voters (H11)."""
        self._deliver(voter, type="response_vote", term=term)

    def take_timeout_now(self, leader: str, term: int) -> None:
        """Stand for election in the next tick if it is the leader that asks for it."""
        self._deliver(leader, type="timeout_now", term=term)

    def _deliver(self, peer: str, **message: Any) -> None:
        with self._turn():
            self._SyncObj__onMessageReceived(self._nodes[peer], message)

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
        anyone = next(iter(self._nodes))
        self._deliver(anyone, type="request_vote", term=term, last_log_index=0, last_log_term=-1)
        return term == aim

    def is_near(self, term: int) -> bool:
        """Whether a message of ``term`` may be taken; if not, this was a step towards it."""
        return term - self.term <= TERM_STEP_MAX or self.learn_term(term)

    def ask_to_lead(self, peer: str, match: int) -> wire.TimeoutNow | None:
        """Return what asks ``peer`` to take over, None unless it has all of the log.

        ``match`` is up to where it has it. Stock is told for this call alone: as it knows nothing
        of followers otherwise, its own count never comes to a majority.
        """
        node, matches = self._nodes[peer], self._SyncObj__raftMatchIndex
        matches[node] = match
        try:
            self.transferLeadership(node)
        finally:
            matches[node] = 0
        for _, message in self.take_said():
            if isinstance(message, wire.TimeoutNow):
                return message
        return None

    def connect(self, peer: str) -> None:
        """Messages to ``peer`` go out from now on."""
        self.linked.add(peer)
        self._SyncObj__onNodeConnected(self._nodes[peer])

    def disconnect(self, peer: str) -> None:
        """They do not any more."""
        self.linked.discard(peer)
        self._SyncObj__onNodeDisconnected(self._nodes[peer])

    def lead_alone(self) -> None:
        """Lead a group of one that has elected itself, if its disk has the term by now."""
        with self._turn():
            self._SyncObj__onBecomeLeader()

    def follow_nobody(self) -> None:
        """Be a follower that knows no leader."""
        self._SyncObj__setState(ROLES.index(FOLLOWER))
        self._SyncObj__raftLeader = None

    def election_timeout_s(self) -> float:
        """A new one each time, so that replicas do not stand for election together."""
        low, high = self._timing.election_min_s, self._timing.election_max_s
        return low + (high - low) * self._random.random()

    # --- what stock calls ---------------------------------------------------------------------

    @property
    def _SyncObj__raftLeader(self) -> PeerNode | None:  # noqa: N802 -- stock names, here and below
        return self._leader_node

    @_SyncObj__raftLeader.setter
    def _SyncObj__raftLeader(self, node: PeerNode | None) -> None:  # noqa: N802
        self._leader_node = node
        self.leader = None if node is None else node.name

    def _SyncObj__setState(self, newState: int) -> None:  # noqa: N802, N803
        """Note each change of role."""
        super()._SyncObj__setState(newState)
        before, self.role = self.role, ROLES[newState]
        self.is_leader = self.role == LEADER
        if self.role != before:
            # Stock begins the candidate's own term only after this.
            term = self.term + (self.role == CANDIDATE)
            self.changes.append(RoleChange(before, self.role, term))

    def _SyncObj__generateRaftTimeout(self) -> float:  # noqa: N802
        """Election time-outs come from the seam, so that a simulated run repeats."""
        return self.election_timeout_s()

    def _SyncObj__sendNextNodeIdx(  # noqa: N802
        self,
        node: PeerNode,  # noqa: ARG002
        reset: bool = False,  # noqa: ARG002, FBT001, FBT002 -- stock signature
        nextNodeIdx: int | None = None,  # noqa: N803
        success: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        """Note how an append was matched; what is answered is not stock's affair (H2, H10)."""
        self._outcome = Matched((nextNodeIdx or 1) - 1) if success else Mismatch(nextNodeIdx)

    def _SyncObj__onBecomeLeader(self) -> None:  # noqa: N802
        """Begin a leadership.

        In a group of one stock comes here with a term that the disk does not have yet, and would
        take it a second time after a crash: it stays a candidate until the disk has it (H8).
        """
        if self._nodes or self._journal.synced:
            super()._SyncObj__onBecomeLeader()

    def _SyncObj__sendAppendEntries(self) -> None:  # noqa: N802
        """Note that appends are due: what goes to whom is not stock's affair (H1, H6, H13)."""
        self.appends_due = True

    def _SyncObj__getEntries(  # noqa: N802
        self,
        fromIDx: int | None,  # noqa: N803 -- stock signature
        count: int | None = None,
        maxSizeBytes: int | None = None,  # noqa: N803
    ) -> list[LogEntry]:
        """Show stock code, in a group of one, only what the disk has (H9).

        Alone, its count of one copy is a majority, and it counts in the same tick in which it
        has elected itself; an entry that it does not see it does not commit.
        """
        if not self._nodes and (fromIDx or 0) > self._journal.durable_index:
            return []
        entries: list[LogEntry] = super()._SyncObj__getEntries(fromIDx, count, maxSizeBytes)
        return entries

    def _SyncObj__applyLogEntries(self) -> bool:  # noqa: N802
        """Nothing: stock applies again what raised; the host applies each entry once (H12)."""
        return False

    def _checkCommandsToApply(self) -> None:  # noqa: N802
        """Nothing: stock's queue is never used, so no callback is lost in it (H14, H17, H21)."""

    def _SyncObj__tryLogCompaction(self) -> None:  # noqa: N802
        """Nothing: snapshots are the group's work, and the log is cut after them (H3, H5, H16)."""
