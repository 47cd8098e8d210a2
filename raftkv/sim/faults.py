"""What each kind of fault does, and how it ends; :mod:`raftkv.sim.combinations` has more.

Machines that are down are started again by the operator (:mod:`raftkv.sim.operator`), except those
in ``kept_down``.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random

from raftkv.core.operations import Command, Put
from raftkv.rpc.messages import Failure, TransferRequest, WriteRequest
from raftkv.sim.combinations import COMBINATIONS
from raftkv.sim.disk import SECTOR_BYTES, SimulatedCrash
from raftkv.sim.machine import DiskSpeed, Machine
from raftkv.sim.scheduler import SECOND_US
from raftkv.sim.stage import Fault, Stage, Undo, nothing, undo_all
from raftkv.storage.disk import DiskError, DiskFull
from raftkv.storage.wal_format import segment_number

__all__ = ["FAULTS", "Fault", "Stage", "Undo"]


# --- processes -------------------------------------------------------------------------------


def kill(stage: Stage, random: Random) -> Undo:
    """Kill -9: the kernel lives and keeps what it was given."""
    machine = stage.machine(random)
    undo = stage.keep_down(machine)
    stage.kill(machine)
    return undo


def power(stage: Stage, random: Random) -> Undo:
    """The machine loses power, and with it any part of what was not synced."""
    machine = stage.machine(random)
    undo = stage.keep_down(machine)
    stage.seen_if(machine.running)
    machine.cut_power(random)
    return undo


def crash_in_disk(stage: Stage, random: Random) -> Undo:
    """Lose power in the middle of one of the next disk operations."""
    machine = stage.machine(random)
    disk = machine.disk
    disk.crash_at = disk.operations + random.randint(1, 40)
    disk.crashing = stage.seen

    def undo() -> None:
        machine.disk.crash_at = None

    return undo


def rot_in_crash(stage: Stage, random: Random) -> Undo:
    """Lose power while the log is written, and with it a bit or half a sector of what it had.

    What was synced is damaged and what is behind it torn. The node must refuse to start until it
    gets its sector back, or it must have all that was synced.
    """
    machine = stage.machine(random)
    disk = machine.disk
    harmed: list[tuple[Path, int, bytes]] = []

    def crash(operation: str, path: Path) -> None:
        if operation != "fdatasync" or segment_number(path.name) is None:
            return
        torn = [sector for torn_path, sector in disk.unsynced() if torn_path == path]
        synced = [s for s in disk.written_sectors(path) if torn and 0 < s < torn[0]]
        if synced:
            disk.before = None
            sector = random.choice(synced[-4:])
            harmed.append((path, sector, disk.sector(path, sector)))
            if random.random() < 0.5:  # noqa: PLR2004 -- either way
                disk.flip_bit(path, (sector * SECTOR_BYTES + random.randrange(64)) * 8)
            else:
                disk.shear(path, sector, random.randrange(64, SECTOR_BYTES))
            stage.seen()
            raise SimulatedCrash

    disk.before = crash

    def undo() -> None:
        disk.before = None
        for path, sector, data in harmed:
            if path in machine.disk.files() and machine.name not in stage.lost:
                machine.disk.set_sector(path, sector, data)

    return undo


def restart_all(stage: Stage, random: Random) -> Undo:
    """Every machine goes down at once: a kill of all, a power cut of all, or some of each.

    Seen if a majority was up.
    """
    undos = []
    power_share = random.choice((0.0, 0.5, 1.0))
    machines = list(stage.world.machines.values())
    stage.seen_if(2 * sum(machine.running for machine in machines) > len(machines))
    for machine in machines:
        undos.append(stage.keep_down(machine))
        if random.random() < power_share:
            machine.cut_power(random)
        else:
            machine.kill()
    return partial(undo_all, undos)


def freeze(stage: Stage, random: Random) -> Undo:
    """Stop the process; its machine and its clocks go on."""
    return stage.freeze(stage.machine(random))


def freeze_some(stage: Stage, random: Random) -> Undo:
    """Stop several processes at once, or all; they go on together."""
    machines = list(stage.world.machines.values())
    count = random.randint(min(2, len(machines)), len(machines))
    return partial(undo_all, [stage.freeze(m) for m in random.sample(machines, count)])


def freeze_long(stage: Stage, random: Random) -> Undo:
    """Stop a process for longer than sessions, calls and links live."""
    return stage.freeze(stage.machine(random))


def stop(stage: Stage, random: Random) -> Undo:
    """Stop cleanly, as for an upgrade."""
    stage.machine(random).stop(stage.seen)
    return nothing


def crash_loop(stage: Stage, random: Random) -> Undo:
    """Kill a process, and kill it again a few times while it starts or has just started."""
    machine = stage.machine(random)
    machine.kill()

    def again() -> None:
        stage.seen_if(machine.running)
        if random.random() < 0.3:  # noqa: PLR2004 -- share of power cuts
            machine.cut_power(random)
        else:
            machine.kill()

    at_s = 0.0
    for _ in range(random.randint(2, 6)):
        at_s += random.uniform(0.001, 0.3)
        stage.soon(at_s, partial(stage.start_again, machine))
        at_s += random.choice((0.0003, 0.003, 0.03, 0.3)) * random.uniform(0.3, 3)
        stage.soon(at_s, again)
    return nothing


def descriptors(stage: Stage, random: Random) -> Undo:
    """A process has no descriptor left: what it would connect, accept or open fails."""
    machine = stage.machine(random)
    fabric = stage.world.fabric
    others = [other.name for other in stage.others(machine)]
    fabric.exhaust(machine.name)
    undos: list[Undo] = [partial(fabric.relieve, machine.name)]
    if random.random() < 0.5:  # noqa: PLR2004 -- either way
        files = ("create", "open", "listdir")
        undos.append(_failing(stage, machine, files, "", "Too many open files"))
    for other in random.sample(others, random.randint(0, len(others))):
        fabric.reset(machine.name, other)  # so that there is something to connect
    return stage.watch(lambda: fabric.exhaustions, partial(undo_all, undos))


def hanging_jobs(stage: Stage, random: Random) -> Undo:
    """Work beside the loop (all but syncs of the log) is not finished: threads that starve."""
    faults = stage.machine(random).job_faults
    faults.hang = True

    def undo() -> None:
        faults.hang = False

    return stage.watch(lambda: faults.held, undo)


def killed_writers(stage: Stage, random: Random) -> Undo:
    """Whoever writes a snapshot is killed half-way, as by the kernel for want of memory."""
    faults = stage.machine(random).job_faults
    faults.writers_die = True

    def undo() -> None:
        faults.writers_die = False

    return stage.watch(lambda: faults.killed, undo)


# --- network ---------------------------------------------------------------------------------


def partition(stage: Stage, random: Random) -> Undo:
    """Two sides that do not hear each other."""
    return stage.silence(stage.both_ways(*_sides(stage, random)))


def one_way(stage: Stage, random: Random) -> Undo:
    """One side does not hear the other, but is heard."""
    return stage.silence(stage.pairs(*_sides(stage, random)))


def bridge(stage: Stage, random: Random) -> Undo:
    """Two halves that only hear the one machine between them."""
    names = random.sample(stage.world.names, len(stage.world.names))
    half = len(names) // 2
    return stage.silence(stage.both_ways(names[:half], names[half + 1 :]))


def reset(stage: Stage, random: Random) -> Undo:
    """Break connections a few times."""
    if len(stage.world.names) == 1:
        return nothing
    for _ in range(random.randint(1, 5)):
        one, other = random.sample(stage.world.names, 2)
        stage.soon(random.uniform(0, 2.0), partial(_reset, stage, one, other))
    return nothing


def reset_storm(stage: Stage, random: Random) -> Undo:
    """Break all connections of a machine again and again, as soon as they are made."""
    machine = stage.machine(random)
    at_s = 0.0
    for _ in range(random.randint(5, 25)):
        at_s += random.uniform(0.02, 0.4)
        for other in stage.others(machine):
            stage.soon(at_s, partial(_reset, stage, machine.name, other.name))
    return nothing


def _reset(stage: Stage, one: str, other: str) -> None:
    stage.seen_if(stage.world.fabric.reset(one, other))


def half_open(stage: Stage, random: Random) -> Undo:
    """One side loses its connections; the other thinks they are up, and sends into nothing."""
    if len(stage.world.names) == 1:
        return nothing
    for _ in range(random.randint(1, 4)):
        one, other = random.sample(stage.world.names, 2)
        stage.soon(random.uniform(0, 2.0), partial(_forget_end, stage, one, other))
    return nothing


def _forget_end(stage: Stage, one: str, other: str) -> None:
    stage.seen_if(stage.world.fabric.forget_end(one, other))


def slow_link(stage: Stage, random: Random) -> Undo:
    """Everything on some paths takes long, and never equally long; seen if something went there."""
    pairs = _some_pairs(stage, random)
    delay_us = int(random.choice((0.01, 0.1, 0.4)) * SECOND_US)
    for pair in pairs:
        path = stage.world.fabric.path(*pair)
        path.delay_us += delay_us
        path.jitter_us += delay_us
    paths = [stage.world.fabric.path(*pair) for pair in pairs]
    return stage.watch(lambda: sum(path.carried for path in paths), stage.world.calm_paths)


def narrow_link(stage: Stage, random: Random) -> Undo:
    """Some paths take so few bytes in a second that queues grow; seen if something went there."""
    bytes_per_s = random.choice((2_000, 10_000, 50_000))
    paths = [stage.world.fabric.path(*pair) for pair in _some_pairs(stage, random)]
    for path in paths:
        path.bytes_per_s = bytes_per_s
    return stage.watch(lambda: sum(path.carried for path in paths), stage.world.calm_paths)


def lossy_link(stage: Stage, random: Random) -> Undo:
    """Segments are lost on some paths and sent again."""
    loss = random.choice((0.02, 0.2, 0.6))
    paths = [stage.world.fabric.path(*pair) for pair in _some_pairs(stage, random)]
    for path in paths:
        path.loss = max(path.loss, loss)
    return stage.watch(lambda: sum(path.lost for path in paths), stage.world.calm_paths)


def flaky_link(stage: Stage, random: Random) -> Undo:
    """One direction falls silent and speaks again, many times."""
    if len(stage.world.names) == 1:
        return nothing
    source, target = random.sample(stage.world.names, 2)
    fabric = stage.world.fabric
    at_s = 0.0
    for _ in range(random.randint(3, 12)):
        at_s += random.uniform(0.02, 1.0)
        stage.soon(at_s, partial(fabric.silence, source, target))
        at_s += random.uniform(0.02, 1.0)
        stage.soon(at_s, partial(fabric.speak, source, target))
    speak = partial(fabric.speak, source, target)
    return stage.watch(lambda: stage.held([(source, target)]), speak)


def cut_clients(stage: Stage, random: Random) -> Undo:
    """Clients of a machine are not heard, or are not answered: a partition, or broken connections.

    Seen if somebody asks it meanwhile.
    """
    machine = stage.machine(random)
    client_network = stage.saboteur.client_network
    cut = random.choice((client_network.unheard, client_network.unanswered))
    cut.add(machine.name)
    stage.crowd(machine, random.randint(1, 3))
    return stage.watch(lambda: client_network.cut, partial(cut.discard, machine.name))


# --- disks -----------------------------------------------------------------------------------


def slow_disk(stage: Stage, random: Random) -> Undo:
    """Every sync takes long, on one machine or on all."""
    machines = list(stage.world.machines.values())
    if random.random() < 0.5:  # noqa: PLR2004 -- either way
        machines = [random.choice(machines)]
    speeds = [machine.speed for machine in machines]
    slow_us = int(random.choice((0.02, 0.1, 0.5)) * SECOND_US)
    usual_us = stage.world.options.sync_us

    def undo() -> None:
        _set_speed(speeds, usual_us)

    _set_speed(speeds, slow_us)
    return stage.watch(lambda: sum(speed.jobs for speed in speeds), undo)


def _set_speed(speeds: Sequence[DiskSpeed], sync_us: int) -> None:
    for speed in speeds:
        speed.sync_us = speed.jitter_us = sync_us


def stall_disk(stage: Stage, random: Random) -> Undo:
    """Nothing on the disk is finished for a while; seen if something was begun."""
    speed = stage.machine(random).speed
    speed.stalled = True

    def undo() -> None:
        speed.stalled = False

    return stage.watch(lambda: speed.jobs, undo)


def full_disk(stage: Stage, random: Random) -> Undo:
    """Leave room for a little more, or for nothing, while somebody writes a lot.

    Half of the time others take what the node gives back by deleting files.
    """
    machine = stage.machine(random)
    room_bytes = random.choice((0, 5_000, 100_000))
    faults = machine.disk.faults
    if random.random() < 0.5:  # noqa: PLR2004 -- either way
        faults.room_bytes = room_bytes
    else:
        machine.disk.capacity_bytes = machine.disk.used_bytes() + room_bytes
    _write_much(stage, random, room_bytes)

    def undo() -> None:
        faults.room_bytes = None
        machine.disk.capacity_bytes = None  # a crash may have put another disk in its place

    return stage.watch(lambda: faults.refused, undo)


def _write_much(stage: Stage, random: Random, room_bytes: int) -> None:
    """Fill logs: what is put is as large as two segments and the room; nobody reads it."""
    options = stage.world.options
    size = options.segment_bytes // 6
    ends_s = 4.0
    for number in range((2 * options.segment_bytes + room_bytes) // size + 1):
        put = Put(f"much-{number % 3}".encode(), random.randbytes(8) * (size // 8))
        ask = partial(stage.ask, random.choice(list(stage.world.machines.values())))
        stage.soon(random.uniform(0, ends_s), partial(_put, stage, ask, put))


def _put(stage: Stage, ask: Callable[[WriteRequest], object], put: Put) -> None:
    stage.start(ask(WriteRequest(Command(put))))


def full_for_snapshots(stage: Stage, random: Random) -> Undo:
    """There is room for the log, and none for snapshots: a quota, or they are large."""
    return _failing(stage, stage.machine(random), ("pwrite", "allocate"), ".snap", None)


def failing_sync(stage: Stage, random: Random) -> Undo:
    """The next sync fails: the kernel forgets what it has not written, and says so once."""
    machine = stage.machine(random)
    disk = machine.disk

    def fail(operation: str, path: Path) -> None:
        if operation == "fdatasync":
            disk.before = None
            stage.seen()
            raise DiskError(path, operation, "Input/output error")

    disk.before = fail

    def undo() -> None:
        disk.before = None

    return undo


def failing_reads(stage: Stage, random: Random) -> Undo:
    """Snapshots cannot be read. Somebody falls behind meanwhile, so that one is asked for."""
    machine = stage.machine(random)
    undo = _failing(stage, machine, ("pread",), ".snap", "Input/output error")
    behind = random.choice(stage.others(machine) or [machine])
    release = stage.keep_down(behind)
    behind.kill()
    if random.random() < 0.5:  # noqa: PLR2004 -- either way: read to be sent, or at a start
        machine.kill()
    return partial(undo_all, [undo, release])


def failing_renames(stage: Stage, random: Random) -> Undo:
    """No file can be renamed: snapshots are written, and cannot be put in place."""
    return _failing(stage, stage.machine(random), ("rename",), "", "Input/output error")


def _failing(
    stage: Stage, machine: Machine, operations: Sequence[str], name: str, why: str | None
) -> Undo:
    """Let operations on files with ``name`` in theirs fail; ``why`` None: for want of room."""
    checks = machine.disk.faults.checks

    def check(operation: str, path: Path) -> None:
        if operation in operations and name in path.name:
            stage.seen()
            if why is None:
                raise DiskFull(path, operation, "No space left on device")
            raise DiskError(path, operation, why)

    def undo() -> None:
        if check in checks:  # all may be healed already
            checks.remove(check)

    checks.append(check)
    return undo


def lose_disk(stage: Stage, random: Random) -> Undo:
    """Put an empty disk in, and make a data directory on it, as a careless operator does.

    Once in a run: more than one is more than three replicas survive, and less do not survive one.
    """
    if stage.lost or stage.world.options.replicas < 3:  # noqa: PLR2004
        return nothing
    machine = stage.machine(random)
    stage.lost.add(machine.name)
    undo = stage.keep_down(machine)
    machine.kill()
    stage.damaged(machine)
    machine.replace_disk()
    stage.seen()
    return undo


# --- clocks, and what operators do -----------------------------------------------------------


def wall_clock(stage: Stage, random: Random) -> Undo:
    """Set a wall clock forward or back, by a little or by years; once, or a few times in a row."""
    clock = stage.machine(random).clock
    reads = clock.wall_reads
    for number in range(random.choice((1, 1, 4))):
        by_s = random.choice((0.5, 60.0, 86_400.0, 400 * 86_400.0)) * random.choice((-1, 1))
        step = partial(clock.step_wall, int(by_s * SECOND_US))
        stage.soon(number * random.uniform(0.05, 1.0), step)
    return lambda: stage.seen_if(clock.wall_reads > reads)


def drift(stage: Stage, random: Random) -> Undo:
    """Let a machine's clock run too fast or too slow; seen if a timer was set by it."""
    machine = stage.machine(random)
    clock = machine.clock
    clock.drift(1.0 + random.uniform(-0.1, 0.1))
    return stage.watch(lambda: clock.timers, lambda: clock.drift(1.0 + machine.drift))


