"""One record for each group of this node, with all that the node keeps of it.

A record comes and goes with its group (:mod:`raftkv.engine.replicas`), so nothing that was counted,
timed or remembered of a group outlives it.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from raftkv.core.cluster_map import ClusterMap, GroupId
from raftkv.core.shard.machine import StateMachine
from raftkv.engine.directory import Directory
from raftkv.engine.load import ShardLoad
from raftkv.engine.recent import CommitTrail, Leaderships
from raftkv.raft.group import Group
from raftkv.status.facts import SlowRequest

__all__ = ["FailedSnapshot", "ReplicaRecord", "ReplicaTable"]


class FailedSnapshot(NamedTuple):
    """A snapshot that could not be written, and the check at which it is tried again."""

    times: int
    again_at: int


class ReplicaRecord:
    """What this node keeps of one of its groups.

    Args:
        began_us: when the record was made, in microseconds of wall clock.
    """

    __slots__ = (
        "committed_before", "failed_snapshot", "group", "handing_to", "leaderships", "load",
        "slow", "snapshot_turn", "state_seen", "timed_at", "trail",
    )  # fmt: skip

    def __init__(self, group: Group, began_us: int) -> None:
        self.group = group
        self.load = ShardLoad()
        """What was served here of its shard."""
        self.leaderships = Leaderships(began_us)
        """Who led it lately."""
        self.trail = CommitTrail()
        """When this node, as its leader, had committed how far."""
        self.committed_before: int | None = None
        """Its commit index a second ago; None: it is not a second old."""
        self.slow: SlowRequest | None = None
        """The newest slow request that was served here."""
        self.timed_at = math.inf
        """The deadline under which the host's timer knows it; infinite: under none."""
        self.handing_to: str | None = None
        """To whom the balancer hands its leadership just now."""
        self.snapshot_turn = 0
        """When its snapshot was written last, by the keeper's count; 0: not in this life."""
        self.failed_snapshot: FailedSnapshot | None = None
        """Its latest snapshot, if that could not be written."""
        self.state_seen: StateMachine | None = None
        """Its state at the keeper's latest look: it holds on to one that has been replaced."""


class ReplicaTable:
    """The records of this node's groups. Used on the event loop only.

    Args:
        directory: which of the groups holds its shard now.
    """

    def __init__(self, directory: Directory) -> None:
        self.by_id: dict[GroupId, ReplicaRecord] = {}
        """All, by the group's name. Only :meth:`add` and :meth:`remove` change it."""
        self.by_shard: dict[int, ReplicaRecord] = {}
        """Those that hold a shard by the current map; every request looks here."""
        self._directory = directory
        directory.subscribe(self._map_changed)

    def __iter__(self) -> Iterator[ReplicaRecord]:
        """All records, in the order in which they came."""
        return iter(self.by_id.values())

    def __len__(self) -> int:
        return len(self.by_id)

    def groups(self) -> list[Group]:
        """Return the groups, in the same order."""
        return [record.group for record in self.by_id.values()]

    def add(self, group: Group, began_us: int) -> ReplicaRecord:
        """Make the record of a group that is new here.

        Raises:
            ValueError: there is one of that name.
        """
        if group.id in self.by_id:
            raise ValueError(f"group {group.id} is here already")
        record = self.by_id[group.id] = ReplicaRecord(group, began_us)
        if self._directory.map.group_ids.get(group.id.shard) == group.id:
            self.by_shard[group.id.shard] = record
        return record

    def remove(self, name: GroupId) -> ReplicaRecord:
        """Forget a group and return what was kept of it; ``KeyError`` if it is not here."""
        record = self.by_id.pop(name)
        if self.by_shard.get(name.shard) is record:
            del self.by_shard[name.shard]
        return record

    def _map_changed(self, _: ClusterMap, now: ClusterMap) -> None:
        self.by_shard.clear()  # in place: the router holds on to it
        for shard, name in now.group_ids.items():
            record = self.by_id.get(name)
            if record is not None:
                self.by_shard[shard] = record
