"""The groups of this node: made from what the log remembers, and started.

Which groups those are, the map says. What is kept of each is in :mod:`raftkv.engine.replica_table`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from raftkv.core.cluster_map import GroupId, GroupPlacement
from raftkv.core.errors import StartError, UndecodableError
from raftkv.engine.directory import Directory
from raftkv.engine.group_host import GroupHost
from raftkv.engine.snapshot_keeper import GroupSnapshots
from raftkv.raft.clock import Clock
from raftkv.raft.group import Group
from raftkv.raft.host import GroupBounds, GroupConfig, SnapshotPolicy
from raftkv.raft.proposals import Limits
from raftkv.raft.stages import StageDurations
from raftkv.raft.timing import RandomSource, Timing
from raftkv.storage.snapshots import SnapshotStore
from raftkv.storage.wal import RecoveredGroup

__all__ = ["ReplicaSettings", "ReplicaUnreadable", "Replicas"]


class ReplicaUnreadable(StartError):  # noqa: N818 -- says what the replica is
    """A group's snapshot cannot be read; one line that names the file."""


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """What all groups of a node have in common: see :class:`GroupConfig`."""

    node: str
    timing: Timing
    limits: Limits
    snapshots: SnapshotPolicy
    bounds: GroupBounds
    durations: StageDurations


class Replicas:
    """Makes the groups that the map places on this node, and starts them."""

    def __init__(
        self,
        *,
        directory: Directory,
        host: GroupHost,
        store: SnapshotStore,
        clock: Clock,
        random: RandomSource,
        settings: ReplicaSettings,
    ) -> None:
        self._directory = directory
        self._host = host
        self._store = store
        self._clock = clock
        self._random = random
        self._settings = settings

    def start_all(self, recovered: Mapping[GroupId, RecoveredGroup]) -> None:
        """Start every group that the map places here, from what the log remembers; blocking.

        Raises:
            ReplicaUnreadable, ReplicaError, SnapshotDamaged: one cannot be made.
        """
        placements = self._directory.map.groups_of(self._settings.node)
        # All are made before any is driven: one that cannot be made must leave no other ticking.
        groups = [self._make(placement, recovered.get(placement.id)) for placement in placements]
        for group in groups:
            self._host.add(group)

    def _make(self, placement: GroupPlacement, recovered: RecoveredGroup | None) -> Group:
        try:
            return Group(
                self._config(placement),
                store=self._host.wal,
                recovered=recovered,
                files=GroupSnapshots(self._store, placement.id),
                host=self._host,
                clock=self._clock,
                random=self._random,
            )
        except UndecodableError as error:  # what is in the file is met before its checksum
            raise ReplicaUnreadable(f"{self._store.path(placement.id)}: {error}") from error

    def _config(self, placement: GroupPlacement) -> GroupConfig:
        # A group owns the same keys for life, so what it owns does not follow the map.
        shard, shard_of = placement.shard, self._directory.map.partitioner.shard_of
        settings = self._settings
        return GroupConfig(
            id=placement.id,
            node=settings.node,
            members=placement.replicas,
            owns=lambda key: shard_of(key) == shard,
            timing=settings.timing,
            limits=settings.limits,
            snapshots=settings.snapshots,
            bounds=settings.bounds,
            durations=settings.durations,
        )
