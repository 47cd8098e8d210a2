"""The operator of a simulated cluster: carries out the plan of faults, and starts what is down.

A bit that rots anywhere on a disk needs the cluster to itself: a node that does not notice lacks
what it held, and the others must hold that. So it comes in a moment in which every replica has on
disk all that is committed.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from raftkv.core.cluster_map import GroupId
from raftkv.raft.group import Group
from raftkv.sim.disk import SECTOR_BYTES, SimDisk
from raftkv.sim.faults import FAULTS
from raftkv.sim.invariants import Invariants
from raftkv.sim.loop import SimLoop
from raftkv.sim.machine import Machine
from raftkv.sim.plan import PlannedFault
from raftkv.sim.stage import Effect, Stage, Undo
from raftkv.sim.violation import Violation

LOOK_S = 0.25
"""How often the operator looks for nodes that are down."""

SETTLE_S = 30.0
"""How long a healed cluster may take to come to rest."""

WATCH_S = 0.05
"""How often whoever starts what is down looks for it."""

RESTARTS_S = ((0.0, 0.05), (0.0, 1.0), (0.0, 2.0), (0.0, 2.0), (4.0, 15.0))
"""From when to when a machine is started after it was seen down; one of these, equally likely.

A supervisor starts a process at once, people need longer, and some machines are slow to boot.
"""

_BLANK_SHARE = 0.1


@dataclass(slots=True)
class BegunFault:
    """A fault of the plan from its begin to its end, in microseconds of the simulation."""

    planned: PlannedFault
    effect: Effect
    begun_us: int
    ended_us: int | None = None


Goal = Mapping[GroupId, int]
"""Up to which index every replica of a group has to get."""


class Operator:
    """Runs on the loop that clients run on, which no fault touches.

    Attributes:
        refused: how often a node refused to start, by the kind of error.
        begun: the faults so far, in the order of their begin.
    """

    def __init__(
        self, stage: Stage, faults: Sequence[PlannedFault], invariants: Invariants, loop: SimLoop
    ) -> None:
        self.refused: Counter[str] = Counter()
        self._stage = stage
        self._faults = faults
        self._invariants = invariants
        self._loop = loop
        self._active: dict[int, Undo] = {}
        self.begun: list[BegunFault] = []
        self._aims: dict[int, Machine] = {}
        self._restarting: set[str] = set()
        self._random = Random(f"operator {stage.world.options.seed}")

    @property
    def effective(self) -> Counter[str]:
        """How many faults of each kind were carried out: begun, and seen to take effect."""
        return Counter(fault.planned.kind for fault in self.begun if fault.effect.times)

    @property
    def without_effect(self) -> Counter[str]:
        """How many faults of each kind were begun and met nothing."""
        return Counter(fault.planned.kind for fault in self.begun if not fault.effect.times)

    # --- the plan -----------------------------------------------------------------------------

    async def carry_out(self) -> None:
        """Let every fault of the plan happen at its time, or as soon after it as possible."""
        for fault in self._faults:
            await self._until(fault.at_s)
            await self._begin(fault)

    def heal(self, keep: Sequence[str] = ()) -> None:
        """End all faults; machines in ``keep`` stay as they are."""
        for number in list(self._active):
            self._end(number)
        self._stage.spare()
        world = self._stage.world
        world.calm_network()
        for machine in world.machines.values():
            machine.thaw()
            machine.speed.stalled = machine.job_faults.hang = False
            machine.job_faults.writers_die = False
            machine.disk.faults.room_bytes = None
            machine.disk.faults.checks.clear()
            world.fabric.relieve(machine.name)
            machine.speed.sync_us = machine.speed.jitter_us = world.options.sync_us
            machine.disk.capacity_bytes = None
            machine.disk.before = machine.disk.crash_at = None
            if machine.name not in keep:
                self._stage.kept_down[machine.name] = 0

    async def _begin(self, fault: PlannedFault) -> None:
        self._stage.world.trace.note("fault", str(fault))
        random = Random(fault.seed)
        effect, scheduler = Effect(), self._stage.world.scheduler
        begun = BegunFault(fault, effect, scheduler.now_us)
        self.begun.append(begun)
        if fault.kind == "bit_flip":
            await self._flip_alone(random, effect)
            begun.ended_us = scheduler.now_us
            return
        stage = replace(self._stage, seen=effect, aim=self._aim_of(fault))
        self._active[fault.number] = FAULTS[fault.kind](stage, random)
        self._loop.call_later(fault.duration_s, self._end, fault.number)

    def _aim_of(self, fault: PlannedFault) -> Machine | None:
        """The machine that a burst is about: one that leads when the burst begins."""
        if fault.burst is None:
            return None
        if fault.burst not in self._aims:
            random = Random(f"aim {self._stage.world.options.seed} {fault.burst}")
            machines = list(self._stage.world.machines.values())
            leading = [machine for machine in machines if machine.leads]
            self._aims[fault.burst] = random.choice(leading or machines)
        return self._aims[fault.burst]

    def _end(self, number: int) -> None:
        undo = self._active.pop(number, None)
        if undo is not None:
            self._stage.world.trace.note("undo", number)
            undo()
            for begun in self.begun:
                if begun.planned.number == number:
                    begun.ended_us = self._stage.world.scheduler.now_us

    async def _until(self, at_s: float) -> None:
        wait_s = at_s - self._stage.world.scheduler.now_s
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    # --- machines that are down ---------------------------------------------------------------

    async def keep_running(self) -> None:
        """Start, for ever, whatever is down and should not be."""
        while True:
            await asyncio.sleep(WATCH_S)
            for machine in self._stage.world.machines.values():
                down = not machine.running and not self._stage.kept_down.get(machine.name)
                if down and machine.name not in self._restarting:
                    self._restarting.add(machine.name)
                    wait_s = self._random.uniform(*self._random.choice(RESTARTS_S))
                    self._loop.call_later(wait_s, self._restart, machine)

    def _restart(self, machine: Machine) -> None:
        self._restarting.discard(machine.name)
        if not self._stage.kept_down.get(machine.name):
            machine.boot()

    # --- rest ---------------------------------------------------------------------------------

    def goal(self) -> Goal:
        """What is committed now, which every replica must have applied before long."""
        return self._invariants.all_committed()

    def has_reached(self, goal: Goal, but: frozenset[str] = frozenset()) -> bool:
        """Whether every replica (but those of some machines) is ready and has applied the goal.

        What is committed later does not count: a follower hears of the newest commit with the next
        message, and of many shards under load there is nearly always one that has not yet.
        """
        groups = self._replicas(but)
        return groups is not None and all(
            group.is_ready and group.applied_index >= goal.get(group.id, 0) for group in groups
        )

    def is_settled(self) -> bool:
        """Whether every replica has applied all that is committed; only without load for sure."""
        return self.has_reached(self.goal())

    def _is_stored(self) -> bool:
        """Whether every replica has on disk all that is committed."""
        groups, committed = self._replicas(frozenset()), self._invariants.committed
        return groups is not None and all(
            group.journal.durable_index >= committed(group.id) for group in groups
        )

    def _replicas(self, but: frozenset[str]) -> list[Group] | None:
        """Every replica that must come to rest; None while a machine of theirs is down."""
        groups: list[Group] = []
        for machine in self._stage.world.machines.values():
            if machine.name in but | self._stage.lost:
                continue
            if machine.serving is None:
                return None
            groups += machine.serving.replicas.groups()
        return groups

    # --- faults that are alone ----------------------------------------------------------------

    async def _flip_alone(self, random: Random, effect: Effect) -> None:
        """Heal everything, wait for rest, do the one thing, and wait for rest again.

        It takes effect when somebody reads the bit.
        """
        if self._stage.lost or self._stage.world.options.replicas == 1:
            return  # the others could not hold it together
        self.heal()
        await self._rest()
        if not await self._wait_for(self._is_stored):
            self._stage.world.trace.note("no moment to flip a bit in")
            return
        machine = self._stage.machine(random)
        release = self._stage.keep_down(machine)
        machine.kill()
        self._stage.damaged(machine)
        reads = machine.disk.faults.rot_read
        await self._flip_bit(machine, random)
        release()
        await self._rest()
        if machine.disk.faults.rot_read > reads:
            effect()

    async def _rest(self) -> None:
        goal = self.goal()
        if not await self._wait_for(lambda: self.has_reached(goal)):
            raise Violation(f"a healed cluster did not come to rest within {SETTLE_S:.0f} s")

    async def _wait_for(self, condition: Callable[[], bool]) -> bool:
        """Whether a condition comes to hold within the time in which a cluster comes to rest."""
        deadline = self._stage.world.scheduler.now_s + SETTLE_S
        while not condition():
            if self._stage.world.scheduler.now_s > deadline:
                return False
            await asyncio.sleep(LOOK_S)
        return True

    async def _flip_bit(self, machine: Machine, random: Random) -> None:
        """Let a bit rot. A node that notices refuses to start, and gets its bit back."""
        path, bit = _some_bit(machine.disk, random)
        self._stage.world.trace.note("flip", machine.name, path, bit)
        machine.disk.flip_bit(path, bit)
        machine.boot()
        await asyncio.sleep(LOOK_S)
        if machine.refused is not None:
            self._stage.world.trace.note("refused", machine.name, machine.refused)
            self.refused[machine.refused.split(":")[0]] += 1
            machine.disk.flip_bit(path, bit)
            self._invariants.repaired(machine)


def _some_bit(disk: SimDisk, random: Random) -> tuple[Path, int]:
    """A bit of what was written, or sometimes of what is still blank."""
    files = [path for path in disk.files() if disk.size_of(path)]
    path = random.choice(files)
    sectors = disk.written_sectors(path)
    if not sectors or random.random() < _BLANK_SHARE:
        return path, random.randrange(disk.size_of(path) * 8)
    first = random.choice(sectors) * SECTOR_BYTES
    last = min(first + SECTOR_BYTES, disk.size_of(path))
    return path, random.randrange(first * 8, last * 8)
