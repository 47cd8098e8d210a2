"""The host of a node's groups: one fdatasync before every promise, timers, disks that fail."""

import math
from pathlib import Path
from random import Random

import msgspec
import pytest
from host_world import NAMES, HostWorld, Machine

from raftkv.core.cluster_map import GroupId
from raftkv.core.operations import PutResult
from raftkv.engine.group_host import DISK_SILENT_LOOKS
from raftkv.raft import messages as wire
from raftkv.raft.errors import ReplicaError
from raftkv.raft.host import SnapshotPolicy
from raftkv.raft.proposals import GroupFailure
from raftkv.storage.disk import DiskError
from raftkv.storage.wal import WalDamaged


@pytest.fixture
def world() -> HostWorld:
    """Three nodes, one shard."""
    return HostWorld()


def keys(prefix: str, count: int) -> list[bytes]:
    """Name some keys."""
    return [f"{prefix}{i}".encode() for i in range(count)]


def others(world: HostWorld, machine: Machine) -> list[Machine]:
    """Return all machines but one."""
    return [other for other in world.machines.values() if other is not machine]


def test_preferred_replica_leads_soon(world: HostWorld) -> None:
    """The first replica asks at once, so a fresh cluster has its leaders within a moment."""
    start = world.loop.now
    assert world.leader().name == "n1"
    assert world.loop.now - start < 0.5


def test_acknowledged_on_every_disk_that_counts(world: HostWorld) -> None:
    """What is acknowledged is in the state of all replicas soon after."""
    world.put_all(world.leader(), *keys("a", 50))
    world.assert_agreed()


def test_nothing_is_acknowledged_before_the_disks_have_it(world: HostWorld) -> None:
    """While no follower's fdatasync returns, no write is acknowledged; then all are."""
    leader = world.leader()
    for machine in others(world, leader):
        machine.sync_jobs.stall()
    outcomes = world.put(leader, b"waits")
    world.run(0.3)
    assert outcomes == []
    others(world, leader)[0].sync_jobs.go_on()
    world.run(0.1)
    assert [type(outcome) for outcome in outcomes] == [PutResult]


def test_a_lone_write_waits_for_disks_and_links_alone(world: HostWorld) -> None:
    """Nothing on its way is left to the next heartbeat: not a sync, not an acknowledgement."""
    leader = world.leader()
    heartbeat_s = leader.group().config.timing.heartbeat_s
    for number in range(10):
        world.run(2.3 * heartbeat_s)  # everybody knows what was committed before
        outcomes = world.put(leader, b"%d" % number)
        world.run(heartbeat_s / 4)
        assert [type(outcome) for outcome in outcomes] == [PutResult]


def test_a_transfer_goes_on_as_soon_as_its_target_has_everything(world: HostWorld) -> None:
    """The target is the last to have the entry; nobody waits for the next heartbeat."""
    leader = world.leader()
    target = others(world, leader)[0]
    heartbeat_s = leader.group().config.timing.heartbeat_s
    world.run(2.3 * heartbeat_s)
    target.sync_jobs.seconds = heartbeat_s / 4
    world.put(leader, b"late")
    world.run(0.001)  # it is in the leader's log, and on its way
    leader.group().transfer.begin(target.name, lambda _: None)
    world.run(heartbeat_s / 2)
    assert "transfer" in [event.kind for event in leader.host.recent.facts(5, "n1")]
    world.run(1)
    assert world.leader() is target


def test_who_is_cut_off_after_it_was_asked_to_take_over_does_not_spin(world: HostWorld) -> None:
    """It waits like any other follower without links: a few turns in a second."""
    leader = world.leader()
    target = others(world, leader)[0]
    target.group().receive(leader.name, wire.TimeoutNow(target.group().term))
    world.disconnect(target.name)
    before = target.host.turns
    world.run(1.0)
    assert target.host.turns - before < 30


def test_leader_counts_itself_only_when_durable(world: HostWorld) -> None:
    """With one follower gone, the leader's own slow disk holds the acknowledgement back."""
    leader = world.leader()
    others(world, leader)[0].kill()
    leader.sync_jobs.stall()
    outcomes = world.put(leader, b"waits")
    world.run(0.3)
    assert outcomes == []
    leader.sync_jobs.go_on()
    world.run(0.1)
    assert [type(outcome) for outcome in outcomes] == [PutResult]


