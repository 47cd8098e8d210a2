"""The write-ahead log without crashes: what is kept, rolled, deleted, refused, and when."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.core.cluster_map import GroupId
from raftkv.sim.disk import SECTOR_BYTES, SimDisk
from raftkv.storage.disk import DiskError, DiskFull, TooManyFiles
from raftkv.storage.wal import Wal, WalDamaged
from raftkv.storage.wal_format import read_unit_header
from tests.storage.wal_harness import (
    DIRECTORY,
    GROUPS,
    IDENTITY,
    SEGMENT_BYTES,
    Driver,
    assert_possible,
    housekeep,
    new_disk,
    open_wal,
    random_steps,
    state_of,
    sync,
)

A, B, C = GROUPS


def segments(disk: SimDisk) -> list[str]:
    """Return the numbers of the segments on disk, as the names have them."""
    return [name[18:20] for name in disk.listdir(DIRECTORY) if name.endswith(".log")]


def fill(wal: Wal, group: GroupId, first: int, last: int, size: int = 700) -> None:
    """Append entries one unit each, with housekeeping, as an engine does."""
    for index in range(first, last + 1):
        wal.append(group, index, 1, bytes(size))
        sync(wal)
        housekeep(wal)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(0, 200))
def test_what_was_synced_is_recovered(seed: int, length: int) -> None:
    """Reopening after a sync gives exactly the state that the records add up to."""
    disk = new_disk()
    driver = Driver.start(disk)
    driver.run(random_steps(Random(seed), length))
    sync(driver.wal)
    driver.wal.close()
    _, recovered = open_wal(disk)
    assert_possible(state_of(recovered), [driver.states[-1]])


def test_lsns_count_records_and_become_durable_with_the_sync() -> None:
    """Each record has an LSN; durable_lsn gets there when the job has run and was taken back."""
    wal, _ = open_wal(new_disk())
    assert wal.append(A, 1, 1, b"x") == 1
    assert wal.set_hard_state(A, 1, "n1") == 2
    assert wal.truncate_from(A, 1) == 3
    assert wal.compact(A, 5, 1) == 4
    job = wal.begin_sync()
    assert job is not None
    assert job.lsn == 4
    assert wal.append(A, 6, 1, b"y") == 5
    assert wal.begin_sync() is None
    job.run()
    assert wal.durable_lsn == 0
    wal.finish_sync(job)
    assert wal.durable_lsn == 4
    sync(wal)
    assert wal.durable_lsn == wal.lsn == 5
    assert wal.begin_sync() is None


def test_records_that_change_nothing_are_not_written() -> None:
    """The same hard state, an older compaction, a truncation behind the end: no record."""
    wal, _ = open_wal(new_disk())
    wal.append(A, 1, 1, b"x")
    wal.set_hard_state(A, 1, "n1")
    wal.compact(A, 1, 1)
    lsn = wal.lsn
    assert wal.set_hard_state(A, 1, "n1") == lsn
    assert wal.compact(A, 1, 1) == lsn
    assert wal.compact(A, 0, 0) == lsn
    assert wal.truncate_from(A, 2) == lsn


def test_records_that_contradict_the_log_are_refused_before_they_are_buffered() -> None:
    """A gap, an overlap, a term that goes back, cutting what is compacted: ValueError, no trace."""
    wal, _ = open_wal(new_disk())
    wal.append(A, 1, 1, b"x")
    wal.compact(A, 1, 1)
    wal.set_hard_state(A, 3, None)
    lsn, waiting = wal.lsn, wal.buffered_bytes
    with pytest.raises(ValueError, match="entry 3 after entry 1"):
        wal.append(A, 3, 1, b"gap")
    with pytest.raises(ValueError, match="entry 1 after entry 1"):
        wal.append(A, 1, 1, b"overlap")
    with pytest.raises(ValueError, match="term 2 after term 3"):
        wal.set_hard_state(A, 2, None)
    with pytest.raises(ValueError, match="compacted"):
        wal.truncate_from(A, 1)
    assert (wal.lsn, wal.buffered_bytes) == (lsn, waiting)


def test_rolling_and_deleting() -> None:
    """A segment goes once every group has compacted past it; states live on in the next."""
    disk = new_disk()
    wal, _ = open_wal(disk)
    wal.set_hard_state(C, 9, "n3")
    fill(wal, A, 1, 3)
    fill(wal, B, 1, 9)
    assert segments(disk) == ["01", "02", "03", "04"]
    wal.compact(B, 9, 1)
    sync(wal)
    housekeep(wal)
    assert segments(disk) == ["01", "02", "03", "04"]
    assert wal.pinning() == [A]
    wal.compact(A, 3, 1)
    assert wal.pinning() == []
    housekeep(wal)
    assert segments(disk) == ["01", "02", "03", "04"], "the mark is not durable yet"
    sync(wal)
    housekeep(wal)
    assert segments(disk) == ["03", "04"]
    wal.close()
    wal, recovered = open_wal(disk)
    assert (recovered[C].term, recovered[C].vote) == (9, "n3")
    assert recovered[A].compacted == (3, 1)
    assert recovered[B].compacted == (9, 1)
    assert not recovered[A].entries
    wal.append(A, 4, 1, b"goes on")


@pytest.mark.parametrize("reopen", [False, True])
def test_truncated_entries_pin_nothing(*, reopen: bool) -> None:
    """A group compacted to its end frees a segment that holds entries it has truncated."""
    disk = new_disk()
    wal, _ = open_wal(disk)
    fill(wal, A, 1, 4)
    fill(wal, B, 1, 6)
    wal.truncate_from(A, 3)
    wal.compact(A, 2, 1)
    wal.compact(B, 6, 1)
    sync(wal)
    if reopen:
        wal.close()
        wal, _ = open_wal(disk)
    housekeep(wal)
    assert "01" not in segments(disk)


@pytest.mark.parametrize("reopen", [False, True])
def test_forgotten_group_pins_nothing_and_is_not_recovered(*, reopen: bool) -> None:
    """Its entries keep no segment alive, though no snapshot covers them; others' do."""
    disk = new_disk()
    wal, _ = open_wal(disk)
    fill(wal, A, 1, 4)
    wal.set_hard_state(A, 5, "n1")
    fill(wal, B, 1, 6)
    wal.forget(A)
    wal.compact(B, 6, 1)
    sync(wal)
    if reopen:
        wal.close()
        wal, recovered = open_wal(disk)
        assert set(recovered) == {B}
    assert wal.pinning(keep_segments=1) == []
    housekeep(wal)
    assert "01" not in segments(disk)
    fill(wal, B, 7, 12)  # into segments that carry every group
    wal.close()
    _, recovered = open_wal(disk)
    assert set(recovered) == {B}


