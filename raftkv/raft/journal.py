"""PySyncObj's journal on top of the node's write-ahead log.

Mends H4, H8, H9, H18: records are atomic and checksummed by the WAL, calls only touch memory and
never fail (the engine syncs the WAL and stops when that fails), and no commit index is stored, so
none can lie beyond the log's end.

Position 0 always holds a sentinel, the entry that a snapshot ends with, because PySyncObj wants
the term of the entry before the first one. A log that was never compacted starts with PySyncObj's
own convention: a no-op with index 1 and term 0, which every member has without being told.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from pysyncobj.journal import Journal

from raftkv.core.cluster_map import GroupId
from raftkv.raft.errors import ReplicaError

NO_OP = b"\x01"
REGULAR = b"\x00"

FIRST_INDEX = 1
ENTRY_OVERHEAD_BYTES = 120
"""Memory of one entry beyond its command: tuple, two integers, bytes header."""

LogEntry = tuple[bytes, int, int]
"""(command, index, term), as PySyncObj keeps them."""


def command_of(entry: LogEntry) -> bytes | None:
    """Return what was proposed, None for a no-op.

    Raises:
        ReplicaError: the entry is of a kind that this version does not know.
    """
    command, index, _ = entry
    if command == NO_OP:
        return None
    if command[:1] != REGULAR:
        raise ReplicaError(f"entry {index} is of a kind that this version does not know")
    return command[1:]


class LogStore(Protocol):
    """What a journal needs of the write-ahead log: calls buffer, return an LSN, never raise."""

    durable_lsn: int

    def append(self, group: GroupId, index: int, term: int, payload: bytes) -> int:
        """Record an entry."""

    def truncate_from(self, group: GroupId, index: int) -> int:
        """Record that ``index`` and everything after it is gone."""

    def set_hard_state(self, group: GroupId, term: int, vote: str | None) -> int:
        """Record term and vote."""

    def compact(self, group: GroupId, index: int, term: int) -> int:
        """Record that a snapshot covers everything up to ``index``."""


class Recovered(Protocol):
    """What the write-ahead log remembers of a group."""

    term: int
    vote: str | None
    compacted: tuple[int, int]
    entries: list[tuple[bytes, int, int]]


class GroupJournal(Journal):  # type: ignore[misc] # PySyncObj ships no types
    """The log of one replica, in memory, with every change handed to the WAL.

    Args:
        store: the node's write-ahead log.
        group: whose records these are.
        recovered: what the WAL remembers, None for a group it never saw.
    """

    def __init__(self, store: LogStore, group: GroupId, recovered: Recovered | None) -> None:
        self._store = store
        self._group = group
        index, term = recovered.compacted if recovered else (FIRST_INDEX, 0)
        self._entries: list[LogEntry] = [(NO_OP, index, term)]
        self._term = recovered.term if recovered else 0
        self._vote = recovered.vote if recovered else None
        self.bytes_total = 0
        for command, entry_index, entry_term in recovered.entries if recovered else ():
            self._entries.append((command, entry_index, entry_term))
            self.bytes_total += len(command) + ENTRY_OVERHEAD_BYTES
        self.lsn = 0 if recovered else store.compact(group, index, term)
        """LSN of this group's latest record; what leaves for a peer waits for it."""
        self.durable_index = self.last_index
        """Every entry up to here has been synced."""
        self._unsynced: deque[tuple[int, int]] = deque()  # (lsn, index) of entries, in order

    # --- what PySyncObj calls -----------------------------------------------------------------

    def add(self, command: bytes, idx: int, term: int) -> None:
        """Append one entry."""
        self._entries.append((command, idx, term))
        self.bytes_total += len(command) + ENTRY_OVERHEAD_BYTES
        self.lsn = self._store.append(self._group, idx, term, command)
        self._unsynced.append((self.lsn, idx))

    def deleteEntriesFrom(self, entryFrom: int) -> None:  # noqa: N802, N803 -- PySyncObj's name
        """Drop position ``entryFrom`` and everything after it: a conflicting suffix."""
        if entryFrom >= len(self._entries):
            return
        index = self._entries[entryFrom][1]
        for command, _, _ in self._entries[entryFrom:]:
            self.bytes_total -= len(command) + ENTRY_OVERHEAD_BYTES
        del self._entries[entryFrom:]
        self.lsn = self._store.truncate_from(self._group, index)
        while self._unsynced and self._unsynced[-1][1] >= index:
            self._unsynced.pop()
        self.durable_index = min(self.durable_index, index - 1)

    def __getitem__(self, item: Any) -> Any:
        return self._entries[item]

    def __len__(self) -> int:
        return len(self._entries)

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:  # noqa: N802, N803
        """Remember term and vote; the vote leaves only after the sync that covers this record."""
        self._term, self._vote = term, votedForNodeId
        self.lsn = self._store.set_hard_state(self._group, term, votedForNodeId)

    def getCurrentTerm(self) -> int:  # noqa: N802
        """Return the remembered term."""
        return self._term

    def getVotedForNodeId(self) -> str | None:  # noqa: N802
        """Return whom this replica voted for in that term."""
        return self._vote

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:  # noqa: N802, N803
        """Nothing: a commit index is learned again from the leader, never trusted from disk."""

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        """Everything up to the snapshot is committed; that is all a restarted replica knows."""
        return self.first_index

    def clear(self) -> None:
        """Refuse: stock calls this to load dumps, which raftkv does itself (H3, H4)."""
        raise AssertionError("PySyncObj's own dump loading is switched off")

    def deleteEntriesTo(self, entryTo: int) -> None:  # noqa: ARG002, N802, N803
        """Refuse: stock calls this after dumping, which raftkv does itself (H4, H16)."""
        raise AssertionError("PySyncObj's own log compaction is switched off")

    def _destroy(self) -> None:
        """Nothing of its own to close."""

    # --- what raftkv adds ---------------------------------------------------------------------

    @property
    def first_index(self) -> int:
        """Index of the sentinel: everything up to it lives in a snapshot."""
        return self._entries[0][1]

    @property
    def last_index(self) -> int:
        """Index of the last entry."""
        return self._entries[-1][1]

    @property
    def last_term(self) -> int:
        """Term of the last entry."""
        return self._entries[-1][2]

    @property
    def durable_lsn(self) -> int:
        """LSN up to which the whole node's log is durable."""
        return self._store.durable_lsn

    @property
    def synced(self) -> bool:
        """Whether every record of this group is durable."""
        return self.lsn <= self._store.durable_lsn

    def term_at(self, index: int) -> int | None:
        """Term of the entry at ``index``, None if it is not in memory."""
        position = index - self._entries[0][1]
        return self._entries[position][2] if 0 <= position < len(self._entries) else None

    def entry(self, index: int) -> LogEntry:
        """Return the entry at ``index``, which must be after the sentinel."""
        return self._entries[index - self._entries[0][1]]

    def between(self, first: int, last: int) -> Sequence[LogEntry]:
        """Return the entries ``first`` to ``last``, both included, all after the sentinel."""
        start = self._entries[0][1]
        return self._entries[first - start : last + 1 - start]

    def entries_from(self, index: int, bytes_max: int) -> tuple[tuple[bytes, int], ...]:
        """(command, term) from ``index`` on, at least one, up to ``bytes_max`` bytes.

        Takes only what it returns: stock copies the whole tail first (syncobj.py:1151).
        """
        position = index - self._entries[0][1]
        taken: list[tuple[bytes, int]] = []
        size = 0
        while position < len(self._entries):
            command, _, term = self._entries[position]
            size += len(command)
            if taken and size > bytes_max:
                break
            taken.append((command, term))
            position += 1
        return tuple(taken)

    def first_index_of_term_at(self, index: int, floor: int) -> int:
        """First index, above ``floor``, of the run of equal terms that ends at ``index``."""
        term = self.term_at(index)
        while index - 1 > floor and self.term_at(index - 1) == term:
            index -= 1
        return index

    def tail_start(self, index: int, bytes_max: int, entries_max: int) -> int:
        """Lowest index such that the entries after it, up to ``index``, are within both bounds."""
        first, size = self._entries[0][1], 0
        for start in range(index, max(first, index - entries_max), -1):
            size += len(self._entries[start - first][0]) + ENTRY_OVERHEAD_BYTES
            if size > bytes_max:
                return start
        return max(first, index - entries_max)

    def wal_synced(self) -> None:
        """Note how far the log is durable now."""
        durable = self.durable_lsn
        while self._unsynced and self._unsynced[0][0] <= durable:
            self.durable_index = self._unsynced.popleft()[1]

    def compact(self, index: int) -> None:
        """Drop entries up to ``index``, which a durable snapshot must cover (H3)."""
        position = index - self._entries[0][1]
        if position <= 0:
            return
        _, _, term = self._entries[position]
        for command, _, _ in self._entries[1 : position + 1]:
            self.bytes_total -= len(command) + ENTRY_OVERHEAD_BYTES
        self._entries = [(NO_OP, index, term), *self._entries[position + 1 :]]
        self.lsn = self._store.compact(self._group, index, term)

    def restart_at(self, index: int, term: int) -> None:
        """Make the log agree with a durable snapshot that ends at (``index``, ``term``).

        A log that holds exactly that entry keeps what follows it (H7); any other log is older or
        divergent there, hence not committed beyond, and starts anew.
        """
        if self.term_at(index) == term:
            self.compact(index)
            return
        self.deleteEntriesFrom(1)
        self._entries = [(NO_OP, index, term)]
        self.bytes_total = 0
        self.lsn = self._store.compact(self._group, index, term)
        self.durable_index = index
