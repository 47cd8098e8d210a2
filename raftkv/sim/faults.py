"""What each kind of fault does, and how it ends.

A fault is a function that does harm now and returns what undoes it. Machines that are down are
started again by the operator (:mod:`raftkv.sim.operator`), except those in ``kept_down``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from random import Random

from raftkv.rpc.messages import TransferRequest
from raftkv.sim.client import Client
from raftkv.sim.loop import Handle
from raftkv.sim.machine import DiskSpeed, Machine
from raftkv.sim.scheduler import SECOND_US
from raftkv.sim.world import World
from raftkv.storage.disk import DiskError

Undo = Callable[[], None]

_AT_LEADER = 0.5
"""Share of faults that are aimed at somebody who leads."""


@dataclass(slots=True)
class Stage:
    """What faults act on."""

    world: World
    saboteur: Client
    later: Callable[[float, Callable[[], None]], Handle]
    """Call something when so many seconds have passed."""
    start: Callable[..., object]
    """Run a coroutine beside everything else."""
    damaged: Callable[[Machine], None]
    """Say that a machine's disk was tampered with."""
    kept_down: dict[str, int] = field(default_factory=dict)
    """How many faults want this machine to stay down."""
    lost: set[str] = field(default_factory=set)
    """Machines whose disk was replaced by an empty one; they are strangers for ever."""
    _to_come: list[Handle] = field(default_factory=list)

    def soon(self, after_s: float, harm: Callable[[], None]) -> None:
        """Do harm when so many seconds have passed, unless all is healed before."""
        self._to_come.append(self.later(after_s, harm))

    def spare(self) -> None:
        """Forget what was still to come."""
        for handle in self._to_come:
            handle.cancel()
        self._to_come.clear()

    def machine(self, random: Random) -> Machine:
        """A machine that leads something, or any."""
        machines = list(self.world.machines.values())
        leading = [machine for machine in machines if machine.leads]
        return random.choice(leading if leading and random.random() < _AT_LEADER else machines)

    def keep_down(self, machine: Machine) -> Undo:
        """Let nobody start the machine until this is undone."""
        self.kept_down[machine.name] = self.kept_down.get(machine.name, 0) + 1
        return partial(self._release, machine.name)

    def _release(self, name: str) -> None:
        self.kept_down[name] -= 1

    def pairs(self, one: Sequence[str], other: Sequence[str]) -> list[tuple[str, str]]:
        """Every direction from a machine of ``one`` to one of ``other``."""
        return [(source, target) for source, target in product(one, other) if source != target]

    def silence(self, pairs: Sequence[tuple[str, str]]) -> Undo:
        """Let nothing through in these directions."""
        for source, target in pairs:
            self.world.fabric.silence(source, target)
        return partial(self._speak, pairs)

    def _speak(self, pairs: Sequence[tuple[str, str]]) -> None:
        for source, target in pairs:
            self.world.fabric.speak(source, target)


Fault = Callable[[Stage, Random], Undo]


# --- processes -------------------------------------------------------------------------------


def kill(stage: Stage, random: Random) -> Undo:
    """Kill -9: the kernel lives and keeps what it was given."""
    machine = stage.machine(random)
    undo = stage.keep_down(machine)
    machine.kill()
    return undo


def power(stage: Stage, random: Random) -> Undo:
    """The machine loses power, and with it any part of what was not synced."""
    machine = stage.machine(random)
    undo = stage.keep_down(machine)
    machine.cut_power(random)
    return undo


def crash_in_disk(stage: Stage, random: Random) -> Undo:
    """Lose power in the middle of one of the next disk operations."""
    machine = stage.machine(random)
    machine.disk.crash_at = machine.disk.operations + random.randint(1, 40)

    def undo() -> None:
        machine.disk.crash_at = None

    return undo


