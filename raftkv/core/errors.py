"""What decoding the formats of this package can raise: bytes are either known, or refused whole.

``UndecodableError`` is the root, so that a caller who only wants to stop can catch one name::

    UndecodableError
    ├── UnknownFormat     a version that this program does not speak (upgrade it, lose nothing)
    ├── CorruptBatch      a Raft entry that is not a batch
    ├── CorruptMap        a cluster map that is malformed or contradicts itself
    └── CorruptSnapshot   a snapshot that is malformed or whose digest does not match
"""

import msgspec

DECODE_FAILURES = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""All that msgspec raises for bytes that are not what they should be: text that is not UTF-8 and
nesting without end have exceptions of their own, which ``except msgspec.DecodeError`` misses."""


class UndecodableError(ValueError):
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
