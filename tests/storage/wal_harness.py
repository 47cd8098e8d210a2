"""Drives a write-ahead log on a simulated disk and knows what a crash may leave of it.

The model beside the log keeps the state after every record. What is recovered must be the state
after some record that is not before the last one reported durable: nothing acknowledged lost,
nothing out of order, nothing that was never written.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random

from raftkv.core.cluster_map import GroupId
from raftkv.sim.disk import SECTOR_BYTES, Choose, SimDisk, SimulatedCrash
from raftkv.storage.disk import DiskError
from raftkv.storage.wal import RecoveredGroup, Wal

DIRECTORY = Path("/wal")
IDENTITY = "0123456789abcdef"
SEGMENT_BYTES = 11 * SECTOR_BYTES
GROUPS = (GroupId(0, 0), GroupId(1, 0), GroupId(1, 1))

Step = tuple[str, int, int]
"""What to do, with two numbers that each kind of step reads in its own way."""

GroupState = tuple[int, str | None, tuple[int, int], tuple[tuple[bytes, int, int], ...]]
State = dict[GroupId, GroupState]

NOTHING: GroupState = (0, None, (0, 0), ())


def new_disk(*, capacity_bytes: int | None = None) -> SimDisk:
    """Return a disk with an empty log."""
    disk = SimDisk(capacity_bytes=capacity_bytes)
    Wal.create(disk, DIRECTORY, identity=IDENTITY, segment_bytes=SEGMENT_BYTES)
    disk.fsync_dir(DIRECTORY.parent)
    return disk


def open_wal(disk: SimDisk) -> tuple[Wal, dict[GroupId, RecoveredGroup]]:
    """Open the log."""
    return Wal.open(disk, DIRECTORY, identity=IDENTITY, segment_bytes=SEGMENT_BYTES)


def state_of(recovered: dict[GroupId, RecoveredGroup]) -> State:
    """Return what was recovered, in the form in which the model keeps it."""
    return {
        name: (group.term, group.vote, group.compacted, tuple(group.entries))
        for name, group in recovered.items()
    }


def without_nothing(state: State) -> State:
    """Drop groups about which there is nothing to know."""
    return {name: group for name, group in state.items() if group != NOTHING}


def sync(wal: Wal) -> None:
    """Make everything buffered durable, in this thread."""
    while (job := wal.begin_sync()) is not None:
        job.run()
        wal.finish_sync(job)


def housekeep(wal: Wal) -> None:
    """Do the housekeeping that is due."""
    if (job := wal.begin_housekeeping()) is not None:
        job.run()
        wal.finish_housekeeping(job)


@dataclass
class Driver:
    """One process's time with the log: takes steps and keeps the model's history.

    ``states[n]`` is the model after record n of this process; ``states[0]`` what it recovered.
    """

    wal: Wal
    states: list[State]
    life: int = 0
    payloads: Iterator[int] = field(default_factory=count)
    forgotten: set[GroupId] = field(default_factory=set)
    """Groups that this process has let the log forget, and records nothing of any more."""

    @classmethod
    def start(cls, disk: SimDisk, life: int = 0) -> "Driver":
        """Open the log as it is; ``life`` tells this process's payloads from others'."""
        wal, recovered = open_wal(disk)
        return cls(wal, [state_of(recovered)], life)

    def possible(self) -> list[State]:
        """Return every state that a crash now may leave."""
        return self.states[self.wal.durable_lsn :]

    def run(self, steps: list[Step]) -> None:
        """Take the steps."""
        for step in steps:
            self.step(*step)

    def step(self, kind: str, a: int, b: int) -> None:
        """Take one step; numbers are bent to what makes sense, so any are allowed."""
        if kind == "sync":
            sync(self.wal)
        elif kind == "housekeep":
            housekeep(self.wal)
        else:
            name = GROUPS[a % len(GROUPS)]
            while name in self.forgotten:
                name = GroupId(name.shard, name.generation + 2)  # a successor
            change: Callable[[GroupId, GroupState, int], tuple[int, GroupState]]
            change = getattr(self, f"_{kind}")
            before = self.wal.lsn
            lsn, after = change(name, self.states[-1].get(name, NOTHING), b)
            assert lsn == self.wal.lsn
            if lsn != before:
                assert lsn == before + 1
                self.states.append({**self.states[-1], name: after})

    def _append(self, name: GroupId, group: GroupState, b: int) -> tuple[int, GroupState]:
        term, vote, compacted, entries = group
        index = (entries[-1][1] if entries else compacted[0]) + 1
        payload = b"%d.%d." % (self.life, next(self.payloads))
        payload += bytes((b * 7 + i) % 256 for i in range(b % 1500))
        lsn = self.wal.append(name, index, term, payload)
        return lsn, (term, vote, compacted, (*entries, (payload, index, term)))

    def _truncate(self, name: GroupId, group: GroupState, b: int) -> tuple[int, GroupState]:
        term, vote, compacted, entries = group
        kept = b % (len(entries) + 1)
        lsn = self.wal.truncate_from(name, compacted[0] + 1 + kept)
        return lsn, (term, vote, compacted, entries[:kept])

    def _hard(self, name: GroupId, group: GroupState, b: int) -> tuple[int, GroupState]:
        term, _, compacted, entries = group
        new_term, new_vote = term + b % 3, (None, "n1", "ñ2")[b % 7 % 3]
        lsn = self.wal.set_hard_state(name, new_term, new_vote)
        return lsn, (new_term, new_vote, compacted, entries)

    def _compact(self, name: GroupId, group: GroupState, b: int) -> tuple[int, GroupState]:
        term, vote, compacted, entries = group
        # Up to three beyond the end, as when a snapshot of another node is installed.
        index = compacted[0] + b % (len(entries) + 4)
        entry_term = next((t for _, i, t in entries if i == index), term)
        lsn = self.wal.compact(name, index, entry_term)
        rest = tuple(entry for entry in entries if entry[1] > index)
        return lsn, (term, vote, (index, entry_term), rest)

    def _forget(self, name: GroupId, group: GroupState, _: int) -> tuple[int, GroupState]:
        before = self.wal.lsn
        lsn = self.wal.forget(name)
        if lsn != before:
            self.forgotten.add(name)
            group = NOTHING
        return lsn, group


def assert_possible(found: State, possible: list[State], label: str = "") -> None:
    """The recovered state is one that a crash may leave."""
    assert without_nothing(found) in [without_nothing(state) for state in possible], label


def crash_outcomes(disk: SimDisk, random: Random) -> Iterator[tuple[str, SimDisk]]:
    """Yield what a crash may leave: every prefix of the unsynced sectors, and random subsets."""
    changes = disk.pending_names()
    name_choices: list[tuple[str, Choose]] = [("new", lambda n: n - 1)]
    if changes:
        name_choices += [("old", lambda _: 0), ("random", random.randrange)]
    unsynced = len(disk.unsynced())
    for label, names in name_choices:
        for kept in range(unsynced + 1):
            yield f"names {label}, first {kept} sectors", disk.crash_choosing(_first(kept), names)
    for number in range(4 + 2 * unsynced):
        yield f"random {number}", disk.crash(random)


def _first(kept: int) -> Choose:
    """Choose the newest state for the first ``kept`` sectors asked about, the durable after."""
    asked = count()
    return lambda n: n - 1 if next(asked) < kept else 0


def run_until_crash(disk: SimDisk, steps: list[Step], crash_at: int, life: int = 0) -> list[State]:
    """Open the log, take the steps, crash in operation ``crash_at``; return what may be left.

    If opening itself is cut off, only what an earlier process saw counts: the caller knows it.
    """
    disk.crash_at = disk.operations + crash_at
    driver = None
    try:
        driver = Driver.start(disk, life)
        driver.run(steps)
    except (SimulatedCrash, DiskError):
        pass
    return driver.possible() if driver is not None else []


def operations_of(steps: list[Step]) -> int:
    """How many disk operations opening a new log and taking the steps costs."""
    disk = new_disk()
    before = disk.operations
    Driver.start(disk).run(steps)
    return disk.operations - before


def random_steps(random: Random, length: int) -> list[Step]:
    """Return steps for a test that needs a fixed, mixed sequence."""
    kinds = (
        ["append"] * 8
        + ["sync"] * 5
        + ["housekeep"] * 3
        + ["truncate", "hard", "compact", "forget"]
    )
    return [
        (random.choice(kinds), random.randrange(1 << 16), random.randrange(1 << 16))
        for _ in range(length)
    ]
