"""Snapshot files: whole or absent, checked before use, never replaced by older ones."""

from pathlib import Path
from random import Random

import pytest

from raftkv.core.cluster_map import GroupId
from raftkv.sim.disk import SimDisk, SimulatedCrash
from raftkv.storage.disk import DiskError, DiskFull, NoSuchFile, RealDisk
from raftkv.storage.snapshots import (
    OPEN_MAX,
    SnapshotBusy,
    SnapshotDamaged,
    SnapshotHeader,
    SnapshotReader,
    SnapshotStale,
    SnapshotStore,
)
from tests.storage.wal_harness import crash_outcomes

DIRECTORY = Path("/snapshots")
GROUP = GroupId(3, 1)
FILE = DIRECTORY / "group-3-1.snap"


def new_store(disk: SimDisk | None = None) -> tuple[SimDisk, SnapshotStore]:
    """Return an empty store and its disk."""
    disk = disk or SimDisk()
    disk.make_directory(DIRECTORY)
    disk.fsync_dir(Path("/"))
    return disk, SnapshotStore(disk, DIRECTORY)


def header(index: int, group: GroupId = GROUP) -> SnapshotHeader:
    """Header of a snapshot at ``index``."""
    return SnapshotHeader(group, index, 7, b"\x01" * 16)


def records(index: int) -> list[bytes]:
    """Return what a snapshot at ``index`` contains in these tests."""
    return [b"", b"%d" % index, bytes([index % 256]) * 3000, b"last"]


def write(store: SnapshotStore, index: int, group: GroupId = GROUP) -> None:
    """Write and commit a snapshot."""
    writer = store.begin(header(index, group))
    for record in records(index):
        writer.write(record)
    writer.commit()


def opened(store: SnapshotStore, group: GroupId = GROUP) -> SnapshotReader:
    """Open the group's snapshot, which must be there."""
    reader = store.open(group)
    assert reader is not None
    return reader


def test_what_was_committed_is_read() -> None:
    """Header and records come back; other groups have none."""
    _, store = new_store()
    assert store.open(GROUP) is None
    assert store.groups() == []
    write(store, 5)
    reader = opened(store)
    reader.verify()
    assert reader.header == header(5)
    assert list(reader.records()) == records(5)
    assert store.header(GROUP) == header(5)
    assert store.groups() == [GROUP]
    assert store.open(GroupId(3, 0)) is None


def test_many_records_on_a_real_disk(tmp_path: Path) -> None:
    """A snapshot of many blocks is written, sent in chunks and received byte for byte."""
    disk = RealDisk()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    source, target = SnapshotStore(disk, tmp_path / "a"), SnapshotStore(disk, tmp_path / "b")
    expected = [bytes([n % 251]) * (n % 4000) for n in range(10_000)] + [bytes(3 * 2**20)]
    writer = source.begin(header(9))
    for record in expected:
        writer.write(record)
    writer.commit()
    reader = opened(source)
    assert reader.size > 16 * 2**20
    receiver = target.receive(GROUP)
    while chunk := reader.read_chunk(receiver.received, 100_000):
        receiver.write(receiver.received, chunk)
    assert receiver.seal() == header(9)
    receiver.publish()
    assert list(opened(target).records()) == expected
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["group-3-1.snap"]


def test_an_older_snapshot_never_replaces_a_newer() -> None:
    """Neither a writer nor a receiver puts an older or equal one in place; nothing is left."""
    disk, store = new_store()
    slow = store.begin(header(4))
    write(store, 4)
    old = opened(store).read_chunk(0, 1 << 20)
    write(store, 8)
    receiver = store.receive(GROUP)
    receiver.write(0, old)
    receiver.seal()
    with pytest.raises(SnapshotStale, match="index 4 dropped, one at 8"):
        receiver.publish()
    for index in (4, 8):
        with pytest.raises(SnapshotStale):
            write(store, index)
    slow.abort()
    assert opened(store).header.index == 8
    assert disk.listdir(DIRECTORY) == [FILE.name]


def test_a_reader_keeps_its_snapshot() -> None:
    """A snapshot being sent stays readable when a newer one takes its place."""
    _, store = new_store()
    write(store, 1)
    reader = opened(store)
    write(store, 2)
    assert list(reader.records()) == records(1)
    assert list(opened(store).records()) == records(2)


def test_sealed_in_a_child_published_by_the_parent() -> None:
    """A sealed snapshot becomes visible by publish, and by that only."""
    _, store = new_store()
    writer = store.begin(header(5))
    writer.write(b"x")
    writer.seal()
    assert store.open(GROUP) is None
    store.publish(GROUP)
    assert opened(store).header.index == 5
    with pytest.raises(NoSuchFile, match="no sealed snapshot"):
        store.publish(GROUP)


