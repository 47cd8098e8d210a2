"""The state machine against a plain model, for any history, with any snapshot on the way.

The model is as simple as it can be: dicts that are copied, sorted and searched. It shares only
the vocabulary of operations with what it judges.
"""

import operator as op
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.core.batches import decode_batch, encode_batch
from raftkv.core.errors import CorruptSnapshot, UndecodableError, UnknownFormat
from raftkv.core.operations import (
    BATCH_FORMAT,
    Batch,
    Command,
    Compare,
    Delete,
    DeleteResult,
    Done,
    Forget,
    FreeKey,
    Get,
    GetResult,
    Idempotency,
    KeyValue,
    PartResult,
    Put,
    PutResult,
    Range,
    RangeResult,
    Refused,
    Seal,
    SessionKey,
    Txn,
    TxnPart,
    TxnResult,
    Write,
    WriteResult,
)
from raftkv.core.shard.machine import StateMachine
from raftkv.core.shard.outcomes import MemoryLimits

GENERATION = 2
LIMITS = MemoryLimits(free_keys_max=4, sessions_max=3, session_outcomes_max=3)


def owns(key: bytes) -> bool:
    """Own every key but one."""
    return key != b"foreign"


# --- the model -------------------------------------------------------------------------------


def is_over(owner: int, owners: list[int], limit: int) -> bool:
    """Whether an owner has more than one, and more than four times what is left free.

    Nobody, 0, never has.
    """
    return owner != 0 and owners.count(owner) > max(1, 4 * (limit - len(owners)))


@dataclass
class SessionModel:
    """A session as the model keeps it."""

    low: int
    epoch: int
    born: int
    owner: int
    outcomes: dict[int, tuple[object, WriteResult]] = field(default_factory=dict)


