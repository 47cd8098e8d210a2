"""A random life of one group, decided by a seed, and everything that must hold all the time.

Each step is one small thing that may happen in a cluster: a message arrives, a timer fires, a
sync begins or ends, a client writes or reads, a link breaks, a machine loses power. Disks, jobs
and ticks run at times of their own, so that every order of them is met.

What is checked:

* after every step: one leader per term; an index once committed anywhere has the same entry
  everywhere and for ever; equal applied indexes have equal digests; nothing committed is taken
  back;
* for every client: a register is linearizable, checked by revisions; a read of bounded age is no
  older; what was acknowledged is there in the end, what was refused definitely never is, nothing
  is applied twice, everyone is answered.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from group_world import DATA, GroupWorld

from raftkv.core.operations import Command, Put, PutResult, WriteResult
from raftkv.raft.host import SnapshotPolicy
from raftkv.raft.journal import LogEntry
from raftkv.raft.proposals import GroupFailure
from raftkv.raft.reads import Voucher
from raftkv.storage.disk import DiskError, DiskFull

REGISTER = b"register"

FINAL_S = 8.0
"""Simulated time that a healed cluster has to come to rest."""


class Write:
    """One write of a client, to the register or to a key of its own."""

    def __init__(self, key: bytes, value: str, at: int, life: int) -> None:
        self.key = key
        self.value = value
        self.began = at
        self.life = life
        self.ended: int | None = None
        self.ended_s = 0.0
        self.outcome: PutResult | GroupFailure | None = None

    @property
    def acknowledged(self) -> bool:
        """Whether its client was told of success."""
        return isinstance(self.outcome, PutResult)


class ReadSeen:
    """One read of the register that was answered."""

    def __init__(self, began: int, ended: int, revision: int) -> None:
        self.began = began
        self.ended = ended
        self.revision = revision


class RandomRun:
    """A world, the chance that drives it, and its history."""

    def __init__(self, seed: int, names: str = "abc") -> None:
        self.random = Random(f"run {seed}")
        policy = SnapshotPolicy(after_entries=self.random.choice((8, 40)))
        self.world = GroupWorld(names, seed=seed, policy=policy)
        self.step_number = 0
        self.writes: list[Write] = []
        self.reads: list[ReadSeen] = []
        self._forwarded: list[tuple[int, Voucher]] = []  # (when it began, who forwards)
        self.counts: dict[str, int] = {}
        self._committed: dict[int, LogEntry] = {}
        self._digests: dict[int, int] = {}
        self._seen: dict[str, tuple[int, int, int]] = {}  # life, commit, applied already checked
        self._dead_lives: set[int] = set()
        self._life_of: dict[str, int] = {}
        self._lives = 0
        self._due_snapshots: dict[str, int] = {}
        for name in names:
            self._start(name)
        self.world.network.connect_all()
        self.world.network.trace = deque(maxlen=200)
        faults = self.random.choice((0.1, 0.3, 0.7))
        clients = self.random.choice((1.0, 3.0))
        self._actions: dict[Callable[[], None], float] = {
            self._deliver: 600,
            self._tick: 120,
            self._begin_sync: 150,
            self._end_sync: 170,
            self._job: 60,
            self._time: 120,
            self._write: 80 * clients,
            self._read: 50 * clients,
            self._forward_read: 30 * clients,
            self._take_forwarded: 30 * clients,
            self._stale_read: 20 * clients,
            self._cut: 6 * faults,
            self._half_open: 6 * faults,
            self._connect: 14,
            self._hold: 4 * faults,
            self._release: 8,
            self._kill: 3 * faults,
            self._lose_power: 3 * faults,
            self._restart: 12,
            self._snapshot: 10,
            self._trim: 12,
            self._transfer: 4 * faults,
            self._stall: 2 * faults,
            self._unstall: 4,
            self._fill_disk: 2 * faults,
            self._free_disk: 4,
        }

    # --- running ------------------------------------------------------------------------------

    def run(self, steps: int) -> None:
        """Do ``steps`` random things, heal everything, and check the history."""
        for action in self.random.choices(
            list(self._actions), list(self._actions.values()), k=steps
        ):
            self.step_number += 1
            action()
        self._heal()
        for node in self.world.nodes.values():
            for event in node.events:
                self._count(event.kind)
        self._check_history()

    def _heal(self) -> None:
        world = self.world
        for name in world.names:
            world.disks[name].capacity_bytes = None
            if name in world.live:
                world.nodes[name].stalled_since = None
            else:
                self._start(name)
        for source in world.names:
            for target in world.names:
                world.network.release(source, target)
        world.network.connect_all()
        self._settle()
        self._final_writes()
        self._settle()

    def _settle(self) -> None:
        for _ in range(round(FINAL_S / 0.05)):
            self.world.run(0.05)
            for name in self.world.names:
                self._check(name)

    def _final_writes(self) -> None:
        """Push the log beyond everything that may still be in flight."""
        for number in range(6):
            leader = next(name for name in self.world.names if self.world.leads(name))
            self._propose(leader, f"final{number}".encode(), f"final{number}")
            self.world.run(0.3)

    def _start(self, name: str) -> None:
        self.world.start(name)
        self._lives += 1
        self._life_of[name] = self._lives
        self._seen.pop(name, None)
        self._due_snapshots.pop(name, None)

    def _live(self) -> str | None:
        return self.random.choice(sorted(self.world.live)) if self.world.live else None

    def _pair(self) -> tuple[str, str]:
        """Two nodes; in a group of one there is no link to do anything to."""
        one, other = self.random.sample((*self.world.names, *self.world.names), 2)
        return one, other

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    # --- what may happen: the machine ---------------------------------------------------------

    def _deliver(self) -> None:
        link = self.world.network.step(self.random)
        if link is not None:
            self._check(link.target)

    def _tick(self) -> None:
        if (name := self._live()) is not None:
            self.world.nodes[name].group.tick()
            self._check(name)

    def _begin_sync(self) -> None:
        if (name := self._live()) is not None and self.world.nodes[name].stalled_since is None:
            self.world.nodes[name].begin_sync()

    def _end_sync(self) -> None:
        if (name := self._live()) is not None and self.world.nodes[name].stalled_since is None:
            try:
                self.world.nodes[name].end_sync()
            except DiskError:  # no space for what is in flight: as good as a failed sync
                self._crash(name, self.world.crash)
            else:
                self._check(name)

    def _job(self) -> None:
        if (name := self._live()) is not None:
            self.world.nodes[name].run_a_job(self.random)
            self._check(name)

    def _time(self) -> None:
        self.world.clock.advance(self.random.choice((0.001, 0.005, 0.02, 0.06)))

    def _snapshot(self) -> None:
        name = self._live()
        if name is None or name in self._due_snapshots:
            return
        node = self.world.nodes[name]
        if node.group.compaction.may_snapshot:
            try:
                self._due_snapshots[name] = node.write_snapshot()
            except DiskFull:
                self._count("snapshots without space")
            else:
                self._count("snapshots written")

    def _trim(self) -> None:
        name = self._live()
        if name is not None and (index := self._due_snapshots.pop(name, None)) is not None:
            group = self.world.nodes[name].group
            group.compaction.snapshot_written(index)
            if self.random.random() < 0.5:
                group.compaction.release_log()
            self._check(name)

    # --- what may happen: faults --------------------------------------------------------------

    def _cut(self) -> None:
        self.world.network.cut(*self._pair())

    def _half_open(self) -> None:
        self.world.network.half_open(*self._pair())

    def _connect(self) -> None:
        one, other = self._pair()
        if {one, other} <= self.world.live:
            self.world.network.connect(one, other)

    def _hold(self) -> None:
        self.world.network.hold(*self._pair())

    def _release(self) -> None:
        self.world.network.release(*self._pair())

    def _kill(self) -> None:
        if (name := self._live()) is not None:
            self._crash(name, self.world.crash)

    def _lose_power(self) -> None:
        if (name := self._live()) is not None:
            self._crash(name, partial(self.world.lose_some, random=self.random))

    def _crash(self, name: str, how: Callable[[str], None]) -> None:
        self._dead_lives.add(self._life_of[name])
        for event in self.world.nodes[name].events:
            self._count(event.kind)
        how(name)
        self._count("crashes")

    def _restart(self) -> None:
        dead = sorted(set(self.world.names) - self.world.live)
        if dead:
            name = self.random.choice(dead)
            try:
                self._start(name)
            except DiskFull:
                self._count("refused to start")
            if name not in self.world.live:  # not enough space even for its first sync
                return
            for other in sorted(self.world.live - {name}):
                self.world.network.connect(name, other)

    def _stall(self) -> None:
        if (name := self._live()) is not None:
            self.world.stall_disk(name)

    def _unstall(self) -> None:
        if (name := self._live()) is not None:
            self.world.nodes[name].stalled_since = None

    def _fill_disk(self) -> None:
        """Leave room for a little more, or for nothing."""
        disk = self.world.disks[self.random.choice(self.world.names)]
        disk.capacity_bytes = 2**62
        used = disk.capacity_bytes - disk.free_bytes(DATA)
        disk.capacity_bytes = used + self.random.choice((0, 5_000, 100_000))

    def _free_disk(self) -> None:
        self.world.disks[self.random.choice(self.world.names)].capacity_bytes = None

    # --- what may happen: clients -------------------------------------------------------------

    def _client_node(self) -> str | None:
        """Mostly somebody who believes to lead, sometimes anybody."""
        leading = [name for name in sorted(self.world.live) if self.world.leads(name)]
        if leading and self.random.random() < 0.9:
            return self.random.choice(leading)
        return self._live()

    def _write(self) -> None:
        if (name := self._client_node()) is not None:
            number = len(self.writes)
            to_register = self.random.random() < 0.5
            key = REGISTER if to_register else f"own{number}".encode()
            self._propose(name, key, f"value{number}")
            self._check(name)

    def _propose(self, name: str, key: bytes, value: str) -> None:
        write = Write(key, value, self.step_number, self._life_of[name])
        self.writes.append(write)

        def done(outcome: Sequence[WriteResult] | GroupFailure) -> None:
            assert write.outcome is None, f"{value} is answered twice"
            if isinstance(outcome, GroupFailure):
                write.outcome = outcome
                self._count(outcome.reason)
            else:
                (result,) = outcome
                assert isinstance(result, PutResult)
                write.outcome = result
                self._count("acknowledged")
            write.ended = self.step_number
            write.ended_s = self.world.clock.monotonic()

        padding = "." * self.random.choice((0, 0, 100, 20_000))
        command = Command(Put(key, (value + padding).encode()))
        self.world.nodes[name].group.propose((command,), done)

    def _read(self) -> None:
        if (name := self._client_node()) is None:
            return
        self._read_at(name, self.step_number)

    def _forward_read(self) -> None:
        """A member takes a read and forwards it; who leads gets it later, or never."""
        if (name := self._live()) is not None:
            voucher = Voucher(name, self.world.nodes[name].group.term)
            self._forwarded.append((self.step_number, voucher))

    def _take_forwarded(self) -> None:
        if self._forwarded and (name := self._client_node()) is not None:
            began, voucher = self._forwarded.pop(self.random.randrange(len(self._forwarded)))
            self._read_at(name, began, voucher)

    def _read_at(self, name: str, began: int, voucher: Voucher | None = None) -> None:
        group = self.world.nodes[name].group

        def done(failure: GroupFailure | None) -> None:
            if failure is None:
                entry = group.state.get(REGISTER).entry
                revision = 0 if entry is None else entry.mod_revision
                self.reads.append(ReadSeen(began, self.step_number, revision))
                self._count("reads" if voucher is None else "forwarded reads")

        group.reads.confirm(done, voucher)
        self._check(name)

    def _stale_read(self) -> None:
        """A read that may be old, but no older than it asked for."""
        if (name := self._live()) is None:
            return
        group = self.world.nodes[name].group
        age_ms = self.random.choice((0, 50, 500))
        oldest_s = self.world.clock.monotonic() - age_ms / 1000
        known = max(
            (_revision(w) for w in self._acknowledged(REGISTER) if w.ended_s < oldest_s),
            default=0,
        )

        def done(failure: GroupFailure | None) -> None:
            if failure is None:
                entry = group.state.get(REGISTER).entry
                revision = 0 if entry is None else entry.mod_revision
                assert revision >= known, f"read on {name} is older than {age_ms} ms"
                self._count("bounded reads")

        group.freshness.ensure(age_ms, done)
        self._check(name)

    def _transfer(self) -> None:
        if (name := self._client_node()) is not None:
            target = self.random.choice(self.world.names)
            self.world.nodes[name].group.transfer.begin(target, lambda _: None)

    # --- what must hold after every step ------------------------------------------------------

    def _check(self, name: str) -> None:
        """Look at what has changed on one node."""
        node = self.world.nodes.get(name)
        if node is None:
            return
        group, life = node.group, self._life_of[name]
        if group.is_leader:
            leaders = self.world.leaders.setdefault(group.term, set())
            leaders.add(name)
            assert len(leaders) == 1, f"term {group.term} has leaders {leaders}"
        seen_life, commit, applied = self._seen.get(name, (life, 1, 1))
        assert seen_life == life
        assert commit <= group.commit_index <= group.last_index, "commit went back or beyond"
        assert applied <= group.applied_index <= group.commit_index, "applied went back or beyond"
        for index in range(max(commit, group.journal.first_index) + 1, group.commit_index + 1):
            entry = group.journal.entry(index)
            known = self._committed.setdefault(index, entry)
            assert known == entry, f"{name} committed another entry at {index}"
        digest = group.state.digest
        known_digest = self._digests.setdefault(group.applied_index, digest)
        assert known_digest == digest, f"{name} differs at {group.applied_index}"
        assert not group.digests.mismatch
        self._seen[name] = (life, group.commit_index, group.applied_index)

    # --- what must hold in the end ------------------------------------------------------------

    def _acknowledged(self, key: bytes) -> list[Write]:
        return [write for write in self.writes if write.key == key and write.acknowledged]

    def _check_history(self) -> None:
        self._check_agreement()
        self._check_own_keys()
        self._check_register()
        self._check_answers()

    def _check_agreement(self) -> None:
        groups = [node.group for node in self.world.nodes.values()]
        assert len({group.applied_index for group in groups}) == 1
        assert len({group.state.digest for group in groups}) == 1
        for group in groups:
            assert group.state.digest == group.state.recomputed_digest()

    def _check_own_keys(self) -> None:
        state = next(iter(self.world.nodes.values())).group.state
        for write in self.writes:
            if write.key == REGISTER:
                continue
            entry = state.get(write.key).entry
            if write.acknowledged:
                assert entry is not None, f"{write.value} was acknowledged and is lost"
            if isinstance(write.outcome, GroupFailure) and write.outcome.definite:
                assert entry is None, f"{write.value} was refused and is there: {write.outcome}"
            if entry is not None:
                assert entry.version == 1, f"{write.value} was applied twice"

    def _check_register(self) -> None:
        """Revisions order everything; real time must not contradict them (linearizability)."""
        acknowledged = self._acknowledged(REGISTER)
        order = [(w.began, w.ended, _revision(w)) for w in acknowledged]
        assert len({revision for _, _, revision in order}) == len(order)
        for began, _, revision in order:
            before = [r for _, ended, r in order if ended is not None and ended < began]
            assert max(before, default=0) < revision, "a later write has a lower revision"
            seen = [read.revision for read in self.reads if read.ended < began]
            assert max(seen, default=0) < revision, "a read saw the future"
        for read in self.reads:
            written = [r for _, ended, r in order if ended is not None and ended < read.began]
            assert max(written, default=0) <= read.revision, "stale read"
            seen = [other.revision for other in self.reads if other.ended < read.began]
            assert max(seen, default=0) <= read.revision, "reads go back in time"

    def _check_answers(self) -> None:
        """Whoever is not answered asked a node that died."""
        silent = [write for write in self.writes if write.outcome is None]
        for write in silent:
            assert write.life in self._dead_lives, f"{write.value} was never answered"


def _revision(write: Write) -> int:
    assert isinstance(write.outcome, PutResult)
    return write.outcome.revision