def test_any_flipped_bit_is_found() -> None:
    """A flipped bit anywhere is SnapshotDamaged, naming the file, when the file is verified."""
    disk, store = new_store()
    write(store, 5)
    size = opened(store).size
    for bit in range(0, size * 8, 13):
        disk.flip_bit(FILE, bit)
        with pytest.raises(SnapshotDamaged) as caught:
            opened(store).verify()
        assert caught.value.file == FILE
        assert str(FILE) in str(caught.value)
        assert "\n" not in str(caught.value)
        disk.flip_bit(FILE, bit)
    opened(store).verify()


def test_a_flipped_bit_in_the_header_is_found_on_opening() -> None:
    """Index and term are believed before the whole file is read, so they have their own check."""
    disk, store = new_store()
    write(store, 5)
    end = opened(store).size - sum(4 + len(record) for record in records(5)) - 16
    for bit in range(end * 8):
        disk.flip_bit(FILE, bit)
        with pytest.raises(SnapshotDamaged):
            store.open(GROUP)
        disk.flip_bit(FILE, bit)


def test_a_received_snapshot_is_checked() -> None:
    """Cut short, longer, damaged, or of another group: refused, and the one here stays."""
    disk, store = new_store()
    write(store, 9, GroupId(3, 2))
    other = opened(store, GroupId(3, 2)).read_chunk(0, 1 << 20)
    write(store, 9)
    newer = opened(store).read_chunk(0, 1 << 20)
    disk.unlink(FILE)
    write(store, 5)
    flipped = bytearray(newer)
    flipped[-600] ^= 1
    for bad in (b"", newer[:10], newer[:-1], newer + b"\0", bytes(flipped), other):
        receiver = store.receive(GROUP)
        receiver.write(0, bad)
        with pytest.raises(SnapshotDamaged):
            receiver.seal()
        assert list(opened(store).records()) == records(5)
    receiver = store.receive(GROUP)
    receiver.write(0, newer[:100])
    with pytest.raises(ValueError, match="chunk at 50, expected 100"):
        receiver.write(50, newer[50:])
    receiver.write(100, newer[100:])
    assert receiver.seal() == header(9)
    assert list(receiver.records()) == records(9)
    assert list(opened(store).records()) == records(5), "a sealed one is not in place yet"
    receiver.publish()
    assert list(opened(store).records()) == records(9)


def test_unfinished_files_are_removed_at_start() -> None:
    """Leftovers of a crash go; the snapshot itself and strange files stay."""
    disk, store = new_store()
    write(store, 5)
    store.begin(header(6)).write(b"never finished")
    store.receive(GROUP).write(0, b"never finished")
    disk.create(DIRECTORY / "notes.txt").close()
    assert len(disk.listdir(DIRECTORY)) == 4
    disk = disk.kill()
    store = SnapshotStore(disk, DIRECTORY)
    assert disk.listdir(DIRECTORY) == [FILE.name, "notes.txt"]
    reader = opened(store)
    assert list(reader.records()) == records(5)
    assert store.groups() == [GROUP]


def run_writer(disk: SimDisk) -> bool:
    """Write snapshot 6 over 5; return whether it was reported done before the power failed."""
    try:
        write(SnapshotStore(disk, DIRECTORY), 6)
    except SimulatedCrash:
        return False
    return True


def run_receiver(disk: SimDisk) -> bool:
    """Receive snapshot 6 over 5; return whether it was reported done."""
    other, source = new_store()
    write(source, 6)
    data = opened(source).read_chunk(0, 1 << 20)
    assert other.operations
    try:
        receiver = SnapshotStore(disk, DIRECTORY).receive(GROUP)
        for start in range(0, len(data), 700):
            receiver.write(start, data[start : start + 700])
        receiver.seal()
        receiver.publish()
    except SimulatedCrash:
        return False
    return True


def check_crashes(run: object, lies: frozenset[str] = frozenset()) -> int:
    """Crash in every operation of ``run``; the old snapshot or the new one is there, whole."""
    assert callable(run)
    crash_at, done = 0, False
    while not done:
        crash_at += 1
        disk, store = new_store()
        write(store, 5)
        disk.lies = lies
        disk.crash_at = disk.operations + crash_at
        done = run(disk)
        for label, after in crash_outcomes(disk, Random(crash_at)):
            found = opened(SnapshotStore(after, DIRECTORY))
            assert found.header.index in ((6,) if done else (5, 6)), label
            assert list(found.records()) == records(found.header.index), label
    return crash_at


