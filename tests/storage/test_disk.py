"""Real and simulated disk: the same calls do the same; the simulated one forgets as promised."""

import errno
import os
from itertools import product
from pathlib import Path
from random import Random

import pytest

from raftkv.sim.disk import SECTOR_BYTES, SimDisk, SimulatedCrash
from raftkv.storage.disk import (
    Disk,
    DiskError,
    DiskFull,
    FileExists,
    Locked,
    NoSuchFile,
    RealDisk,
    TooManyFiles,
)

ROOT = Path("/d")


@pytest.fixture(params=["real", "simulated"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Disk, Path]:
    """Return a disk and an empty directory on it."""
    if request.param == "real":
        return RealDisk(), tmp_path
    disk = SimDisk()
    disk.make_directory(ROOT)
    return disk, ROOT


def test_files(place: tuple[Disk, Path]) -> None:
    """Written bytes are read back, gaps and allocated space are zero, reads end at the end."""
    disk, root = place
    file = disk.create(root / "f")
    file.pwrite(b"hello", 700)
    file.pwrite(bytearray(b"J"), 700)
    file.pwrite(memoryview(b"ello"), 701)
    assert file.size() == 705
    file.allocate(2000)
    assert file.size() == 2000
    file.fdatasync()
    file.close()
    file.close()
    file = disk.open(root / "f")
    assert file.path == root / "f"
    assert file.pread(5, 700) == b"Jello"
    assert file.pread(10, 698) == b"\0\0Jello\0\0\0"
    assert file.pread(100, 1990) == bytes(10)
    assert file.pread(100, 2000) == b""
    with pytest.raises(DiskError):
        file.pwrite(b"x", 0)


def test_names(place: tuple[Disk, Path]) -> None:
    """Create, rename over, unlink, list; an open file survives losing its name."""
    disk, root = place
    for name in ("b", "a"):
        disk.create(root / name).pwrite(name.encode(), 0)
    disk.make_directory(root / "c")
    disk.make_directory(root / "c")
    assert disk.listdir(root) == ["a", "b", "c"]
    file = disk.open(root / "b")
    disk.rename(root / "a", root / "b")
    disk.fsync_dir(root)
    assert disk.listdir(root) == ["b", "c"]
    assert disk.open(root / "b").pread(1, 0) == b"a"
    disk.unlink(root / "b")
    assert not disk.exists(root / "b")
    assert disk.exists(root / "c")
    assert file.pread(1, 0) == b"b"
    assert disk.free_bytes(root) > 0


def test_errors_are_typed_and_name_the_file(place: tuple[Disk, Path]) -> None:
    """Each failure has its type and one line with the path."""
    disk, root = place
    disk.create(root / "f").close()
    lock = disk.lock(root / "lock")
    for call, kind, path in (
        (lambda: disk.create(root / "f"), FileExists, root / "f"),
        (lambda: disk.create(root / "no" / "f"), NoSuchFile, root / "no" / "f"),
        (lambda: disk.open(root / "g"), NoSuchFile, root / "g"),
        (lambda: disk.unlink(root / "g"), NoSuchFile, root / "g"),
        (lambda: disk.rename(root / "g", root / "h"), NoSuchFile, root / "g"),
        (lambda: disk.listdir(root / "g"), NoSuchFile, root / "g"),
        (lambda: disk.make_directory(root / "f"), FileExists, root / "f"),
        (lambda: disk.make_directory(root / "f" / "x"), DiskError, root / "f"),
        (lambda: disk.lock(root / "lock"), Locked, root / "lock"),
    ):
        with pytest.raises(kind) as caught:
            call()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    lock.release()
    disk.lock(root / "lock").release()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_and_quota_are_full(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways to have no room left are DiskFull; anything else is DiskError."""

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    file = RealDisk().create(tmp_path / "f")
    monkeypatch.setattr(os, "posix_fallocate", fail)
    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(DiskFull):
        file.allocate(100)
    with pytest.raises(DiskFull):
        file.pwrite(b"x", 0)


def test_want_of_descriptors_is_told_from_a_failed_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It heals, and nothing was done: a directory that cannot be opened was not synced either."""

    def fail(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    disk = RealDisk()
    disk.create(tmp_path / "f").close()
    monkeypatch.setattr(os, "open", fail)
    for call in (
        lambda: disk.create(tmp_path / "new"),
        lambda: disk.open(tmp_path / "f"),
        lambda: disk.fsync_dir(tmp_path),
    ):
        with pytest.raises(TooManyFiles, match="Too many open files"):
            call()


def test_a_directory_that_cannot_be_read_is_synced_with_all_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the parent of a data directory, which may be entered only."""

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    synced: list[str] = []
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "sync", lambda: synced.append("all"))
    RealDisk().fsync_dir(tmp_path)
    assert synced == ["all"]


def test_short_reads_and_writes_are_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """POSIX may read or write less than asked; the file does all of it."""
    pwrite, pread = os.pwrite, os.pread
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:3], at))
    monkeypatch.setattr(os, "pread", lambda fd, length, at: pread(fd, min(length, 4), at))
    file = RealDisk().create(tmp_path / "f")
    file.pwrite(b"0123456789", 0)
    assert file.pread(10, 0) == b"0123456789"
    assert file.pread(99, 2) == b"23456789"


def test_a_crashed_disk_is_not_used_again() -> None:
    """What still runs of a node whose disk has crashed or changed hands cannot write to it."""
    for end in (lambda disk: disk.crash(Random(0)), SimDisk.kill):
        disk = SimDisk()
        file = disk.create(Path("/f"))
        end(disk)
        with pytest.raises(SimulatedCrash):
            file.pwrite(b"x", 0)
        with pytest.raises(SimulatedCrash):
            disk.listdir(Path("/"))


# --- what a power cut does -------------------------------------------------------------------


def simulated() -> SimDisk:
    """Return a disk with a durable, empty directory."""
    disk = SimDisk()
    disk.make_directory(ROOT)
    disk.fsync_dir(Path("/"))
    return disk


def outcomes(disk: SimDisk, path: Path) -> set[bytes | None]:
    """Return the contents that ``path`` can have after a crash; None: no such file."""
    found: set[bytes | None] = set()
    for seed in range(200):
        choose = Random(seed).randrange
        after = disk.crash_choosing(choose, choose)
        if after.exists(path):
            file = after.open(path)
            found.add(file.pread(file.size(), 0))
        else:
            found.add(None)
    return found


def test_unsynced_sectors_survive_in_any_combination() -> None:
    """Each sector is old or new, or anything between, independently of the others."""
    disk = simulated()
    file = disk.create(ROOT / "f")
    file.pwrite(b"a" * 3 * SECTOR_BYTES, 0)
    file.fdatasync()
    disk.fsync_dir(ROOT)
    file.pwrite(b"b" * SECTOR_BYTES, 0)
    file.pwrite(b"c" * SECTOR_BYTES, 0)
    file.pwrite(b"d" * SECTOR_BYTES, 2 * SECTOR_BYTES)
    assert disk.unsynced() == [(ROOT / "f", 0), (ROOT / "f", 2)]
    middle = b"a" * SECTOR_BYTES
    assert outcomes(disk, ROOT / "f") == {
        first * SECTOR_BYTES + middle + last * SECTOR_BYTES
        for first, last in product((b"a", b"b", b"c"), (b"a", b"d"))
    }
    file = disk.kill().open(ROOT / "f")
    assert file.pread(1, 0) == b"c"


def test_synced_contents_without_a_synced_name() -> None:
    """A file whose directory was not synced may be gone, whatever was synced of it."""
    disk = simulated()
    file = disk.create(ROOT / "f")
    file.pwrite(b"x", 0)
    file.fdatasync()
    assert outcomes(disk, ROOT / "f") == {None, b"x"}
    disk = simulated()
    disk.create(ROOT / "f").pwrite(b"x", 0)
    disk.fsync_dir(ROOT)
    assert outcomes(disk, ROOT / "f") == {b"", b"\0", b"x"}


def test_renames_and_unlinks_are_pending_until_the_directory_is_synced() -> None:
    """A rename is whole or not done; an unlink may come back."""
    disk = simulated()
    for name in ("old", "new"):
        file = disk.create(ROOT / name)
        file.pwrite(name.encode(), 0)
        file.fdatasync()
    disk.fsync_dir(ROOT)
    disk.rename(ROOT / "new", ROOT / "old")
    assert outcomes(disk, ROOT / "old") == {b"old", b"new"}
    assert outcomes(disk, ROOT / "new") == {None, b"new"}
    disk.fsync_dir(ROOT)
    assert outcomes(disk, ROOT / "old") == {b"new"}
    disk.unlink(ROOT / "old")
    assert outcomes(disk, ROOT / "old") == {None, b"new"}


def test_after_a_failed_sync_the_next_one_succeeds_without_writing() -> None:
    """Pages of a failed fdatasync count as clean, and are lost by a later power cut."""
    disk = simulated()
    file = disk.create(ROOT / "f")
    file.fdatasync()
    disk.fsync_dir(ROOT)
    file.pwrite(b"x", 0)

    def fail(operation: str, path: Path) -> None:
        if operation == "fdatasync":
            raise DiskError(path, "sync", "Input/output error")

    disk.before = fail
    with pytest.raises(DiskError):
        file.fdatasync()
    disk.before = None
    file.fdatasync()
    assert file.pread(1, 0) == b"x"
    assert outcomes(disk, ROOT / "f") == {b"\0", b"x"}
    file.pwrite(b"x", 0)
    file.fdatasync()
    assert outcomes(disk, ROOT / "f") == {b"x"}


def test_capacity() -> None:
    """Allocation and growth beyond the capacity are DiskFull; removing files makes room."""
    disk = simulated()
    disk.capacity_bytes = 1000
    file = disk.create(ROOT / "f")
    file.allocate(900)
    assert disk.free_bytes(ROOT) == 100
    other = disk.create(ROOT / "g")
    with pytest.raises(DiskFull):
        other.pwrite(bytes(200), 0)
    file.pwrite(bytes(900), 0)
    disk.unlink(ROOT / "f")
    other.pwrite(bytes(200), 0)
