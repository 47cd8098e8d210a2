"""No owner fills the idempotency table for all others, and what he has is counted right."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.core.batches import decode_batch, encode_batch
from raftkv.core.idempotency import MemoryLimits
from raftkv.core.operations import (
    BATCH_FORMAT,
    Batch,
    Command,
    Forget,
    FreeKey,
    Get,
    Idempotency,
    Put,
    PutResult,
    Range,
    Refused,
    SessionKey,
    Txn,
    WriteResult,
)
from raftkv.core.state_machine import StateMachine

GREEDY, OTHER = 7, 8
SHARE_FULL = Refused("share_full")
LIMITS = MemoryLimits(free_keys_max=100, sessions_max=100, outcome_bytes_max=20_000)
PUT = Put(b"k", b"v")


@dataclass
class Shard:
    """A state machine whose every entry goes through the log's encoding."""

    limits: MemoryLimits = LIMITS
    state: StateMachine = field(init=False)
    numbers: "count[int]" = field(default_factory=count)

    def __post_init__(self) -> None:
        self.state = StateMachine(1, lambda _: True, self.limits)

    def apply(self, operation: Put | Txn | Forget, name: Idempotency | None = None) -> WriteResult:
        """Apply one command."""
        batch = Batch(BATCH_FORMAT, 1, 0, (Command(operation, name),))
        (result,) = self.state.apply(decode_batch(encode_batch(batch)))
        return result

    def restored(self) -> StateMachine:
        """A replica that has read a snapshot."""
        restorer = StateMachine.restore(1, lambda _: True, self.limits)
        for record in self.state.snapshot_records():
            restorer.feed(record)
        return restorer.finish()

    def forget_all(self) -> None:
        """Forget all names."""
        self.apply(Forget((), ()))
        self.apply(Forget(tuple(self.state.free_keys()), tuple(self.state.sessions())))

    def fill(self, new_name: "NewName", operation: Put | Txn = PUT, owner: int = GREEDY) -> int:
        """Write under new names of one owner until that is refused; say how many were not."""
        for written in range(10_000):
            result = self.apply(operation, new_name(next(self.numbers), owner))
            if isinstance(result, Refused):
                assert result == SHARE_FULL
                return written
        raise AssertionError("one owner fills the table")


NewName = Callable[[int, int], Idempotency]


def free_key(number: int, owner: int) -> FreeKey:
    """A new free-form key."""
    return FreeKey(f"f{number}", owner)


def session(number: int, owner: int, sequence: int = 1) -> SessionKey:
    """A new session."""
    return SessionKey(f"s{number}", sequence, 0, 1_000 + number, owner)


READING = Txn((), (PUT, Get(b"big")), ())
"""A write whose outcome is as large as the value at ``big``."""

BY_NAMES = pytest.mark.parametrize("new_name", [free_key, session])


@BY_NAMES
def test_one_owner_stops_at_four_fifths_and_another_one_is_let_in(new_name: NewName) -> None:
    """Alone he has at most four times what is free; that is never nothing."""
    shard = Shard()
    assert shard.fill(new_name) == 80
    assert not isinstance(shard.apply(PUT, new_name(9_999, OTHER)), Refused)


@BY_NAMES
def test_the_bytes_of_outcomes_have_shares_as_well(new_name: NewName) -> None:
    """A few outcomes that have read much count as much as many names."""
    shard = Shard()
    shard.apply(Put(b"big", bytes(1_500)))
    assert 8 <= shard.fill(new_name, READING) <= 11
    assert 0.7 < shard.state.memory.bytes / LIMITS.outcome_bytes_max <= 0.8
    assert not isinstance(shard.apply(PUT, new_name(9_999, OTHER)), Refused)


@BY_NAMES
def test_a_range_counts_with_all_that_it_may_return(new_name: NewName) -> None:
    """Numbers of many small entries, too: one transaction must not take all that was left."""
    shard = Shard(MemoryLimits(outcome_bytes_max=50_000))
    for number in range(750):
        shard.apply(Put(b"%03d" % number, b""))
    assert shard.fill(new_name, Txn((), (PUT, Range(b"", None, 750, bytes_max=2_250)), ())) > 0
    assert shard.state.memory.bytes <= 0.8 * shard.limits.outcome_bytes_max