@pytest.mark.parametrize("run", [run_writer, run_receiver])
def test_crash_in_every_disk_operation(run: object) -> None:
    """A crash anywhere leaves the old snapshot or the new one; once reported, the new one."""
    assert check_crashes(run) > 8


@pytest.mark.parametrize("run", [run_writer, run_receiver])
@pytest.mark.parametrize("lie", ["fdatasync", "fsync_dir"])
def test_the_crash_test_sees_a_missing_sync(run: object, lie: str) -> None:
    """The test above fails when either kind of sync is left out."""
    with pytest.raises((AssertionError, SnapshotDamaged)):
        check_crashes(run, frozenset({lie}))


def test_a_rename_seen_after_a_kill_is_made_durable() -> None:
    """A snapshot whose name was not synced when its writer died is synced by the next start."""
    disk, store = new_store()
    write(store, 5)
    disk.before = _crash_in_fsync_dir
    with pytest.raises(SimulatedCrash):
        write(store, 6)
    disk = disk.kill()
    assert opened(SnapshotStore(disk, DIRECTORY)).header.index == 6
    disk = disk.crash_choosing(lambda _: 0, lambda _: 0)
    assert opened(SnapshotStore(disk, DIRECTORY)).header.index == 6


def _crash_in_fsync_dir(operation: str, path: Path) -> None:
    if operation == "fsync_dir":
        raise SimulatedCrash


def test_a_full_disk_leaves_the_old_snapshot() -> None:
    """No room for a new snapshot: DiskFull, the old one stays, the unfinished file is gone."""
    disk, store = new_store()
    write(store, 5)
    disk.capacity_bytes = 5000
    with pytest.raises(DiskFull):
        write(store, 6)
    assert list(opened(store).records()) == records(5)
    assert disk.listdir(DIRECTORY) == [FILE.name]


def test_a_failed_sync_is_not_a_snapshot() -> None:
    """A snapshot that could not be synced never gets its name."""
    disk, store = new_store()
    write(store, 5)
    data = opened(store).read_chunk(0, 1 << 20)
    disk.before = _fail_fdatasync
    with pytest.raises(DiskError, match="cannot sync"):
        write(store, 6)
    disk.unlink(FILE)
    receiver = store.receive(GROUP)
    receiver.write(0, data)
    with pytest.raises(DiskError, match="cannot sync"):
        receiver.seal()
    assert disk.listdir(DIRECTORY) == []


def _fail_fdatasync(operation: str, path: Path) -> None:
    if operation == "fdatasync":
        raise DiskError(path, "sync", "Input/output error")


@pytest.mark.parametrize("operation", ["open", "rename"])
def test_one_that_cannot_be_published_leaves_nothing(operation: str) -> None:
    """A sealed file that nobody may use would keep a full disk full."""
    disk, store = new_store()
    store.begin(header(5)).seal()

    def fails(action: str, path: Path) -> None:
        if action == operation:
            raise DiskError(path, action, "Too many open files")

    disk.before = fails
    with pytest.raises(DiskError):
        store.publish(GROUP)
    assert disk.listdir(DIRECTORY) == []


def test_few_are_open_to_be_sent_or_received() -> None:
    """Others wait; whatever ends one gives its place back, once."""
    _, store = new_store()
    groups = [GroupId(shard, 1) for shard in range(OPEN_MAX + 1)]
    for group in groups:
        write(store, 9, group)
    readers = [store.open_to_send(group) for group in groups[:-1]]
    with pytest.raises(SnapshotBusy):
        store.open_to_send(groups[-1])
    assert store.header(groups[-1]) == header(9, groups[-1]), "a look takes no place"
    for reader in readers[:1] * 2:
        assert reader is not None
        reader.close()
    assert store.open_to_send(groups[-1]) is not None
    with pytest.raises(SnapshotBusy):
        store.open_to_send(groups[0])
    receivers = [store.receive(group) for group in groups[:-1]]
    with pytest.raises(SnapshotBusy):
        store.receive(groups[-1])
    receivers[0].abort()
    with pytest.raises(SnapshotDamaged):
        receivers[1].seal()
    store.receive(groups[-1])
    store.receive(groups[0])
    with pytest.raises(SnapshotBusy):
        store.receive(groups[1])


def test_there_must_be_room_for_one_that_is_received() -> None:
    """It is refused before it takes any."""
    disk, store = new_store()
    disk.capacity_bytes = disk.used_bytes() + 100
    with pytest.raises(DiskFull, match="100 bytes are free and a snapshot has 101"):
        store.receive(GROUP, 101)
    assert disk.listdir(DIRECTORY) == []
    store.receive(GROUP, 100)