def restart_all(stage: Stage, random: Random) -> Undo:
    """Every machine goes down at once: a kill of all, a power cut of all, or some of each."""
    undos = []
    power_share = random.choice((0.0, 0.5, 1.0))
    for machine in stage.world.machines.values():
        undos.append(stage.keep_down(machine))
        if random.random() < power_share:
            machine.cut_power(random)
        else:
            machine.kill()
    return partial(_undo_all, undos)


def freeze(stage: Stage, random: Random) -> Undo:
    """Stop the process; its machine and its clocks go on."""
    machine = stage.machine(random)
    machine.freeze()
    return machine.thaw


def stop(stage: Stage, random: Random) -> Undo:
    """Stop cleanly, as for an upgrade."""
    stage.machine(random).stop()
    return _nothing


# --- network ---------------------------------------------------------------------------------


def partition(stage: Stage, random: Random) -> Undo:
    """Two sides that do not hear each other."""
    one, other = _sides(stage, random)
    return stage.silence([*stage.pairs(one, other), *stage.pairs(other, one)])


def one_way(stage: Stage, random: Random) -> Undo:
    """One side does not hear the other, but is heard."""
    return stage.silence(stage.pairs(*_sides(stage, random)))


def bridge(stage: Stage, random: Random) -> Undo:
    """Two halves that only hear the one machine between them."""
    names = random.sample(stage.world.names, len(stage.world.names))
    half = len(names) // 2
    one, other = names[:half], names[half + 1 :]
    return stage.silence([*stage.pairs(one, other), *stage.pairs(other, one)])


def reset(stage: Stage, random: Random) -> Undo:
    """Break connections a few times."""
    if len(stage.world.names) == 1:
        return _nothing
    for _ in range(random.randint(1, 5)):
        one, other = random.sample(stage.world.names, 2)
        breaks = partial(stage.world.fabric.reset, one, other)
        stage.soon(random.uniform(0, 2.0), breaks)
    return _nothing


def slow_link(stage: Stage, random: Random) -> Undo:
    """Everything on some paths takes long, and never equally long."""
    return _worsen(stage, random, delay_us=int(random.choice((0.01, 0.1, 0.4)) * SECOND_US))


def lossy_link(stage: Stage, random: Random) -> Undo:
    """Segments are lost on some paths and sent again."""
    return _worsen(stage, random, loss=random.choice((0.02, 0.2, 0.6)))


def flaky_link(stage: Stage, random: Random) -> Undo:
    """One direction falls silent and speaks again, many times."""
    if len(stage.world.names) == 1:
        return _nothing
    source, target = random.sample(stage.world.names, 2)
    fabric = stage.world.fabric
    at_s = 0.0
    for _ in range(random.randint(3, 12)):
        at_s += random.uniform(0.02, 1.0)
        stage.soon(at_s, partial(fabric.silence, source, target))
        at_s += random.uniform(0.02, 1.0)
        stage.soon(at_s, partial(fabric.speak, source, target))
    return partial(fabric.speak, source, target)


# --- disks -----------------------------------------------------------------------------------


def slow_disk(stage: Stage, random: Random) -> Undo:
    """Every sync takes long, on one machine or on all."""
    machines = list(stage.world.machines.values())
    if random.random() < 0.5:  # noqa: PLR2004 - either way
        machines = [random.choice(machines)]
    speeds = [machine.speed for machine in machines]
    slow_us = int(random.choice((0.02, 0.1, 0.5)) * SECOND_US)
    usual_us = stage.world.options.sync_us

    def undo() -> None:
        _set_speed(speeds, usual_us)

    _set_speed(speeds, slow_us)
    return undo


def _set_speed(speeds: Sequence[DiskSpeed], sync_us: int) -> None:
    for speed in speeds:
        speed.sync_us = speed.jitter_us = sync_us


def stall_disk(stage: Stage, random: Random) -> Undo:
    """Nothing on the disk is finished for a while."""
    speed = stage.machine(random).speed
    speed.stalled = True

    def undo() -> None:
        speed.stalled = False

    return undo


