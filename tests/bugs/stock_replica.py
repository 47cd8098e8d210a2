"""Stock PySyncObj in the place of raftkv's hardened replica, for the simulation to judge.

Only the Raft is stock: its log, its messages (pickled, as on its own wire), its elections, commits
and local reads. Links, storage, state machine and everything above stay raftkv's, so what is found
is the library's. Its log compaction is left off, which spares it H1 and H3 to H7.
"""

import contextlib
import pickle
from collections.abc import Sequence
from typing import Any

from pysyncobj.config import SyncObjConf
from pysyncobj.syncobj import _COMMAND_TYPE, SyncObj
from pysyncobj.transport import Transport

from raftkv.raft import messages as wire
from raftkv.raft.journal import GroupJournal, LogEntry
from raftkv.raft.ready import LEADER, Ready, RoleChange
from raftkv.raft.seams import TURN, NullPoller, PeerNode
from raftkv.raft.stock import ROLES
from raftkv.raft.timing import Timing

_NEVER = 10**9


class _Wire(Transport):  # type: ignore[misc] # PySyncObj ships no types
    """Stock's transport, over the group's links."""

    def __init__(self) -> None:
        super().__init__(None, None, None)
        self.messages: list[tuple[str, wire.RaftMessage]] = []

    def send(self, node: Any, message: Any) -> bool:
        """Pickle it, as stock does, into a message that the links carry."""
        body = pickle.dumps(message, 2)
        self.messages.append((node.id, wire.AppendEntries(0, 0, 0, 0, ((body, 0),))))
        return True


