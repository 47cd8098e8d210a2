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

**Fast paths.** Where a shorter way is taken for what comes often, a comment says ``Fast path of``
what it is equal to, and ``tests/core/test_fast_paths.py`` holds each of them to that.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from operator import xor
from typing import ClassVar, NamedTuple

import msgspec
from mmh3 import mmh3_x64_128_uintdigest

from raftkv.core.errors import CorruptSnapshot, UnknownFormat
from raftkv.core.operations import (
    BATCH_FORMAT,
    Batch,
    Command,
    Delete,
    DeleteResult,
    Done,
    Forget,
    GetResult,
    Idempotency,
    KeyValue,
    KeyWrite,
    LoggedOperation,
    Outcome,
    Put,
    PutResult,
    Range,
    RangeResult,
    Refused,
    Seal,
    Txn,
    TxnResult,
    WriteResult,
    is_read_only,
)
from raftkv.core.shard import transactions
from raftkv.core.shard.changes import Change
from raftkv.core.shard.keyspace import Keyspace
from raftkv.core.shard.outcomes import RECORD_BYTES, MemoryLimits, OutcomeMemory, fingerprint_of
from raftkv.core.shard.sections import KeyValuePiece, RecordPart, RecordPiece, Section
from raftkv.core.shard.snapshot import (
    SNAPSHOT_FORMAT,
    SectionHeader,
    SnapshotHeader,
    decode_header,
    decode_record,
    encode_record,
)

CLOCK_US_MAX = 2**52
"""Proposed clocks above this (the year 2112) count as this; 2^52 revisions remain above it."""

_MOVED = Refused("moved")
_NOTHING_DELETED = DeleteResult(deleted=False, revision=None)
_DONE = Done()

_encode = msgspec.msgpack.Encoder().encode


class _Write(NamedTuple):
    """How an operation of clients is done, and the keys that it names."""

    keys: Callable[..., Iterable[bytes]]
    execute: Callable[..., Outcome]


def _key_of(operation: KeyWrite) -> tuple[bytes]:
    return (operation.key,)


