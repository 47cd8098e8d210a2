"""Why a node cannot start, and what decoding the formats of this package can raise.

``raftkv serve`` catches one root, and ends with one line::

    StartError
    ├── ConfigError        node.toml (cli/config.py)
    ├── InvalidOption      an option of it (engine/config.py)
    ├── PidFileError       node.pid_file (engine/pidfile.py)
    ├── SecurityError      certificates, keys and secrets (engine/security.py)
    ├── ListenError        an address (engine/workers.py)
    ├── SocketInUseError   the engine's socket (rpc/server.py)
    ├── DataDirError       the data directory: identity, map (storage/data_dir.py)
    ├── DiskError          the disk (storage/disk.py)
    ├── WalDamaged         the write-ahead log (storage/wal_format.py)
    ├── SnapshotDamaged    a snapshot's file (storage/snapshots.py)
    ├── ReplicaUnreadable  a snapshot's contents (engine/replicas.py)
    ├── ReplicaError       a group cannot keep its promises (raft/errors.py)
    └── UndecodableError   bytes: either known, or refused whole
        ├── UnknownFormat     a version that this program does not speak (upgrade it, lose nothing)
        ├── CorruptBatch      a Raft entry that is not a batch
        ├── CorruptMap        a cluster map that is malformed or contradicts itself
        └── CorruptSnapshot   a snapshot that is malformed or whose digest does not match

Some of them are met by a running node too: its disk may fail. There whoever meets one decides.
"""

import msgspec

DECODE_FAILURES = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""All that msgspec raises for bytes that are not what they should be: text that is not UTF-8 and
nesting without end have exceptions of their own, which ``except msgspec.DecodeError`` misses."""


class StartError(Exception):
    """The node cannot start; the message is one line that names the file or option."""


class UndecodableError(StartError, ValueError):
    """Bytes that this version cannot turn into a value; nothing of them was used."""


class UnknownFormat(UndecodableError):  # noqa: N818 -- the name the whole project uses
    """A format version other than the one known here.

    Not damage: a newer node wrote it. Skipping it would make replicas differ, so whoever meets
    it stops instead.
    """


class CorruptBatch(UndecodableError):  # noqa: N818 -- says what it is
    """A log entry that is not an encoded batch of this format."""


class CorruptMap(UndecodableError):  # noqa: N818 -- says what it is
    """A cluster map that is malformed or contradicts itself."""


class CorruptSnapshot(UndecodableError):  # noqa: N818 -- says what it is
    """Snapshot records that are malformed, incomplete, or do not add up to their digest."""
