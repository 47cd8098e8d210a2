"""raftkv's own replicas on the simulated world: clock, network and disk.

A node here is what an engine is, without sockets and threads: one write-ahead log, one snapshot
store, one group, and the rules that bind them. Every message goes through its wire encoding.
"""

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from worlds import Answer, Read, World

from raftkv.core.cluster_map import GroupId
from raftkv.core.operations import Command, Put, Range, WriteResult
from raftkv.raft.group import Group
from raftkv.raft.host import Event, GroupBounds, GroupConfig, SnapshotPolicy
from raftkv.raft.messages import Envelope, RaftMessage
from raftkv.raft.proposals import GroupFailure
from raftkv.raft.snapshot_transfer import SnapshotId
from raftkv.raft.timing import Timing
from raftkv.raft.windows import PeerWindow
from raftkv.sim.clock import SimClock
from raftkv.sim.disk import SimDisk, SimulatedCrash
from raftkv.sim.network import Event as NetworkEvent
from raftkv.storage.disk import DiskError, DiskFull
from raftkv.storage.snapshots import SnapshotHeader, SnapshotReader, SnapshotStore
from raftkv.storage.wal import SyncJob, Wal

GROUP = GroupId(0, 1)
DATA = Path("/data")
WAL = DATA / "wal"
SNAPSHOTS = DATA / "snapshots"
SEGMENT_BYTES = 64 * 1024
TIMING = Timing(heartbeat_s=0.05, election_min_s=0.4, election_max_s=0.8)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Envelope).decode


class Files:
    """The snapshots of the one group, as the group wants to see them."""

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store

    def open(self) -> tuple[SnapshotId, SnapshotReader] | None:
        """Open the one in place."""
        reader = self._store.open(GROUP)
        if reader is None:
            return None
        return SnapshotId(reader.header.index, reader.header.term, reader.size), reader

    def receive(self, snapshot: SnapshotId) -> Any:  # noqa: ARG002 -- the file says it all
        """Begin to write one that a leader sends."""
        return self._store.receive(GROUP)


class NodeClock:
    """The world's time as one node's clocks show it: monotonic from elsewhere, wall time off."""

    def __init__(self, clock: SimClock, offset_s: float, wall_skew_us: int) -> None:
        self._clock = clock
        self._offset_s = offset_s
        self.suspended_s = 0.0
        self._wall_skew_us = wall_skew_us

    def monotonic(self) -> float:
        """Seconds since whenever this node booted."""
        return self._clock.monotonic() + self._offset_s

    def boottime(self) -> float:
        """The same, and for how long it was suspended."""
        return self.monotonic() + self.suspended_s

    def time_us(self) -> int:
        """Wall time as this node believes it."""
        return self._clock.time_us() + self._wall_skew_us