@dataclass
class Model:
    """What a shard should do, said in the plainest way."""

    entries: dict[bytes, KeyValue] = field(default_factory=dict)
    last: int = 0
    free: dict[str, tuple[object, WriteResult, int, int]] = field(default_factory=dict)
    sessions: dict[str, SessionModel] = field(default_factory=dict)
    epoch: int = 0
    forgotten_birth: int = 0
    is_sealed: bool = False

    def apply(self, batch: Batch) -> list[WriteResult]:
        """Apply a batch command by command."""
        return [self.command(command, batch) for command in batch.commands]

    def command(self, command: Command, batch: Batch) -> WriteResult:
        """Apply one command."""
        operation = command.operation
        if batch.generation != GENERATION or self.is_sealed:
            return Refused("moved")
        if isinstance(operation, Seal):
            self.is_sealed = operation.successor_generation > GENERATION
            return Done() if self.is_sealed else Refused("precondition")
        if isinstance(operation, Forget):
            self.forget(operation)
            return Done()
        if any(not owns(key) for key in keys_named(operation)):
            return Refused("moved")
        revision = max(self.last + 1, min(batch.clock_us, 2**52))
        return self.write(operation, command.idempotency, revision)

    def write(self, operation: Write, name: Idempotency | None, revision: int) -> WriteResult:
        """Apply one write under its name, if it has one and writes."""
        if isinstance(operation, Txn) and all(
            isinstance(part, Get | Range) for part in operation.then + operation.otherwise
        ):
            return self.execute(operation, revision)
        if isinstance(name, FreeKey):
            return self.once_by_key(name, operation, revision)
        if isinstance(name, SessionKey):
            return self.once_in_session(name, operation, revision)
        return self.execute(operation, revision)

    def once_by_key(self, name: FreeKey, operation: Write, revision: int) -> WriteResult:
        """Apply under a free-form key."""
        key = name.key
        if key in self.free:
            request, outcome, *_ = self.free[key]
            return outcome if request == operation else Refused("key_reused")
        if len(self.free) == LIMITS.free_keys_max:
            return Refused("table_full")
        owners = [owner for *_, owner in self.free.values()]
        if is_over(name.owner, [*owners, name.owner], LIMITS.free_keys_max):
            return Refused("share_full")
        outcome = self.execute(operation, revision)
        self.free[key] = (operation, outcome, self.epoch, name.owner)
        return outcome

    def once_in_session(  # noqa: PLR0911 -- as many refusals
        self, name: SessionKey, operation: Write, revision: int
    ) -> WriteResult:
        """Apply in a session."""
        known = self.sessions.get(name.session)
        if known is not None and known.born != name.born:
            return Refused("key_reused")
        if name.sequence < max(name.low, known.low if known else 0):
            return Refused("forgotten")
        if known is None:
            latest = max(self.forgotten_birth, 2**52) + 2**30
            if name.born <= self.forgotten_birth or name.born > latest:
                return Refused("forgotten", self.forgotten_birth)
            if len(self.sessions) == LIMITS.sessions_max:
                return Refused("table_full")
            owners = [session.owner for session in self.sessions.values()]
            if is_over(name.owner, [*owners, name.owner], LIMITS.sessions_max):
                return Refused("share_full")
            known = SessionModel(name.low, self.epoch, name.born, name.owner)
            self.sessions[name.session] = known
        known.epoch = self.epoch
        known.low = max(known.low, name.low)
        known.outcomes = {n: kept for n, kept in known.outcomes.items() if n >= known.low}
        if name.sequence in known.outcomes:
            request, outcome = known.outcomes[name.sequence]
            return outcome if request == operation else Refused("key_reused")
        if len(known.outcomes) == LIMITS.session_outcomes_max:
            return Refused("table_full")
        outcome = self.execute(operation, revision)
        known.outcomes[name.sequence] = (operation, outcome)
        return outcome

    def forget(self, forget: Forget) -> None:
        """Forget what was not used since the Forget before."""
        for key in forget.keys:
            if key in self.free and self.free[key][2] < self.epoch:
                del self.free[key]
        for name in forget.sessions:
            if name in self.sessions and self.sessions[name].epoch < self.epoch:
                born = self.sessions.pop(name).born
                self.forgotten_birth = max(self.forgotten_birth, born)
        self.epoch += 1

    def execute(self, operation: Write, revision: int) -> WriteResult:
        """Do one write."""
        if isinstance(operation, Txn):
            return self.txn(operation, revision)
        old = self.entries.get(operation.key)
        current = old.mod_revision if old else None
        wanted = operation.if_revision
        is_absent_wanted = isinstance(operation, Put) and operation.if_absent
        if (wanted is not None and wanted != current) or (is_absent_wanted and old):
            return Refused("precondition", current)
        result = self.part(operation, revision)
        assert isinstance(result, PutResult | DeleteResult)
        if result.revision is not None:
            self.last = revision
        return result

    def txn(self, txn: Txn, revision: int) -> TxnResult | Refused:
        """Do one branch of a transaction."""
        for part in txn.then + txn.otherwise:
            if isinstance(part, Put | Delete) and part.if_revision is not None:
                return Refused("precondition")
            if isinstance(part, Put) and part.if_absent:
                return Refused("precondition")
        succeeded = all(self.holds(compare) for compare in txn.compare)
        branch = txn.then if succeeded else txn.otherwise
        if self.asked_bytes(branch) > 8 * 2**20:
            return Refused("too_large")
        results = tuple(self.part(p, revision) for p in branch)
        written = [r for r in results if isinstance(r, PutResult | DeleteResult) and r.revision]
        if written:
            self.last = revision
        return TxnResult(succeeded, revision if written else None, results)

    def asked_bytes(self, branch: tuple[TxnPart, ...]) -> int:
        """Return what a branch may read at most: a get what is there, a range what it asks for.

        But at least one entry, whatever its size: the first that is left after as many deletes as
        there are, or one that is put.
        """
        sizes = []
        puts = {part.key: part.value for part in branch if isinstance(part, Put)}
        deletes = sum(isinstance(part, Delete) for part in branch)
        for query in (part for part in branch if isinstance(part, Range)):
            there = [k for k in sorted(self.entries) if self.is_in(k, query)][: deletes + 1]
            firsts = [0]
            for key in {*there, *(key for key in puts if self.is_in(key, query))}:
                held = self.entries[key].value if key in self.entries else b""
                longest = max(len(held), len(puts.get(key, b"")))
                firsts.append(len(key) + (0 if query.keys_only else longest))
            sizes.append(max(min(max(0, query.bytes_max), 8 * 2**20), *firsts))
        for get in (part for part in branch if isinstance(part, Get)):
            old = self.entries.get(get.key)
            put = [
                len(part.value) for part in branch if isinstance(part, Put) and part.key == get.key
            ]
            sizes.append(len(get.key) + max(len(old.value) if old else 0, *put[-1:], 0))
        return sum(sizes)

    def part(self, part: TxnPart, revision: int) -> PartResult:
        """Do one unconditional operation."""
        if isinstance(part, Range):
            return self.range(part)
        old = self.entries.get(part.key)
        if isinstance(part, Get):
            return GetResult(old)
        if isinstance(part, Put):
            created, version = (old.create_revision, old.version + 1) if old else (revision, 1)
            self.entries[part.key] = KeyValue(part.key, part.value, created, revision, version)
            return PutResult(revision, version)
        self.entries.pop(part.key, None)
        return DeleteResult(deleted=old is not None, revision=revision if old else None)

    @staticmethod
    def is_in(key: bytes, query: Range) -> bool:
        """Whether a range has a key."""
        return query.start <= key and (query.end is None or key < query.end)

    def range(self, query: Range) -> RangeResult:
        """Search everything."""
        hits = [
            msgspec.structs.replace(entry, value=b"") if query.keys_only else entry
            for key, entry in sorted(self.entries.items())
            if self.is_in(key, query)
        ]
        chosen: list[KeyValue] = []
        for hit in hits:
            size = sum(len(entry.key) + len(entry.value) for entry in [*chosen, hit])
            if len(chosen) >= query.limit or (chosen and size > query.bytes_max):
                break
            chosen.append(hit)
        return RangeResult(tuple(chosen), more=len(chosen) < len(hits))

    def holds(self, compare: Compare) -> bool:
        """Compare as etcd does."""
        if compare.target == "value" and compare.key not in self.entries:
            return False
        entry = self.entries.get(compare.key, KeyValue(compare.key, b"", 0, 0, 0))
        actual = {
            "value": entry.value,
            "create": entry.create_revision,
            "mod": entry.mod_revision,
            "version": entry.version,
        }[compare.target]
        operand = compare.operand
        if type(actual) is not type(operand):
            return False
        comparisons: dict[str, Callable[[Any, Any], bool]] = {
            "=": op.eq,
            "!=": op.ne,
            "<": op.lt,
            ">": op.gt,
        }
        return comparisons[compare.operator](actual, operand)


