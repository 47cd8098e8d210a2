"""One fault beside a torn last write: nothing that was synced is cut, and no legal crash refused.

The fault model is that of docs/storage.md: a power cut leaves any subset of the sectors of the
write that was under way; beside it one bit may have rotted, or one sector be written by half.
"""

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from raftkv.sim.disk import SECTOR_BYTES, SimDisk, SimulatedCrash
from raftkv.storage import wal as wal_module
from raftkv.storage.wal import Wal, WalDamaged
from raftkv.storage.wal_format import (
    FORMAT,
    SEGMENT_HEADER,
    UNIT_HEADER,
    encode_segment_header,
    lacks_sectors,
    read_unit_header,
)
from tests.storage.wal_harness import (
    DIRECTORY,
    GROUPS,
    IDENTITY,
    SEGMENT_BYTES,
    housekeep,
    open_wal,
    sync,
)

A, B = GROUPS[:2]

Fault = Callable[["TornLog", Random], None]


def new_log() -> tuple[SimDisk, Wal]:
    """Return an empty log on its disk."""
    disk = SimDisk()
    Wal.create(disk, DIRECTORY, identity=IDENTITY, segment_bytes=SEGMENT_BYTES)
    disk.fsync_dir(DIRECTORY.parent)
    return disk, open_wal(disk)[0]


class TornLog:
    """A log of synced units, and one more whose write the power cut off.

    ``synced`` is the last index that was reported durable, ``spans`` where the synced units are.
    """

    def __init__(self, payloads: list[bytes], tear: Callable[[int], int]) -> None:
        disk, wal = new_log()
        self.spans: list[tuple[Path, int, int]] = []
        *synced, torn = payloads
        for payload in synced:
            self._append(wal, payload)
            job = wal.begin_sync()
            assert job is not None
            start = job.segment.end
            size = UNIT_HEADER.size + sum(map(len, job._parts[1:]))
            job.run()
            wal.finish_sync(job)
            housekeep(wal)
            self.spans.append((job.segment.path, start, start + size))
        self.synced = len(synced)
        self._append(wal, torn)
        job = wal.begin_sync()
        assert job is not None
        disk.before = _no_sync
        with pytest.raises(SimulatedCrash):
            job.run()
        self.torn = (job.segment.path, job.segment.end, job.end)
        self.disk = disk.crash_choosing(tear, lambda n: n - 1)

    @staticmethod
    def _append(wal: Wal, payload: bytes) -> None:
        wal.append(A, wal._groups[A].last + 1 if A in wal._groups else 1, 1, payload)

    def recovered(self) -> int | None:
        """Return up to where the log is read back; None if it is refused, as it was found."""
        try:
            _, groups = open_wal(self.disk)
        except WalDamaged:
            assert not self.disk.unsynced(), "a log that is refused is not changed"
            return None
        return len(groups[A].entries) if A in groups else 0


def _no_sync(operation: str, _: Path) -> None:
    if operation == "fdatasync":
        raise SimulatedCrash