class GroupNode:
    """One life of one node: the engine's part in keeping Raft's promises."""

    def __init__(self, world: "GroupWorld", name: str, disk: SimDisk) -> None:
        self.name = name
        self.disk = disk
        self.events: list[Event] = []
        self.stalled_since: float | None = None
        random = world.random_of(name)
        self.clock = NodeClock(
            world.clock, random.uniform(0, 1e6), random.randrange(-5_000_000, 5_000_000)
        )
        self._world = world
        self._woken = False
        self._syncing: SyncJob | None = None
        self._jobs: deque[tuple[Callable[[], object], Callable[..., None]]] = deque()
        self.wal, recovered = Wal.open(
            disk, WAL, identity=f"identity-of-{name}", segment_bytes=SEGMENT_BYTES
        )
        self.snapshots = SnapshotStore(disk, SNAPSHOTS)
        self.files = Files(self.snapshots)
        self.group = Group(
            GroupConfig(
                id=GROUP,
                node=name,
                members=world.names,
                owns=_owns_everything,
                timing=TIMING,
                snapshots=world.policy,
                bounds=world.bounds,
            ),
            store=self.wal,
            recovered=recovered.get(GROUP),
            files=self.files,
            host=self,
            clock=self.clock,
            random=random,
        )

    # --- what the group asks ------------------------------------------------------------------

    def send(self, group: GroupId, peer: str, message: RaftMessage) -> None:
        """Encode and queue."""
        self._world.network.send(self.name, peer, _encode(Envelope(*group, message)))

    def wake(self, group: GroupId) -> None:  # noqa: ARG002 -- there is only one
        """Tick once more at the end of this turn."""
        self._woken = True

    def run_job(self, job: Callable[[], object], done: Callable[..., None]) -> None:
        """Run it in the next turn: a worker thread is never done at once."""
        self._jobs.append((job, done))

    def event(self, event: Event) -> None:
        """Remember."""
        self.events.append(event)

    def disk_stalled(self) -> bool:
        """Whether the disk has owed us a sync for an election time-out."""
        if self.stalled_since is None:
            return False
        return self.clock.monotonic() - self.stalled_since > TIMING.election_min_s

    full_peers: frozenset[str] = frozenset()

    def has_space(self) -> bool:
        """Ask the log."""
        return self.wal.has_space()

    def window_to(self, _peer: str) -> PeerWindow:
        """One for each, as there is only one group."""
        return PeerWindow(lambda: None)

    # --- the loop -----------------------------------------------------------------------------

    def on_message(self, peer: str, payload: bytes) -> None:
        """Decode and hand over."""
        envelope = _decode(payload)
        assert (envelope.shard, envelope.generation) == GROUP
        self.group.receive(peer, envelope.message)
        self._woken = True

    def on_connected(self, peer: str) -> None:
        """Tell the group."""
        self.group.peer_connected(peer)

    def on_disconnected(self, peer: str) -> None:
        """Tell the group."""
        self.group.peer_disconnected(peer)

    def turn(self) -> None:
        """Jobs, ticks while something happens, and the disk."""
        for _ in range(len(self._jobs)):
            self.run_a_job()
        self.group.tick()
        self.sync()
        for _ in range(3):
            if not self._woken:
                break
            self._woken = False
            self.group.tick()
            self.sync()

    def run_a_job(self, random: Random | None = None) -> None:
        """Run the oldest job that waits for a thread, or any: threads overtake each other."""
        if not self._jobs:
            return
        if random is not None:
            self._jobs.rotate(random.randrange(len(self._jobs)))
        job, done = self._jobs.popleft()
        try:
            result = job()
        except Exception as error:  # noqa: BLE001 -- a job hands back whatever went wrong
            done(None, error)
        else:
            done(result, None)

    def sync(self) -> None:
        """One sync and the log's housekeeping, unless the disk is stalled."""
        if self.stalled_since is None:
            self.begin_sync()
            self.end_sync()

    def begin_sync(self) -> None:
        """Hand what is buffered to the thread that syncs, unless it is busy."""
        if self._syncing is None:
            self._syncing = self.wal.begin_sync()

    def end_sync(self) -> None:
        """Let the thread that syncs finish."""
        job = self._syncing
        if job is not None:
            job.run()
            if job.full is not None:
                self.wal.sync_found_no_room(job)  # stays out; nothing was written, so try again
            else:
                self._syncing = None
                self.wal.finish_sync(job)
                self.group.wal_synced()
        housekeeping = self.wal.begin_housekeeping()
        if housekeeping is not None:
            housekeeping.run()
            self.wal.finish_housekeeping(housekeeping)

    def write_snapshot(self) -> int:
        """Write the state as it is now; durable when this returns. Returns its index."""
        index, term = self.group.compaction.snapshot_point()
        state = self.group.state
        header = SnapshotHeader(GROUP, index, term, state.digest.to_bytes(16, "big"))
        writer = self.snapshots.begin(header)
        for record in state.snapshot_records():
            writer.write(record)
        writer.commit()
        return index