def test_forgetting_counts_once_it_is_durable() -> None:
    """Until then the group is recovered, and its segments stay; it pins nothing any more."""
    disk = new_disk()
    wal, _ = open_wal(disk)
    fill(wal, A, 1, 12)
    wal.append(A, 13, 1, b"in the unit that is being written")
    job = wal.begin_sync()
    assert job is not None
    assert wal.forget(A) == wal.lsn == wal.durable_lsn + 2
    assert wal.pinning() == []
    housekeep(wal)
    assert "01" in segments(disk)
    job.run()
    wal.finish_sync(job)
    after_crash = disk.crash_choosing(lambda _: 0, lambda n: n - 1)  # only what was synced
    assert len(open_wal(after_crash)[1][A].entries) == 13
    after = wal.begin_sync()
    assert after is not None
    assert wal.pinning() == []
    after.run()
    wal.finish_sync(after)
    housekeep(wal)
    assert "01" not in segments(disk)


def test_forgotten_group_takes_no_records() -> None:
    """A record of it would bring it back, without what it has promised."""
    wal, _ = open_wal(new_disk())
    fill(wal, A, 1, 1)
    wal.forget(A)
    for _ in range(2):
        lsn = wal.lsn
        with pytest.raises(ValueError, match="forgotten"):
            wal.append(A, 2, 1, b"")
        with pytest.raises(ValueError, match="forgotten"):
            wal.set_hard_state(A, 9, None)
        with pytest.raises(ValueError, match="forgotten"):
            wal.compact(A, 9, 9)
        with pytest.raises(ValueError, match="forgotten"):
            wal.truncate_from(A, 1)
        assert wal.forget(A) == wal.lsn == lsn
        sync(wal)


