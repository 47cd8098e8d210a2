"""The state of one shard: a pure, total, deterministic function of its log.

Every replica applies the same batches in the same order and must come to the same state and the
same answers, so nothing here looks at a clock, draws a number or does I/O, and :meth:`apply` never
raises: what cannot be done is a result (:class:`~raftkv.core.operations.Refused`).

**Revisions.** A write gets ``max(last revision + 1, the batch's clock)``: strictly increasing in
the shard, and a time in microseconds that a person can read. All writes of one transaction get
the same revision, as in etcd. The clock is clamped, so that a leader with a wild clock cannot use
the numbers up: half of them are left to count.

**Digest.** Each replica keeps a 128-bit hash of its whole contents, updated with each write by
exclusive or of the hashes of what went and what came, so comparing replicas costs nothing. It
finds faults, not forgers: mmh3 is not keyed.

**Memory.** An entry is a struct that the garbage collector does not know, its key is the very
object in the index, and its create revision is shared with its mod revision until it is
overwritten.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeVar

import msgspec
from mmh3 import mmh3_x64_128_uintdigest
from sortedcontainers import SortedDict

from raftkv.core.errors import DECODE_FAILURES, CorruptSnapshot
from raftkv.core.idempotency import (
    RECORD_BYTES,
    MemoryLimits,
    Outcome,
    OutcomeMemory,
    fingerprint_of,
)
from raftkv.core.operations import (
    BATCH_FORMAT,
    Batch,
    Command,
    Compare,
    Delete,
    DeleteResult,
    Done,
    Entry,
    Forget,
    Get,
    GetResult,
    Idempotency,
    Put,
    PutResult,
    Range,
    RangeResult,
    Refused,
    Seal,
    Txn,
    TxnResult,
    WriteResult,
)
from raftkv.core.snapshot import (
    SNAPSHOT_FORMAT,
    EntryPiece,
    MemoryPiece,
    SnapshotHeader,
    decode_header,
    decode_piece,
    encode_header,
    pieces,
)

CLOCK_US_MAX = 2**52
"""Proposed clocks above this (the year 2112) count as this; 2^52 revisions remain above it."""

RANGE_ENTRIES_MAX = 10_000
RANGE_BYTES_MAX = 8 * 2**20
"""No range returns more, whatever it asks for: a bigger one would hold up the whole engine."""

TXN_READ_BYTES_MAX = 8 * 2**20
"""What one transaction may read; one that could read more is refused before it writes anything,
because its outcome may have to be remembered."""

RESULT_BYTES = 48
"""What each result of a transaction, and each entry that it has read, takes in its outcome beside
key and value, at most."""

DISMANTLE_ENTRIES = 1024
"""Entries freed in one step of :meth:`StateMachine.dismantle`."""

_MOVED = Refused("moved")
_MISSING = GetResult(None)
_NOTHING_DELETED = DeleteResult(deleted=False, revision=None)
_DONE = Done()

_encode = msgspec.msgpack.Encoder().encode

_Comparable = TypeVar("_Comparable", int, bytes)


class StateMachine:
    """One shard's keys, and what it remembers of writes.

    Args:
        generation: The group's generation; batches of another one are refused as moved.
        owns: Whether a key belongs to the shard. Must be a pure function, the same on all
            replicas for the whole generation.
        limits: Of the idempotency memory; the same on all replicas.
    """

    __slots__ = (
        "_entries",
        "_entries_hash",
        "_floor",
        "_format",
        "_owns",
        "bytes_total",
        "generation",
        "last_revision",
        "memory",
        "sealed_for",
    )

    def __init__(
        self,
        generation: int,
        owns: Callable[[bytes], bool],
        limits: MemoryLimits = MemoryLimits(),  # noqa: B008 - immutable
    ) -> None:
        self._owns = owns
        self._entries: SortedDict[bytes, Entry] = SortedDict()
        self._entries_hash = 0
        self._floor = 0  # lowest revision that the batch being applied may give
        self._format = BATCH_FORMAT  # of that batch
        self.generation = generation
        self.last_revision = 0
        """The newest write's revision, 0 before the first."""
        self.bytes_total = 0
        """Bytes of all keys and values."""
        self.memory = OutcomeMemory(limits)
        """The idempotency memory; read only for others."""
        self.sealed_for: int | None = None
        """The successor's generation, None while the group is not sealed."""

    # --- what it is ---

    @property
    def key_count(self) -> int:
        """How many keys exist."""
        return len(self._entries)

    @property
    def sealed(self) -> bool:
        """Whether the last command of this generation has been applied."""
        return self.sealed_for is not None

    @property
    def digest(self) -> int:
        """128 bits over everything that replicas must agree on, at no cost."""
        return self._entries_hash ^ self.memory.hash ^ self._hash_of_numbers()

    def recomputed_digest(self) -> int:
        """Return the digest computed from the contents, in time proportional to them.

        It differs from :attr:`digest` only if memory was damaged or the bookkeeping is wrong.
        """
        again = OutcomeMemory(MemoryLimits())
        for record in self.memory.records():
            again.restore_record(record)
        entries_hash = 0
        for entry in self._entries.values():
            entries_hash ^= _hash_of(entry)
        return entries_hash ^ again.hash ^ self._hash_of_numbers()

    def _hash_of_numbers(self) -> int:
        memory = self.memory
        numbers: tuple[int | None, ...] = (self.last_revision, self.sealed_for, memory.epoch)
        if memory.forgotten_birth:  # 0 is left out, as it was in snapshots of format 1
            numbers = (*numbers, memory.forgotten_birth)
        return mmh3_x64_128_uintdigest(_encode(numbers))

    def free_keys(self) -> Iterator[str]:
        """Yield the free-form idempotency keys, longest unused first."""
        return self.memory.free_keys()

    def sessions(self) -> Iterator[str]:
        """Yield the sessions' names, longest unused first."""
        return self.memory.sessions()

    # --- reads ---

    def get(self, key: bytes) -> GetResult:
        """Read one key."""
        entry = self._entries.get(key)
        return _MISSING if entry is None else GetResult(entry)

    def range(self, query: Range) -> RangeResult:
        """Read entries in key order, bounded by the query and by this module's limits."""
        limit = min(query.limit, RANGE_ENTRIES_MAX)
        bytes_left = min(query.bytes_max, RANGE_BYTES_MAX)
        found: list[Entry] = []
        if query.end is not None and query.end <= query.start:
            return RangeResult((), more=False)
        for key in self._entries.irange(query.start, query.end, inclusive=(True, False)):
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

    def read_only_txn(self, txn: Txn) -> TxnResult | Refused:
        """Run a transaction that only reads, outside of the log.

        Raises:
            ValueError: It has a put or delete in a branch; such a one must go through the log.
        """
        if not is_read_only(txn):
            raise ValueError("a transaction that writes must go through the log")
        return self._txn(txn, BATCH_FORMAT)

    # --- writes ---

    def apply(self, batch: Batch) -> list[WriteResult]:
        """Apply one entry of the log; return one result per command, in order."""
        if batch.generation != self.generation:
            return [_MOVED] * len(batch.commands)
        self._floor = min(batch.clock_us, CLOCK_US_MAX)
        self._format = batch.format
        apply = self._apply
        return [apply(command) for command in batch.commands]

    def _apply(self, command: Command) -> WriteResult:
        if self.sealed_for is not None:
            return _MOVED
        operation = command.operation
        if isinstance(operation, Put) and command.idempotency is None:  # nearly all there are
            old = self._entries.get(operation.key)
            # What is here is owned, and to ask takes a third of a put that overwrites.
            if old is None and not self._owns(operation.key):
                return _MOVED
            return self._put(operation, old)
        return self._apply_other(command, operation)

    def _apply_other(
        self, command: Command, operation: Put | Delete | Txn | Forget | Seal
    ) -> WriteResult:
        if isinstance(operation, Forget):
            self.memory.forget(operation)
            return _DONE
        if isinstance(operation, Seal):
            return self._seal(operation)
        # Before the memory is asked: what another group owns must leave no trace in this one.
        if not self._owns_all(operation):
            return _MOVED
        if command.idempotency is None:
            return self._execute(operation)
        return self._execute_once(command.idempotency, operation)

    def _execute_once(self, name: Idempotency, operation: Put | Delete | Txn) -> Outcome:
        if isinstance(operation, Txn) and is_read_only(operation):
            return self._execute(operation)  # doing it again does no harm, keeping it costs memory
        fingerprint = fingerprint_of(operation)
        record_bytes = self._record_bytes(operation) if isinstance(operation, Txn) else RECORD_BYTES
        remembered = self.memory.recall(
            name, fingerprint, unborn=self._format == 1, record_bytes=record_bytes
        )
        if remembered is not None:
            return remembered
        outcome = self._execute(operation)
        self.memory.remember(name, fingerprint, outcome)
        return outcome

    def _record_bytes(self, txn: Txn) -> int:
        """Bound what the outcome of a transaction takes in the memory, whichever branch runs."""
        return RECORD_BYTES + max(map(self._outcome_bytes, (txn.then, txn.otherwise)))

    def _outcome_bytes(self, branch: tuple[Put | Delete | Get | Range, ...]) -> int:
        # What would read more is refused, which is a small outcome.
        read = min(self._bytes_read(branch, self._format), TXN_READ_BYTES_MAX)
        entries = len(branch)
        for part in branch:
            if isinstance(part, Range):
                entries += min(max(0, part.limit), max(0, part.bytes_max), RANGE_ENTRIES_MAX)
        return read + RESULT_BYTES * entries

    def _owns_all(self, operation: Put | Delete | Txn) -> bool:
        if not isinstance(operation, Txn):
            return operation.key in self._entries or self._owns(operation.key)
        return all(
            self._owns(part.start if isinstance(part, Range) else part.key)
            for part in (*operation.compare, *operation.then, *operation.otherwise)
        )

    def _execute(self, operation: Put | Delete | Txn) -> Outcome:
        if isinstance(operation, Put):
            return self._put(operation, self._entries.get(operation.key))
        if isinstance(operation, Delete):
            return self._delete(operation)
        return self._txn(operation, self._format)

    def _put(self, put: Put, old: Entry | None) -> PutResult | Refused:
        if put.if_absent and old is not None:
            return Refused("precondition", old.mod_revision)
        if put.if_revision is not None and not _is_at(old, put.if_revision):
            return _precondition_failed(old)
        # What follows runs for nearly every command: _next_revision, inlined.
        revision = self.last_revision + 1
        if revision < self._floor:  # noqa: PLR1730 - a call of max() takes longer
            revision = self._floor
        self.last_revision = revision
        return PutResult(revision, self._store(put, old, revision))

    def _delete(self, delete: Delete) -> DeleteResult | Refused:
        old = self._entries.get(delete.key)
        if delete.if_revision is not None and not _is_at(old, delete.if_revision):
            return _precondition_failed(old)
        if old is None:
            return _NOTHING_DELETED
        self.last_revision = revision = self._next_revision()
        self._remove(old)
        return DeleteResult(deleted=True, revision=revision)

    def _txn(self, txn: Txn, form: int) -> TxnResult | Refused:
        # Checked upstream; here only so that a condition is never silently ignored.
        if any(_is_conditional(part) for part in (*txn.then, *txn.otherwise)):
            return Refused("precondition")
        succeeded = all(self._holds(comparison, form) for comparison in txn.compare)
        branch = txn.then if succeeded else txn.otherwise
        if self._bytes_read(branch, form) > TXN_READ_BYTES_MAX:
            return Refused("too_large")
        revision = self._next_revision()
        results = tuple(self._part(part, revision) for part in branch)
        wrote = any(
            isinstance(result, PutResult) or (isinstance(result, DeleteResult) and result.deleted)
            for result in results
        )
        if not wrote:
            return TxnResult(succeeded, None, results)
        self.last_revision = revision
        return TxnResult(succeeded, revision, results)

    def _bytes_read(self, parts: tuple[Put | Delete | Get | Range, ...], form: int) -> int:
        """Bound what a branch reads, before it writes anything: its outcome may be kept.

        In batches of format 1 a range counts with what it asks for, though it returns one entry
        of any size: such outcomes could be too large for a snapshot.
        """
        written = {part.key: len(part.value) for part in parts if isinstance(part, Put)}
        deletes = sum(isinstance(part, Delete) for part in parts)
        total = 0
        for part in parts:
            if isinstance(part, Range):
                asked = min(max(0, part.bytes_max), RANGE_BYTES_MAX)
                first = 0 if form == 1 else self._first_bytes(part, written, deletes)
                total += max(asked, first)
            elif isinstance(part, Get):
                entry = self._entries.get(part.key)
                there = 0 if entry is None else len(entry.value)
                total += len(part.key) + max(there, written.get(part.key, 0))
        return total

    def _first_bytes(self, query: Range, written: dict[bytes, int], deletes: int) -> int:
        """Bound the first entry of a range, whatever the branch does before it reads it.

        It is one of the first that are there, as those before it may be deleted, or one that is
        put.
        """
        if query.end is not None and query.end <= query.start:
            return 0
        there = self._entries.irange(query.start, query.end, inclusive=(True, False))
        put = (key for key in written if _is_in(key, query))
        sizes = [0]
        for key in (*islice(there, deletes + 1), *put):
            entry = self._entries.get(key)
            value = 0 if entry is None else len(entry.value)
            value = 0 if query.keys_only else max(value, written.get(key, 0))
            sizes.append(len(key) + value)
        return max(sizes)

    def _part(
        self, part: Put | Delete | Get | Range, revision: int
    ) -> PutResult | DeleteResult | GetResult | RangeResult:
        if isinstance(part, Put):
            return PutResult(revision, self._store(part, self._entries.get(part.key), revision))
        if isinstance(part, Get):
            return self.get(part.key)
        if isinstance(part, Range):
            return self.range(part)
        old = self._entries.get(part.key)
        if old is None:
            return _NOTHING_DELETED
        self._remove(old)
        return DeleteResult(deleted=True, revision=revision)

    def _holds(self, comparison: Compare, form: int) -> bool:
        entry = self._entries.get(comparison.key)
        operand = comparison.operand
        if comparison.target == "value":
            if entry is None and form != 1:
                return False
            value = b"" if entry is None else entry.value
            return isinstance(operand, bytes) and _compares(value, comparison.operator, operand)
        number = 0 if entry is None else _number(entry, comparison.target)
        # An operand of the wrong type holds for no operator, not even "!=".
        return isinstance(operand, int) and _compares(number, comparison.operator, operand)

    def _seal(self, seal: Seal) -> WriteResult:
        if seal.successor_generation <= self.generation:
            return Refused("precondition")
        self.sealed_for = seal.successor_generation
        return _DONE

    # --- the contents ---

    def _next_revision(self) -> int:
        return max(self.last_revision + 1, self._floor)

    def _store(self, put: Put, old: Entry | None, revision: int) -> int:
        """Set the key and return its version."""
        value = put.value
        if old is None:
            entry = Entry(put.key, value, revision, revision, 1)
            self.bytes_total += len(put.key) + len(value)
            self._entries_hash ^= _hash_of(entry)
            self._entries[entry.key] = entry
            return 1
        # The old key object: the index keeps it, so the new one would be a second copy.
        key, version = old.key, old.version + 1
        entry = Entry(key, value, old.create_revision, revision, version)
        self.bytes_total += len(value) - len(old.value)
        # _hash_of, inlined, and no search in the index, which has the key: this is most of a put.
        self._entries_hash ^= mmh3_x64_128_uintdigest(_encode(old)) ^ mmh3_x64_128_uintdigest(
            _encode(entry)
        )
        dict.__setitem__(self._entries, key, entry)
        return version

    def _remove_foreign(self) -> None:
        """Keep only what this shard owns: a sealed group may have several successors."""
        for entry in [entry for entry in self._entries.values() if not self._owns(entry.key)]:
            self._remove(entry)

    def _remove(self, old: Entry) -> None:
        del self._entries[old.key]
        self.bytes_total -= len(old.key) + len(old.value)
        self._entries_hash ^= _hash_of(old)

    # --- snapshots ---

    def snapshot_records(self) -> Iterator[bytes]:
        """Yield the state as records of bounded size, the header first.

        Nothing may be applied until the last record is out: the state must stand still, as it
        does in a forked child. A record holds up to 256 entries or 64 KiB, or one larger entry.
        """
        memory = self.memory
        yield encode_header(
            SnapshotHeader(
                format=SNAPSHOT_FORMAT,
                generation=self.generation,
                last_revision=self.last_revision,
                sealed_for=self.sealed_for,
                epoch=memory.epoch,
                digest=self.digest.to_bytes(16, "big"),
                key_count=len(self._entries),
                outcome_count=len(memory),
                session_count=memory.session_count,
                forgotten_birth=memory.forgotten_birth,
                owner_count=memory.owner_count,
            )
        )
        yield from pieces(self._entries.values(), memory.records())

    @classmethod
    def restore(
        cls,
        generation: int,
        owns: Callable[[bytes], bool],
        limits: MemoryLimits = MemoryLimits(),  # noqa: B008 - immutable
    ) -> "Restorer":
        """Return what builds a state machine of ``generation`` from snapshot records.

        The snapshot must be of that generation, or of one sealed for it: then the new group
        starts, unsealed, from all that the sealed one held and the new one owns.
        """
        return Restorer(cls(generation, owns, limits))

    def dismantle(self) -> Iterator[None]:
        """Free the entries, a slice per step; a state that is taken apart may not be used again.

        Dropping a state of a million keys frees three million objects in one go, and nothing else
        runs for a tenth of a second or more. A slice takes less than a millisecond.
        """
        entries = self._entries
        while entries:
            for _ in range(min(DISMANTLE_ENTRIES, len(entries))):
                dict.popitem(entries)  # past the index: keeping it right would cost ten times more
            yield
        lists = entries._list._lists  # noqa: SLF001 - what is left is in pieces of a slice's size
        while lists:
            lists.pop()
            yield

    def _restore_entries(self, entries: tuple[Entry, ...]) -> None:
        for entry in entries:
            self._entries[entry.key] = entry
            self._entries_hash ^= _hash_of(entry)
            self.bytes_total += len(entry.key) + len(entry.value)

    def _begin_as(self, header: SnapshotHeader) -> None:
        self.last_revision = header.last_revision
        self.memory.epoch = header.epoch
        self.memory.forgotten_birth = header.forgotten_birth
        self.sealed_for = header.sealed_for