class GroupWorld(World):
    """A group of raftkv replicas. Options that only stock needs are taken and ignored."""

    def __init__(
        self,
        names: str,
        *,
        seed: int = 0,
        policy: SnapshotPolicy = SnapshotPolicy(),  # noqa: B008 -- immutable
        bounds: GroupBounds | None = None,
        **_: Any,
    ) -> None:
        super().__init__(names)
        self.policy = policy
        self.bounds = GroupBounds() if bounds is None else bounds  # as they are now
        self.nodes: dict[str, GroupNode] = {}
        self._seed = seed
        self._lives = 0
        self.random = Random(seed)
        self.disks = {name: _formatted(SimDisk(), name) for name in self.names}

    def random_of(self, name: str) -> Random:
        """A source of chance of its own for each life of each node."""
        self._lives += 1
        return Random(f"{self._seed} {name} {self._lives}")

    def start(self, name: str) -> None:
        """Open the node's disk; what cannot be opened does not start."""
        node = GroupNode(self, name, self.disks[name])
        self.nodes[name] = node
        self.network.attach(name, node)
        self.live.add(name)
        self.turn(name)

    def crash(self, name: str) -> None:
        """Kill the process; the kernel keeps what it was given."""
        self._stop(name)
        self.disks[name] = self.disks[name].kill()

    def lose_power(self, name: str) -> None:
        """Keep only what was synced: the worst that may happen."""
        self._stop(name)
        self.disks[name] = self.disks[name].crash_choosing(_oldest, _oldest)

    def lose_some(self, name: str, random: Random) -> None:
        """Lose power and keep any subset of what was not synced."""
        self._stop(name)
        self.disks[name] = self.disks[name].crash(random)

    def _stop(self, name: str) -> None:
        self.network.detach(name)
        self.live.discard(name)
        del self.nodes[name]

    def turn(self, name: str) -> None:
        """One turn; a node whose disk fails stops at once."""
        try:
            self.nodes[name].turn()
        except (DiskError, SimulatedCrash) as error:
            self.errors.append(error)
            self.crash(name)

    def submit(self, name: str, value: str, done: Callable[[Answer], None], size: int) -> None:
        """Propose a put of a key named for the write."""

        def answered(outcome: Sequence[WriteResult] | GroupFailure) -> None:
            if isinstance(outcome, GroupFailure):
                done("no" if outcome.definite else "unknown")
            else:
                done("ok")

        command = Command(Put(value.encode(), value.encode().ljust(size, b".")))
        self.nodes[name].group.propose((command,), answered)

    def values(self, name: str) -> list[str]:
        """Keys by revision; one that was applied twice has version 2."""
        return values_of(self.nodes[name].group)

    def leads(self, name: str) -> bool:
        """Ask the group."""
        return name in self.nodes and self.nodes[name].group.is_leader

    def term(self, name: str) -> int:
        """Ask the group."""
        return self.nodes[name].group.term

    def expire(self, name: str) -> None:
        """Move the deadlines that random numbers have set."""
        for other, node in self.nodes.items():
            deadline = 0.0 if other == name else node.clock.monotonic() + TIMING.election_max_s
            node.group._replica._stock.election_deadline = deadline

    def read(self, name: str) -> Read:
        """Read linearizably."""
        read = Read()
        group = self.nodes[name].group

        def confirmed(failure: GroupFailure | None) -> None:
            if failure is None:
                read.values = values_of(group)

        group.reads.confirm(confirmed)
        return read

    def compact(self, name: str, *, finish: bool = True) -> None:
        """Write a snapshot; then let the group trim its log."""
        node = self.nodes[name]
        index = node.write_snapshot()
        if finish:
            node.group.compaction.snapshot_written(index)
            node.group.compaction.release_log()  # stories of snapshots want the whole log gone
            self.turn(name)

    def damage_snapshot(self, name: str) -> None:
        """Flip one bit in the middle: that must be enough."""
        disk = self.disks[name]
        (path,) = [SNAPSHOTS / file for file in disk.listdir(SNAPSHOTS)]
        disk.flip_bit(path, disk.open(path).size() * 4)

    def write_back(self, name: str, *, log: bool = True) -> None:
        """Nothing: here only syncs count, which is the worst a kernel may do."""

    def fill_disk(self, name: str) -> None:
        """Refuse every write that needs space; the log's segments are allocated ahead."""

        def full(operation: str, path: Path) -> None:
            if operation in ("create", "allocate", "pwrite"):
                raise DiskFull(path, operation, "No space left on device")

        self.disks[name].before = full

    def free_disk(self, name: str) -> None:
        """Let writes succeed again."""
        self.disks[name].before = None

    def stall_disk(self, name: str) -> None:
        """A sync has begun now and will never end."""
        node = self.nodes[name]
        node.stalled_since = node.clock.monotonic()

    def wipe(self, name: str) -> None:
        """A new disk, as empty as it came."""
        self._stop(name)
        self.disks[name] = SimDisk()


def make_group_world(names: str, **options: Any) -> GroupWorld:
    """Build a started world of raftkv replicas."""
    world = GroupWorld(names, **options)
    world.start_all()
    return world


def message_of(event: NetworkEvent) -> RaftMessage | None:
    """The Raft message of a line of the network's trace, None for connects and disconnects."""
    return _decode(event.payload).message if isinstance(event.payload, bytes) else None


def values_of(group: Group) -> list[str]:
    """The writes that a group's state holds, in order of application."""
    everything = Range(b"", None, 10_000, keys_only=True)
    entries = sorted(group.state.range(everything).entries, key=lambda e: e.mod_revision)
    return [entry.key.decode() for entry in entries for _ in range(entry.version)]


def _owns_everything(_: bytes) -> bool:
    return True


def _oldest(_: int) -> int:
    return 0


def _formatted(disk: SimDisk, name: str) -> SimDisk:
    """Make what ``raftkv init`` makes of a data directory, as far as the group needs it."""
    disk.make_directory(DATA)
    disk.make_directory(SNAPSHOTS)
    Wal.create(disk, WAL, identity=f"identity-of-{name}", segment_bytes=SEGMENT_BYTES)
    disk.fsync_dir(DATA)
    disk.fsync_dir(DATA.parent)
    return disk