def test_forgetting_a_group_that_is_not_there_is_no_record() -> None:
    """There is nothing to forget; nor is there of one that was asked to change nothing."""
    wal, _ = open_wal(new_disk())
    assert wal.forget(A) == 0
    wal.set_hard_state(A, 0, None)
    assert wal.forget(A) == 0
    assert wal.begin_sync() is None


def test_group_that_comes_and_goes_within_a_unit() -> None:
    """Its records are written and mean nothing."""
    disk = new_disk()
    wal, _ = open_wal(disk)
    wal.append(A, 1, 1, b"x")
    wal.set_hard_state(A, 2, None)
    wal.compact(A, 1, 1)
    wal.forget(A)
    sync(wal)
    fill(wal, B, 1, 12)
    wal.close()
    assert set(open_wal(disk)[1]) == {B}


def test_entries_truncated_in_their_own_unit_pin_nothing() -> None:
    """Entries that were appended and truncated between two syncs keep no segment alive."""
    disk = new_disk()
    wal, _ = open_wal(disk)
    for index in (1, 2, 3):
        wal.append(A, index, 1, b"x")
    wal.truncate_from(A, 2)
    wal.compact(A, 1, 1)
    fill(wal, B, 1, 7)
    wal.compact(B, 7, 1)
    sync(wal)
    housekeep(wal)
    assert "01" not in segments(disk)


def test_a_unit_larger_than_a_segment_gets_a_larger_segment() -> None:
    """An entry larger than a segment is kept in a segment made larger for it."""
    disk = new_disk()
    wal, _ = open_wal(disk)
    fill(wal, A, 1, 2)
    big = bytes(range(256)) * 100
    wal.append(A, 3, 1, big)
    sync(wal)
    housekeep(wal)
    fill(wal, A, 4, 5)
    _, recovered = open_wal(disk)
    assert [entry[1] for entry in recovered[A].entries] == [1, 2, 3, 4, 5]
    assert recovered[A].entries[2][0] == big


def test_sync_waits_for_a_spare_that_is_being_made() -> None:
    """While housekeeping makes the segment that a unit needs, there is no sync job."""
    wal, _ = open_wal(new_disk())
    wal.append(A, 1, 1, bytes(3000))
    sync(wal)
    wal.append(A, 2, 1, bytes(3000))
    sync(wal)
    house = wal.begin_housekeeping()
    assert house is not None
    assert wal.begin_housekeeping() is None
    wal.append(A, 3, 1, bytes(3000))
    assert wal.begin_sync() is None
    house.run()
    wal.finish_housekeeping(house)
    sync(wal)
    assert wal.durable_lsn == 3


def test_without_housekeeping_the_sync_makes_its_segment_itself() -> None:
    """A caller that is late with housekeeping loses time, nothing else."""
    disk = new_disk()
    wal, _ = open_wal(disk)
    for index in range(1, 8):
        wal.append(A, index, 1, bytes(3000))
        sync(wal)
    _, recovered = open_wal(disk)
    assert len(recovered[A].entries) == 7


