"""Log compaction: a snapshot takes the place of the log's beginning (Raft dissertation, chapter 5).

When one is due is decided here, and what it stands for; who writes it is the engine's affair, and
how it travels is that of :mod:`raftkv.raft.snapshot_exchange`.
"""

from raftkv.core.shard.machine import StateMachine
from raftkv.raft.errors import ReplicaError
from raftkv.raft.host import GroupConfig
from raftkv.raft.journal import FIRST_INDEX, GroupJournal
from raftkv.raft.replica import Replica
from raftkv.raft.snapshot_exchange import SnapshotExchange
from raftkv.raft.snapshot_transfer import SnapshotFiles


def load_state(
    config: GroupConfig, files: SnapshotFiles, journal: GroupJournal
) -> tuple[StateMachine, int]:
    """Return the state of the snapshot in place, and the index that it ends at.

    The log is made to agree with it (H3).

    Raises:
        ReplicaError: the log was compacted beyond the snapshot that is there (H5).
    """
    opened = files.open()
    if opened is None:
        if journal.first_index > FIRST_INDEX:
            raise ReplicaError(
                f"group {config.id}: the log starts after entry {journal.first_index}, but the "
                "snapshot that covers what is before is missing"
            )
        return StateMachine(config.id.generation, config.owns, config.bounds.memory), FIRST_INDEX
    snapshot, reader = opened
    try:
        if snapshot.index < journal.first_index:
            raise ReplicaError(
                f"group {config.id}: the snapshot ends at entry {snapshot.index}, but the log "
                f"starts after entry {journal.first_index}"
            )
        restorer = StateMachine.restore(config.id.generation, config.owns, config.bounds.memory)
        for record in reader.records():
            restorer.feed(record)
    finally:
        reader.close()
    journal.restart_at(snapshot.index, snapshot.term)
    return restorer.finish(), snapshot.index


class Compaction:
    """When one replica's log is due for a snapshot, and what is dropped once there is one.

    Args:
        snapshot_index: the last entry that the snapshot in place covers.
    """

    def __init__(
        self,
        config: GroupConfig,
        snapshot_index: int,
        *,
        replica: Replica,
        exchange: SnapshotExchange,
    ) -> None:
        self.snapshot_index = snapshot_index
        """Everything up to this index is in the durable snapshot."""
        self._config = config
        self._journal = replica.journal
        self._replica = replica
        self._exchange = exchange

    @property
    def may_snapshot(self) -> bool:
        """Whether a snapshot taken now would be newer than what there is."""
        newer = self._replica.applied_index > self.snapshot_index
        return newer and not self._exchange.is_receiving

    def is_due(self, state_bytes: int) -> bool:
        """Whether the log has grown enough for a state of this size.

        Later on each next replica, so that they take turns.
        """
        policy = self._config.snapshots
        after_bytes = max(policy.after_bytes, min(4 * policy.after_bytes, state_bytes // 2))
        turn = 1.0 + self._config.members.index(self._config.node) / 8
        grown = (
            self._journal.bytes_total > after_bytes * turn
            or len(self._journal) > policy.after_entries * turn
        )
        return grown and self.may_snapshot

    def snapshot_point(self) -> tuple[int, int]:
        """(index, term) of the last applied entry: what a snapshot taken now ends with."""
        index = self._replica.applied_index
        term = self._journal.term_at(index)
        if term is None:
            raise ReplicaError(f"group {self._config.id}: applied entry {index} is not there")
        return index, term

    def snapshot_written(self, index: int) -> None:
        """Drop most of the log up to ``index``: a durable snapshot covers it now (H3)."""
        if index <= self.snapshot_index:
            return
        self.snapshot_index = index
        policy = self._config.snapshots
        kept = self._journal.tail_start(index, policy.after_bytes // 8, policy.after_entries // 8)
        self._journal.compact(kept)

    def release_log(self) -> bool:
        """Drop all of the log that the snapshot covers; false if there is nothing to drop.

        For a group whose old entries keep the node's log segments alive.
        """
        if self.snapshot_index <= self._journal.first_index:
            return False
        self._journal.compact(self.snapshot_index)
        return True