class Restorer:
    """Builds a state machine from snapshot records, a bounded slice of work per record.

    A state that failed half-way is never seen: only :meth:`finish` hands it out, after counts and
    digest have been found right.
    """

    def __init__(self, state: StateMachine) -> None:
        self._state = state
        self._header: SnapshotHeader | None = None
        self._parts: list[bytes] = []

    def feed(self, record: bytes) -> None:
        """Take the next record.

        Raises:
            UnknownFormat: A newer version wrote the snapshot.
            CorruptSnapshot: The record is malformed, or of another generation.
        """
        if self._header is None:
            self._header = self._begin(decode_header(record))
            return
        piece = decode_piece(record)
        if isinstance(piece, EntryPiece):
            self._state._restore_entries(piece.entries)  # noqa: SLF001 - same module
            return
        if isinstance(piece, MemoryPiece):
            self._restore_memory(piece.records)
            return
        self._parts.append(piece.data)
        if piece.last:
            self._restore_memory((b"".join(self._parts),))
            self._parts = []

    def finish(self) -> StateMachine:
        """Return the state machine.

        Raises:
            CorruptSnapshot: Records are missing, repeated or altered.
        """
        state, header = self._state, self._header
        if header is None:
            raise CorruptSnapshot("the snapshot has no header")
        memory = state.memory
        counts = (state.key_count, len(memory), memory.session_count, memory.owner_count)
        owner_count = header.owner_count or 0
        if counts != (header.key_count, header.outcome_count, header.session_count, owner_count):
            raise CorruptSnapshot("the snapshot is not complete")
        if state.digest != int.from_bytes(header.digest, "big"):
            raise CorruptSnapshot("the snapshot's contents do not match its digest")
        if header.generation != state.generation:
            state.sealed_for = None
            state._remove_foreign()  # noqa: SLF001 - same module
        return state

    def _begin(self, header: SnapshotHeader) -> SnapshotHeader:
        generation = self._state.generation
        if generation not in {header.generation, header.sealed_for}:
            raise CorruptSnapshot(
                f"a snapshot of generation {header.generation} cannot start {generation}"
            )
        self._state._begin_as(header)  # noqa: SLF001 - same module
        return header

    def _restore_memory(self, records: tuple[bytes, ...]) -> None:
        try:
            for record in records:
                self._state.memory.restore_record(record)
        except (*DECODE_FAILURES, KeyError) as error:
            raise CorruptSnapshot(f"not a record of the idempotency memory: {error}") from error