def test_housekeeping_beside_a_sync_that_makes_its_segment_leaves_no_gap() -> None:
    """No segment is made ahead while the one before it is not there yet."""
    disk = new_disk()
    wal, _ = open_wal(disk)
    for index in (1, 2):
        wal.append(A, index, 1, bytes(3000))
        sync(wal)
    wal.append(A, 3, 1, bytes(3000))
    job = wal.begin_sync()
    assert job is not None
    assert wal.begin_housekeeping() is None
    job.run()
    wal.finish_sync(job)
    housekeep(wal)
    assert segments(disk) == ["01", "02", "03", "04"]


# --- full disk -------------------------------------------------------------------------------


def test_full_disk_is_seen_one_segment_ahead_and_heals() -> None:
    """Without room for a spare: no space for proposals, but syncs go on; room heals it."""
    disk = new_disk(capacity_bytes=2 * SEGMENT_BYTES + 100)
    wal, _ = open_wal(disk)
    assert wal.has_space()
    fill(wal, A, 1, 6)
    assert not wal.has_space()
    wal.set_hard_state(A, 2, "n1")
    sync(wal)
    assert wal.durable_lsn == wal.lsn
    housekeep(wal)
    assert not wal.has_space()
    wal.compact(A, 6, 1)
    sync(wal)
    housekeep(wal)
    assert wal.has_space(), "deleting made room"
    assert segments(disk) == ["02", "03"]


def test_full_disk_at_start() -> None:
    """A log opens on a full disk and says that there is no space."""
    disk = new_disk(capacity_bytes=SEGMENT_BYTES + 100)
    wal, _ = open_wal(disk)
    assert not wal.has_space()
    wal.append(A, 1, 1, b"in flight")
    sync(wal)
    wal.close()
    disk.capacity_bytes = None
    wal, recovered = open_wal(disk)
    assert wal.has_space()
    assert len(recovered[A].entries) == 1


def test_running_out_of_the_last_segment_waits_for_room() -> None:
    """With no spare and no room nothing is written and the job stays out; with room it goes on."""
    disk = new_disk(capacity_bytes=SEGMENT_BYTES + 100)
    wal, _ = open_wal(disk)
    wal.append(A, 1, 1, bytes(3000))
    sync(wal)
    wal.append(A, 2, 1, bytes(3000))
    job = wal.begin_sync()
    assert job is not None
    for _ in range(2):
        job.run()
        assert job.full is not None
        assert "No space left" in str(job.full)
        wal.sync_found_no_room(job)
        assert not wal.has_space()
        assert wal.room_bytes == 0
        assert wal.begin_sync() is None
        assert wal.durable_lsn < wal.lsn
    disk.capacity_bytes = None
    job.run()
    assert job.full is None
    wal.finish_sync(job)
    assert wal.durable_lsn == wal.lsn
    _, recovered = open_wal(disk.kill())
    assert [entry[1] for entry in recovered[A].entries] == [1, 2]


def test_no_room_inside_a_segment_is_a_failed_sync() -> None:
    """Blocks that were allocated and are not there after all: nothing is known, so it raises."""
    disk = new_disk()
    wal, _ = open_wal(disk)
    wal.append(A, 1, 1, bytes(100))
    job = wal.begin_sync()
    assert job is not None

    def full(action: str, path: Path) -> None:
        if action == "pwrite":
            raise DiskFull(path, action, "No space left on device")

    disk.before = full
    with pytest.raises(DiskFull, match="No space left"):
        job.run()
    assert wal.begin_sync() is None


