"""What `apply` tells of keys: every step, in order, and nothing but for the asking."""

from hypothesis import given, settings
from test_state_machine_model import GENERATION, HISTORIES, LIMITS, owns

from raftkv.core.operations import (
    BATCH_FORMAT,
    Batch,
    Command,
    Delete,
    FreeKey,
    Get,
    KeyValue,
    LoggedOperation,
    Put,
    PutResult,
    Range,
    Refused,
    Txn,
)
from raftkv.core.shard.changes import Change
from raftkv.core.shard.machine import StateMachine


def changes_of(state: StateMachine, *operations: LoggedOperation) -> list[Change]:
    """Apply operations as one batch, each under the same idempotency key as its like."""
    changes: list[Change] = []
    commands = tuple(Command(op, FreeKey(repr(op))) for op in operations)
    state.apply(Batch(BATCH_FORMAT, GENERATION, 0, commands), changes)
    return changes


def empty() -> StateMachine:
    """A shard without keys."""
    return StateMachine(GENERATION, owns)


def test_a_change_has_the_entry_before_and_the_one_after() -> None:
    """Created, overwritten, deleted."""
    first, second = KeyValue(b"k", b"1", 1, 1, 1), KeyValue(b"k", b"2", 1, 2, 2)
    assert changes_of(empty(), Put(b"k", b"1"), Put(b"k", b"2"), Delete(b"k")) == [
        Change(b"k", 1, None, first, "client"),
        Change(b"k", 2, first, second, "client"),
        Change(b"k", 3, second, None, "client"),
    ]


def test_the_entries_of_a_change_are_those_of_the_state() -> None:
    """No copy is made of a value."""
    state = empty()
    [change] = changes_of(state, Put(b"k", b"1"))
    assert change.new is state.get(b"k").entry
    [change] = changes_of(state, Delete(b"k"))
    assert change.old is not None
    assert change.old.value == b"1"


def test_all_changes_of_a_transaction_have_its_revision_and_stay_in_order() -> None:
    """Also where it writes a key twice; reading changes nothing."""
    txn = Txn((), (Put(b"b", b"1"), Get(b"b"), Put(b"a", b"2"), Delete(b"b")), ())
    changes = changes_of(empty(), Put(b"z", b""), txn)
    assert [(change.key, change.revision, change.new is None) for change in changes] == [
        (b"z", 1, False),
        (b"b", 2, False),
        (b"a", 2, False),
        (b"b", 2, True),
    ]


def test_what_is_not_applied_changes_nothing() -> None:
    """Refusals, retries, deletes of nothing, keys of other shards, other generations."""
    state = empty()
    put = Put(b"k", b"v", if_absent=True)
    changes_of(state, put)
    assert changes_of(state, put, Put(b"k", b"w", if_revision=9), Delete(b"no")) == []
    assert changes_of(state, Put(b"foreign", b"")) == []
    changes: list[Change] = []
    batch = Batch(BATCH_FORMAT, GENERATION + 1, 0, (Command(Put(b"k", b"x")),))
    assert state.apply(batch, changes) == [Refused("moved")]
    assert changes == []


def test_who_does_not_ask_is_told_nothing() -> None:
    """A list that one entry was applied with gets nothing of the next."""
    state = empty()
    changes = changes_of(state, Put(b"k", b"1"))
    batch = Batch(BATCH_FORMAT, GENERATION, 0, (Command(Put(b"k", b"2")),))
    assert state.apply(batch) == [PutResult(2, 2)]
    assert len(changes) == 1


@settings(max_examples=100, deadline=None)
@given(HISTORIES)
def test_changes_are_all_that_happens_to_keys(history: list[Batch]) -> None:
    """Done once more to a dict they make the state's entries; who asks changes no answer."""
    state, told = StateMachine(GENERATION, owns, LIMITS), StateMachine(GENERATION, owns, LIMITS)
    entries: dict[bytes, KeyValue] = {}
    for batch in history:
        changes: list[Change] = []
        before = told.last_revision
        assert state.apply(batch) == told.apply(batch, changes)
        for change in changes:
            assert entries.get(change.key) == change.old
            assert before < change.revision <= told.last_revision
            if change.new is None:
                del entries[change.key]
            else:
                assert (change.new.key, change.new.mod_revision) == (change.key, change.revision)
                entries[change.key] = change.new
        revisions = [change.revision for change in changes]
        assert revisions == sorted(revisions)
    assert list(told.range(Range(b"", None, 100)).entries) == [
        entries[key] for key in sorted(entries)
    ]
    assert told.digest == state.digest
