"""Raft entries as bytes: everything survives, nothing else is let in."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.core.batches import decode_batch, encode_batch
from raftkv.core.errors import CorruptBatch, UndecodableError, UnknownFormat
from raftkv.core.operations import (
    BATCH_FORMAT,
    Batch,
    Command,
    Compare,
    Delete,
    Forget,
    FreeKey,
    Get,
    Put,
    Range,
    Seal,
    SessionKey,
    Txn,
)

INTS = st.integers(-(2**63), 2**64 - 1)
KEYS = st.binary(min_size=1, max_size=12) | st.just(b"k" * 1024)
VALUES = st.binary(max_size=20)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
MAYBE = st.none() | INTS
PUTS = st.builds(Put, KEYS, VALUES, MAYBE, st.booleans())
DELETES = st.builds(Delete, KEYS, MAYBE)
RANGES = st.builds(Range, VALUES, st.none() | VALUES, INTS, st.booleans(), INTS)
PARTS = st.lists(PUTS | DELETES | st.builds(Get, KEYS) | RANGES, max_size=4).map(tuple)
COMPARES = st.builds(
    Compare,
    KEYS,
    st.sampled_from(["value", "create", "mod", "version"]),
    st.sampled_from(["=", "!=", "<", ">"]),
    INTS | VALUES,
)
OPERATIONS = (
    PUTS
    | DELETES
    | st.builds(Txn, st.lists(COMPARES, max_size=3).map(tuple), PARTS, PARTS)
    | st.builds(Forget, st.lists(NAMES).map(tuple), st.lists(NAMES).map(tuple))
    | st.builds(Seal, INTS)
)
SEQUENCES = st.integers(0, 2**63 - 1)
IDEMPOTENCY = (
    st.none()
    | st.builds(FreeKey, NAMES, SEQUENCES)
    | st.builds(SessionKey, NAMES, *[SEQUENCES] * 4)
)
COMMANDS = st.builds(Command, OPERATIONS, IDEMPOTENCY)
BATCHES = st.builds(
    Batch, st.just(BATCH_FORMAT), INTS, INTS, st.lists(COMMANDS, max_size=5).map(tuple)
)

EXAMPLE = encode_batch(Batch(BATCH_FORMAT, 1, 5, (Command(Put(b"k", b"v"), FreeKey("f")),)))


@given(BATCHES)
def test_a_batch_survives_its_encoding(batch: Batch) -> None:
    """Whatever can be said can be logged."""
    assert decode_batch(encode_batch(batch)) == batch


@given(st.binary(max_size=50))
def test_other_bytes_are_undecodable(data: bytes) -> None:
    """Only the typed errors escape, whatever the bytes; random bytes are never a batch."""
    with pytest.raises(UndecodableError):
        decode_batch(data)


@given(BATCHES, st.data())
def test_damage_never_raises_anything_else(batch: Batch, data: st.DataObject) -> None:
    """A flipped bit gives a typed error or another well-formed batch; checksums are below."""
    encoded = bytearray(encode_batch(batch))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        decoded = decode_batch(bytes(encoded))
    except UndecodableError:
        return
    assert isinstance(decoded, Batch)


@pytest.mark.parametrize("length", range(len(EXAMPLE)))
def test_a_cut_batch_is_corrupt(length: int) -> None:
    """Every proper prefix is refused as a whole."""
    with pytest.raises(CorruptBatch):
        decode_batch(EXAMPLE[:length])


def test_bytes_after_the_end_are_corrupt() -> None:
    """One entry is one batch."""
    with pytest.raises(CorruptBatch):
        decode_batch(EXAMPLE + b"\x00")


@pytest.mark.parametrize("rest", [[1, 5, []], [], [{"other": "shape"}], [1, 5, [[99, 1]]]])
def test_a_newer_format_is_told_from_damage(rest: list[object]) -> None:
    """A replica stops before it and can be upgraded: whatever shape the newer format has."""
    with pytest.raises(UnknownFormat, match="format 4"):
        decode_batch(msgspec.msgpack.encode([4, *rest]))


@pytest.mark.parametrize(
    "command",
    [
        [30, [99, b"k"], None],
        [30, [3, b"k"], None],
        [31, [1, b"k", b"v", None, False], None],
        [30, [1, b"", b"v", None, False], None],
        [30, [1, b"k" * 1025, b"v", None, False], None],
        [30, [1, "k", b"v", None, False], None],
        [30, [1, b"k", b"v", 1.5, False], None],
        [30, [1, b"k", b"v", None, False], [1, ""]],
        [30, [1, b"k", b"v", None, False], [2, "s", -1, 0]],
        [30, [1, b"k", msgspec.msgpack.Ext(1, b"v"), None, False], None],
        {"operation": [1, b"k", b"v", None, False]},
    ],
)
def test_only_known_types_with_fields_in_bounds_get_in(command: object) -> None:
    """Other tags, a read as a write, wrong types, empty or long keys, extension types."""
    with pytest.raises(CorruptBatch):
        decode_batch(msgspec.msgpack.encode([BATCH_FORMAT, 1, 5, [command]]))


@pytest.mark.parametrize("data", [b"\x91" * 100_000, b"\x94\x01\x01\x01" + b"\x91" * 100_000])
def test_nesting_without_end_is_corrupt(data: bytes) -> None:
    """A bomb of arrays must not end in a RecursionError that nobody expects."""
    with pytest.raises(CorruptBatch):
        decode_batch(data)
