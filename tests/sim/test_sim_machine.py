"""A simulated machine with a real node on it: how it lives, dies and comes back."""

from pathlib import Path
from random import Random

import pytest
from sim_parts import Cluster, small_options

from raftkv.core.operations import Command, GetResult, Put, PutResult
from raftkv.rpc.messages import GetRequest, WriteRequest
from raftkv.sim.machine import DATA, Machine, ProcessExit
from raftkv.storage.disk import DiskError, NoSuchFile

NOTE = DATA / "note"
UNSYNCED = bytes(range(1, 129)) * 4 * 30


class Unlucky(Random):
    """A power cut of the worst kind: nothing survives that was not synced."""

    def randrange(self, *_: int) -> int:  # type: ignore[override] # all choices are the same
        """Choose the oldest state of everything."""
        return 0


def put(cluster: Cluster, key: bytes, value: bytes) -> None:
    """Write, and see it acknowledged."""
    answer = cluster.ask(WriteRequest(Command(Put(key, value))))
    assert isinstance(answer, PutResult), answer


def get(cluster: Cluster, key: bytes) -> bytes | None:
    """Read."""
    answer = cluster.ask(GetRequest(key))
    assert isinstance(answer, GetResult), answer
    return None if answer.entry is None else answer.entry.value


def restart(cluster: Cluster, machine: Machine | None = None) -> None:
    """Boot a machine that is down, and give it time."""
    machine = machine or cluster.machine
    assert not machine.running
    machine.boot()
    cluster.run_s(10.0)


def scribble(machine: Machine) -> None:
    """Write a file of many sectors in the kernel's memory, and nothing on the disk."""
    file = machine.disk.create(NOTE)
    file.pwrite(UNSYNCED, 0)
    file.close()


def read_note(machine: Machine) -> bytes:
    """What is left of it."""
    return machine.disk.open(NOTE).pread(len(UNSYNCED), 0)


# --- life ------------------------------------------------------------------------------------


def test_a_node_of_one_serves() -> None:
    """A real engine boots on the simulated machine and does what it is asked."""
    cluster = Cluster(small_options())
    assert cluster.machine.running
    assert get(cluster, b"k") is None
    put(cluster, b"k", b"v")
    assert get(cluster, b"k") == b"v"
    assert (cluster.broken, cluster.endings) == ([], [])


def test_three_nodes_serve_through_any_of_them() -> None:
    """What one has written all can read: the machines are connected."""
    cluster = Cluster(small_options(nodes=3, replicas=3))
    put(cluster, b"k", b"v")
    for machine in cluster.machines:
        answer = cluster.ask(GetRequest(b"k"), machine)
        assert isinstance(answer, GetResult)
        assert answer.entry is not None
        assert answer.entry.value == b"v"


def test_booting_a_machine_that_runs_does_nothing() -> None:
    """It has one process."""
    cluster = Cluster(small_options())
    engine, life = cluster.machine.engine, cluster.machine.life
    cluster.machine.boot()
    cluster.run_s(1.0)
    assert (cluster.machine.engine, cluster.machine.life) == (engine, life)


def test_machines_differ_and_seeds_decide_how() -> None:
    """Drift and wall clocks are each machine's own, and the same for the same seed."""
    options = small_options(nodes=3, replicas=3)
    machines = Cluster(options, boot=False).machines
    assert len({(m.drift, m.wall_offset_us) for m in machines}) == 3
    again = Cluster(options, boot=False).machines
    assert [(m.drift, m.wall_offset_us) for m in machines] == [
        (m.drift, m.wall_offset_us) for m in again
    ]


# --- death -----------------------------------------------------------------------------------


def test_a_killed_process_is_gone_and_its_machine_is_not() -> None:
    """The next one finds everything that the kernel was given, synced or not."""
    cluster = Cluster(small_options())
    machine = cluster.machine
    put(cluster, b"k", b"v")
    scribble(machine)
    machine.kill()
    assert (machine.running, machine.serving, machine.powered) == (False, None, True)
    assert machine.ended == "killed"
    assert cluster.endings == ["n1"]
    assert read_note(machine) == UNSYNCED
    restart(cluster)
    assert get(cluster, b"k") == b"v"
    assert machine.life == 2


def test_a_power_cut_loses_what_was_not_synced_and_keeps_what_was() -> None:
    """An acknowledged write survives the worst power cut."""
    cluster = Cluster(small_options())
    machine = cluster.machine
    put(cluster, b"k", b"v")
    scribble(machine)
    machine.cut_power(Unlucky())
    assert (machine.running, machine.powered, machine.ended) == (False, False, "lost power")
    assert cluster.endings == ["n1"]
    with pytest.raises(NoSuchFile):
        read_note(machine)
    restart(cluster)
    assert machine.powered
    assert get(cluster, b"k") == b"v"


def test_chance_decides_what_a_power_cut_leaves() -> None:
    """Some leave the file, some do not."""
    left = set()
    for seed in range(20):
        machine = Cluster(small_options(), boot=False).machine
        scribble(machine)
        machine.cut_power(Random(seed))
        left.add(machine.disk.exists(NOTE))
    assert left == {True, False}