def keys_named(operation: Write) -> list[bytes]:
    """Return every key that an operation names."""
    if not isinstance(operation, Txn):
        return [operation.key]
    parts = operation.compare + operation.then + operation.otherwise
    return [part.key for part in parts if not isinstance(part, Range)]


# --- histories -------------------------------------------------------------------------------

# Few keys, names and numbers, so that they meet; some numbers as wild as the encoding allows.
KEYS = st.sampled_from([b"a", b"b", b"c", b"d\x00", b"foreign"])
OWN_KEYS = st.sampled_from([b"a", b"b", b"c", b"d\x00"])
VALUES = st.binary(max_size=3)
WILD = st.integers(-(2**63), 2**64 - 1)
SMALL = st.integers(0, 12)
CONDITION = st.none() | SMALL | WILD
PUTS = st.builds(Put, KEYS, VALUES, CONDITION, st.booleans())
PLAIN_PUTS = st.builds(Put, OWN_KEYS, VALUES)
DELETES = st.builds(Delete, KEYS, CONDITION)
BOUNDS = st.sampled_from([b"", b"a", b"b", b"bb", b"d"])
RANGES = st.builds(
    Range, BOUNDS, st.none() | BOUNDS, SMALL | WILD, st.booleans(), st.integers(0, 20) | WILD
)
PARTS = st.lists(
    PLAIN_PUTS | st.builds(Delete, OWN_KEYS) | st.builds(Get, OWN_KEYS) | RANGES, max_size=4
)
ANY_PARTS = st.lists(PUTS | DELETES | st.builds(Get, KEYS) | RANGES, max_size=4)
COMPARES = st.builds(
    Compare,
    OWN_KEYS,
    st.sampled_from(["value", "create", "mod", "version"]),
    st.sampled_from(["=", "!=", "<", ">"]),
    SMALL | WILD | VALUES,
)
TXNS = st.builds(
    Txn,
    st.lists(COMPARES, max_size=2).map(tuple),
    (PARTS | ANY_PARTS).map(tuple),
    (PARTS | ANY_PARTS).map(tuple),
)
FREE_NAMES = st.sampled_from(["f1", "f2", "f3", "f4", "f5"])
SESSION_NAMES = st.sampled_from(["s1", "s2", "s3", "s4"])
OWNERS = st.sampled_from([7, 7, 7, 8, 0])
FORGETS = st.builds(
    Forget, st.lists(FREE_NAMES, max_size=5).map(tuple), st.lists(SESSION_NAMES).map(tuple)
)
SEQUENCES = st.integers(0, 6)
BIRTHS = st.sampled_from([1, 1, 1, 2, 3, 0, 2**52 + 2**30, 2**52 + 2**30 + 1, 2**63 - 1])
NAMES = (
    st.none()
    | st.builds(FreeKey, FREE_NAMES, OWNERS)
    | st.builds(SessionKey, SESSION_NAMES, SEQUENCES, SEQUENCES, BIRTHS, OWNERS)
    | st.builds(SessionKey, SESSION_NAMES, SEQUENCES, st.just(0), st.just(1), OWNERS)
)
WRITES = st.builds(Command, PLAIN_PUTS | PUTS | DELETES | TXNS, NAMES)
COMMANDS = WRITES | WRITES | WRITES | WRITES | st.builds(Command, FORGETS, NAMES)
BATCHES = st.builds(
    Batch,
    st.just(BATCH_FORMAT),
    st.sampled_from([GENERATION] * 9 + [GENERATION - 1]),
    st.integers(0, 30) | WILD,
    st.lists(COMMANDS, max_size=6).map(tuple),
)
SEALS = st.builds(
    Batch,
    st.just(BATCH_FORMAT),
    st.just(GENERATION),
    SMALL,
    st.builds(Command, st.builds(Seal, st.integers(0, 5)), NAMES).map(lambda command: (command,)),
)
HISTORIES = st.lists(BATCHES, max_size=12) | st.lists(BATCHES | SEALS, max_size=8)