class StateMachine:
    """One shard's keys, and what it remembers of writes.

    Args:
        generation: The group's generation; batches of another one are refused as moved.
        owns: Whether a key belongs to the shard. Must be a pure function, the same on all
            replicas for the whole generation.
        limits: Of the idempotency memory; the same on all replicas.
    """

    __slots__ = (
        "_find",
        "_floor",
        "_format",
        "_owns",
        "_put_entry",
        "generation",
        "keyspace",
        "last_revision",
        "memory",
        "sealed_for",
    )

    def __init__(
        self,
        generation: int,
        owns: Callable[[bytes], bool],
        limits: MemoryLimits = MemoryLimits(),  # noqa: B008 -- immutable
    ) -> None:
        self._owns = owns
        self.keyspace = Keyspace()
        """The entries; read only for others."""
        # Bound once: each put calls both.
        self._find = self.keyspace.find
        self._put_entry = self.keyspace.put
        self._floor = 0  # lowest revision that the batch being applied may give
        self._format = BATCH_FORMAT  # of that batch
        self.generation = generation
        self.last_revision = 0
        """The newest write's revision, 0 before the first."""
        self.memory = OutcomeMemory(limits)
        """The idempotency memory; read only for others."""
        self.sealed_for: int | None = None
        """The successor's generation, None while the group is not sealed."""

    # --- what it is ---

    @property
    def sections(self) -> tuple[Section, ...]:
        """All that the state is made of but for its own numbers, in the order of snapshots."""
        return (self.keyspace, self.memory)

    @property
    def key_count(self) -> int:
        """How many keys exist."""
        return len(self.keyspace)

    @property
    def bytes_total(self) -> int:
        """Bytes of all keys and values."""
        return self.keyspace.bytes_total

    @property
    def sealed(self) -> bool:
        """Whether the last command of this generation has been applied."""
        return self.sealed_for is not None

    @property
    def digest(self) -> int:
        """128 bits over everything that replicas must agree on, at no cost."""
        memory = self.memory
        # Fast path of `_digest_of`: every entry of the log asks.
        numbers = (self.last_revision, self.sealed_for, *memory.numbers)
        return self.keyspace.hash ^ memory.hash ^ mmh3_x64_128_uintdigest(_encode(numbers))

    def recomputed_digest(self) -> int:
        """Return the digest computed from the contents, in time proportional to them.

        It differs from :attr:`digest` only if memory was damaged or the bookkeeping is wrong.
        """
        return self._digest_of([section.recomputed_hash() for section in self.sections])

    def _digest_of(self, hashes: Iterable[int]) -> int:
        """Return the digest of a state whose sections have these hashes."""
        numbers: list[int | None] = [self.last_revision, self.sealed_for]
        for section in self.sections:
            numbers += section.numbers
        return reduce(xor, hashes, mmh3_x64_128_uintdigest(_encode(numbers)))

    # --- reads ---

    def get(self, key: bytes) -> GetResult:
        """Read one key."""
        return self.keyspace.get(key)

    def range(self, query: Range) -> RangeResult:
        """Read entries in key order, bounded by the query and by the limits of any range."""
        return self.keyspace.range(query)

    # --- writes ---

    def apply(self, batch: Batch, changes: list[Change] | None = None) -> list[WriteResult]:
        """Apply one entry of the log; return one result per command, in order.

        ``changes`` gets every change of a key appended, in the order in which they were made.
        """
        if batch.generation != self.generation:
            return [_MOVED] * len(batch.commands)
        self._floor = min(batch.clock_us, CLOCK_US_MAX)
        self._format = batch.format
        self.keyspace.changes = changes
        find, put_over = self._find, self._put_over
        results: list[WriteResult] = []
        for command in batch.commands:
            operation = command.operation
            # Fast path of `_apply`, for nearly all there are: puts without an idempotency key.
            if (
                isinstance(operation, Put)
                and command.idempotency is None
                and self.sealed_for is None
                # What is here is owned, and to ask takes a third of a put that overwrites.
                and ((old := find(operation.key)) is not None or self._owns(operation.key))
            ):
                results.append(put_over(operation, old))
            else:
                results.append(self._apply(command))
        return results

    def _apply(self, command: Command) -> WriteResult:
        if self.sealed_for is not None:
            return _MOVED
        operation = command.operation
        write = self._writes.get(type(operation))
        if write is None:
            return self._of_leaders[type(operation)](self, operation)
        # Before the memory is asked: what another group owns must leave no trace in this one.
        if not self._owns_all(write.keys(operation)):
            return _MOVED
        if command.idempotency is None:
            return write.execute(self, operation)
        return self._execute_once(command.idempotency, operation, write.execute)

    def _execute_once(
        self, name: Idempotency, operation: LoggedOperation, execute: Callable[..., Outcome]
    ) -> Outcome:
        if isinstance(operation, Txn) and is_read_only(operation):
            return execute(self, operation)  # again does no harm, keeping it costs memory
        fingerprint = fingerprint_of(operation)
        size = RECORD_BYTES
        if isinstance(operation, Txn):
            size += transactions.outcome_bytes(self.keyspace, operation, self._format)
        remembered = self.memory.recall(
            name, fingerprint, unborn=self._format == 1, record_bytes=size
        )
        if remembered is not None:
            return remembered
        outcome = execute(self, operation)
        self.memory.remember(name, fingerprint, outcome)
        return outcome

    def _owns_all(self, keys: Iterable[bytes]) -> bool:
        for key in keys:  # noqa: SIM110 -- a generator takes longer
            if self._find(key) is None and not self._owns(key):
                return False
        return True

    def _next_revision(self) -> int:
        return max(self.last_revision + 1, self._floor)

    def _put(self, put: Put) -> PutResult | Refused:
        return self._put_over(put, self._find(put.key))

    def _put_over(self, put: Put, old: KeyValue | None) -> PutResult | Refused:
        if put.if_absent and old is not None:
            return Refused("precondition", old.mod_revision)
        if put.if_revision is not None and not _is_at(old, put.if_revision):
            return _precondition_failed(old)
        # Fast path of `_next_revision`: neither it nor max() is called.
        revision = self.last_revision + 1
        if revision < self._floor:  # noqa: PLR1730 -- a call of max() takes longer
            revision = self._floor
        self.last_revision = revision
        return PutResult(revision, self._put_entry(put, old, revision))

    def _delete(self, delete: Delete) -> DeleteResult | Refused:
        old = self._find(delete.key)
        if delete.if_revision is not None and not _is_at(old, delete.if_revision):
            return _precondition_failed(old)
        if old is None:
            return _NOTHING_DELETED
        self.last_revision = revision = self._next_revision()
        self.keyspace.delete(old, revision)
        return DeleteResult(deleted=True, revision=revision)

    def _txn(self, txn: Txn) -> TxnResult | Refused:
        result = transactions.run(self.keyspace, txn, self._next_revision(), self._format)
        if isinstance(result, TxnResult) and result.revision is not None:
            self.last_revision = result.revision
        return result

    def _forget(self, forget: Forget) -> Done:
        self.memory.forget(forget)
        return _DONE

    def _seal(self, seal: Seal) -> Done | Refused:
        if seal.successor_generation <= self.generation:
            return Refused("precondition")
        self.sealed_for = seal.successor_generation
        return _DONE

    _writes: ClassVar[dict[type, _Write]] = {
        Put: _Write(_key_of, _put),
        Delete: _Write(_key_of, _delete),
        Txn: _Write(transactions.keys_of, _txn),
    }
    """What clients ask for: done once under an idempotency key, if the shard owns the keys."""

    _of_leaders: ClassVar[dict[type, Callable[..., WriteResult]]] = {Forget: _forget, Seal: _seal}
    """What leaders propose by themselves."""

    # --- snapshots ---

    def snapshot_records(self) -> Iterator[bytes]:
        """Yield the state as records of bounded size, the header first.

        Nothing may be applied until the last record is out: the state must stand still, as it
        does in a forked child. A record holds up to 256 entries or 64 KiB, or one larger entry.
        """
        yield encode_record(
            SnapshotHeader(
                format=SNAPSHOT_FORMAT,
                generation=self.generation,
                last_revision=self.last_revision,
                sealed_for=self.sealed_for,
                digest=_as_bytes(self.digest),
                sections=tuple(section.name for section in self.sections),
            )
        )
        for section in self.sections:
            digest = _as_bytes(section.hash)
            yield encode_record(
                SectionHeader(section.name, section.numbers, section.counts, digest)
            )
            yield from map(encode_record, section.pieces())

    @classmethod
    def restore(
        cls,
        generation: int,
        owns: Callable[[bytes], bool],
        limits: MemoryLimits = MemoryLimits(),  # noqa: B008 -- immutable
    ) -> "Restorer":
        """Return what builds a state machine of ``generation`` from snapshot records.

        The snapshot must be of that generation, or of one sealed for it: then the new group
        starts, unsealed, from all that the sealed one held and the new one owns.
        """
        return Restorer(cls(generation, owns, limits))

    def dismantle(self) -> Iterator[None]:
        """Free the entries, a slice per step; a state that is taken apart may not be used again."""
        return self.keyspace.dismantle()

    def _succeed(self) -> None:
        self.sealed_for = None
        for section in self.sections:
            section.succeed(self._owns)