def test_a_new_clock_after_a_power_cut_only() -> None:
    """A monotonic clock goes on over the death of a process, and starts anew with the machine."""
    cluster = Cluster(small_options())
    machine = cluster.machine
    clock = machine.clock
    machine.kill()
    machine.boot()
    assert machine.clock is clock
    machine.cut_power(Random(1))
    machine.boot()
    assert machine.clock is not clock


def test_killing_what_is_down_does_nothing() -> None:
    """Nor is a machine without power cut off again."""
    cluster = Cluster(small_options())
    machine = cluster.machine
    machine.kill()
    machine.kill()
    machine.cut_power(Random(1))
    disk = machine.disk
    machine.cut_power(Random(1))
    machine.kill()
    machine.freeze()
    machine.stop()
    assert machine.disk is disk
    assert machine.ended == "lost power"
    with pytest.raises(RuntimeError, match="n1 is down"):
        _ = machine.loop


@pytest.mark.parametrize("operation", range(1, 60, 4))
def test_power_can_fail_in_any_operation_of_the_disk(operation: int) -> None:
    """While it boots or while it writes: the machine goes down at once, and comes back."""
    cluster = Cluster(small_options(), boot=False)
    machine = cluster.machine
    machine.disk.crash_at = machine.disk.operations + operation
    machine.boot()
    cluster.run_s(10.0)
    if machine.running:
        cluster.begin(WriteRequest(Command(Put(b"k", b"v" * 10_000))))
        machine.disk.crash_at = min(machine.disk.crash_at or 0, machine.disk.operations + 1)
        cluster.run_s(1.0)
    assert (machine.powered, machine.ended) == (False, "lost power")
    restart(cluster)
    assert machine.refused is None
    put(cluster, b"k2", b"v2")
    assert cluster.broken == []


# --- damage ----------------------------------------------------------------------------------


def test_a_node_refuses_to_start_on_a_damaged_log() -> None:
    """It says why, and does not run; with the bit as it was it starts."""
    cluster = Cluster(small_options())
    machine = cluster.machine
    for number in range(5):
        put(cluster, b"k%d" % number, b"v" * 3000)
    machine.kill()
    path, bit = in_the_log(machine)
    machine.disk.flip_bit(path, bit)
    why = restart_refused(cluster)
    assert why.startswith("WalDamaged: ")
    assert str(path) in why
    machine.disk.flip_bit(path, bit)
    restart(cluster)
    assert machine.refused is None
    assert get(cluster, b"k0") == b"v" * 3000