def applied(history: list[Batch]) -> StateMachine:
    """Return the state after a history."""
    state = StateMachine(GENERATION, owns, LIMITS)
    for batch in history:
        state.apply(batch)
    return state


def restored(state: StateMachine, generation: int = GENERATION) -> StateMachine:
    """Return a copy by way of a snapshot."""
    restorer = StateMachine.restore(generation, owns, LIMITS)
    for record in state.snapshot_records():
        restorer.feed(record)
    return restorer.finish()


@settings(max_examples=200, deadline=None)
@given(HISTORIES)
def test_every_history_goes_as_the_model_says(history: list[Batch]) -> None:
    """Every answer and, after every batch, every entry, count and digest."""
    state, model = StateMachine(GENERATION, owns, LIMITS), Model()
    for batch in history:
        assert state.apply(decode_batch(encode_batch(batch))) == model.apply(batch)
        assert state.digest == state.recomputed_digest()
    assert state.range(Range(b"", None, 100)) == model.range(Range(b"", None, 100))
    assert state.last_revision == model.last
    assert state.key_count == len(model.entries)
    assert state.bytes_total == sum(len(e.key) + len(e.value) for e in model.entries.values())
    assert set(state.memory._free) == set(model.free)
    assert set(state.memory._sessions) == set(model.sessions)
    assert state.sealed == model.is_sealed


@settings(max_examples=60, deadline=None)
@given(HISTORIES, st.lists(BATCHES, max_size=6))
def test_a_replica_restored_anywhere_goes_on_as_if_it_had_been_there(
    before: list[Batch], after: list[Batch]
) -> None:
    """Same answers, same digest, same snapshot, same order of forgetting."""
    original = applied(before)
    copy = restored(original)
    for batch in after:
        assert copy.apply(batch) == original.apply(batch)
    assert copy.digest == original.digest
    assert list(copy.snapshot_records()) == list(original.snapshot_records())
    assert copy.memory.unused_since(99, 99) == original.memory.unused_since(99, 99)
    assert copy.memory.bytes == original.memory.bytes
    assert copy.bytes_total == original.bytes_total


@settings(max_examples=60, deadline=None)
@given(HISTORIES, HISTORIES)
def test_different_states_have_different_digests(left: list[Batch], right: list[Batch]) -> None:
    """Digests are equal exactly when the snapshots are, up to the order of names."""
    one, other = applied(left), applied(right)
    is_same = sorted(contents(one)) == sorted(contents(other))
    assert (one.digest == other.digest) == is_same


def contents(state: StateMachine) -> list[bytes]:
    """Return all that a state is made of, in small pieces."""
    entries = [msgspec.msgpack.encode(entry) for entry in state.range(Range(b"", None, 99)).entries]
    memory = state.memory
    rest = (state.last_revision, state.sealed_for, memory.epoch, memory.forgotten_birth)
    return [*entries, *state.memory.records(), msgspec.msgpack.encode(rest)]


# --- snapshots -------------------------------------------------------------------------------


