"""A part of a shard's state: what a snapshot, a digest and a successor need of it.

A shard's state is a list of sections and three numbers of its own. What is new in it (a history,
leases) is a new section: it joins the list, and snapshots, digests and handover know it.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

import msgspec

from raftkv.core.operations import KeyValue

PIECE_ITEMS_MAX = 256
PIECE_BYTES_MAX = 64 * 1024
PART_BYTES_MAX = 8 * 2**20
"""A longer record is written in parts: logs of format 1 leave outcomes of any size, and whoever
keeps records may refuse very long ones."""

_Item = TypeVar("_Item")


class KeyValuePiece(
    msgspec.Struct, array_like=True, frozen=True, tag=1, gc=False, forbid_unknown_fields=True
):
    """Some entries, in key order within and across pieces."""

    entries: tuple[KeyValue, ...]


class RecordPiece(
    msgspec.Struct, array_like=True, frozen=True, tag=2, gc=False, forbid_unknown_fields=True
):
    """Some records of a section that encodes what it holds by itself."""

    records: tuple[bytes, ...]


class RecordPart(
    msgspec.Struct, array_like=True, frozen=True, tag=3, gc=False, forbid_unknown_fields=True
):
    """A part of one such record; unless ``last``, the next piece goes on."""

    data: bytes
    last: bool


class Section(Protocol):
    """A part of a shard's state. All changes of it come from the log."""

    @property
    def name(self) -> str:
        """What snapshots call it; no two sections of a shard have one name."""

    @property
    def hash(self) -> int:
        """Exclusive or of 128-bit hashes of all that it holds, kept with every change."""

    @property
    def counts(self) -> tuple[int, ...]:
        """How much it holds, in numbers of its own choice: a restored one must have the same."""

    @property
    def numbers(self) -> tuple[int, ...]:
        """What it has beside what it holds; replicas must agree on them as well."""

    def recomputed_hash(self) -> int:
        """Return the hash computed from what it holds, in time proportional to that."""

    def pieces(self) -> Iterator[KeyValuePiece | RecordPiece | RecordPart]:
        """Yield what it holds in pieces of bounded size."""

    def restore(self, piece: KeyValuePiece | RecordPiece) -> None:
        """Add a piece of a snapshot; parts of a record have been put together.

        Raises:
            CorruptSnapshot: It is not a piece of this section.
        """

    def restore_numbers(self, numbers: tuple[int, ...]) -> None:
        """Take over :attr:`numbers`, before any piece.

        Raises:
            CorruptSnapshot: They are not numbers of this section.
        """

    def succeed(self, owns: Callable[[bytes], bool]) -> None:
        """Keep what the successor needs, given which keys it owns; a group may have several."""


def key_value_pieces(entries: Iterable[KeyValue]) -> Iterator[KeyValuePiece]:
    """Put entries together to pieces; an entry that is larger than one stands alone."""
    return (KeyValuePiece(tuple(part)) for part in _bounded(entries, _entry_size))


def record_pieces(records: Iterable[bytes]) -> Iterator[RecordPiece | RecordPart]:
    """Put records together to pieces, or take one apart that is very long."""
    for part in _bounded(records, len):
        record = part[0]
        if len(record) <= PART_BYTES_MAX:  # a longer one is alone
            yield RecordPiece(tuple(part))
            continue
        for start in range(0, len(record), PART_BYTES_MAX):
            end = start + PART_BYTES_MAX
            yield RecordPart(record[start:end], end >= len(record))


def _entry_size(entry: KeyValue) -> int:
    return len(entry.key) + len(entry.value)


def _bounded(items: Iterable[_Item], size: Callable[[_Item], int]) -> Iterator[list[_Item]]:
    part: list[_Item] = []
    bytes_left = PIECE_BYTES_MAX
    for item in items:
        bytes_left -= size(item)
        if part and (bytes_left < 0 or len(part) >= PIECE_ITEMS_MAX):
            yield part
            part = []
            bytes_left = PIECE_BYTES_MAX - size(item)
        part.append(item)
    if part:
        yield part