def in_the_log(machine: Machine) -> tuple[Path, int]:
    """A bit in the middle of what was written to the log."""
    path = next(p for p in machine.disk.files() if p.parent != DATA and "wal" in str(p))
    sectors = machine.disk.written_sectors(path)
    return path, sectors[len(sectors) // 2] * 512 * 8 + 77


def restart_refused(cluster: Cluster) -> str:
    """Boot a machine that will not come up, and return what it says."""
    cluster.machine.boot()
    cluster.run_s(1.0)
    assert (cluster.machine.running, cluster.machine.serving) == (False, None)
    assert cluster.machine.ended == "refused to start"
    assert cluster.broken == [], "a refusal is no bug"
    return cluster.machine.refused or ""


def test_a_node_refuses_to_start_without_its_directory() -> None:
    """An identity that is gone is not made anew."""
    cluster = Cluster(small_options(), boot=False)
    machine = cluster.machine
    for path in machine.disk.files():
        machine.disk.unlink(path)
    assert "Error" in restart_refused(cluster).split(":")[0]


def test_a_replaced_disk_makes_a_stranger() -> None:
    """Its peers knew another identity: it is not believed, and they go on without it."""
    cluster = Cluster(small_options(nodes=3, replicas=3))
    put(cluster, b"k", b"v")
    lost = cluster.machines[2]
    lost.kill()
    lost.replace_disk()
    restart(cluster, lost)
    cluster.run_s(10.0)
    put(cluster, b"k", b"v2")
    assert get(cluster, b"k") == b"v2"
    assert lost.engine is not None
    (group,) = lost.engine.host.groups.values()
    assert (group.leader, group.applied_index) == (None, 1)


# --- freezing and stopping -------------------------------------------------------------------


def test_a_frozen_node_does_not_answer_until_it_goes_on() -> None:
    """The request waits in the kernel."""
    cluster = Cluster(small_options())
    cluster.machine.freeze()
    assert [machine.frozen for machine in cluster.machines] == [True]
    answers = cluster.begin(GetRequest(b"k"))
    cluster.run_s(20.0)
    assert answers == []
    cluster.machine.thaw()
    assert [machine.frozen for machine in cluster.machines] == [False]
    cluster.run_s(5.0)
    assert len(answers) == 1


def test_a_frozen_leader_is_replaced() -> None:
    """The others elect another, and the old one gives way when it goes on."""
    cluster = Cluster(small_options(nodes=3, replicas=3))
    (old,) = leaders(cluster)
    term = term_of(old)
    old.freeze()
    cluster.run_s(20.0)
    (new,) = (machine for machine in leaders(cluster) if machine is not old)
    assert term_of(new) > term == term_of(old)
    old.thaw()
    cluster.run_s(0.2)
    assert term_of(old) > term
    assert len(leaders(cluster)) == 1


def term_of(machine: Machine) -> int:
    """The term of its only group."""
    assert machine.engine is not None
    (group,) = machine.engine.host.groups.values()
    return group.term


def leaders(cluster: Cluster) -> list[Machine]:
    """The machines whose node believes that it leads."""
    return [
        machine
        for machine in cluster.machines
        if machine.engine is not None
        and any(group.is_leader for group in machine.engine.host.groups.values())
    ]


def test_a_clean_stop_ends_the_process() -> None:
    """In the order in which a node stops; everything is there at the next start."""
    cluster = Cluster(small_options())
    put(cluster, b"k", b"v")
    cluster.machine.stop()
    cluster.run_s(20.0)
    assert cluster.machine.ended == "stopped"
    assert not cluster.machine.running
    assert (cluster.endings, cluster.broken) == (["n1"], [])
    restart(cluster)
    assert get(cluster, b"k") == b"v"


def test_a_leader_that_stops_hands_over_first() -> None:
    """When its process ends another leads already; nobody had to notice that it is gone."""
    cluster = Cluster(small_options(nodes=3, replicas=3))
    (old,) = leaders(cluster)
    old.stop()
    for _ in range(20_000):
        if not old.running:
            break
        cluster.run_s(0.0001)
    assert old.ended == "stopped"
    assert len(leaders(cluster)) == 1


# --- errors ----------------------------------------------------------------------------------


def test_a_failing_sync_ends_the_process_and_is_no_bug() -> None:
    """A log that could not be synced is never trusted again; the disk is to blame."""
    cluster = Cluster(small_options())
    machine = cluster.machine

    def fail(operation: str, path: Path) -> None:
        if operation == "fdatasync":
            raise DiskError(path, operation, "Input/output error")

    machine.disk.before = fail
    answers = cluster.begin(WriteRequest(Command(Put(b"k", b"v"))))
    cluster.run_s(5.0)
    assert not any(isinstance(answer, PutResult) for answer in answers)
    assert not machine.running
    assert machine.ended is not None
    assert machine.ended.startswith("DiskError: ")
    assert (cluster.endings, cluster.broken) == (["n1"], [])
    restart(cluster)
    put(cluster, b"k", b"v")


@pytest.mark.parametrize("exits", [True, False], ids=["fatal", "callback"])
def test_an_error_that_no_fault_explains_is_reported(*, exits: bool) -> None:
    """Whether the engine ends itself or a callback raises, the process ends and it is a bug."""
    cluster = Cluster(small_options())
    error = ValueError("impossible")

    def fails() -> None:
        if exits:
            raise ProcessExit(error) from error
        raise error

    cluster.machine.loop.call_soon(fails)
    cluster.run_s(1.0)
    assert cluster.machine.ended == "ValueError: impossible"
    assert cluster.broken == [("n1", error)]
    assert cluster.endings == ["n1"]


def test_asking_for_a_file_that_is_not_there_is_no_fault_of_the_disk() -> None:
    """A node that ends because it has lost track of its files has a bug, whatever the disk did."""
    cluster = Cluster(small_options())
    error = NoSuchFile(NOTE, "remove", "No such file or directory")

    def fails() -> None:
        raise error

    cluster.machine.loop.call_soon(fails)
    cluster.run_s(1.0)
    assert cluster.broken == [("n1", error)]


# --- disks -----------------------------------------------------------------------------------


def test_a_disk_that_stands_still_holds_up_writes() -> None:
    """They are acknowledged after it goes on, not before."""
    cluster = Cluster(small_options())
    cluster.machine.speed.stalled = True
    answers = cluster.begin(WriteRequest(Command(Put(b"k", b"v"))))
    cluster.run_s(1.0)
    assert answers == []
    cluster.machine.speed.stalled = False
    cluster.run_s(0.5)
    assert isinstance(answers[0], PutResult)


def test_a_slow_disk_takes_its_time() -> None:
    """A write waits for the sync that covers it."""
    cluster = Cluster(small_options())
    cluster.machine.speed.sync_us = 500_000
    answers = cluster.begin(WriteRequest(Command(Put(b"k", b"v"))))
    cluster.run_s(0.45)
    assert answers == []
    cluster.run_s(1.0)
    assert isinstance(answers[0], PutResult)


def test_logs_are_cut_behind_snapshots() -> None:
    """Snapshots are written beside the work, and a node starts from one."""
    cluster = Cluster(small_options(snapshot_after_entries=10))
    for number in range(60):
        put(cluster, b"k%d" % number, b"v")
    assert cluster.machine.engine is not None
    (group,) = cluster.machine.engine.host.groups.values()
    assert group.journal.first_index > 30
    cluster.machine.cut_power(Unlucky())
    restart(cluster)
    assert [get(cluster, b"k%d" % number) for number in (0, 30, 59)] == [b"v"] * 3
