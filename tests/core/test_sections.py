"""A snapshot holds one section after another, each with what it must add up to."""

import msgspec
import pytest

from raftkv.core.errors import CorruptSnapshot, UnknownFormat
from raftkv.core.operations import BATCH_FORMAT, Batch, Command, FreeKey, Put, SessionKey
from raftkv.core.shard.machine import StateMachine
from raftkv.core.shard.sections import RecordPart
from raftkv.core.shard.snapshot import (
    Piece,
    SectionHeader,
    SnapshotHeader,
    decode_header,
    decode_record,
    encode_record,
)

Records = list[SnapshotHeader | SectionHeader | Piece]


def snapshot() -> Records:
    """A shard with two keys, one session and one free-form key: header, entries, outcomes."""
    state = StateMachine(1, lambda _: True)
    commands = (
        Command(Put(b"a", b"1"), FreeKey("f", owner=7)),
        Command(Put(b"b", b"2"), SessionKey("s", 1, 1, 1)),
    )
    state.apply(Batch(BATCH_FORMAT, 1, 0, commands))
    first, *rest = state.snapshot_records()
    return [decode_header(first)[0], *map(decode_record, rest)]


def restore(records: Records) -> StateMachine:
    """Build a state of records."""
    restorer = StateMachine.restore(1, lambda _: True)
    for record in records:
        restorer.feed(encode_record(record))
    return restorer.finish()


def test_every_section_says_how_much_it_holds_and_its_hash() -> None:
    """Two keys; two outcomes of one session and one owner; nothing forgotten in epoch 0."""
    state = restore(snapshot())
    header, entries, _, outcomes, _ = snapshot()
    assert isinstance(header, SnapshotHeader)
    assert header.sections == ("entries", "outcomes")
    digests = [section.hash.to_bytes(16, "big") for section in state.sections]
    assert entries == SectionHeader("entries", (), (2,), digests[0])
    assert outcomes == SectionHeader("outcomes", (0,), (2, 1, 1), digests[1])


@pytest.mark.parametrize(("place", "name"), [(1, "entries"), (3, "outcomes")])
def test_the_section_that_does_not_add_up_is_named(place: int, name: str) -> None:
    """By its count, or by its hash."""
    for field, value in (("counts", (9,)), ("digest", bytes(16))):
        records = snapshot()
        records[place] = msgspec.structs.replace(records[place], **{field: value})
        with pytest.raises(CorruptSnapshot, match=name):
            restore(records)


def test_a_section_that_is_not_known_is_of_a_newer_version() -> None:
    """Nothing is built without it."""
    records = snapshot()
    names = ("entries", "outcomes", "leases")
    records[0] = msgspec.structs.replace(records[0], sections=names)
    with pytest.raises(UnknownFormat, match="leases"):
        restore(records)


@pytest.mark.parametrize(
    "order",
    [[0, 2, 1, 3, 4], [0, 3, 4, 1, 2], [0, 1, 2, 1, 2], [0, 1, 4, 3, 2], [0, 1, 2, 4], [0, 1, 2]],
)
def test_sections_come_once_and_in_order(order: list[int]) -> None:
    """Each with its own pieces behind its own header."""
    records = snapshot()
    with pytest.raises(CorruptSnapshot):
        restore([records[number] for number in order])


def test_a_record_that_ends_in_the_middle_is_no_snapshot() -> None:
    """Neither at the end of a section nor at the end of everything."""
    records, half = snapshot(), RecordPart(b"half", last=False)
    for broken in ([*records[:3], half, *records[3:]], [*records, half]):
        with pytest.raises(CorruptSnapshot):
            restore(broken)
