"""The state machine, as a specification: one behaviour a test."""

from collections.abc import Callable

import pytest

from raftkv.core.errors import CorruptSnapshot
from raftkv.core.operations import (
    BATCH_FORMAT,
    REVISION_LIMIT,
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
    LoggedOperation,
    Put,
    PutResult,
    Range,
    RangeResult,
    Refused,
    Seal,
    SessionKey,
    Txn,
    TxnResult,
    Write,
    WriteResult,
    is_read_only,
)
from raftkv.core.shard.machine import (
    CLOCK_US_MAX,
    StateMachine,
)
from raftkv.core.shard.outcomes import MemoryLimits
from raftkv.core.shard.transactions import TXN_READ_BYTES_MAX
from raftkv.storage.snapshots import RECORD_BYTES_MAX

GENERATION = 3


@pytest.fixture
def state() -> StateMachine:
    """An empty shard that owns every key not beginning with ``foreign``."""
    return StateMachine(GENERATION, lambda key: not key.startswith(b"foreign"))


def apply(
    state: StateMachine,
    *operations: LoggedOperation,
    clock_us: int = 0,
    name: Idempotency | None = None,
    generation: int = GENERATION,
) -> list[WriteResult]:
    """Apply operations as one batch."""
    commands = tuple(Command(operation, name) for operation in operations)
    return state.apply(Batch(BATCH_FORMAT, generation, clock_us, commands))


def entry_of(state: StateMachine, key: bytes) -> KeyValue:
    """Return a key that must exist."""
    entry = state.get(key).entry
    assert entry is not None
    return entry


# --- put, get, delete ------------------------------------------------------------------------


def test_a_put_creates_then_replaces(state: StateMachine) -> None:
    """Create revision stays, mod revision moves, version counts."""
    assert apply(state, Put(b"k", b"1"), Put(b"k", b"22")) == [PutResult(1, 1), PutResult(2, 2)]
    assert state.get(b"k") == GetResult(KeyValue(b"k", b"22", 1, 2, 2))
    assert (state.key_count, state.bytes_total, state.last_revision) == (1, 3, 2)


def test_a_missing_key_reads_as_none(state: StateMachine) -> None:
    """Reading what is not there is an answer, not an error."""
    assert state.get(b"k") == GetResult(None)


def test_deleting_a_missing_key_changes_nothing(state: StateMachine) -> None:
    """It succeeds, has no revision and uses none up."""
    assert apply(state, Delete(b"k"), Put(b"a", b"")) == [
        DeleteResult(deleted=False, revision=None),
        PutResult(1, 1),
    ]


def test_a_key_that_comes_back_begins_again(state: StateMachine) -> None:
    """After a delete the versions start at 1 and the create revision is new."""
    results = apply(state, Put(b"k", b"1"), Delete(b"k"), Put(b"k", b"2"))
    assert results[1] == DeleteResult(deleted=True, revision=2)
    assert state.get(b"k").entry == KeyValue(b"k", b"2", 3, 3, 1)


@pytest.mark.parametrize(
    ("operation", "current"),
    [
        (Put(b"k", b"x", if_revision=2), 1),
        (Put(b"k", b"x", if_absent=True), 1),
        (Put(b"k", b"x", if_revision=1, if_absent=True), 1),
        (Put(b"missing", b"x", if_revision=0), None),
        (Put(b"missing", b"x", if_revision=1, if_absent=True), None),
        (Delete(b"k", if_revision=2), 1),
        (Delete(b"missing", if_revision=1), None),
    ],
)
def test_a_failed_condition_tells_the_current_revision(
    state: StateMachine, operation: Put | Delete, current: int | None
) -> None:
    """Nothing is written, and the answer says what the condition met."""
    apply(state, Put(b"k", b"v"))
    before = state.digest
    assert apply(state, operation) == [Refused("precondition", current)]
    assert state.digest == before


def test_conditions_that_hold_let_the_write_through(state: StateMachine) -> None:
    """If-absent on a missing key, if-revision on the very revision."""
    assert apply(
        state,
        Put(b"k", b"1", if_absent=True),
        Put(b"k", b"2", if_revision=1),
        Delete(b"k", if_revision=2),
    ) == [PutResult(1, 1), PutResult(2, 2), DeleteResult(deleted=True, revision=3)]