@pytest.mark.parametrize("operation", ["create", "fsync_dir"])
def test_want_of_descriptors_is_want_of_room(operation: str) -> None:
    """Proposals are refused until there is one again, wherever housekeeping was interrupted."""
    disk = new_disk()
    wal, _ = open_wal(disk)

    def fails(action: str, path: Path) -> None:
        if action == operation:
            raise TooManyFiles(path, action, "Too many open files")

    fill(wal, A, 1, 10)
    wal.compact(A, 10, 1)
    sync(wal)
    wal.append(A, 11, 1, bytes(3500))
    sync(wal)
    disk.before = fails
    housekeep(wal)
    assert not wal.has_space()
    housekeep(wal)
    disk.before = None
    housekeep(wal)
    assert wal.has_space()
    fill(wal, A, 12, 14)
    _, recovered = open_wal(disk.kill())
    assert [index for _, index, *_ in recovered[A].entries] == [11, 12, 13, 14]


def test_other_errors_in_housekeeping_are_raised() -> None:
    """Only a full disk heals by itself; a broken one stops the node."""
    disk = new_disk()
    wal, _ = open_wal(disk)
    fill(wal, A, 1, 3)
    wal.append(A, 4, 1, bytes(3000))
    sync(wal)
    house = wal.begin_housekeeping()
    assert house is not None
    disk.before = _broken
    with pytest.raises(DiskError, match="Input/output error"):
        house.run()


def _broken(operation: str, path: Path) -> None:
    raise DiskError(path, operation, "Input/output error")


# --- damage ----------------------------------------------------------------------------------


def spans_of_a_log(disk: SimDisk, term: int = 1) -> list[tuple[Path, int, int]]:
    """Write a log over several segments; return file, start and end of every unit."""
    wal, _ = open_wal(disk)
    spans = []
    for index in range(1, 14):
        wal.append(A, index, term, bytes([index]) * 600)
        wal.set_hard_state(B, index, None)
        job = wal.begin_sync()
        assert job is not None
        start = job.segment.end
        job.run()
        wal.finish_sync(job)
        unit = read_unit_header(
            disk.open(job.segment.path).pread(SEGMENT_BYTES, 0), start, job.segment.marker
        )
        assert unit is not None
        spans.append((job.segment.path, start, unit.end))
        housekeep(wal)
    wal.close()
    return spans


def flips() -> Iterator[tuple[Path, int, int]]:
    """File, unit start, and bit: sampled over all units but the last."""
    random = Random(5)
    for path, start, end in spans_of_a_log(new_disk())[:-1]:
        header = range(start * 8, (start + 32) * 8, 3)
        for bit in [*header, *(random.randrange(start * 8, end * 8) for _ in range(25))]:
            yield path, start, bit


def test_a_flipped_bit_in_a_middle_unit_is_damage() -> None:
    """Any flipped bit in any unit but the last: refused, naming file and unit; disk unchanged."""
    disk = new_disk()
    spans_of_a_log(disk)
    tried = 0
    for path, start, bit in flips():
        disk.flip_bit(path, bit)
        before = disk.operations
        with pytest.raises(WalDamaged) as caught:
            open_wal(disk)
        assert (caught.value.file, caught.value.offset) == (path, start)
        assert str(path) in str(caught.value)
        assert f"byte {start}" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert disk.operations > before
        assert not disk.unsynced()
        disk.flip_bit(path, bit)
        tried += 1
    assert tried > 500
    open_wal(disk)


def test_a_flipped_bit_in_the_last_unit_is_damage() -> None:
    """All of its sectors are there, so it is no write that was not finished."""
    disk = new_disk()
    path, start, end = spans_of_a_log(disk)[-1]
    for bit in (*range(start * 8, (start + 32) * 8, 3), *range(start * 8, end * 8, 211)):
        disk.flip_bit(path, bit)
        with pytest.raises(WalDamaged, match="written") as caught:
            open_wal(disk)
        assert (caught.value.file, caught.value.offset) == (path, start)
        disk.flip_bit(path, bit)


