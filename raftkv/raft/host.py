"""What a group is, and what it asks of the node around it."""

from collections.abc import Callable
from typing import Literal, Protocol

import msgspec

from raftkv.core.cluster_map import GroupId
from raftkv.core.shard.expiry import LIFETIME_S
from raftkv.core.shard.outcomes import MemoryLimits
from raftkv.raft import messages as wire
from raftkv.raft.proposals import Limits
from raftkv.raft.replication import AppendBounds
from raftkv.raft.snapshot_transfer import ChunkBounds
from raftkv.raft.stages import StageDurations
from raftkv.raft.timing import Timing
from raftkv.raft.windows import PeerWindow

APPLY_OPERATIONS_PER_TICK = 4096
"""Operations applied before the loop gets its turn again: some milliseconds."""


class Event(msgspec.Struct, frozen=True):
    """Something that an operator may want to know."""

    kind: Literal[
        "leader",
        "follower",
        "candidate",
        "transfer",
        "snapshot_installed",
        "snapshot_failed",
        "digest_mismatch",
        "entries_lost",
    ]
    group: GroupId
    term: int
    detail: str = ""


class SnapshotPolicy(msgspec.Struct, frozen=True):
    """When the log is replaced by a snapshot: by bytes as well as by count.

    A large state waits until the log is half as large, within four times ``after_bytes``, so that
    writing snapshots costs a bounded share of writing the log. The last eighth of the log is kept
    all the same: a follower that is a little behind needs it, and not the whole state.
    """

    after_bytes: int = 64 * 1024 * 1024
    after_entries: int = 50_000


class GroupBounds(msgspec.Struct, frozen=True):
    """Bounds that no operator sets. Simulation makes them small, so that its runs meet them.

    ``memory`` and ``name_lifetime_s`` decide outcomes: they must be the same on all replicas.
    """

    appends: AppendBounds = msgspec.field(default_factory=AppendBounds)
    chunks: ChunkBounds = msgspec.field(default_factory=ChunkBounds)
    memory: MemoryLimits = MemoryLimits()
    name_lifetime_s: float = LIFETIME_S
    """As :data:`raftkv.core.shard.expiry.LIFETIME_S`."""
    restore_records_per_tick: int = 4
    """Snapshot records loaded before the loop gets its turn again: a millisecond or two."""
    apply_operations_per_tick: int = msgspec.field(
        default_factory=lambda: APPLY_OPERATIONS_PER_TICK
    )


class GroupConfig(msgspec.Struct, frozen=True):
    """What a group is, apart from the seams it is given."""

    id: GroupId
    node: str
    members: tuple[str, ...]
    owns: Callable[[bytes], bool]
    timing: Timing
    limits: Limits = Limits()
    snapshots: SnapshotPolicy = SnapshotPolicy()
    bounds: GroupBounds = msgspec.field(default_factory=GroupBounds)
    durations: StageDurations = msgspec.field(default_factory=StageDurations)
    """Where the times of entries are counted; of several groups together if they share it."""


class Host(Protocol):
    """What a group asks of its node."""

    def send(self, group: GroupId, peer: str, message: wire.RaftMessage) -> None:
        """Send in order, or lose it with a disconnect."""

    def wake(self, group: GroupId) -> None:
        """Tick the group at the end of this loop turn."""

    def run_job(self, job: Callable[[], object], done: Callable[..., None]) -> None:
        """Run a blocking job off the loop, then call ``done(result, error)`` on it."""

    def event(self, event: Event) -> None:
        """Called with each thing that happens to a group."""

    def disk_stalled(self) -> bool:
        """Tell whether an fdatasync has not returned for an election time-out (H20)."""

    full_peers: frozenset[str]
    """Nodes that say that they have no space."""

    def has_space(self) -> bool:
        """Tell whether new proposals may be taken."""

    def window_to(self, peer: str) -> PeerWindow:
        """Return what all groups of the node share of what is in flight to ``peer``."""
