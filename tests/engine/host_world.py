"""Whole engines without sockets, threads or time: group hosts over simulated disks and links."""

import random
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine_world import TimedLoop

from raftkv.core.cluster_map import GroupId
from raftkv.core.operations import Command, Put, PutResult
from raftkv.core.placement import seed_map
from raftkv.engine.directory import Directory
from raftkv.engine.group_host import GroupHost
from raftkv.engine.replica_table import ReplicaTable
from raftkv.engine.snapshot_keeper import GroupSnapshots, InTurnWriter, SnapshotKeeper
from raftkv.raft.group import Group
from raftkv.raft.host import GroupConfig, SnapshotPolicy
from raftkv.raft.proposals import GroupFailure
from raftkv.raft.timing import Timing
from raftkv.sim.disk import SimDisk
from raftkv.storage.snapshots import SnapshotStore
from raftkv.storage.wal import Wal

NAMES = ("n1", "n2", "n3")
SEGMENT_BYTES = 1 << 16
IDENTITY = "0" * 32
GROUP = GroupId(0, 1)
"""The group that tests mean unless they say otherwise."""


class ManualJobs:
    """Jobs that take simulated time; a stalled runner keeps them."""

    def __init__(self, loop: TimedLoop, seconds: float) -> None:
        self._loop = loop
        self.seconds = seconds
        self.stalled: list[Callable[[], None]] | None = None
        self.dead = False

    def run(
        self, job: Callable[[], Any], done: Callable[[Any, BaseException | None], None]
    ) -> None:
        """Run the job when its time has passed."""
        if self.stalled is not None:
            self.stalled.append(lambda: self._run(job, done))
        else:
            self._loop.call_later(self.seconds, self._run, job, done)

    def _run(
        self, job: Callable[[], Any], done: Callable[[Any, BaseException | None], None]
    ) -> None:
        if self.dead:
            return
        try:
            result = job()
        except Exception as error:  # noqa: BLE001 -- handed on, as a thread pool would
            done(None, error)
        else:
            done(result, None)

    def stall(self) -> None:
        """Finish nothing from now on."""
        self.stalled = []

    def go_on(self) -> None:
        """Finish what was kept."""
        kept, self.stalled = self.stalled or [], None
        for job in kept:
            job()

    def close(self) -> None:
        """End; nothing is called back any more."""
        self.dead = True


class Machine:
    """One node: its disk outlives its process."""

    def __init__(self, world: "HostWorld", name: str, policy: SnapshotPolicy) -> None:
        self.world = world
        self.name = name
        self.policy = policy
        self.disk = SimDisk()
        self.alive = False
        self.fatal: list[BaseException] = []
        for directory in (Path("/d"), Path("/d/snapshots")):
            self.disk.make_directory(directory)
        Wal.create(self.disk, Path("/d/wal"), identity=IDENTITY, segment_bytes=SEGMENT_BYTES)
        self.disk.fsync_dir(Path("/d"))
        self.disk.fsync_dir(Path("/"))
        self.start()

    def start(self) -> None:
        """Start a process on what the disk holds."""
        loop = self.world.loop
        wal, recovered = Wal.open(
            self.disk, Path("/d/wal"), identity=IDENTITY, segment_bytes=SEGMENT_BYTES
        )
        self.store = SnapshotStore(self.disk, Path("/d/snapshots"))
        self.sync_jobs = ManualJobs(loop, 0.0005)
        self.other_jobs = ManualJobs(loop, 0.001)
        self.host = GroupHost(
            wal=wal,
            replicas=ReplicaTable(Directory(self.world.map)),
            clock=loop.clock,
            loop=loop.as_asyncio,
            sync_jobs=self.sync_jobs,
            other_jobs=self.other_jobs,
            stall_s=0.5,
            fatal=self._die,
        )
        self.host.links = self  # type: ignore[assignment] # only `send` is used
        self.alive = True
        for group_id in self.world.group_ids:
            self.host.add(self._make_group(group_id, recovered.get(group_id)))
        self.keeper = SnapshotKeeper(
            self.host.replicas, self.store, InTurnWriter(self.store), self.other_jobs, wal.pinning
        )
        self.snapshots: list[BaseException | None] = []  # the end of each: written, or why not
        self.keeper.finished = lambda _, error: self.snapshots.append(error)
        self.world.connect(self.name)

    def _make_group(self, group_id: GroupId, recovered: Any) -> Group:
        config = GroupConfig(
            group_id,
            self.name,
            self.world.names,
            lambda _: True,
            Timing(heartbeat_s=0.1, election_min_s=0.5, election_max_s=1.0),
            snapshots=self.policy,
        )
        return Group(
            config,
            store=self.host.wal,
            recovered=recovered,
            files=GroupSnapshots(self.store, group_id),
            host=self.host,
            clock=self.world.loop.clock,
            random=random.Random(f"{self.name} {group_id}"),
        )

    def _die(self, error: BaseException) -> None:
        self.fatal.append(error)
        self.kill()

    def kill(self, power: random.Random | None = None) -> None:
        """End the process without a word.

        The kernel keeps what was written; with ``power`` it dies as well, and the disk forgets
        some of what was not synced.
        """
        if self.alive:
            self.alive = False
            self.sync_jobs.close()
            self.other_jobs.close()
            self.host._stopped = True
            self.world.disconnect(self.name)
            self.disk = self.disk.kill() if power is None else self.disk.crash(power)

    def send(self, peer: str, channel: int, payload: bytes, *, bulk: bool = False) -> bool:
        """Peer links: deliver in order after a while."""
        del bulk
        return self.world.send(self.name, peer, channel, payload)

    def group(self, group_id: GroupId = GROUP) -> Group:
        """Return a group of this node."""
        return self.host.groups[group_id]