def test_a_last_unit_that_looks_unfinished_is_cut_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A sector that is as it was before the write was never written, for all that one can know."""
    disk = new_disk()
    path, start, _ = spans_of_a_log(disk)[-1]
    disk.open(path, write=True).pwrite(bytes(SECTOR_BYTES), start + SECTOR_BYTES)
    _, recovered = open_wal(disk)
    assert [entry[1] for entry in recovered[A].entries] == list(range(1, 13))
    assert recovered[B].term == 12
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert f"{path}: unit 13 at byte {start}" in caplog.text


def test_a_flipped_bit_in_a_segment_header_is_damage() -> None:
    """Headers are synced before a segment has its name, so a bad one was never just torn."""
    for number in (1, 2, 3):
        for bit in range(0, 48 * 8, 5):
            disk = new_disk()
            spans_of_a_log(disk)
            path = DIRECTORY / f"wal-{number:016x}.log"
            disk.flip_bit(path, bit)
            with pytest.raises(WalDamaged) as caught:
                open_wal(disk)
            assert caught.value.file == path


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_missing_segment_is_damage(number: int) -> None:
    """A segment that was removed by hand is noticed, whichever it is of those still needed."""
    disk = new_disk()
    spans_of_a_log(disk)
    assert segments(disk) == ["01", "02", "03", "04"]
    disk.unlink(DIRECTORY / f"wal-{number:016x}.log")
    with pytest.raises(WalDamaged, match=r"missing between|older segment was removed|lost"):
        open_wal(disk)


def test_a_segment_of_another_history_is_damage() -> None:
    """A segment put back from an old copy fits by number and sequence, but not by its chain."""
    disk, other = new_disk(), new_disk()
    spans_of_a_log(disk)
    spans_of_a_log(other, term=2)
    path = DIRECTORY / f"wal-{2:016x}.log"
    copy = other.open(path).pread(SEGMENT_BYTES, 0)
    disk.open(path, write=True).pwrite(copy, 0)
    with pytest.raises(WalDamaged, match="does not follow") as caught:
        open_wal(disk)
    assert caught.value.file == path


def test_a_vanished_log_is_not_taken_for_a_new_one() -> None:
    """An initialised node without a log refuses to start: it has forgotten its promises (H19)."""
    disk = new_disk()
    disk.unlink(DIRECTORY / f"wal-{1:016x}.log")
    with pytest.raises(WalDamaged, match="no log here"):
        open_wal(disk)


def test_a_log_of_another_node_is_refused() -> None:
    """Segments say whose they are."""
    disk = new_disk()
    with pytest.raises(WalDamaged, match="another node"):
        Wal.open(disk, DIRECTORY, identity="someone else", segment_bytes=SEGMENT_BYTES)


def test_making_a_log_where_one_is_destroys_nothing() -> None:
    """Create refuses a directory with a used log, and leaves it as it is."""
    disk = new_disk()
    spans_of_a_log(disk)
    with pytest.raises(WalDamaged, match="already"):
        Wal.create(disk, DIRECTORY, identity=IDENTITY, segment_bytes=SEGMENT_BYTES)
    _, recovered = open_wal(disk)
    assert len(recovered[A].entries) == 13


def test_a_value_that_looks_like_a_unit_does_no_harm() -> None:
    """A payload that contains a whole unit of this very log is data, also inside a torn unit."""
    disk = new_disk()
    spans = spans_of_a_log(disk)
    path, start, end = spans[2]
    forged = disk.open(path).pread(end - start, start)
    wal, _ = open_wal(disk)
    wal.append(A, 14, 1, forged)
    sync(wal)
    _, recovered = open_wal(disk)
    assert recovered[A].entries[-1] == (forged, 14, 1)


def test_temporary_files_of_a_crash_are_removed() -> None:
    """A segment that was not finished is removed at the next start; other files stay."""
    disk = new_disk()
    for name in ("wal-0000000000000009.log.tmp", "notes.txt"):
        disk.create(DIRECTORY / name).close()
    open_wal(disk)
    assert [n for n in disk.listdir(DIRECTORY) if not n.endswith(".log")] == ["notes.txt"]