# --- revisions -------------------------------------------------------------------------------


def test_revisions_follow_the_clock_but_never_go_back(state: StateMachine) -> None:
    """The greater of the leader's clock and one more than the last."""
    assert apply(state, Put(b"a", b""), Put(b"b", b""), clock_us=1000) == [
        PutResult(1000, 1),
        PutResult(1001, 1),
    ]
    assert apply(state, Put(b"a", b""), clock_us=500) == [PutResult(1002, 2)]
    assert apply(state, Put(b"a", b""), clock_us=-5) == [PutResult(1003, 3)]


def test_a_wild_clock_leaves_revisions_to_count(state: StateMachine) -> None:
    """A clock far in the future is clamped well below the limit of a JSON number."""
    (result,) = apply(state, Put(b"a", b""), clock_us=2**63)
    assert result == PutResult(CLOCK_US_MAX, 1)
    assert CLOCK_US_MAX <= REVISION_LIMIT // 2
    assert apply(state, Put(b"a", b""), clock_us=2**64 - 1) == [PutResult(CLOCK_US_MAX + 1, 2)]


# --- ranges ----------------------------------------------------------------------------------


def keys_of(result: RangeResult) -> list[bytes]:
    """Return the keys of a range."""
    return [entry.key for entry in result.entries]


@pytest.fixture
def filled(state: StateMachine) -> StateMachine:
    """A shard with the keys a, b, c, d and ten-byte values."""
    apply(state, *(Put(key, b"0123456789") for key in (b"c", b"a", b"d", b"b")))
    return state


@pytest.mark.parametrize(
    ("query", "keys", "more"),
    [
        (Range(b"", None, 10), [b"a", b"b", b"c", b"d"], False),
        (Range(b"b", b"d", 10), [b"b", b"c"], False),
        (Range(b"aa", b"bb", 10), [b"b"], False),
        (Range(b"", None, 2), [b"a", b"b"], True),
        (Range(b"", None, 4), [b"a", b"b", b"c", b"d"], False),
        (Range(b"d", b"a", 10), [], False),
        (Range(b"a", b"a", 10), [], False),
        (Range(b"", None, 0), [], True),
        (Range(b"", None, -(2**63)), [], True),
        (Range(b"x", None, 0), [], False),
        (Range(b"", None, 10, bytes_max=22), [b"a", b"b"], True),
        (Range(b"", None, 10, bytes_max=0), [b"a"], True),
        (Range(b"", None, 10, bytes_max=-1), [b"a"], True),
        (Range(b"", None, 10, keys_only=True, bytes_max=3), [b"a", b"b", b"c"], True),
    ],
)
def test_ranges_are_ordered_and_bounded(
    filled: StateMachine, query: Range, keys: list[bytes], *, more: bool
) -> None:
    """By count and by bytes; at least one entry if any is allowed; ``more`` says it was cut."""
    result = filled.range(query)
    assert (keys_of(result), result.more) == (keys, more)


def test_a_range_of_keys_has_the_numbers_but_no_values(filled: StateMachine) -> None:
    """Keys-only saves the values, not the revisions."""
    (entry, *_) = filled.range(Range(b"", None, 1, keys_only=True)).entries
    assert entry == KeyValue(b"a", b"", 2, 2, 1)
    assert entry_of(filled, b"a").value == b"0123456789"


