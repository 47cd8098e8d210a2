"""A shard's keys in order, what they hold, and what is counted of it.

**Memory.** An entry is a struct that the garbage collector does not know, its key is the very
object in the index, and its create revision is shared with its mod revision until it is
overwritten.

Only this module knows what a ``SortedDict`` is inside: a dict, with a list of lists of its keys
beside it. What changes no key may pass the lists by.
"""

from collections.abc import Callable, Iterator
from itertools import islice

import msgspec
from mmh3 import mmh3_x64_128_uintdigest
from sortedcontainers import SortedDict

from raftkv.core.errors import CorruptSnapshot
from raftkv.core.operations import GetResult, KeyValue, Put, Range, RangeResult
from raftkv.core.shard.changes import Change
from raftkv.core.shard.sections import KeyValuePiece, RecordPiece, key_value_pieces

RANGE_ENTRIES_MAX = 10_000
RANGE_BYTES_MAX = 8 * 2**20
"""No range returns more, whatever it asks for: a bigger one would hold up the whole engine."""

DISMANTLE_ENTRIES = 1024
"""Entries freed in one step of :meth:`Keyspace.dismantle`."""

_MISSING = GetResult(None)

_encode = msgspec.msgpack.Encoder().encode


class Keyspace:
    """The entries of a shard. Deterministic: all changes come from the log."""

    __slots__ = ("_entries", "bytes_total", "changes", "find", "hash")

    name = "entries"
    numbers: tuple[int, ...] = ()

    def __init__(self) -> None:
        self._entries: SortedDict[bytes, KeyValue] = SortedDict()
        self.find: Callable[[bytes], KeyValue | None] = self._entries.get
        """Return the entry of a key, None if there is none."""
        self.bytes_total = 0
        """Bytes of all keys and values."""
        self.hash = 0
        """Exclusive or of the hashes of all entries."""
        self.changes: list[Change] | None = None
        """What is told of every change; None: nobody asks."""

    def __len__(self) -> int:
        """Return how many keys exist."""
        return len(self._entries)

    # --- reads ---

    def get(self, key: bytes) -> GetResult:
        """Read one key."""
        entry = self.find(key)
        return _MISSING if entry is None else GetResult(entry)

    def range(self, query: Range) -> RangeResult:
        """Read entries in key order, bounded by the query and by this module's limits."""
        limit = min(query.limit, RANGE_ENTRIES_MAX)
        bytes_left = min(query.bytes_max, RANGE_BYTES_MAX)
        found: list[KeyValue] = []
        for key in self._keys_in(query):
            if len(found) >= limit:
                return RangeResult(tuple(found), more=True)
            entry = self._entries[key]
            if query.keys_only:
                entry = _without_value(entry)
            bytes_left -= len(entry.key) + len(entry.value)
            if bytes_left < 0 and found:
                return RangeResult(tuple(found), more=True)
            found.append(entry)
        return RangeResult(tuple(found), more=False)

    def first_keys(self, query: Range, count: int) -> Iterator[bytes]:
        """Yield the first ``count`` keys of a range."""
        return islice(self._keys_in(query), count)

    def _keys_in(self, query: Range) -> Iterator[bytes]:
        if query.end is not None and query.end <= query.start:
            return iter(())
        found: Iterator[bytes] = self._entries.irange(
            query.start, query.end, inclusive=(True, False)
        )
        return found

    # --- writes ---

    def put(self, put: Put, old: KeyValue | None, revision: int) -> int:
        """Set a key, whose entry until now is ``old``, and return its version."""
        value = put.value
        if old is None:
            version = 1
            entry = KeyValue(put.key, value, revision, revision, version)
            self._add(entry)
        else:
            # The old key object: the index keeps it, so the new one would be a second copy.
            key, version = old.key, old.version + 1
            entry = KeyValue(key, value, old.create_revision, revision, version)
            # Fast path of `_drop` and `_add`: the index has the key already.
            self.bytes_total += len(value) - len(old.value)
            self.hash ^= mmh3_x64_128_uintdigest(_encode(old)) ^ mmh3_x64_128_uintdigest(
                _encode(entry)
            )
            dict.__setitem__(self._entries, key, entry)
        if self.changes is not None:
            self.changes.append(Change(put.key, revision, old, entry))
        return version

    def delete(self, old: KeyValue, revision: int) -> None:
        """Remove the key whose entry is ``old``."""
        self._drop(old)
        if self.changes is not None:
            self.changes.append(Change(old.key, revision, old, None))

    def _add(self, entry: KeyValue) -> None:
        self._entries[entry.key] = entry
        self.bytes_total += len(entry.key) + len(entry.value)
        self.hash ^= mmh3_x64_128_uintdigest(_encode(entry))

    def _drop(self, old: KeyValue) -> None:
        del self._entries[old.key]
        self.bytes_total -= len(old.key) + len(old.value)
        self.hash ^= mmh3_x64_128_uintdigest(_encode(old))

    # --- as a section ---

    @property
    def counts(self) -> tuple[int, ...]:
        """How many keys exist."""
        return (len(self._entries),)

    def pieces(self) -> Iterator[KeyValuePiece]:
        """Yield all entries, in key order."""
        return key_value_pieces(self._entries.values())

    def recomputed_hash(self) -> int:
        """Return the hash computed from the entries, in time proportional to them."""
        recomputed = 0
        for entry in self._entries.values():
            recomputed ^= mmh3_x64_128_uintdigest(_encode(entry))
        return recomputed

    def restore(self, piece: KeyValuePiece | RecordPiece) -> None:
        """Add entries of a snapshot; raise :class:`CorruptSnapshot` for anything else."""
        if not isinstance(piece, KeyValuePiece):
            raise CorruptSnapshot("not a piece of a snapshot's entries")
        for entry in piece.entries:
            self._add(entry)

    def restore_numbers(self, numbers: tuple[int, ...]) -> None:
        """There are none; raise :class:`CorruptSnapshot` if there are."""
        if numbers:
            raise CorruptSnapshot("a snapshot's entries have no numbers")

    def succeed(self, owns: Callable[[bytes], bool]) -> None:
        """Keep what the successor owns: a sealed group may have several."""
        for entry in [entry for entry in self._entries.values() if not owns(entry.key)]:
            self._drop(entry)

    def dismantle(self) -> Iterator[None]:
        """Free the entries, a slice per step; what is taken apart may not be used again.

        Dropping a million keys frees three million objects in one go, and nothing else runs for a
        tenth of a second or more. A slice takes less than a millisecond.
        """
        entries = self._entries
        while entries:
            for _ in range(min(DISMANTLE_ENTRIES, len(entries))):
                dict.popitem(entries)  # past the index: keeping it right would cost ten times more
            yield
        lists = entries._list._lists  # noqa: SLF001 -- what is left is in pieces of a slice's size
        while lists:
            lists.pop()
            yield


def _without_value(entry: KeyValue) -> KeyValue:
    return KeyValue(entry.key, b"", entry.create_revision, entry.mod_revision, entry.version)