@pytest.mark.parametrize("greedy", [2, 5])
@BY_NAMES
def test_several_greedy_owners_leave_something_too(new_name: NewName, greedy: int) -> None:
    """Each has as much as the others in the end, and what is left is a quarter of that."""
    limits = MemoryLimits(free_keys_max=4_200, sessions_max=4_200)
    shard = Shard(limits)
    open_owners = set(range(1, greedy + 1))
    while open_owners:
        for owner in sorted(open_owners):
            name = new_name(next(shard.numbers), owner)
            if shard.apply(PUT, name) == SHARE_FULL:
                open_owners.remove(owner)
    held = [max(one.keys, one.sessions) for one in shard.state.memory.holdings()]
    assert held == pytest.approx([4 * 4_200 / (1 + 4 * greedy)] * greedy, abs=2)
    assert not isinstance(shard.apply(PUT, new_name(99_999, 99)), Refused)


@BY_NAMES
def test_who_has_nothing_gets_the_last_place(new_name: NewName) -> None:
    """However many others there are: only a full table refuses him, and says so."""
    shard = Shard()
    for owner in range(1, 101):
        assert not isinstance(shard.apply(PUT, new_name(owner, owner)), Refused)
    assert shard.apply(PUT, new_name(101, 101)) == Refused("table_full")


def test_sessions_that_are_known_go_on_whatever_their_owner_has() -> None:
    """Only new names are refused, so who works already does not notice."""
    shard = Shard()
    shard.apply(PUT, SessionKey("old", 1, 1, 1, GREEDY))
    assert shard.fill(session) == 79
    shard.fill(free_key)
    for sequence in range(2, 200):
        name = SessionKey("old", sequence, sequence, 1, GREEDY)
        assert not isinstance(shard.apply(PUT, name), Refused)


def test_sessions_that_keep_all_their_outcomes_have_a_share_of_bytes() -> None:
    """A known session may go further than a new name, but leaves others something as well."""
    shard = Shard()
    names = [session(number, GREEDY) for number in range(10)]
    refused = None
    for sequence in range(1, 1_000):
        for name in names:
            result = shard.apply(PUT, msgspec.structs.replace(name, sequence=sequence))
            if isinstance(result, Refused):
                refused = result
    assert refused == SHARE_FULL
    assert 0.9 < shard.state.memory.bytes / LIMITS.outcome_bytes_max < 0.95
    assert not isinstance(shard.apply(PUT, session(99, OTHER)), Refused)
    assert not isinstance(shard.apply(PUT, free_key(99, OTHER)), Refused)


@BY_NAMES
def test_what_is_remembered_is_answered_whatever_its_owner_has(new_name: NewName) -> None:
    """A retry takes nothing new, and it may come from somewhere else."""
    shard = Shard()
    name = new_name(next(shard.numbers), GREEDY)
    first = shard.apply(PUT, name)
    shard.fill(new_name)
    assert shard.apply(PUT, name) == first
    assert shard.apply(PUT, msgspec.structs.replace(name, owner=OTHER)) == first
    assert {one.owner for one in shard.state.memory.holdings()} == {GREEDY}


@BY_NAMES
def test_what_is_forgotten_makes_room_in_its_owners_share(new_name: NewName) -> None:
    """And nothing is left of an owner who has nothing left."""
    shard = Shard()
    filled = shard.fill(new_name)
    shard.forget_all()
    assert list(shard.state.memory.holdings()) == []
    assert shard.fill(new_name) == filled


@BY_NAMES
def test_nobody_has_no_share(new_name: NewName) -> None:
    """Names without an owner, as logs of earlier formats have them, fill the table as ever."""
    shard = Shard()
    results = [shard.apply(PUT, new_name(number, 0)) for number in range(101)]
    assert results.index(Refused("table_full")) == 100
    assert list(shard.state.memory.holdings()) == []