class HostWorld:
    """Some machines on one network.

    Args:
        shards: groups on each of them.
        policy: when logs are replaced by snapshots.
        names: how the machines are called; as many as wanted.
    """

    def __init__(
        self,
        shards: int = 1,
        policy: SnapshotPolicy = SnapshotPolicy(),  # noqa: B008 -- immutable
        names: tuple[str, ...] = NAMES,
    ) -> None:
        self.names = names
        self.map = seed_map("test", sorted(names), shards, len(names))
        self.loop = TimedLoop()
        self.group_ids = [GroupId(shard, 1) for shard in range(shards)]
        self.links: set[tuple[str, str]] = set()
        self.machines: dict[str, Machine] = {}
        self._link_ages: dict[tuple[str, str], int] = {}
        self.on_links: dict[tuple[str, str], deque[bytes]] = {}
        """What is on its way, in order, (sender, receiver) by pair; without what is lost."""
        self.most_on_link = 0
        """Most bytes that were on their way between two machines at once."""
        for name in names:
            self.machines[name] = Machine(self, name, policy)

    # --- network ------------------------------------------------------------------------------

    def connect(self, name: str) -> None:
        """Link a machine with all others that live."""
        for other in self.machines:
            if other != name and self.machines[other].alive:
                self.links |= {(name, other), (other, name)}
                self.machines[other].host.on_connected(name)
                if name in self.machines:
                    self.machines[name].host.on_connected(other)
                else:
                    self.loop.call_soon(self._connected, name, other)

    def _connected(self, name: str, other: str) -> None:
        if (name, other) in self.links:
            self.machines[name].host.on_connected(other)

    def disconnect(self, name: str) -> None:
        """Cut all links of a machine; what is on them is lost."""
        for other in self.machines:
            if (name, other) in self.links:
                self.links -= {(name, other), (other, name)}
                for pair in ((name, other), (other, name)):
                    self._link_ages[pair] = self._link_ages.get(pair, 0) + 1
                    self.on_links.pop(pair, None)
                for a, b in ((name, other), (other, name)):
                    if self.machines[a].alive:
                        self.machines[a].host.on_disconnected(b)

    def send(self, sender: str, to: str, channel: int, payload: bytes) -> bool:
        """Deliver after a tenth of a millisecond, unless the link is cut before."""
        del channel
        pair = (sender, to)
        if pair not in self.links:
            return False
        on_link = self.on_links.setdefault(pair, deque())
        on_link.append(payload)
        self.most_on_link = max(self.most_on_link, sum(map(len, on_link)))
        self.loop.call_later(0.0001, self._deliver, pair, self._link_ages.get(pair, 0))
        return True

    def _deliver(self, pair: tuple[str, str], age: int) -> None:
        """Deliver what was sent first: of timers that are due together any may come first."""
        if pair in self.links and self._link_ages.get(pair, 0) == age:
            self.machines[pair[1]].host.on_bundle(pair[0], self.on_links[pair].popleft())

    # --- what tests do ------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.loop.run(seconds)

    def run_until(self, condition: Callable[[], object], within_s: float = 10.0) -> None:
        """Let time pass until something holds."""
        end = self.loop.now + within_s
        while not condition():
            assert self.loop.now < end, "the condition did not come true in time"
            self.loop.run(0.01)

    def leader(self, group_id: GroupId = GROUP) -> Machine:
        """Return the machine that leads, once there is one."""

        def leading() -> list[Machine]:
            alive = (machine for machine in self.machines.values() if machine.alive)
            return [m for m in alive if m.group(group_id).is_leader and m.group(group_id).is_ready]

        self.run_until(leading)
        return leading()[-1]

    def put(self, machine: Machine, *keys: bytes) -> list[object]:
        """Propose puts one by one; return a list that their outcomes are added to."""
        outcomes: list[object] = []

        def done(outcome: Sequence[object] | GroupFailure) -> None:
            outcomes.append(outcome if isinstance(outcome, GroupFailure) else outcome[0])

        for key in keys:
            machine.group().propose((Command(Put(key, key)),), done)
        return outcomes

    def put_all(self, machine: Machine, *keys: bytes) -> None:
        """Put and see that all are acknowledged."""
        outcomes = self.put(machine, *keys)
        self.run_until(lambda: len(outcomes) == len(keys))
        assert all(isinstance(outcome, PutResult) for outcome in outcomes)

    def assert_agreed(self) -> None:
        """All living machines come to the same state."""
        groups = [machine.group() for machine in self.machines.values() if machine.alive]
        self.run_until(lambda: len({group.applied_index for group in groups}) == 1)
        assert len({group.state.digest for group in groups}) == 1
        for group in groups:
            assert group.state.digest == group.state.recomputed_digest()