def large_state(keys: int = 600) -> StateMachine:
    """Return a state that takes several records."""
    state = StateMachine(GENERATION, owns)
    for number in range(keys):
        put = Put(b"key-%05d" % number, b"v" * (number % 300 if number < 500 else 1_000))
        names = (FreeKey(f"f{number}"), SessionKey("s", number, 0, 1))
        commands = tuple(Command(put, name) for name in names)
        state.apply(Batch(BATCH_FORMAT, GENERATION, 7, commands))
    state.apply(Batch(BATCH_FORMAT, GENERATION, 7, (Command(Put(b"big", bytes(200_000))),)))
    return state


def test_snapshot_records_are_bounded() -> None:
    """At most 256 items or 64 KiB each, except for one larger entry by itself."""
    records = list(large_state().snapshot_records())
    assert len(records) > 8
    large = [record for record in records if len(record) > 1.1 * 64 * 1024]
    assert [len(record) // 100_000 for record in large] == [2]
    assert restored(large_state()).digest == large_state().digest


def test_a_snapshot_with_a_record_missing_or_twice_is_refused() -> None:
    """The counts and the digest of the header have to come out."""
    records = list(large_state().snapshot_records())
    for index in range(1, len(records)):
        for changed in (
            records[:index] + records[index + 1 :],
            [*records[:index], records[index], *records[index:]],
        ):
            with pytest.raises(CorruptSnapshot):
                finish_from(changed)


def finish_from(records: list[bytes], generation: int = GENERATION) -> StateMachine:
    """Restore from these records."""
    restorer = StateMachine.restore(generation, owns)
    for record in records:
        restorer.feed(record)
    return restorer.finish()


@given(st.data())
def test_a_snapshot_with_any_changed_byte_is_refused(data: st.DataObject) -> None:
    """Whatever was altered, nothing but a typed error comes of it."""
    records = list(SMALL_SNAPSHOT)
    index = data.draw(st.integers(0, len(records) - 1))
    changed = bytearray(records[index])
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    records[index] = bytes(changed)
    with pytest.raises(UndecodableError):
        finish_from(records)


SMALL_SNAPSHOT = list(large_state(3).snapshot_records())


def test_no_records_are_no_snapshot() -> None:
    """An empty file must not restore an empty shard."""
    with pytest.raises(CorruptSnapshot, match="no header"):
        finish_from([])


def test_a_snapshot_of_a_newer_format_is_told_from_damage() -> None:
    """It asks for an upgrade."""
    with pytest.raises(UnknownFormat, match="format 4"):
        finish_from([msgspec.msgpack.encode([4, "other"])])


def test_a_snapshot_of_another_generation_is_refused() -> None:
    """Unless it was sealed for that one: then the successor starts from it, unsealed."""
    state = large_state(3)
    with pytest.raises(CorruptSnapshot, match="generation"):
        finish_from(list(state.snapshot_records()), GENERATION + 1)
    state.apply(Batch(BATCH_FORMAT, GENERATION, 0, (Command(Seal(GENERATION + 1)),)))
    assert restored(state).sealed
    successor = restored(state, GENERATION + 1)
    assert (successor.generation, successor.sealed) == (GENERATION + 1, False)
    assert successor.get(b"big") == state.get(b"big")
    put = Batch(BATCH_FORMAT, GENERATION + 1, 0, (Command(Put(b"k", b"")),))
    assert successor.apply(put) == [PutResult(state.last_revision + 1, 1)]
    assert successor.digest == successor.recomputed_digest()


def test_a_successor_keeps_only_what_it_owns() -> None:
    """A sealed group may have several; each is asked about its own keys alone."""
    state = large_state(3)
    state.apply(Batch(BATCH_FORMAT, GENERATION, 0, (Command(Seal(GENERATION + 1)),)))
    restorer = StateMachine.restore(GENERATION + 1, lambda key: key != b"big")
    for record in state.snapshot_records():
        restorer.feed(record)
    successor = restorer.finish()
    assert (successor.get(b"big").entry, successor.key_count) == (None, state.key_count - 1)
    big = state.get(b"big").entry
    assert big is not None
    assert successor.bytes_total == state.bytes_total - len(big.key) - len(big.value)
    assert successor.digest == successor.recomputed_digest()
    put = Batch(BATCH_FORMAT, GENERATION + 1, 0, (Command(Put(b"big", b"")),))
    assert successor.apply(put) == [Refused("moved")]