def look(world: HostWorld, machine: Machine, times: int) -> None:
    """Look at the disk so many times, a second apart."""
    for _ in range(times):
        machine.host.watch_disk()
        world.run(1.0)


@pytest.mark.parametrize("runner", ["sync_jobs", "other_jobs"])
def test_a_disk_that_does_not_answer_is_told(
    world: HostWorld, runner: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A thread that waits for it cannot be ended, so that somebody must hear of it."""
    target = others(world, world.leader())[0]
    getattr(target, runner).stall()
    world.put(world.leader(), b"stuck")
    target.host.run_job(lambda: None, lambda *_: None)
    look(world, target, DISK_SILENT_LOOKS)
    assert target.host.disk_silent_s == 0
    look(world, target, 5)
    assert DISK_SILENT_LOOKS < target.host.disk_silent_s < 2 * DISK_SILENT_LOOKS
    kinds = [event.kind for event in target.host.recent.facts(100, "n1")]
    assert kinds.count("disk_silent") == 1
    assert [m for m in caplog.messages if "the disk has not answered for" in m]
    getattr(target, runner).go_on()
    world.run(1)
    assert target.host.disk_silent_s == 0


def test_a_process_that_was_stopped_takes_no_disk_for_silent(world: HostWorld) -> None:
    """Time that passes without it says nothing of the disk."""
    target = others(world, world.leader())[0]
    target.other_jobs.stall()
    target.host.run_job(lambda: None, lambda *_: None)
    for _ in range(3):
        target.host.watch_disk()
        world.run(10 * DISK_SILENT_LOOKS)
    assert target.host.disk_silent_s == 0


def test_a_sync_that_waits_for_room_is_no_silent_disk(world: HostWorld) -> None:
    """What is full has answered."""
    target = others(world, world.leader())[0]
    target.host._syncing_since = -1.0
    assert target.host._disk_waits_since() == -1.0
    target.host._without_room = object()  # type: ignore[assignment]
    assert target.host._disk_waits_since() == math.inf


def test_leader_whose_disk_stalls_stops_leading(world: HostWorld) -> None:
    """H20: a disk that does not answer for an election time-out costs the leadership."""
    leader = world.leader()
    leader.sync_jobs.stall()
    outcomes = world.put(leader, b"stuck")
    world.run(2.5)
    assert not leader.group().is_leader
    assert world.leader() is not leader
    leader.sync_jobs.go_on()
    world.run(1)
    assert len(outcomes) == 1
    world.assert_agreed()


def test_failed_fdatasync_stops_the_node(world: HostWorld) -> None:
    """After a failed fdatasync nothing is known: the node stops and acknowledges nothing more."""
    leader = world.leader()
    leader.disk.before = _fail_syncs
    outcomes = world.put(leader, b"doomed")
    world.run(0.1)
    assert isinstance(leader.fatal[0], DiskError)
    assert outcomes == []
    leader.disk.before = None
    leader.start()
    world.put_all(world.leader(), b"after")
    world.assert_agreed()


def _fail_syncs(operation: str, path: Path) -> None:
    if operation == "fdatasync":
        raise DiskError(path, operation, "I/O error")


@pytest.mark.parametrize("seed", range(25))
def test_power_loss_of_all_loses_nothing_acknowledged(seed: int) -> None:
    """All nodes lose power at once under load, three times: what was acknowledged is there."""
    random = Random(seed)
    world = HostWorld(policy=SnapshotPolicy(after_bytes=1 << 20, after_entries=25))
    acknowledged: list[bytes] = []
    number = 0
    for _ in range(3):
        leader = world.leader()
        for _ in range(random.randrange(5, 40)):
            key = b"k%d" % number
            number += 1
            outcomes = world.put(leader, key)
            world.run(random.choice((0.0001, 0.0004, 0.0011, 0.003)))
            if outcomes and isinstance(outcomes[0], PutResult):
                acknowledged.append(key)
            world.machines[random.choice(NAMES)].keeper.check()
        for machine in world.machines.values():
            machine.kill(power=random)
        for machine in world.machines.values():
            machine.start()
        state = world.leader().group().state
        assert [key for key in acknowledged if state.get(key).entry is None] == []
    assert acknowledged
    world.assert_agreed()


def test_a_lying_disk_is_caught() -> None:
    """The test above can fail: with disks that ignore flushes, acknowledged writes are lost."""
    harmed = 0
    for seed in range(25):
        random = Random(seed)
        world = HostWorld()
        for machine in world.machines.values():
            machine.disk.lies = frozenset({"fdatasync"})
        world.put_all(world.leader(), *keys("a", 20))
        for machine in world.machines.values():
            machine.kill(power=random)
        try:
            for machine in world.machines.values():
                machine.start()
        except (WalDamaged, ReplicaError):
            harmed += 1
            continue
        state = world.leader().group().state
        harmed += any(state.get(key).entry is None for key in keys("a", 20))
    assert harmed > 0


def test_writes_survive_a_kill_of_all(world: HostWorld) -> None:
    """Everything acknowledged is there after all processes died at once, and terms go on."""
    world.put_all(world.leader(), *keys("a", 30))
    term = max(machine.group().term for machine in world.machines.values())
    for machine in world.machines.values():
        machine.kill()
    for machine in world.machines.values():
        machine.start()
    leader = world.leader()
    assert leader.group().term > term
    world.put_all(leader, b"after")
    for key in keys("a", 30):
        assert leader.group().state.get(key).entry is not None
    world.assert_agreed()


def test_writes_go_on_after_the_leader_died(world: HostWorld) -> None:
    """The rest elects a new leader, and the old one catches up when it is back."""
    leader = world.leader()
    world.put_all(leader, *keys("a", 10))
    leader.kill()
    world.put_all(world.leader(), *keys("b", 10))
    leader.start()
    world.run(1)
    world.assert_agreed()


def test_snapshots_replace_the_log_and_bring_the_absent_back() -> None:
    """A follower that was away past the end of the log comes back by snapshot, under load."""
    world = HostWorld(policy=SnapshotPolicy(after_bytes=1 << 20, after_entries=40))
    leader = world.leader()
    absent = others(world, leader)[0]
    absent.kill()
    for i in range(120):
        world.put_all(leader, b"k%d" % i)
        leader.keeper.check()
    world.run(0.1)
    assert None in leader.snapshots
    assert leader.group().journal.first_index > 40
    absent.start()
    for i in range(60):
        world.put_all(leader, b"later%d" % i)
    world.assert_agreed()
    installed = [event.kind for event in absent.host.recent.facts(100, "n1")]
    assert "snapshot_installed" in installed
    absent.kill()
    absent.start()
    world.run(1)
    world.assert_agreed()


def test_full_disk_refuses_writes_and_heals() -> None:
    """Without room for the next segment writes are refused before the log; with room they go on."""
    world = HostWorld(policy=SnapshotPolicy(after_bytes=1 << 20, after_entries=40))
    leader = world.leader()
    world.put_all(leader, b"before")
    world.run_until(lambda: leader.host.wal.begin_housekeeping() is None)
    leader.disk.capacity_bytes = leader.disk.used_bytes()
    number = 0
    refused: GroupFailure | None = None
    while refused is None:
        number += 1
        assert number < 5000, "the disk never filled up"
        outcomes = world.put(leader, b"fill%d" % number + bytes(200))
        world.run_until(lambda outcomes=outcomes: outcomes)  # type: ignore[misc]
        leader.host.look_after_log()
        refused = outcomes[0] if isinstance(outcomes[0], GroupFailure) else None
    assert (refused.reason, refused.definite) == ("disk_full", True)
    reads: list[object] = []
    leader.group().reads.confirm(reads.append)
    world.run(0.1)
    assert reads == [None]
    assert not leader.fatal
    leader.disk.capacity_bytes = None
    leader.host.look_after_log()
    world.run(0.1)
    world.put_all(leader, b"healed")
    world.assert_agreed()


def test_disk_that_fills_up_refuses_what_still_waits(
    world: HostWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes that wait for the log when the disk fills up are refused, definitely."""
    leader = world.leader()
    for machine in others(world, leader):
        machine.sync_jobs.stall()
    in_flight = []
    for key in keys("in flight", 4):
        in_flight.append(world.put(leader, key))
        world.run(0.001)
    waiting = world.put(leader, b"waiting")
    monkeypatch.setattr(leader.host, "has_space", lambda: False)
    for machine in others(world, leader):
        machine.sync_jobs.go_on()
    world.run_until(lambda: all(in_flight) and waiting)
    assert [type(outcomes[0]) for outcomes in in_flight] == [PutResult] * 4
    assert isinstance(waiting[0], GroupFailure)
    assert (waiting[0].reason, waiting[0].definite) == ("disk_full", True)


def test_idle_groups_are_not_polled() -> None:
    """Idle groups get their turn for heartbeats only, all of them together."""
    world = HostWorld(shards=16)
    for shard in range(16):
        world.leader(GroupId(shard, 1))
    world.run(2)
    turns = 0
    for machine in world.machines.values():
        real_turn = machine.host._turn

        def counted(real_turn: object = real_turn) -> None:
            nonlocal turns
            turns += 1
            real_turn()  # type: ignore[operator]

        machine.host._turn = counted  # type: ignore[method-assign]
    world.run(1)
    assert turns < 3 * 10 * 8, f"{turns} turns in a second on {len(NAMES)} idle nodes"


def test_a_group_of_one_waits_quietly_for_its_disk() -> None:
    """While its only disk is busy there is nothing to do, and nothing is done over and over."""
    world = HostWorld(names=("n1",))
    machine = world.leader()
    machine.sync_jobs.stall()
    outcomes = world.put(machine, b"waits")
    turns = 0
    real_turn = machine.host._turn

    def counted() -> None:
        nonlocal turns
        turns += 1
        assert turns < 100, "it spins"
        real_turn()

    machine.host._turn = counted  # type: ignore[method-assign]
    world.run(0.4)
    assert outcomes == []
    machine.sync_jobs.go_on()
    world.run(0.1)
    assert [type(outcome) for outcome in outcomes] == [PutResult]


def test_stopping_answers_everyone(world: HostWorld) -> None:
    """A host that stops leaves no writer and no reader waiting."""
    leader = world.leader()
    for machine in others(world, leader):
        machine.sync_jobs.stall()
    in_flight = world.put(leader, b"in flight")
    world.run(0.01)
    reads: list[object] = []
    leader.group().reads.confirm(reads.append)
    waiting = world.put(leader, b"waiting")
    leader.host.stop()
    assert [outcome.reason for outcome in in_flight if isinstance(outcome, GroupFailure)] == [
        "unknown"
    ]
    assert [outcome.reason for outcome in waiting if isinstance(outcome, GroupFailure)] == [
        "stopping"
    ]
    assert [outcome.reason for outcome in reads if isinstance(outcome, GroupFailure)] == [
        "stopping"
    ]


def heartbeats(world: HostWorld, leader: Machine, seconds: float) -> int:
    """How many appends a leader sends to each follower meanwhile."""
    sent: list[object] = []
    send = leader.host.send

    def counted(group: GroupId, peer: str, message: wire.RaftMessage) -> None:
        if isinstance(message, wire.AppendEntries):
            sent.append(message)
        send(group, peer, message)

    with pytest.MonkeyPatch.context() as watched:
        watched.setattr(leader.host, "send", counted)
        world.run(seconds)
    return len(sent) // 2


def test_an_idle_leader_sends_fewer_heartbeats(
    world: HostWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of an election time-out apart, if followers have all and know what is committed."""
    leader = world.leader()
    timing = leader.group().config.timing
    patient = msgspec.structs.replace(timing, heartbeat_s=timing.idle_heartbeat_s / 4)
    for machine in world.machines.values():
        monkeypatch.setattr(machine.group()._replica._replication, "_timing", patient)
    world.run(1.0)
    assert heartbeats(world, leader, 5.0) <= 5.0 / timing.idle_heartbeat_s + 1
    world.put_all(leader, b"news")
    world.run(2 * patient.heartbeat_s)
    assert {m.group().applied_index for m in world.machines.values()} == {leader.group().last_index}
    others(world, leader)[0].sync_jobs.stall()
    world.put_all(leader, b"lags")  # one follower does not have it: it is spoken to as ever
    assert heartbeats(world, leader, 1.0) >= 2.0 / timing.idle_heartbeat_s
