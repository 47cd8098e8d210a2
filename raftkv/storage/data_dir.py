"""The data directory of a node: whose it is, and that only one process uses it.

::

    DIR/identity    cluster id, node name and the identity minted by ``raftkv init``
    DIR/map         the cluster map (written by the engine)
    DIR/agreed      which facts a majority of the nodes has agreed to (written by the engine)
    DIR/peers       identities of the other nodes, as first seen
    DIR/lock        locked while a process uses the directory; holds its process id
    DIR/wal/        the write-ahead log
    DIR/snapshots/  one file per group

The identity is what tells a node that lost its disk from one that kept it: both come under the
same name, but the first has forgotten its votes and entries and must not count (H19). So it is
minted only by an explicit ``init``, last of all that makes a directory usable, and peers remember
it durably.
"""

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from raftkv.core.errors import StartError
from raftkv.storage.checked_file import ChecksumError, read_checked, write_checked
from raftkv.storage.disk import Disk, DiskError, DiskLock, Locked
from raftkv.storage.snapshots import SnapshotStore
from raftkv.storage.wal import SEGMENT_BYTES, Wal, WalDamaged

FORMAT: Final = 1

_IDENTITY: Final = "identity"
_PEERS: Final = "peers"
_LOCK: Final = "lock"
_WAL: Final = "wal"
_SNAPSHOTS: Final = "snapshots"


class DataDirError(StartError):
    """The directory cannot be used; one line that names it and says what to do, if anything."""


class NodeIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Contents of ``DIR/identity``."""

    format: int
    cluster_id: str
    node_name: str
    identity: str


class _Peers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    peers: dict[str, str]


_Contents = TypeVar("_Contents", NodeIdentity, _Peers)


class IdentityBook:
    """Which identity each peer had when it was first seen; kept durably."""

    def __init__(self, disk: Disk, path: Path) -> None:
        self._disk = disk
        self._path = path
        book = _read(disk, path, _Peers)
        self._peers = dict(book.peers) if book is not None else {}

    def known(self, name: str) -> str | None:
        """Identity of the peer ``name``, None if it was never seen."""
        return self._peers.get(name)

    def remember(self, name: str, identity: str) -> None:
        """Write down a peer seen for the first time; blocking, durable on return.

        A name keeps its identity for good: another one raises ValueError.
        """
        known = self._peers.get(name)
        if known == identity:
            return
        if known is not None:
            raise ValueError(f"{name} is known under another identity")
        peers = {**self._peers, name: identity}
        _write(self._disk, self._path, _Peers(FORMAT, peers))
        self._peers = peers


class DataDir:
    """An opened, locked data directory."""

    def __init__(self, disk: Disk, path: Path, lock: DiskLock, identity: NodeIdentity) -> None:
        self.path = path
        self.identity = identity
        self.peers = IdentityBook(disk, path / _PEERS)
        self.wal_directory = path / _WAL
        self.snapshot_directory = path / _SNAPSHOTS
        self._lock = lock

    def close(self) -> None:
        """Let another process have the directory."""
        self._lock.release()


def _mint_identity() -> str:
    return secrets.token_hex(16)


def init_data_dir(
    disk: Disk,
    path: Path,
    cluster_id: str,
    node_name: str,
    *,
    segment_bytes: int = SEGMENT_BYTES,
    mint: Callable[[], str] = _mint_identity,
) -> NodeIdentity:
    """Make ``path`` the data directory of a new node, durably; raises DataDirError.

    A crash leaves a directory that is not initialised; calling again finishes the work.
    """
    try:
        _make_path(disk, path)
        lock = _lock(disk, path)
        try:
            return _init(
                disk, path, NodeIdentity(FORMAT, cluster_id, node_name, mint()), segment_bytes
            )
        finally:
            lock.release()
    except (DiskError, WalDamaged) as error:
        raise DataDirError(f"cannot initialise data directory {path}: {error}") from error


def open_data_dir(disk: Disk, path: Path, cluster_id: str, node_name: str) -> DataDir:
    """Lock the directory and check that it is this node's; raises DataDirError.

    The caller keeps the result for as long as it uses the directory, and closes it last.
    """
    try:
        if not disk.exists(path / _IDENTITY):
            # Before locking, which would create a file in a directory that is not ours.
            raise _not_initialised(path)
        lock = _lock(disk, path)
        try:
            return _open(disk, path, lock, cluster_id, node_name)
        except BaseException:
            lock.release()
            raise
    except DiskError as error:
        raise DataDirError(f"cannot use data directory {path}: {error}") from error


def _init(disk: Disk, path: Path, identity: NodeIdentity, segment_bytes: int) -> NodeIdentity:
    if disk.exists(path / _IDENTITY):
        raise DataDirError(f"data directory {path} is initialised already; nothing was changed")
    snapshots = path / _SNAPSHOTS
    disk.make_directory(snapshots)
    if left := SnapshotStore(disk, snapshots).groups():
        raise DataDirError(
            f"data directory {path} has no identity, but a snapshot of group {left[0]}; "
            f"nothing was changed"
        )
    Wal.create(disk, path / _WAL, identity=identity.identity, segment_bytes=segment_bytes)
    disk.fsync_dir(path)
    _write(disk, path / _IDENTITY, identity)
    return identity


def _open(disk: Disk, path: Path, lock: DiskLock, cluster_id: str, node_name: str) -> DataDir:
    identity = _read(disk, path / _IDENTITY, NodeIdentity)
    if identity is None:
        raise _not_initialised(path)
    for what, found, wanted in (
        ("cluster", identity.cluster_id, cluster_id),
        ("node", identity.node_name, node_name),
    ):
        if found != wanted:
            raise DataDirError(f"data directory {path} belongs to {what} {found!r}, not {wanted!r}")
    # The identity's rename may be visible here without being durable.
    disk.fsync_dir(path)
    return DataDir(disk, path, lock, identity)


def _not_initialised(path: Path) -> DataDirError:
    return DataDirError(
        f"data directory {path} is not initialised: run raftkv init if this node is new. If it has "
        "lost its disk do not: it has forgotten its votes, and under another identity the other "
        "nodes refuse it for good (docs/operations.md, A disk is lost)"
    )


def _make_path(disk: Disk, path: Path) -> None:
    """Make ``path`` and the parents it lacks, durably.

    One that exists may be left from an attempt that was killed before it synced the parent.
    """
    if not disk.exists(path):
        _make_path(disk, path.parent)
        disk.make_directory(path)
    disk.fsync_dir(path.parent)


def _lock(disk: Disk, path: Path) -> DiskLock:
    try:
        return disk.lock(path / _LOCK)
    except Locked as error:
        raise DataDirError(f"data directory {path} is in use: {error.reason}") from error


def _write(disk: Disk, path: Path, contents: NodeIdentity | _Peers) -> None:
    write_checked(disk, path, msgspec.json.encode(contents))


def _read(disk: Disk, path: Path, kind: type[_Contents]) -> _Contents | None:
    """Read such a file; None if there is none; DataDirError if it is not whole."""
    try:
        body = read_checked(disk, path)
        if body is None:
            return None
        contents = msgspec.json.decode(body, type=kind)
    except ChecksumError as error:
        raise DataDirError(str(error)) from error
    except msgspec.DecodeError as error:
        raise DataDirError(f"{path}: not understood: {error}") from error
    if contents.format != FORMAT:
        raise DataDirError(
            f"{path}: format {contents.format} is unknown to this version (it knows {FORMAT})"
        )
    return contents
