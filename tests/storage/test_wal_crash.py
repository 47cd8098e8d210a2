"""Power cuts: whatever was reported durable is there, and what is there was written in order."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.sim.disk import SimDisk, SimulatedCrash
from raftkv.storage.disk import DiskError
from raftkv.storage.wal import Wal, WalDamaged
from tests.storage.wal_harness import (
    DIRECTORY,
    GROUPS,
    IDENTITY,
    SEGMENT_BYTES,
    Driver,
    State,
    Step,
    assert_possible,
    crash_outcomes,
    new_disk,
    open_wal,
    operations_of,
    random_steps,
    run_until_crash,
    state_of,
    sync,
)

steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["append"] * 6
            + ["sync"] * 4
            + ["housekeep"] * 2
            + ["truncate", "hard", "compact", "forget"]
        ),
        st.integers(0, 1 << 16),
        st.integers(0, 1 << 16),
    ),
    max_size=60,
)


def check_every_crash(sequence: list[Step], random: Random, lies: frozenset[str]) -> int:
    """Crash in every disk operation of ``sequence``; return how many outcomes were checked."""
    outcomes = 0
    for crash_at in range(1, operations_of(sequence) + 1):
        disk = new_disk()
        disk.lies = lies
        possible = run_until_crash(disk, sequence, crash_at) or [{}]
        for label, after in crash_outcomes(disk, random):
            _, recovered = open_wal(after)
            assert_possible(state_of(recovered), possible, label)
            outcomes += 1
    return outcomes


@pytest.mark.parametrize("seed", range(4))
def test_crash_in_every_disk_operation(seed: int) -> None:
    """A crash in any disk operation, with any prefix of the unsynced sectors, loses nothing."""
    random = Random(seed)
    assert check_every_crash(random_steps(random, 200), random, frozenset()) > 500


@pytest.mark.parametrize("lie", ["fdatasync", "fsync_dir"])
def test_the_crash_test_sees_a_missing_sync(lie: str) -> None:
    """The test above fails when either kind of sync is left out."""
    random = Random(0)
    with pytest.raises((AssertionError, WalDamaged, DiskError)):
        check_every_crash(random_steps(random, 200), random, frozenset({lie}))


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    lives=st.lists(
        st.tuples(steps, st.sampled_from(["power", "kill", "sync fails"]), st.integers(1, 150)),
        min_size=1,
        max_size=5,
    ),
    random=st.randoms(use_true_random=False),
)
def test_life_after_life(lives: list[tuple[list[Step], str, int]], random: Random) -> None:
    """Lives ended anywhere (recovery included) by power cut, kill or failed sync lose nothing."""
    disk = new_disk()
    possible: list[State] = [{}]
    for number, (sequence, end, at) in enumerate(lives):
        if end == "sync fails":
            disk.before = _FailingSync(at % 20)
        crash_at = 1 << 30 if end == "sync fails" else at
        possible = run_until_crash(disk, sequence, crash_at, life=number) or possible
        disk = disk.crash(random) if end == "power" else disk.kill()
    _, recovered = open_wal(disk.crash(random))
    assert_possible(state_of(recovered), possible)


class _FailingSync:
    """Fails the fdatasync after the first ``good`` ones."""

    def __init__(self, good: int) -> None:
        self.good = good

    def __call__(self, operation: str, path: Path) -> None:
        """Fail if it is time."""
        if operation == "fdatasync":
            self.good -= 1
            if self.good < 0:
                raise DiskError(path, "sync", "Input/output error")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sequence=steps, random=st.randoms(use_true_random=False))
def test_every_sector_subset_of_the_last_unit(sequence: list[Step], random: Random) -> None:
    """Every prefix and sampled subsets of one unsynced unit: cut, or there as a whole."""
    disk = new_disk()
    driver = Driver.start(disk)
    driver.run([*sequence, ("sync", 0, 0), ("append", 1, 1499), ("append", 0, 900)])
    job = driver.wal.begin_sync()
    assert job is not None
    disk.before = lambda operation, _: _crash_in(operation, "fdatasync")
    with pytest.raises(SimulatedCrash):
        job.run()
    for _, after in crash_outcomes(disk, random):
        _, recovered = open_wal(after)
        assert_possible(
            state_of(recovered), [driver.states[driver.wal.durable_lsn], driver.states[-1]]
        )


def _crash_in(operation: str, wanted: str) -> None:
    if operation == wanted:
        raise SimulatedCrash


def test_a_unit_seen_after_a_kill_is_durable_before_it_is_reported() -> None:
    """What a killed process wrote without syncing is synced by the next one that relies on it."""
    disk = new_disk()
    wal, _ = open_wal(disk)
    wal.append(GROUPS[0], 1, 1, b"written, never synced")
    job = wal.begin_sync()
    assert job is not None
    disk.before = lambda operation, _: _crash_in(operation, "fdatasync")
    with pytest.raises(SimulatedCrash):
        job.run()
    disk = disk.kill()
    _, recovered = open_wal(disk)
    assert recovered[GROUPS[0]].entries == [(b"written, never synced", 1, 1)]
    _, again = open_wal(disk.crash_choosing(lambda _: 0, lambda _: 0))
    assert again == recovered


def test_a_unit_seen_after_a_failed_sync_is_written_again() -> None:
    """After a failed fdatasync the kernel thinks the page clean; only writing again saves it."""
    disk = new_disk()
    wal, _ = open_wal(disk)
    wal.append(GROUPS[0], 1, 1, b"the sync of this fails")
    job = wal.begin_sync()
    assert job is not None
    disk.before = _fail_fdatasync
    with pytest.raises(DiskError, match="cannot sync"):
        job.run()
    assert wal.begin_sync() is None
    disk = disk.kill()
    _, recovered = open_wal(disk)
    assert recovered[GROUPS[0]].entries == [(b"the sync of this fails", 1, 1)]
    _, again = open_wal(disk.crash_choosing(lambda _: 0, lambda _: 0))
    assert again == recovered


def test_a_segment_seen_after_a_kill_is_durable_before_it_is_used() -> None:
    """A spare whose name was not yet synced when the process died does not lose what goes in."""
    disk = new_disk()
    disk.before = _crash_in_second_fsync_dir()
    with pytest.raises(SimulatedCrash):
        open_wal(disk)
    assert len(disk.kill().listdir(DIRECTORY)) == 2, "the spare was renamed, its name not synced"
    disk = disk.kill()
    wal, _ = open_wal(disk)
    for index in (1, 2):
        wal.append(GROUPS[0], index, 1, bytes(3000))
        sync(wal)
    _, recovered = open_wal(disk.crash_choosing(lambda _: 0, lambda _: 0))
    assert [entry[1] for entry in recovered[GROUPS[0]].entries] == [1, 2]


def _crash_in_second_fsync_dir() -> Callable[[str, Path], None]:
    seen = count()

    def before(operation: str, _: Path) -> None:
        if operation == "fsync_dir" and next(seen) == 1:
            raise SimulatedCrash

    return before


def _fail_fdatasync(operation: str, path: object) -> None:
    if operation == "fdatasync":
        raise DiskError(DIRECTORY, "sync", "Input/output error")


def test_a_failed_sync_leaves_the_log_stopped() -> None:
    """After a failed sync there is no other sync job, and nothing more is reported durable."""
    disk = new_disk()
    wal, _ = open_wal(disk)
    wal.append(GROUPS[0], 1, 1, b"one")
    sync(wal)
    wal.append(GROUPS[0], 2, 1, b"two")
    job = wal.begin_sync()
    assert job is not None
    disk.before = _fail_fdatasync
    with pytest.raises(DiskError):
        job.run()
    wal.append(GROUPS[0], 3, 1, b"three")
    assert wal.begin_sync() is None
    assert wal.durable_lsn == 1
    with pytest.raises(RuntimeError, match="after it has run"):
        wal.finish_sync(job)


def test_remains_of_a_cut_unit_are_gone_before_the_next(caplog: pytest.LogCaptureFixture) -> None:
    """The tail of a long torn unit never shows behind the short one that took its place."""
    disk = new_disk()
    wal, _ = open_wal(disk)
    wal.append(GROUPS[0], 1, 1, b"kept")
    sync(wal)
    wal.append(GROUPS[0], 2, 1, b"\xaa" * 2000)
    job = wal.begin_sync()
    assert job is not None
    disk.before = lambda operation, _: _crash_in(operation, "fdatasync")
    with pytest.raises(SimulatedCrash):
        job.run()
    sectors = iter([0, 0, *[1] * 100])  # the unit's first two sectors are lost, the rest is there
    disk = disk.crash_choosing(lambda _: next(sectors), lambda _: 1)
    wal, recovered = open_wal(disk)
    assert recovered[GROUPS[0]].entries == [(b"kept", 1, 1)]
    assert "was not finished before the crash" in caplog.text
    wal.append(GROUPS[0], 2, 1, b"short")
    sync(wal)
    file = disk.open(DIRECTORY / "wal-0000000000000001.log")
    assert b"\xaa" not in file.pread(SEGMENT_BYTES, 0)
    caplog.clear()
    _, recovered = open_wal(disk)
    assert recovered[GROUPS[0]].entries == [(b"kept", 1, 1), (b"short", 2, 1)]
    assert not caplog.records


@pytest.mark.parametrize("lie", [False, True])
def test_crash_while_the_log_is_made(*, lie: bool) -> None:
    """A crash while the log is made leaves one that opens, or that can be made again."""
    operation = 1
    while True:
        disk = SimDisk()
        disk.crash_at = operation
        try:
            Wal.create(disk, DIRECTORY, identity=IDENTITY, segment_bytes=SEGMENT_BYTES)
        except SimulatedCrash:
            for _, after in crash_outcomes(disk, Random(operation)):
                Wal.create(after, DIRECTORY, identity="another" if lie else IDENTITY)
        else:
            break
        operation += 1
    assert operation > 5
