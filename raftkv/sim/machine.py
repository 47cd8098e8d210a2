"""A simulated machine and the life of its node: boot, kill, loss of power, freeze, clean stop.

The node is the real :class:`raftkv.engine.engine.Engine`; what surrounds it is simulated.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from raftkv.core.errors import StartError
from raftkv.engine.config import NodeConfig
from raftkv.engine.connection import LinkLimits
from raftkv.engine.engine import Engine, Seams
from raftkv.engine.jobs import JobRunner
from raftkv.engine.security import LinkSecurity
from raftkv.engine.snapshot_keeper import write_records
from raftkv.raft.group import Group
from raftkv.raft.host import GroupBounds
from raftkv.raft.proposals import Limits
from raftkv.sim.clock import MachineClock
from raftkv.sim.disk import SimDisk, SimulatedCrash
from raftkv.sim.fabric import Fabric, StreamNetwork
from raftkv.sim.front_end import FrontEnd, FrontLimits
from raftkv.sim.jobs import SimJobs
from raftkv.sim.loop import SimLoop
from raftkv.sim.scheduler import SECOND_US, Scheduler
from raftkv.storage.data_dir import init_data_dir, open_data_dir
from raftkv.storage.disk import DiskError, FileExists, Locked, NoSuchFile
from raftkv.storage.snapshots import SnapshotHeader, SnapshotStore

DATA = Path("/data")

SECRET = b"the secret of a simulated cluster"

_ANY = 0.5
"""Share of power cuts that leave any part of what was not synced; the others leave nothing."""

MISTAKES = (FileExists, Locked, NoSuchFile)
"""Errors that no fault makes a disk report: only asking for the wrong file does."""


class ProcessExit(BaseException):
    """The process has ended itself. Not an Exception: nothing of the node may catch it."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__(str(reason))
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Bounds:
    """Every bound of a node that its configuration does not set."""

    links: LinkLimits = field(default_factory=LinkLimits)
    queues: Limits = field(default_factory=Limits)
    groups: GroupBounds = field(default_factory=GroupBounds)
    front: FrontLimits = field(default_factory=FrontLimits)


@dataclass(slots=True)
class DiskSpeed:
    """How long the machine's disk takes; ``stalled``: nothing is finished for now."""

    sync_us: int = 400
    jitter_us: int = 400
    stalled: bool = False
    jobs: int = 0
    """How many jobs were begun."""

    def duration_us(self, random: Random) -> int:
        """How long the next job takes."""
        self.jobs += 1
        return self.sync_us + int(random.random() * self.jitter_us)


@dataclass(slots=True)
class JobFaults:
    """What is wrong with work beside the loop, other than syncs of the log."""

    hang: bool = False
    """Nothing is finished for now."""
    writers_die: bool = False
    """Whoever writes a snapshot is killed over it."""
    killed: int = 0
    """How many writers were killed."""
    held: int = 0
    """How often a job was due and was held."""