def test_the_largest_share_is_of_whatever_its_owner_has_most() -> None:
    """Of keys, sessions or bytes."""
    shard = Shard()
    assert shard.state.memory.largest_share() == 0
    for number in range(10):
        shard.apply(PUT, free_key(number, OTHER))
    assert shard.state.memory.largest_share() == pytest.approx(0.1)
    shard.fill(session)
    assert shard.state.memory.largest_share() == pytest.approx(0.8)
    for number in range(10):
        shard.apply(PUT, session(1_000 + number, OTHER))
    assert shard.state.memory.largest_share() == pytest.approx(0.8)
    assert shard.state.memory.used() == pytest.approx(0.9)


FORMAT_2_BATCH = bytes.fromhex(
    "9402010092931e9501c4016bc40176c0c29502a161010105931e9501c4016bc40177c0c29201a166"
)
FORMAT_2_SNAPSHOT = [
    bytes.fromhex("9a020102c000c410f1723cd378f06617fa3b75190fa1bd0801020100"),
    bytes.fromhex("9201919601c4016bc40177010202"),
    bytes.fromhex(
        "920293c41b9501a16600c410b625e27390e79586190b9a1f0fe5277393010202c4079504a161010005c41b95"
        "02a16101c410b315abf56dfcb431bdcfab4a25e4358493010101"
    ),
]
"""Two puts of ``k``, one in a session and one under a key, and the state after them, as format 2
wrote them."""


def test_records_of_before_are_read() -> None:
    """Log and snapshot give one state without owners, written to the same digest as then."""
    shard = Shard()
    outcomes = [PutResult(1, 1), PutResult(2, 2)]
    assert shard.state.apply(decode_batch(FORMAT_2_BATCH)) == outcomes
    restorer = StateMachine.restore(1, lambda _: True, LIMITS)
    for record in FORMAT_2_SNAPSHOT:
        restorer.feed(record)
    read = restorer.finish()
    assert read.digest == shard.state.digest == shard.restored().digest
    assert read.apply(decode_batch(FORMAT_2_BATCH)) == outcomes
    assert list(read.memory.holdings()) == []


NAMES = st.builds(FreeKey, st.sampled_from("abcdef"), st.integers(0, 2)) | st.builds(
    SessionKey,
    st.sampled_from("abcd"),
    st.integers(3, 9),
    st.integers(0, 3),
    st.sampled_from([1, 2, 3]),
    st.integers(0, 2),
)
STEPS = st.lists(
    st.tuples(st.sampled_from([PUT, READING]), NAMES)
    | st.tuples(
        st.builds(
            Forget,
            st.lists(st.sampled_from("abcdef")).map(tuple),
            st.lists(st.sampled_from("abcd")).map(tuple),
        ),
        st.none(),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_what_owners_have_equals_a_recount(
    steps: list[tuple[Put | Txn | Forget, Idempotency | None]],
) -> None:
    """After any history, and in a replica that reads a snapshot of it."""
    shard = Shard(MemoryLimits(free_keys_max=6, sessions_max=4, outcome_bytes_max=900))
    shard.apply(Put(b"big", bytes(150)))
    for operation, name in steps:
        shard.apply(operation, name)
        assert shard.state.digest == shard.state.recomputed_digest()
    held = {one.owner: (one.keys, one.sessions, one.bytes) for one in shard.state.memory.holdings()}
    assert held == recounted(shard.state)
    again = shard.restored()
    assert again.digest == shard.state.digest
    assert held == {o.owner: (o.keys, o.sessions, o.bytes) for o in again.memory.holdings()}


FREE, OUTCOME, OWNED_KEY, OWNED_SESSION = 1, 2, 5, 6


def recounted(state: StateMachine) -> dict[int, tuple[int, int, int]]:
    """Keys, sessions and bytes of every owner, from the records of a snapshot."""
    keys, sessions, sizes = Counter[int](), Counter[int](), Counter[int]()
    owner_of: dict[str, int] = {}
    for record in state.memory.records():
        tag, name, *rest = msgspec.msgpack.decode(record)
        if tag == OWNED_KEY:
            keys[rest[1]] += 1
            sizes[rest[1]] += len(record)
        elif tag == OWNED_SESSION:
            owner_of[name] = rest[3]
            sessions[rest[3]] += 1
        elif tag == OUTCOME and name in owner_of:
            sizes[owner_of[name]] += len(record)
    owners = keys.keys() | sessions.keys()
    return {owner: (keys[owner], sessions[owner], sizes[owner]) for owner in owners}