def is_read_only(txn: Txn) -> bool:
    """Return whether neither branch of a transaction can write."""
    return not any(isinstance(part, Put | Delete) for part in (*txn.then, *txn.otherwise))


def _is_in(key: bytes, query: Range) -> bool:
    return query.start <= key and (query.end is None or key < query.end)


def _hash_of(entry: Entry) -> int:
    return mmh3_x64_128_uintdigest(_encode(entry))


def _is_at(entry: Entry | None, revision: int) -> bool:
    return entry is not None and entry.mod_revision == revision


def _precondition_failed(entry: Entry | None) -> Refused:
    return Refused("precondition", None if entry is None else entry.mod_revision)


def _is_conditional(part: Put | Delete | Get | Range) -> bool:
    if isinstance(part, Put):
        return part.if_absent or part.if_revision is not None
    return isinstance(part, Delete) and part.if_revision is not None


def _without_value(entry: Entry) -> Entry:
    return Entry(entry.key, b"", entry.create_revision, entry.mod_revision, entry.version)


def _number(entry: Entry, target: str) -> int:
    if target == "create":
        return entry.create_revision
    return entry.mod_revision if target == "mod" else entry.version


def _compares(left: _Comparable, operator: str, right: _Comparable) -> bool:
    if operator == "=":
        return left == right
    if operator == "!=":
        return left != right
    return left < right if operator == "<" else left > right