def full_disk(stage: Stage, random: Random) -> Undo:
    """Leave room for a little more, or for nothing."""
    machine = stage.machine(random)
    disk = machine.disk
    disk.capacity_bytes = disk.used_bytes() + random.choice((0, 5_000, 100_000))

    def undo() -> None:
        machine.disk.capacity_bytes = None  # a crash may have put another disk in its place

    return undo


def failing_sync(stage: Stage, random: Random) -> Undo:
    """The next sync fails: the kernel forgets what it has not written, and says so once."""
    machine = stage.machine(random)
    disk = machine.disk

    def fail(operation: str, path: Path) -> None:
        if operation == "fdatasync":
            disk.before = None
            raise DiskError(path, operation, "Input/output error")

    disk.before = fail

    def undo() -> None:
        disk.before = None

    return undo


def lose_disk(stage: Stage, random: Random) -> Undo:
    """Put an empty disk in, and make a data directory on it, as a careless operator does.

    Once in a run: more than one is more than three replicas survive, and less do not survive one.
    """
    if stage.lost or stage.world.options.replicas < 3:  # noqa: PLR2004
        return _nothing
    machine = stage.machine(random)
    stage.lost.add(machine.name)
    undo = stage.keep_down(machine)
    machine.kill()
    stage.damaged(machine)
    machine.replace_disk()
    return undo


# --- clocks, and what operators do -----------------------------------------------------------


def wall_clock(stage: Stage, random: Random) -> Undo:
    """Set a wall clock forward or back, by a little or by years."""
    by_s = random.choice((0.5, 60.0, 86_400.0, 400 * 86_400.0)) * random.choice((-1, 1))
    stage.machine(random).clock.step_wall(int(by_s * SECOND_US))
    return _nothing


def drift(stage: Stage, random: Random) -> Undo:
    """Let a machine's clock run too fast or too slow."""
    machine = stage.machine(random)
    machine.clock.drift(1.0 + random.uniform(-0.1, 0.1))
    return lambda: machine.clock.drift(1.0 + machine.drift)


def transfer(stage: Stage, random: Random) -> Undo:
    """Ask for another leader."""
    shard = random.randrange(stage.world.options.shards)
    target = random.choice((*stage.world.names, None))
    stage.start(stage.saboteur.ask_once(TransferRequest(shard, target)))
    return _nothing


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        kill, power, crash_in_disk, restart_all, freeze, stop,
        partition, one_way, bridge, reset, slow_link, lossy_link, flaky_link,
        slow_disk, stall_disk, full_disk, failing_sync, lose_disk,
        wall_clock, drift, transfer,
    )
}  # fmt: skip
"""All but the one that needs the cluster to itself; see :mod:`raftkv.sim.operator`."""


def _sides(stage: Stage, random: Random) -> tuple[list[str], list[str]]:
    """Two sides; somebody who leads is often in the first, and that is often the small one."""
    first = stage.machine(random).name
    others = [name for name in stage.world.names if name != first]
    random.shuffle(others)
    cut = random.randint(0, max(0, len(others) - 1))
    return [first, *others[:cut]], others[cut:]


def _worsen(stage: Stage, random: Random, *, delay_us: int = 0, loss: float = 0.0) -> Undo:
    """Add delay and loss to some paths."""
    pairs = stage.pairs(stage.world.names, stage.world.names)
    for pair in random.sample(pairs, random.randint(min(1, len(pairs)), len(pairs))):
        path = stage.world.fabric.path(*pair)
        path.delay_us += delay_us
        path.jitter_us += delay_us
        path.loss = max(path.loss, loss)
    return stage.world.calm_paths


def _undo_all(undos: Sequence[Undo]) -> None:
    for undo in undos:
        undo()


def _nothing() -> None:
    """There is nothing to undo."""