def test_no_range_is_larger_than_the_engine_can_bear(
    state: StateMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A range that asks for everything is cut, and says so."""
    monkeypatch.setattr("raftkv.core.shard.keyspace.RANGE_ENTRIES_MAX", 3)
    apply(state, *(Put(b"%d" % number, b"") for number in range(5)))
    result = state.range(Range(b"", None, 2**63, bytes_max=2**63))
    assert (keys_of(result), result.more) == ([b"0", b"1", b"2"], True)


# --- transactions ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("compare", "holds"),
    [
        (Compare(b"k", "value", "=", b"v"), True),
        (Compare(b"k", "value", "<", b"w"), True),
        (Compare(b"k", "value", ">", b"v"), False),
        (Compare(b"k", "version", "=", 2), True),
        (Compare(b"k", "create", "=", 1), True),
        (Compare(b"k", "mod", ">", 1), True),
        (Compare(b"k", "mod", "!=", 2), False),
        (Compare(b"missing", "version", "=", 0), True),
        (Compare(b"missing", "create", "<", 1), True),
        (Compare(b"missing", "mod", ">", 0), False),
        (Compare(b"missing", "value", "=", b""), False),
        (Compare(b"missing", "value", "!=", b"x"), False),
        (Compare(b"missing", "value", "<", b"x"), False),
        (Compare(b"empty", "value", "=", b""), True),
        (Compare(b"empty", "value", "<", b"x"), True),
        (Compare(b"k", "value", "!=", 5), False),
        (Compare(b"k", "version", "!=", b"x"), False),
    ],
)
def test_comparisons(state: StateMachine, compare: Compare, *, holds: bool) -> None:
    """As in etcd: numbers of a missing key are zero, and its value compares with nothing.

    An operand of the wrong type never holds.
    """
    apply(state, Put(b"k", b"u"), Put(b"k", b"v"), Put(b"empty", b""))
    assert apply(state, Txn((compare,), (), ())) == [TxnResult(holds, None, ())]


def test_a_log_of_format_1_is_applied_as_it_was(state: StateMachine) -> None:
    """There the value of a missing key is empty; every replica must come to the same state."""
    holds = Txn((Compare(b"missing", "value", "=", b""),), (Put(b"k", b"1"),), ())
    batch = Batch(1, state.generation, 0, (Command(holds),))
    assert state.apply(batch) == [TxnResult(succeeded=True, revision=1, results=(PutResult(1, 1),))]
    assert apply(state, holds) == [TxnResult(succeeded=False, revision=None, results=())]


def test_a_transaction_does_one_branch_at_one_revision(state: StateMachine) -> None:
    """All its writes share a revision, its reads see its own writes, the other branch is idle."""
    txn = Txn(
        compare=(Compare(b"a", "version", "=", 0), Compare(b"b", "version", "=", 0)),
        then=(Put(b"a", b"1"), Get(b"a"), Put(b"b", b"2"), Delete(b"a"), Range(b"", None, 9)),
        otherwise=(Put(b"c", b"3"),),
    )
    entry_a, entry_b = KeyValue(b"a", b"1", 1, 1, 1), KeyValue(b"b", b"2", 1, 1, 1)
    assert apply(state, txn, txn) == [
        TxnResult(
            succeeded=True,
            revision=1,
            results=(
                PutResult(1, 1),
                GetResult(entry_a),
                PutResult(1, 1),
                DeleteResult(deleted=True, revision=1),
                RangeResult((entry_b,), more=False),
            ),
        ),
        TxnResult(succeeded=False, revision=2, results=(PutResult(2, 1),)),
    ]


def test_a_transaction_that_changes_nothing_has_no_revision(state: StateMachine) -> None:
    """Deletes of missing keys and reads use no revision up."""
    txn = Txn((), (Delete(b"k"), Get(b"k")), ())
    assert apply(state, txn) == [
        TxnResult(
            succeeded=True,
            revision=None,
            results=(DeleteResult(deleted=False, revision=None), GetResult(None)),
        )
    ]
    assert state.last_revision == 0


def test_contradictory_writes_of_a_transaction_happen_in_their_order(state: StateMachine) -> None:
    """Put twice, deleted, put again: each sees the one before, all at one revision."""
    apply(state, Txn((), (Put(b"k", b"1"), Put(b"k", b"2")), ()))
    assert entry_of(state, b"k") == KeyValue(b"k", b"2", 1, 1, 2)
    apply(state, Txn((), (Delete(b"k"), Put(b"k", b"3")), ()))
    assert entry_of(state, b"k") == KeyValue(b"k", b"3", 2, 2, 1)
    assert state.digest == state.recomputed_digest()


@pytest.mark.parametrize(
    "part", [Put(b"k", b"", if_revision=1), Put(b"k", b"", if_absent=True), Delete(b"k", 1)]
)
def test_a_condition_inside_a_transaction_is_never_ignored(
    state: StateMachine, part: Put | Delete
) -> None:
    """Front ends refuse it; should one arrive, nothing of the transaction is done."""
    assert apply(state, Txn((), (Put(b"a", b""), part), ())) == [Refused("precondition")]
    assert state.key_count == 0


def test_a_transaction_that_only_reads_changes_nothing(filled: StateMachine) -> None:
    """It is known by its branches, whichever of them is taken."""
    reading = Txn((Compare(b"a", "version", "=", 1),), (Get(b"b"),), (Get(b"c"),))
    writing = Txn((), (Get(b"b"),), (Put(b"a", b""),))
    assert (is_read_only(reading), is_read_only(writing)) == (True, False)
    before = (filled.digest, filled.last_revision)
    [result] = apply(filled, reading)
    assert isinstance(result, TxnResult)
    assert result.results == (filled.get(b"b"),)
    assert (filled.digest, filled.last_revision) == before


# --- ownership, generations, seal ------------------------------------------------------------


@pytest.mark.parametrize(
    "operation",
    [
        Put(b"foreign", b""),
        Delete(b"foreign"),
        Txn((Compare(b"foreign", "version", "=", 0),), (Put(b"k", b""),), ()),
        Txn((), (Put(b"k", b""), Get(b"foreign")), ()),
        Txn((), (), (Delete(b"foreign"),)),
        Txn((), (Put(b"k", b""), Range(b"foreign", b"foreign0", 9)), ()),
    ],
)
def test_a_key_of_another_shard_is_moved_and_leaves_no_trace(
    state: StateMachine, operation: Write
) -> None:
    """Also in the branch not taken, and also under an idempotency key, which stays free."""
    before = state.digest
    assert apply(state, operation, name=FreeKey("f")) == [Refused("moved")]
    assert apply(state, operation, name=SessionKey("s", 1, 0, 1)) == [Refused("moved")]
    assert state.digest == before
    assert (state.memory._free, state.memory._sessions) == ({}, {})


def test_another_generation_is_moved(state: StateMachine) -> None:
    """A batch made for a predecessor or successor is not for this group."""
    assert apply(state, Put(b"k", b""), Put(b"l", b""), generation=GENERATION + 1) == [
        Refused("moved"),
        Refused("moved"),
    ]
    assert state.key_count == 0


def test_nothing_is_applied_after_the_seal(state: StateMachine) -> None:
    """Not even later in the same batch; the state is what the successor starts from."""
    results = apply(
        state, Put(b"k", b""), Seal(GENERATION + 1), Put(b"l", b""), Forget((), ()), Seal(9)
    )
    assert results == [PutResult(1, 1), Done(), *[Refused("moved")] * 3]
    assert (state.sealed, state.sealed_for, state.key_count) == (True, GENERATION + 1, 1)


def test_a_seal_for_a_generation_gone_by_is_refused(state: StateMachine) -> None:
    """It would stop the group with no successor that could ever start."""
    assert apply(state, Seal(GENERATION)) == [Refused("precondition")]
    assert not state.sealed


# --- idempotency -----------------------------------------------------------------------------

NAMES = [FreeKey("once"), SessionKey("s", 4, 2, 1)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "operation",
    [
        Put(b"k", b"v"),
        Put(b"k", b"v", if_absent=True),
        Put(b"k", b"v", if_revision=77),
        Delete(b"k"),
        Txn((), (Put(b"k", b"v"), Get(b"k")), ()),
    ],
)
def test_a_retry_gets_the_first_answer_and_is_not_applied_again(
    state: StateMachine, name: Idempotency, operation: Write
) -> None:
    """Also if the first answer was a refusal, and whatever happened to the key since."""
    first = apply(state, operation, name=name)
    apply(state, Put(b"k", b"between"))
    before = state.digest
    assert apply(state, operation, operation, name=name) == first * 2
    assert state.digest == before


@pytest.mark.parametrize("name", NAMES)
def test_another_request_under_the_same_name_is_refused(
    state: StateMachine, name: Idempotency
) -> None:
    """It gets neither applied nor the other one's answer; the first stays remembered."""
    first = apply(state, Put(b"k", b"1"), name=name)
    assert apply(state, Put(b"k", b"2"), name=name) == [Refused("key_reused")]
    assert apply(state, Put(b"k", b"1"), name=name) == first
    assert entry_of(state, b"k").value == b"1"


def test_a_session_forgets_what_its_client_has_been_answered(state: StateMachine) -> None:
    """The low watermark drops outcomes; below it requests are refused, not applied again."""
    for sequence in range(5):
        apply(state, Put(b"k", b"%d" % sequence), name=SessionKey("s", sequence, 0, 1))
    assert len(state.memory) == 5
    apply(state, Put(b"k", b"5"), name=SessionKey("s", 5, 4, 1))
    assert len(state.memory) == 2
    assert apply(state, Put(b"k", b"3"), name=SessionKey("s", 3, 0, 1)) == [Refused("forgotten")]
    assert entry_of(state, b"k").value == b"5"
    assert state.digest == state.recomputed_digest()


def test_a_watermark_that_jumps_far_costs_no_more(state: StateMachine) -> None:
    """A jump over 2^62 numbers drops the few outcomes there are, at once."""
    apply(state, Put(b"k", b"1"), name=SessionKey("s", 1, 0, 1))
    assert apply(state, Put(b"k", b"2"), name=SessionKey("s", 2**62, 2**62, 1)) == [PutResult(2, 2)]
    assert len(state.memory) == 1


def test_the_outcome_at_the_watermark_is_kept(state: StateMachine) -> None:
    """Only what lies below it has been answered, however far it jumped."""
    first = apply(state, Put(b"k", b"1"), name=SessionKey("s", 5, 0, 1))
    apply(state, Put(b"k", b"2"), name=SessionKey("s", 6, 5, 1))
    assert apply(state, Put(b"k", b"1"), name=SessionKey("s", 5, 5, 1)) == first
    assert entry_of(state, b"k").value == b"2"


def test_a_request_below_its_own_watermark_is_forgotten(state: StateMachine) -> None:
    """A client that says it has the answer is not served again, and leaves no session behind."""
    assert apply(state, Put(b"k", b""), name=SessionKey("s", 1, 2, 1)) == [Refused("forgotten")]
    assert list(state.memory._sessions) == []


def test_requests_of_a_session_may_arrive_out_of_order(state: StateMachine) -> None:
    """Numbers name requests, they do not order them."""
    assert apply(state, Put(b"k", b"9"), name=SessionKey("s", 9, 3, 1)) == [PutResult(1, 1)]
    assert apply(state, Put(b"k", b"5"), name=SessionKey("s", 5, 3, 1)) == [PutResult(2, 2)]


FULL: list[tuple[MemoryLimits, Callable[[int, int], Idempotency]]] = [
    (MemoryLimits(free_keys_max=2), lambda number, _: FreeKey(f"{number}")),
    (MemoryLimits(sessions_max=2), lambda number, born: SessionKey(f"{number}", 0, 0, born)),
    (MemoryLimits(session_outcomes_max=2), lambda number, born: SessionKey("s", number, 0, born)),
    (MemoryLimits(outcome_bytes_max=50), lambda number, _: FreeKey(f"{number}")),
    (MemoryLimits(outcome_bytes_max=50), lambda number, born: SessionKey(f"{number}", 0, 0, born)),
]


@pytest.mark.parametrize(("limits", "name"), FULL)
def test_a_full_table_refuses_new_names_and_keeps_the_old(
    limits: MemoryLimits, name: Callable[[int, int], Idempotency]
) -> None:
    """Refusals are not remembered: once there is room, the same request is applied."""
    state = StateMachine(GENERATION, lambda _key: True, limits)
    first = [apply(state, Put(b"k", b"%d" % n), name=name(n, 1))[0] for n in range(2)]
    assert apply(state, Put(b"k", b"2"), name=name(2, 1)) == [Refused("table_full")]
    assert entry_of(state, b"k").value == b"1"
    again = [apply(state, Put(b"k", b"%d" % n), name=name(n, 1))[0] for n in range(2)]
    assert again == first
    apply(state, Forget((), ()))
    apply(state, Forget(tuple(state.memory._free), tuple(state.memory._sessions)))
    assert apply(state, Put(b"k", b"2"), name=name(2, 2)) == [PutResult(3, 3)]


def test_what_is_forgotten_is_gone_for_good(state: StateMachine) -> None:
    """After its time a name is free again, and nothing of it is left in memory or digest."""
    apply(state, Put(b"k", b"1"), name=FreeKey("f"))
    apply(state, Put(b"k", b"2"), name=SessionKey("s", 0, 0, 1))
    assert apply(state, Forget((), ()), Forget(("f", "gone"), ("s", "gone"))) == [Done(), Done()]
    assert (len(state.memory), state.memory.bytes, state.memory.hash) == (0, 0, 0)
    assert apply(state, Put(b"k", b"3"), name=FreeKey("f")) == [PutResult(3, 3)]


def test_forgetting_spares_names_used_since_the_forget_before(state: StateMachine) -> None:
    """A retry that reached the log between the leader's look and its command stays safe."""
    apply(state, Put(b"k", b"1"), name=SessionKey("s", 0, 0, 1))
    apply(state, Forget((), ()))
    used = apply(state, Put(b"k", b"2"), name=SessionKey("s", 1, 0, 1))
    new = apply(state, Put(b"k", b"3"), name=FreeKey("f"))
    apply(state, Forget(("f",), ("s",)))  # decided before these two were in the log
    assert apply(state, Put(b"k", b"2"), name=SessionKey("s", 1, 0, 1)) == used
    assert apply(state, Put(b"k", b"3"), name=FreeKey("f")) == new


def test_names_are_listed_longest_unused_first(state: StateMachine) -> None:
    """So that a leader sees what is due at bounded cost."""
    for number in range(3):
        apply(state, Put(b"k", b""), name=SessionKey(f"s{number}", 0, 0, 1))
        apply(state, Put(b"k", b""), name=FreeKey(f"f{number}"))
        apply(state, Forget((), ()))
    apply(state, Put(b"k", b""), name=SessionKey("s0", 1, 0, 1))
    assert list(state.memory._sessions) == ["s1", "s2", "s0"]
    assert list(state.memory._free) == ["f0", "f1", "f2"]
    assert state.memory.unused_since(2, 100) == Forget(("f0", "f1"), ("s1",), 3)
    assert state.memory.unused_since(2, 1) == Forget(("f0",), ("s1",), 3)
    assert state.memory.unused_since(0, 100) is None
    assert state.memory.newest_epoch() == 3


# --- digest ----------------------------------------------------------------------------------


def test_the_digest_depends_on_everything_replicas_must_agree_on(state: StateMachine) -> None:
    """Each kind of change shows, and each state has a digest of its own."""
    seen = {state.digest}
    steps: list[tuple[Put | Delete | Forget | Seal, Idempotency | None]] = [
        (Put(b"k", b"1"), None),
        (Put(b"k", b"1"), None),
        (Put(b"k", b"2"), FreeKey("f")),
        (Put(b"k", b"2"), SessionKey("s", 5, 0, 1)),
        (Put(b"k", b"2"), SessionKey("s", 5, 3, 1)),
        (Delete(b"k"), None),
        (Forget((), ()), None),
        (Seal(9), None),
    ]
    for operation, name in steps:
        apply(state, operation, name=name)
        assert state.digest == state.recomputed_digest()
        assert state.digest not in seen
        seen.add(state.digest)
        assert 0 <= state.digest < 2**128


def test_a_state_is_taken_apart_in_small_slices(
    state: StateMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step frees a few entries, and in the end neither entries nor index hold anything."""
    monkeypatch.setattr("raftkv.core.shard.keyspace.DISMANTLE_ENTRIES", 10)
    keys = [b"%05d" % number for number in range(25)]
    apply(state, *(Put(key, b"") for key in keys))
    counts = [len(state.keyspace._entries) for _ in state.dismantle()]
    assert counts[:3] == [15, 5, 0]
    assert list(state.keyspace._entries._list._lists) == []


def test_transactions_that_only_read_are_not_remembered(state: StateMachine) -> None:
    """Doing one again does no harm; keeping what it read would fill the memory."""
    apply(state, Put(b"k", bytes(1000)))
    before = state.memory.hash
    name = SessionKey("s", 1, 1, 1)
    [result] = apply(state, Txn((), (Get(b"k"),), ()), name=name)
    assert isinstance(result, TxnResult)
    assert state.memory.hash == before


def test_transaction_that_reads_too_much_writes_nothing(state: StateMachine) -> None:
    """It is refused as a whole, before its first write."""
    apply(state, Put(b"big", bytes(2**20)))
    reads = (Get(b"big"),) * (TXN_READ_BYTES_MAX // 2**20)
    assert apply(state, Txn((), (Put(b"new", b""), *reads), ())) == [Refused("too_large")]
    assert state.get(b"new").entry is None
    [fits] = apply(state, Txn((), (Put(b"new", b""), *reads[1:]), ()))
    assert isinstance(fits, TxnResult)


BIG = bytes(5 * 2**20)


@pytest.mark.parametrize("deletes", [0, 1, 2])
def test_ranges_count_with_the_entry_that_they_return_whatever_its_size(
    state: StateMachine, deletes: int
) -> None:
    """Two of them are more than a transaction may read, so it writes nothing."""
    smaller = [b"%d" % number for number in range(deletes)]
    apply(state, *(Put(key, b"") for key in smaller), Put(b"big", BIG))
    writes: list[Put | Delete | Range] = [*map(Delete, smaller), Put(b"new", b"")]
    ranges = (Range(b"", None, 1, bytes_max=1),) * 2
    digest = state.digest
    assert apply(state, Txn((), (*writes, *ranges), ())) == [Refused("too_large")]
    assert state.digest == digest
    [fits] = apply(state, Txn((), (*writes, ranges[0]), ()))
    assert isinstance(fits, TxnResult)


def test_ranges_count_with_what_the_transaction_puts(state: StateMachine) -> None:
    """It may be what they return first."""
    ranges = (Range(b"a", b"b", 1, bytes_max=1),) * 2
    assert apply(state, Txn((), (Put(b"a", BIG), *ranges), ())) == [Refused("too_large")]
    [elsewhere] = apply(state, Txn((), (Put(b"b", BIG), *ranges), ()))
    assert isinstance(elsewhere, TxnResult)


def test_ranges_of_keys_count_without_values(state: StateMachine) -> None:
    """They return none."""
    apply(state, Put(b"a", BIG))
    ranges = (Range(b"", None, 1, keys_only=True, bytes_max=1),) * 9
    [result] = apply(state, Txn((), (Put(b"b", b""), *ranges), ()))
    assert isinstance(result, TxnResult)


def test_ranges_in_a_log_of_format_1_count_as_they_did(state: StateMachine) -> None:
    """There ranges counted with what they asked for, and replicas must come to the same state."""
    apply(state, Put(b"a", BIG))
    txn = Txn((), (Put(b"b", b""), *(Range(b"", None, 1, bytes_max=1),) * 2), ())
    [result] = state.apply(Batch(1, state.generation, 0, (Command(txn),)))
    assert isinstance(result, TxnResult)


@pytest.mark.parametrize("form", [1, BATCH_FORMAT])
def test_every_outcome_fits_into_a_snapshot(state: StateMachine, form: int) -> None:
    """Else none could be written for as long as it is remembered; logs of format 1 have such."""
    apply(state, *(Put(b"%d" % number, bytes(12 * 2**20)) for number in range(8)))
    ranges = tuple(Range(b"%d" % number, None, 1) for number in range(7))
    txn = Txn((), (Put(b"x", b"y"), *ranges), ())
    retried = Batch(form, state.generation, 0, (Command(txn, FreeKey("k")),))
    first = state.apply(retried)
    records = list(state.snapshot_records())
    assert max(map(len, records)) < RECORD_BYTES_MAX
    restorer = StateMachine.restore(state.generation, lambda _: True)
    for record in records:
        restorer.feed(record)
    restored = restorer.finish()
    assert restored.digest == state.digest
    assert restored.apply(retried) == first
    for cut in range(len(records) - 3, len(records)):
        restorer = StateMachine.restore(state.generation, lambda _: True)
        for record in records[:cut]:
            restorer.feed(record)
        with pytest.raises(CorruptSnapshot):
            restorer.finish()