def transfer(stage: Stage, random: Random) -> Undo:
    """Ask for another leader; seen if that was agreed to."""
    _transfer(stage, random)
    return nothing


def transfers(stage: Stage, random: Random) -> Undo:
    """Ask for other leaders again and again, faster than they can settle."""
    at_s = 0.0
    for _ in range(random.randint(3, 12)):
        stage.soon(at_s, partial(_transfer, stage, random))
        at_s += random.uniform(0.01, 0.4)
    return nothing


def _transfer(stage: Stage, random: Random) -> None:
    shard = random.randrange(stage.world.options.shards)
    target = random.choice((*stage.world.names, None))
    for_s = None if target is None else random.choice((None, 20.0))
    request = TransferRequest(shard, target, for_s)

    async def ask() -> None:
        answer = await stage.saboteur.ask_once(request)
        stage.seen_if(answer is not None and not isinstance(answer, Failure))

    stage.start(ask())


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        kill, power, crash_in_disk, rot_in_crash, restart_all, freeze, freeze_some, freeze_long,
        stop,
        crash_loop, descriptors, hanging_jobs, killed_writers,
        partition, one_way, bridge, reset, reset_storm, half_open, slow_link, narrow_link,
        lossy_link, flaky_link, cut_clients,
        slow_disk, stall_disk, full_disk, full_for_snapshots, failing_sync, failing_reads,
        failing_renames, lose_disk,
        wall_clock, drift, transfer, transfers,
        *COMBINATIONS,
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


def _some_pairs(stage: Stage, random: Random) -> list[tuple[str, str]]:
    """Some directions between two machines each, one at least."""
    pairs = stage.pairs(stage.world.names, stage.world.names)
    return random.sample(pairs, random.randint(min(1, len(pairs)), len(pairs)))