class Restorer:
    """Builds a state machine from snapshot records, a bounded slice of work per record.

    A state that failed half-way is never seen: only :meth:`finish` hands it out, after counts and
    digest have been found right.
    """

    def __init__(self, state: StateMachine) -> None:
        self._state = state
        self._sections = {section.name: section for section in state.sections}
        self._header: SnapshotHeader | None = None
        self._begun: list[SectionHeader] = []
        self._parts: list[bytes] = []

    def feed(self, record: bytes) -> None:
        """Take the next record.

        Raises:
            UnknownFormat: A newer version wrote the snapshot.
            CorruptSnapshot: The record is malformed, or of another generation.
        """
        if self._header is None:
            self._header, sections = decode_header(record)
            self._begin(self._header)
            for section in sections:
                self._begin_section(self._header, section)
            return
        piece = decode_record(record)
        if isinstance(piece, SectionHeader):
            self._begin_section(self._header, piece)
            return
        if isinstance(piece, RecordPart):
            self._parts.append(piece.data)
            if not piece.last:
                return
            piece = RecordPiece((b"".join(self._parts),))
            self._parts = []
        if self._header.format < SNAPSHOT_FORMAT and isinstance(piece, KeyValuePiece):
            self._state.keyspace.restore(piece)  # there both sections have begun with the header
        elif not self._begun:
            raise CorruptSnapshot("a snapshot's piece belongs to no section")
        else:
            self._sections[self._begun[-1].name].restore(piece)

    def finish(self) -> StateMachine:
        """Return the state machine.

        Raises:
            CorruptSnapshot: Records are missing, repeated or altered.
        """
        state, header = self._state, self._header
        if header is None:
            raise CorruptSnapshot("the snapshot has no header")
        if len(self._begun) < len(header.sections) or self._parts:
            raise CorruptSnapshot("the snapshot is not complete")
        for begun in self._begun:
            section = self._sections[begun.name]
            if section.counts != begun.counts:
                raise CorruptSnapshot(f"the snapshot's {begun.name} are not complete")
            if begun.digest not in {None, _as_bytes(section.hash)}:
                raise CorruptSnapshot(f"the snapshot's {begun.name} do not match their digest")
        if _as_bytes(state.digest) != header.digest:
            raise CorruptSnapshot("the snapshot's contents do not match its digest")
        if header.generation != state.generation:
            state._succeed()  # noqa: SLF001 -- same module
        return state

    def _begin(self, header: SnapshotHeader) -> None:
        state = self._state
        if state.generation not in {header.generation, header.sealed_for}:
            raise CorruptSnapshot(
                f"a snapshot of generation {header.generation} cannot start {state.generation}"
            )
        unknown = [name for name in header.sections if name not in self._sections]
        if unknown:
            raise UnknownFormat(f"a snapshot with {unknown[0]}, which this version does not know")
        state.last_revision = header.last_revision
        state.sealed_for = header.sealed_for

    def _begin_section(self, header: SnapshotHeader, section: SectionHeader) -> None:
        if section.name not in header.sections[len(self._begun) :][:1] or self._parts:
            raise CorruptSnapshot(f"the snapshot's {section.name} are not where they belong")
        self._sections[section.name].restore_numbers(section.numbers)
        self._begun.append(section)


def _as_bytes(digest: int) -> bytes:
    return digest.to_bytes(16, "big")


def _is_at(entry: KeyValue | None, revision: int) -> bool:
    return entry is not None and entry.mod_revision == revision


def _precondition_failed(entry: KeyValue | None) -> Refused:
    return Refused("precondition", None if entry is None else entry.mod_revision)