class StockReplica(SyncObj):  # type: ignore[misc] # PySyncObj ships no types
    """What a group asks of its replica, answered by stock code."""

    def __init__(
        self,
        *,
        name: str,
        members: Sequence[str],
        journal: GroupJournal,
        applied_index: int,
        clock: Any,
        random: Any,
        timing: Timing,
        preferred: bool = False,
        **bounds: Any,
    ) -> None:
        del applied_index, preferred, bounds  # windows and the like are raftkv's
        self._clock, self._random, self._timing = clock, random, timing
        self.journal = journal
        self.peers = {peer: PeerNode(peer) for peer in members if peer != name}
        self.applied_index = 1
        self.awaits_sync = True
        self.has_work = True
        self._wire = _Wire()
        self._changes: list[RoleChange] = []
        self._committed: list[LogEntry] = []
        with self._turn():
            super().__init__(
                PeerNode(name), list(self.peers.values()), self._conf(), transport=self._wire
            )
            self._poller = NullPoller()

    def _conf(self) -> Any:
        return SyncObjConf(
            autoTick=False,
            raftMinTimeout=self._timing.election_min_s,
            raftMaxTimeout=self._timing.election_max_s,
            appendEntriesPeriod=self._timing.heartbeat_s,
            connectionTimeout=max(self._timing.election_max_s, 3.5),
            journalFile=self.journal,
            logCompactionMinEntries=_NEVER,
            logCompactionMinTime=_NEVER,
            onStateChanged=self._state_changed,
        )

    @contextlib.contextmanager
    def _turn(self) -> Any:
        previous, TURN.clock = TURN.clock, self._clock
        try:
            yield
        finally:
            TURN.clock = previous

    def _SyncObj__generateRaftTimeout(self) -> float:  # noqa: N802 -- so that a run repeats
        low, high = self._timing.election_min_s, self._timing.election_max_s
        return float(low + (high - low) * self._random.random())

    def _state_changed(self, old: int, new: int) -> None:
        self._changes.append(RoleChange(ROLES[old], ROLES[new], self.term))

    def _ready(self) -> Ready:
        """What stock code said and applied."""
        ready = Ready(self._changes, self._wire.messages, tuple(self._committed))
        self._changes, self._wire.messages = [], []
        return ready

    # --- driven by the group ------------------------------------------------------------------

    def tick(self, *, disk_stalled: bool) -> Ready:
        """Let stock code run; it knows nothing of a stalled disk."""
        del disk_stalled
        with self._turn():
            self._onTick(0.0)
        return self._ready()

    def propose(self, command: bytes) -> None:
        """Put it into stock's queue, and from there into its log."""
        with self._turn():
            self._applyCommand(command, None, _COMMAND_TYPE.REGULAR)
            self._checkCommandsToApply()

    def send_proposed(self) -> Ready:
        """Stock sends with its next heartbeat."""
        return self._ready()

    def receive(self, peer: str, message: Any) -> Ready:
        """Unpickle and hand over; survive what stock code raises, as its transport does."""
        ((body, _),) = message.entries
        with self._turn(), contextlib.suppress(Exception):
            self._SyncObj__onMessageReceived(self.peers[peer], pickle.loads(body))  # noqa: S301
        return self._ready()

    def peer_connected(self, peer: str) -> None:
        """Tell stock code."""
        if peer in self.peers:
            self._SyncObj__onNodeConnected(self.peers[peer])

    def peer_disconnected(self, peer: str) -> None:
        """Tell stock code."""
        if peer in self.peers:
            self._SyncObj__onNodeDisconnected(self.peers[peer])

    def wal_synced(self) -> Ready:
        """Nothing waits for the disk in stock code."""
        self.journal.wal_synced()
        return self._ready()

    def withhold(self, withheld: bool) -> Ready:  # noqa: ARG002, FBT001 -- as Replica's
        """Stock knows of no reason not to lead."""
        return self._ready()

    def ask_to_lead(self, peer: str) -> wire.RaftMessage | None:
        """Ask for a transfer."""
        with self._turn():
            self.transferLeadership(self.peers[peer])
        said = self._wire.messages.pop() if self._wire.messages else None
        return None if said is None else said[1]

    def _SyncObj__doApplyCommand(self, command: bytes) -> None:  # noqa: N802
        index = self._SyncObj__raftLastApplied + 1
        self._committed.append((command, index, self.journal.term_at(index) or 0))

    def applied(self, index: int) -> None:
        """The state machine has applied an entry that stock gave out."""
        self.applied_index = index
        del self._committed[0]

    # --- what is looked at --------------------------------------------------------------------

    @property
    def term(self) -> int:
        """Current term."""
        return int(self._SyncObj__raftCurrentTerm)

    @property
    def is_leader(self) -> bool:
        """Whether it believes so."""
        return bool(self._SyncObj__raftState == LEADER)

    @property
    def leader(self) -> str | None:
        """The name of who leads, as far as it knows."""
        node = self._SyncObj__raftLeader
        return None if node is None else str(node.id)

    @property
    def leader_contact(self) -> float:
        """Not kept by stock code."""
        return float(self._clock.monotonic())

    @property
    def commit_index(self) -> int:
        """Highest committed index."""
        return int(self._SyncObj__raftCommitIndex)

    @property
    def no_op_applied(self) -> bool:
        """Whether its own no-op is applied."""
        no_op = self._SyncObj__noopIDx
        return no_op is not None and self.applied_index >= no_op

    handed_over_term = -1

    def is_linked(self, peer: str) -> bool:
        """Whether messages to a peer go out at present."""
        return self.peers.get(peer) in self._SyncObj__connectedNodes

    def follower_contact(self, peer: str) -> float | None:
        """When a peer last answered."""
        return self._SyncObj__lastResponseTime.get(self.peers[peer])  # type: ignore[no-any-return]

    def has_answered(self, peer: str) -> bool:
        """Whether anything is known of a peer's log."""
        return self.match_index(peer) > 0

    def match_index(self, peer: str) -> int:
        """Up to where a peer agrees, as the leader believes."""
        return int(self._SyncObj__raftMatchIndex.get(self.peers[peer], 0))

    def next_deadline(self) -> float:
        """When it must be ticked."""
        if self.is_leader:
            return float(self._SyncObj__newAppendEntriesTime) + 1e-4
        return float(self._SyncObj__raftElectionDeadline) + 1e-4