class JobWriter:
    """A :class:`raftkv.engine.snapshot_keeper.SnapshotWriter`: a forked child, as the disk sees it.

    The state is taken as it is now; the file is written some time later, and nothing that happens
    to the state meanwhile is in it.
    """

    def __init__(self, store: SnapshotStore, jobs: JobRunner, faults: JobFaults) -> None:
        self._store = store
        self._jobs = jobs
        self._faults = faults

    def write(
        self, header: SnapshotHeader, group: Group, done: Callable[[BaseException | None], None]
    ) -> None:
        """Write what the state is now."""
        records = list(group.state.snapshot_records())
        self._jobs.run(lambda: self._write(header, records), lambda _, error: done(error))

    def _write(self, header: SnapshotHeader, records: list[bytes]) -> None:
        """Write and seal, or die half-way."""
        if not self._faults.writers_die:
            write_records(self._store, header, records)
            return
        self._faults.killed += 1
        writer = self._store.begin(header)
        for record in records[: len(records) // 2]:
            writer.write(record)
        raise OSError("the snapshot writer ended with signal 9")

    def settle(self) -> None:
        """Nothing: the collector of the simulation is not a node's."""


class Machine:
    """One machine: its disk and clock survive its process, its power may fail.

    Args:
        note: called with what happens, for the trace.
        after_turn: called after each turn of the process's loop, to look at it.
        ended: called when the process has ended, however.
        broke: called with an exception that no fault explains.
    """

    def __init__(
        self,
        config: NodeConfig,
        *,
        scheduler: Scheduler,
        fabric: Fabric,
        seed: str,
        bounds: Bounds,
        note: Callable[..., None],
        after_turn: Callable[["Machine"], None],
        ended: Callable[["Machine"], None],
        broke: Callable[["Machine", BaseException], None],
    ) -> None:
        self.name = config.node.name
        self.config = config
        self.disk = SimDisk()
        self.speed = DiskSpeed()
        self.job_faults = JobFaults()
        self.powered = True
        self.life = 0
        self.missed = 0
        """How often something was due while its process was frozen, when that went on or died."""
        self._disks = 0
        self.engine: Engine | None = None
        self.refused: str | None = None
        """Why the last start was refused."""
        self.ended: str | None = None
        """Why the last life ended."""
        self.random = Random(f"{seed} {self.name}")
        self.drift = self.random.uniform(-0.02, 0.02)
        self.wall_offset_us = self.random.randrange(-5 * SECOND_US, 5 * SECOND_US)
        self._scheduler = scheduler
        self._fabric = fabric
        self._bounds = bounds
        self._note = note
        self._after_turn = after_turn
        self._on_end = ended
        self._broke = broke
        self._loop: SimLoop | None = None
        self.clock = self._new_clock()
        self.front = FrontEnd(self, scheduler, f"{seed} {self.name} front", bounds.front, note)
        fabric.add(self)
        self._format_disk()

    def _format_disk(self) -> None:
        """What ``raftkv init`` does, once for each disk."""
        self._disks += 1
        init_data_dir(
            self.disk,
            DATA,
            self.config.cluster.id,
            self.name,
            segment_bytes=self.config.limits.wal_segment_bytes,
            mint=lambda: f"identity {self._disks} of {self.name}",
        )

    def _new_clock(self) -> MachineClock:
        return MachineClock(
            self._scheduler,
            booted_s=self.random.uniform(0, 1e5),
            rate=1.0 + self.drift,
            wall_offset_us=self.wall_offset_us,
        )

    # --- state --------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._loop is not None

    @property
    def frozen(self) -> bool:
        """Whether its process is stopped for now."""
        return self._loop is not None and self._loop.frozen

    @property
    def leads(self) -> bool:
        """Whether it leads a group, as far as it knows."""
        engine = self.serving
        return engine is not None and any(group.is_leader for group in engine.replicas.groups())

    @property
    def serving(self) -> Engine | None:
        """The engine, if a client could talk to it."""
        return self.engine if self.running else None

    @property
    def loop(self) -> SimLoop:
        """The loop of the process that lives."""
        if self._loop is None:
            raise RuntimeError(f"{self.name} is down")
        return self._loop

    # --- life ---------------------------------------------------------------------------------

    def boot(self) -> None:
        """Start the process, on whatever the disk holds; nothing if it lives."""
        if self.running:
            return
        if not self.powered:
            self.powered = True
            self.clock = self._new_clock()
            self._fabric.power_on(self)
        self.life += 1
        self.refused = None
        self._note("boot", self.name, self.life)
        loop = self._loop = SimLoop(
            self._scheduler,
            self.clock,
            Random(self.random.getrandbits(64)),
            failed=self._failed,
            after_turn=lambda: self._after_turn(self),
        )
        loop.call_soon(self._start)

    def _start(self) -> None:
        try:
            data = open_data_dir(self.disk, DATA, self.config.cluster.id, self.name)
            security = LinkSecurity(secret=SECRET, insecure=True)
            self.engine = Engine(self.config, data, security, self._seams())
        except StartError as error:
            self.refused = f"{type(error).__name__}: {error}"
            self._end("refused to start")
            return
        self._run(self._serve(self.engine))

    async def _serve(self, engine: Engine) -> None:
        await engine.start()
        self.front.open(engine)

    def _seams(self) -> Seams:
        loop, random = self.loop, Random(self.random.getrandbits(64))
        other_jobs = self._jobs(2, lambda: self._stands_still() or self._jobs_hang())
        return Seams(
            clock=self.clock,
            loop=loop.as_asyncio,
            disk=self.disk,
            network=StreamNetwork(self._fabric, self, loop),
            random=random,
            random_bytes=random.randbytes,
            sync_jobs=self._jobs(1, self._stands_still),
            other_jobs=other_jobs,
            snapshot_writer=lambda store: JobWriter(store, other_jobs, self.job_faults),
            fatal=_exit,
            link_limits=self._bounds.links,
            group_limits=self._bounds.queues,
            group_bounds=self._bounds.groups,
        )

    def _stands_still(self) -> bool:
        return self.speed.stalled or self.frozen

    def _jobs_hang(self) -> bool:
        self.job_faults.held += self.job_faults.hang
        return self.job_faults.hang

    def _jobs(self, threads: int, stands_still: Callable[[], bool]) -> SimJobs:
        random = Random(self.random.getrandbits(64))
        return SimJobs(
            self._scheduler,
            self.loop,
            threads,
            duration_us=lambda: self.speed.duration_us(random),
            stands_still=stands_still,
            failed=self._failed,
        )

    def kill(self) -> None:
        """End the process at once; the kernel keeps what it was given."""
        if self.running:
            self._end("killed")

    def cut_power(self, random: Random) -> None:
        """End everything at once; what was not synced is kept or not, as chance has it."""
        if not self.powered:
            return
        self._note("power", self.name)
        if self._loop is not None:
            self._note_missed(self._loop)
            self._loop.end()
        self._loop, self.engine, self.ended = None, None, "lost power"
        self.powered = False
        self._put_in(self.disk.crash(random) if random.random() < _ANY else _oldest(self.disk))
        self._fabric.cut_power(self)
        self.front.lost_power()
        self._on_end(self)

    def halt(self) -> None:
        """Let nothing more happen: the world ends."""
        if self._loop is not None:
            self._loop.end()
        if self.front.worker is not None:
            self.front.worker.end(silently=True)

    def replace_disk(self) -> None:
        """Put a new disk into a machine that is down, and make a data directory on it."""
        self.disk = SimDisk()
        self._format_disk()

    def _put_in(self, disk: SimDisk) -> None:
        """What the next life finds; what is wrong with the disk stays wrong."""
        disk.faults, self.disk = self.disk.faults, disk

    def freeze(self) -> None:
        """Stop the process for a while."""
        if self._loop is not None:
            self._note("freeze", self.name)
            self._loop.freeze()

    def thaw(self) -> None:
        """Let it go on."""
        if self._loop is not None:
            self._note("thaw", self.name)
            self._note_missed(self._loop)
            self._loop.thaw()

    def _note_missed(self, loop: SimLoop) -> None:
        self.missed += loop.frozen and loop.due > 0

    def stop(self, stopped: Callable[[], None] = lambda: None) -> None:
        """Begin a clean stop, as by SIGTERM; ``stopped`` is called when it came to its end."""
        if self.engine is not None and self._loop is not None:
            self._run(self._stop(self.engine, self._loop, stopped))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task of the process; what it raises ends the process."""
        self.loop.create_task(work).add_done_callback(self._task_done)

    def _task_done(self, task: "asyncio.Task[None]") -> None:
        error = task.exception()
        if error is not None:
            self._failed(error)

    async def _stop(self, engine: Engine, loop: SimLoop, stopped: Callable[[], None]) -> None:
        """As :meth:`raftkv.engine.node.Node.stop`."""
        await engine.hand_over()
        await self.front.stop_workers()
        await engine.drain(and_until=lambda: not self.front.in_flight)
        engine.silence()
        await self.front.close()
        await engine.close()
        if self._loop is loop:
            self._end("stopped")
            stopped()

    def _end(self, why: str) -> None:
        self._note("end", self.name, why)
        self._note_missed(self.loop)
        self.loop.end()
        self._loop, self.engine, self.ended = None, None, why
        self._put_in(self.disk.kill())
        self._fabric.kill(self)
        self.front.engine_ended()
        self._on_end(self)

    def worker_failed(self, error: BaseException) -> None:
        """What comes out of a callback of its front end is a bug."""
        self._broke(self, error)

    def _failed(self, error: BaseException) -> None:
        """Whatever comes out of a callback or a job ends the process; a fault explains some."""
        if not self.running:
            return
        reason = error.reason if isinstance(error, ProcessExit) else error
        if isinstance(reason, SimulatedCrash):
            self.cut_power(self.random)
            return
        self._end(f"{type(reason).__name__}: {reason}")
        if not isinstance(reason, DiskError) or isinstance(reason, MISTAKES):
            self._broke(self, reason)


def _oldest(disk: SimDisk) -> SimDisk:
    """The worst case: nothing that was not synced is left."""
    return disk.crash_choosing(lambda _: 0, lambda _: 0)


def _exit(error: BaseException) -> None:
    raise ProcessExit(error) from error