def rotten_bit(log: TornLog, random: Random) -> None:
    """One bit of a synced unit, most often of one of the last two."""
    path, start, end = random.choice([*log.spans, *log.spans[-2:] * 2])
    bit = random.randrange(start * 8, end * 8)
    log.disk.flip_bit(path, bit)
    _assume_not_blank(log.disk, path, bit // 8 // SECTOR_BYTES)


def shorn_sector(log: TornLog, random: Random) -> None:
    """One sector of a synced unit, or of the torn one."""
    path, start, end = random.choice([*log.spans, *[log.torn] * 2, *log.spans[-2:]])
    sector = random.randrange(start // SECTOR_BYTES, (end - 1) // SECTOR_BYTES + 1)
    log.disk.shear(path, sector, random.randrange(1, SECTOR_BYTES))
    if path != log.torn[0] or sector * SECTOR_BYTES < log.torn[1]:
        _assume_not_blank(log.disk, path, sector)


def _assume_not_blank(disk: SimDisk, path: Path, sector: int) -> None:
    """A sector that is as before it was written is one that was never written (docs: limits)."""
    assume(any(disk.open(path).pread(SECTOR_BYTES, sector * SECTOR_BYTES)))


payloads = st.lists(
    st.builds(
        lambda size, fill, zeros: (bytes([fill]) * size)[: size - zeros] + bytes(min(zeros, size)),
        st.integers(0, 2500),
        st.integers(0, 255),
        st.sampled_from([0, 0, 400, 1200]),
    ),
    min_size=2,
    max_size=7,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(payloads=payloads, random=st.randoms(use_true_random=False))
def test_a_torn_last_unit_is_never_refused(payloads: list[bytes], random: Random) -> None:
    """Whichever of its sectors got to the disk: everything before it is read, nothing refused."""
    log = TornLog(payloads, random.randrange)
    assert log.recovered() in (log.synced, log.synced + 1)


@pytest.mark.parametrize("fault", [rotten_bit, shorn_sector])
@settings(max_examples=400, deadline=None, derandomize=True)
@given(payloads=payloads, random=st.randoms(use_true_random=False))
def test_beside_one_more_fault_all_synced_units_are_read_or_none(
    fault: Fault, payloads: list[bytes], random: Random
) -> None:
    """A torn last write and one fault anywhere: all that was synced is there, or it is refused."""
    log = TornLog(payloads, random.choice([random.randrange, lambda _: 0, lambda n: n - 1]))
    fault(log, random)
    assert log.recovered() in (None, log.synced, log.synced + 1)


@pytest.mark.parametrize("rolls", [False, True])
def test_what_is_left_of_a_torn_unit_proves_that_the_one_before_was_synced(*, rolls: bool) -> None:
    """Its header is lost, one later sector is there, in this segment or the next: refused."""
    size = 3000 if rolls else 1200

    def all_but_the_first(_: int) -> int:
        return next(states)

    states = iter([0, *[1] * 20])
    log = TornLog([b"a" * 100, b"b" * 1500, b"c" * size], all_but_the_first)
    path, start, _ = log.spans[-1]
    assert (log.torn[0] != path) == rolls
    assert log.recovered() == log.synced
    log = TornLog([b"a" * 100, b"b" * 1500, b"c" * size], lambda n: n - 1)
    states = iter([0, *[1] * 20])
    log = TornLog([b"a" * 100, b"b" * 1500, b"c" * size], all_but_the_first)
    log.disk.flip_bit(path, (start + 700) * 8)
    with pytest.raises(WalDamaged) as caught:
        open_wal(log.disk)
    assert (caught.value.file, caught.value.offset) == (path, start)


def test_units_share_no_sector() -> None:
    """What tears while a unit is written is its own: not the end of the one before."""
    log = TornLog([b"a", b"b" * 600, b"c"], lambda n: n - 1)
    starts = [start for _, start, _ in log.spans]
    assert starts == [SECTOR_BYTES, 2 * SECTOR_BYTES]
    assert log.torn[1] == 4 * SECTOR_BYTES


@given(body=st.lists(st.sampled_from([bytes(512), bytes(300), b"x" * 512, b"y" * 90]), max_size=8))
def test_a_unit_knows_how_many_of_its_sectors_are_blank(body: list[bytes]) -> None:
    """So whole ones are told from those that lack a sector, also where values are zeros."""
    disk, wal = new_log()
    wal.append(A, 1, 1, b"".join(body))
    job = wal.begin_sync()
    assert job is not None
    job.run()
    segment = job.segment
    data = disk.open(segment.path).pread(SEGMENT_BYTES * 3, 0)
    unit = read_unit_header(data, segment.end, segment.marker)
    assert unit is not None
    assert not lacks_sectors(data, unit.start, unit.end, unit.blanks)
    for at in range(unit.start, unit.end, SECTOR_BYTES):
        if any(data[at : min(at + SECTOR_BYTES, unit.end)]):
            lost = data[:at] + bytes(SECTOR_BYTES) + data[at + SECTOR_BYTES :]
            assert lacks_sectors(lost, unit.start, unit.end, unit.blanks)


# --- the format before -----------------------------------------------------------------------


def test_a_log_of_format_1_is_read_and_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its segments keep their units packed, those after it have them aligned."""
    monkeypatch.setattr(
        wal_module, "encode_segment_header", lambda n, i: encode_segment_header(n, i, form=1)
    )
    disk, wal = new_log()
    wal.append(A, 1, 1, b"old")
    sync(wal)
    monkeypatch.undo()
    wal.close()
    wal, recovered = open_wal(disk)
    assert recovered[A].entries == [(b"old", 1, 1)]
    places = []
    for index in range(2, 42):
        wal.append(A, index, 1, b"%d" % index * 350)
        job = wal.begin_sync()
        assert job is not None
        places.append((job.segment.number, job.segment.end))
        job.run()
        wal.finish_sync(job)
        housekeep(wal)
    first = [place for segment, place in places if segment == 1]
    assert len(first) > 1
    assert all(place % SECTOR_BYTES for place in first)
    newest = [place for segment, place in places if segment == places[-1][0]]
    assert not any(place % SECTOR_BYTES for place in newest)
    assert first[0] > SEGMENT_HEADER.size
    wal.close()
    _, recovered = open_wal(disk)
    assert [entry[1] for entry in recovered[A].entries] == list(range(1, 42))


def test_a_group_is_forgotten_in_a_segment_of_the_format_that_knows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A version that reads formats 1 and 2 stops at the segment's format, and sees no damage."""
    with monkeypatch.context() as before:
        before.setattr(
            wal_module, "encode_segment_header", lambda n, i: encode_segment_header(n, i, form=2)
        )
        disk, wal = new_log()
        wal.append(A, 1, 1, b"x")
        wal.append(B, 1, 1, b"x")
        sync(wal)
        housekeep(wal)
        wal.close()
    assert set(forms(disk)) == {2}
    wal, _ = open_wal(disk)
    wal.append(B, 2, 1, b"y")
    sync(wal)
    assert wal._active.number == 1  # what format 2 knows goes on where it was
    wal.forget(A)
    sync(wal)
    housekeep(wal)
    wal.close()
    assert forms(disk)[0] == 2
    assert set(forms(disk)[1:]) == {FORMAT}
    _, recovered = open_wal(disk)
    assert {name: len(group.entries) for name, group in recovered.items()} == {B: 2}


def forms(disk: SimDisk) -> list[int]:
    """Return the format of each segment, in order."""
    files = (disk.open(DIRECTORY / name) for name in sorted(disk.listdir(DIRECTORY)))
    return [SEGMENT_HEADER.unpack(file.pread(SEGMENT_HEADER.size, 0))[1] for file in files]
