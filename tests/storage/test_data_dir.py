"""The data directory: minted once, used by its node only, one process at a time."""

import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from wal_harness import crash_outcomes

from raftkv.core.cluster_map import GroupId
from raftkv.sim.disk import SimDisk, SimulatedCrash
from raftkv.storage.data_dir import DataDirError, NodeIdentity, init_data_dir, open_data_dir
from raftkv.storage.disk import DiskError, RealDisk
from raftkv.storage.snapshots import SnapshotHeader, SnapshotStore
from raftkv.storage.wal import Wal

DIRECTORY = Path("/var/raftkv/n1")
SEGMENT_BYTES = 4096


def init(disk: SimDisk, path: Path = DIRECTORY, identity: str = "id-1") -> NodeIdentity:
    """Initialise ``path`` for node n1 of cluster c."""
    return init_data_dir(disk, path, "c", "n1", segment_bytes=SEGMENT_BYTES, mint=lambda: identity)


def one_line(call: Callable[[], object]) -> str:
    """Return the message of the DataDirError that ``call`` raises, which must be one line."""
    with pytest.raises(DataDirError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert str(DIRECTORY) in message
    return message


def test_init_and_open() -> None:
    """What init minted is what every open finds, with a log and a place for snapshots."""
    disk = SimDisk()
    minted = init(disk)
    assert minted == NodeIdentity(1, "c", "n1", "id-1")
    data = open_data_dir(disk, DIRECTORY, "c", "n1")
    assert data.identity == minted
    Wal.open(disk, data.wal_directory, identity=minted.identity, segment_bytes=SEGMENT_BYTES)
    assert SnapshotStore(disk, data.snapshot_directory).groups() == []


def test_minted_identities_differ(tmp_path: Path) -> None:
    """Every init mints another identity."""
    disk = RealDisk()
    first = init_data_dir(disk, tmp_path / "a", "c", "n1", segment_bytes=SEGMENT_BYTES)
    second = init_data_dir(disk, tmp_path / "b", "c", "n1", segment_bytes=SEGMENT_BYTES)
    assert first.identity != second.identity
    assert len(first.identity) == 32


def test_peers_are_remembered_for_good() -> None:
    """A peer's identity survives a power cut and is never replaced by another."""
    disk = SimDisk()
    init(disk)
    book = open_data_dir(disk, DIRECTORY, "c", "n1").peers
    assert book.known("n2") is None
    book.remember("n2", "id-2")
    book.remember("n2", "id-2")
    book.remember("n3", "id-3")
    with pytest.raises(ValueError, match="n2 is known under another identity"):
        book.remember("n2", "impostor")
    disk = disk.crash_choosing(lambda _: 0, lambda _: 0)
    book = open_data_dir(disk, DIRECTORY, "c", "n1").peers
    assert (book.known("n2"), book.known("n3"), book.known("n4")) == ("id-2", "id-3", None)


def test_crash_in_every_operation_of_init() -> None:
    """A crash while initialising leaves a directory that is done or can be initialised again."""
    crash_at, done = 0, False
    while not done:
        crash_at += 1
        disk = SimDisk()
        disk.make_directory(DIRECTORY.parent.parent)
        disk.fsync_dir(Path("/"))
        disk.crash_at = disk.operations + crash_at
        try:
            init(disk)
            done = True
        except SimulatedCrash:
            pass
        for label, after in crash_outcomes(disk, Random(crash_at)):
            if not after.exists(DIRECTORY / "identity"):
                assert not done, label
                init(after, identity="id-2")
            data = open_data_dir(after, DIRECTORY, "c", "n1")
            Wal.open(after, data.wal_directory, identity=data.identity.identity)
    assert crash_at > 30


def test_an_identity_seen_after_a_kill_is_made_durable() -> None:
    """An identity whose name was not synced when init was killed is synced by the first open."""
    disk = SimDisk()
    disk.before = lambda operation, _: _crash_once_named(disk, operation)
    with pytest.raises(SimulatedCrash):
        init(disk)
    disk = disk.kill()
    open_data_dir(disk, DIRECTORY, "c", "n1")
    disk = disk.crash_choosing(lambda _: 0, lambda _: 0)
    assert open_data_dir(disk, DIRECTORY, "c", "n1").identity.identity == "id-1"


def _crash_once_named(disk: SimDisk, operation: str) -> None:
    if operation == "fsync_dir":
        disk.before = None
        named = disk.exists(DIRECTORY / "identity")
        disk.before = lambda operation, _: _crash_once_named(disk, operation)
        if named:
            raise SimulatedCrash


@pytest.mark.parametrize("crash_at", range(1, 12))
def test_crash_while_a_peer_is_remembered(crash_at: int) -> None:
    """The book of peers is the old one or the new one, never a broken one."""
    disk = SimDisk()
    init(disk)
    data = open_data_dir(disk, DIRECTORY, "c", "n1")
    data.peers.remember("n2", "id-2")
    disk.crash_at = disk.operations + crash_at
    done = True
    try:
        data.peers.remember("n3", "id-3")
    except SimulatedCrash:
        done = False
    for _, after in crash_outcomes(disk, Random(crash_at)):
        peers = open_data_dir(after, DIRECTORY, "c", "n1").peers
        assert peers.known("n2") == "id-2"
        assert peers.known("n3") in (("id-3",) if done else (None, "id-3"))


def test_not_initialised() -> None:
    """A directory without identity is refused and nothing is created in it."""
    disk = SimDisk()
    for path in (DIRECTORY.parent.parent, DIRECTORY.parent, DIRECTORY):
        assert (
            "not initialised: run raftkv init if this node is new. If it has lost its disk do not"
            in one_line(lambda: open_data_dir(disk, DIRECTORY, "c", "n1"))
        )
        disk.make_directory(path)
    assert "not initialised" in one_line(lambda: open_data_dir(disk, DIRECTORY, "c", "n1"))
    assert disk.listdir(DIRECTORY) == []


def test_wrong_cluster_or_node() -> None:
    """A directory of another cluster or node is refused by name, and can be opened after."""
    disk = SimDisk()
    init(disk)
    wrong_cluster = one_line(lambda: open_data_dir(disk, DIRECTORY, "d", "n1"))
    assert wrong_cluster.endswith("belongs to cluster 'c', not 'd'")
    wrong_node = one_line(lambda: open_data_dir(disk, DIRECTORY, "c", "n2"))
    assert wrong_node.endswith("belongs to node 'n1', not 'n2'")
    open_data_dir(disk, DIRECTORY, "c", "n1")


def test_initialising_twice_changes_nothing() -> None:
    """A second init is refused and the identity stays."""
    disk = SimDisk()
    minted = init(disk)
    assert "initialised already" in one_line(lambda: init(disk, identity="id-2"))
    assert open_data_dir(disk, DIRECTORY, "c", "n1").identity == minted


def test_a_directory_that_lost_its_identity_is_not_initialised_over() -> None:
    """With a used log or a snapshot but no identity, init refuses and destroys nothing."""
    disk = SimDisk()
    minted = init(disk)
    store = SnapshotStore(disk, DIRECTORY / "snapshots")
    store.begin(SnapshotHeader(GroupId(0, 0), 5, 1)).commit()
    disk.unlink(DIRECTORY / "identity")
    assert "no identity, but a snapshot" in one_line(lambda: init(disk))
    disk.unlink(DIRECTORY / "snapshots" / "group-0-0.snap")
    wal, _ = Wal.open(disk, DIRECTORY / "wal", identity=minted.identity)
    wal.set_hard_state(GroupId(0, 0), 1, None)
    job = wal.begin_sync()
    assert job is not None
    job.run()
    assert "a log is here already" in one_line(lambda: init(disk))
    Wal.open(disk, DIRECTORY / "wal", identity=minted.identity)


def test_damaged_identity() -> None:
    """Any flipped bit in the identity or peers file is a checksum error naming the file."""
    disk = SimDisk()
    init(disk)
    open_data = open_data_dir(disk, DIRECTORY, "c", "n1")
    open_data.peers.remember("n2", "id-2")
    open_data.close()
    for name in ("identity", "peers"):
        file = disk.open(DIRECTORY / name)
        for bit in range(0, file.size() * 8, 5):
            disk.flip_bit(DIRECTORY / name, bit)
            message = one_line(lambda: open_data_dir(disk, DIRECTORY, "c", "n1"))
            assert message.startswith(str(DIRECTORY / name))
            disk.flip_bit(DIRECTORY / name, bit)
    open_data_dir(disk, DIRECTORY, "c", "n1")


def test_unknown_format() -> None:
    """A file of a later version is refused, saying so."""
    disk = SimDisk()
    init(disk)
    body = b'{"format":2,"cluster_id":"c","node_name":"n1","identity":"x"}'
    disk.unlink(DIRECTORY / "identity")
    disk.create(DIRECTORY / "identity").pwrite(body + b"\ncrc32 %08x\n" % zlib.crc32(body), 0)
    assert "format 2 is unknown" in one_line(lambda: open_data_dir(disk, DIRECTORY, "c", "n1"))


def test_unwritable() -> None:
    """A directory that may not be written is one line, for init and for open."""
    disk = SimDisk()
    init(disk)
    disk.before = _deny
    assert "Permission denied" in one_line(lambda: open_data_dir(disk, DIRECTORY, "c", "n1"))
    assert "Permission denied" in one_line(lambda: init(disk))


def _deny(operation: str, path: Path) -> None:
    if operation in ("lock", "create", "make_directory"):
        raise DiskError(path, operation, "Permission denied")


def test_a_path_that_is_a_file(tmp_path: Path) -> None:
    """A data directory below a file is a one-line error on a real disk, too."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DataDirError, match="Not a directory") as caught:
        init_data_dir(RealDisk(), tmp_path / "file" / "data", "c", "n1")
    assert "\n" not in str(caught.value)


def test_a_full_disk() -> None:
    """Without room for the log, init says so and the directory can be initialised later."""
    disk = SimDisk(capacity_bytes=1000)
    assert "No space left" in one_line(lambda: init(disk))
    disk.capacity_bytes = None
    init(disk)
    open_data_dir(disk, DIRECTORY, "c", "n1")


def test_second_user_of_the_directory() -> None:
    """While it is open nobody else opens or initialises it; after close they may."""
    disk = SimDisk()
    init(disk)
    data = open_data_dir(disk, DIRECTORY, "c", "n1")
    assert "in use" in one_line(lambda: open_data_dir(disk, DIRECTORY, "c", "n1"))
    assert "in use" in one_line(lambda: init(disk))
    data.close()
    open_data_dir(disk, DIRECTORY, "c", "n1")


_HOLD = """
import os, sys
from pathlib import Path
from raftkv.storage.data_dir import open_data_dir
from raftkv.storage.disk import RealDisk
data = open_data_dir(RealDisk(), Path(sys.argv[1]), "c", "n1")
if sys.argv[2] == "fork" and os.fork() == 0:
    os.read(0, 1)  # outlives its parent
    os._exit(0)
print("ready", flush=True)
if sys.argv[2] == "hold":
    os.read(0, 1)
"""


def holder(path: Path, mode: str) -> "subprocess.Popen[bytes]":
    """Start a process that opens the directory; return when it has."""
    process = subprocess.Popen(  # noqa: S603 -- our own interpreter
        [sys.executable, "-c", _HOLD, str(path), mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def test_second_process(tmp_path: Path) -> None:
    """Another process's lock is seen, with its process id, and ends when it is killed."""
    path = tmp_path / "data"
    disk = RealDisk()
    init_data_dir(disk, path, "c", "n1", segment_bytes=SEGMENT_BYTES)
    with holder(path, "hold") as process:
        with pytest.raises(DataDirError, match=f"in use: held by process {process.pid}"):
            open_data_dir(disk, path, "c", "n1")
        process.kill()
    open_data_dir(disk, path, "c", "n1").close()


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    """A snapshot child that outlives its engine does not keep the node from restarting."""
    path = tmp_path / "data"
    disk = RealDisk()
    init_data_dir(disk, path, "c", "n1", segment_bytes=SEGMENT_BYTES)
    with holder(path, "fork") as process:
        assert process.wait() == 0
        open_data_dir(disk, path, "c", "n1").close()
