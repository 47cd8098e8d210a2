"""The records that a shard's state is written as: a header, then pieces of bounded size.

Where they are kept and how they are sent is not known here; a record is just bytes. Bounded pieces
let whoever builds a state from them do a little at a time between other work.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TypeVar

import msgspec

from raftkv.core.errors import DECODE_FAILURES, CorruptSnapshot, UnknownFormat
from raftkv.core.operations import Entry

SNAPSHOT_FORMAT = 3
"""Version of these records. Format 2 has no owners of idempotency keys. Format 1, moreover, has no
births of sessions, nor ``forgotten_birth``, nor parts of records."""

_FORMATS_READ = (1, 2, SNAPSHOT_FORMAT)

PIECE_ITEMS_MAX = 256
PIECE_BYTES_MAX = 64 * 1024
PART_BYTES_MAX = 8 * 2**20
"""A longer record of the idempotency memory is written in parts: logs of format 1 leave outcomes of
any size, and whoever keeps records may refuse very long ones."""

_Item = TypeVar("_Item")


class SnapshotHeader(
    msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True
):
    """The first record: what is not in the pieces, and what they must add up to."""

    format: int
    generation: int
    last_revision: int
    sealed_for: int | None
    epoch: int
    digest: bytes
    key_count: int
    outcome_count: int
    session_count: int
    forgotten_birth: int = 0
    owner_count: int | None = None


class EntryPiece(
    msgspec.Struct, array_like=True, frozen=True, tag=1, gc=False, forbid_unknown_fields=True
):
    """Some entries, in key order within and across pieces."""

    entries: tuple[Entry, ...]


class MemoryPiece(
    msgspec.Struct, array_like=True, frozen=True, tag=2, gc=False, forbid_unknown_fields=True
):
    """Some records of the idempotency memory."""

    records: tuple[bytes, ...]


class RecordPart(
    msgspec.Struct, array_like=True, frozen=True, tag=3, gc=False, forbid_unknown_fields=True
):
    """A part of one record of the idempotency memory; unless ``last``, the next piece goes on."""

    data: bytes
    last: bool


class _FormatOnly(msgspec.Struct, array_like=True, frozen=True):
    format: int


_encode = msgspec.msgpack.Encoder().encode
_header_decoder = msgspec.msgpack.Decoder(SnapshotHeader)
_format_decoder = msgspec.msgpack.Decoder(_FormatOnly)
Piece = EntryPiece | MemoryPiece | RecordPart
_piece_decoder: msgspec.msgpack.Decoder[Piece] = msgspec.msgpack.Decoder(Piece)


def encode_header(header: SnapshotHeader) -> bytes:
    """Encode the first record."""
    return _encode(header)


def decode_header(record: bytes) -> SnapshotHeader:
    """Decode the first record; raise :class:`UnknownFormat` or :class:`CorruptSnapshot`."""
    try:
        # By itself first: a newer format may have any other shape behind the number.
        version = _format_decoder.decode(record).format
        if version not in _FORMATS_READ:
            raise UnknownFormat(
                f"snapshot of format {version}, this version knows up to {SNAPSHOT_FORMAT}"
            )
        header = _header_decoder.decode(record)
    except DECODE_FAILURES as error:
        raise CorruptSnapshot(f"not a snapshot's header: {error}") from error
    if (header.owner_count is None) == (version == SNAPSHOT_FORMAT):
        raise CorruptSnapshot(f"not a snapshot's header in format {version}")
    return header


def decode_piece(record: bytes) -> Piece:
    """Decode any other record; raise :class:`CorruptSnapshot`."""
    try:
        return _piece_decoder.decode(record)
    except DECODE_FAILURES as error:
        raise CorruptSnapshot(f"not a snapshot's piece: {error}") from error


def pieces(entries: Iterable[Entry], memory_records: Iterable[bytes]) -> Iterator[bytes]:
    """Yield everything as encoded pieces of bounded size."""
    return chain(
        (_encode(EntryPiece(tuple(part))) for part in _bounded(entries, _entry_size)),
        (
            _encode(piece)
            for records in _bounded(memory_records, len)
            for piece in _memory_pieces(records)
        ),
    )


def _memory_pieces(records: list[bytes]) -> Iterator[MemoryPiece | RecordPart]:
    record = records[0]
    if len(record) <= PART_BYTES_MAX:  # a longer one is alone
        yield MemoryPiece(tuple(records))
        return
    for start in range(0, len(record), PART_BYTES_MAX):
        end = start + PART_BYTES_MAX
        yield RecordPart(record[start:end], end >= len(record))


def _entry_size(entry: Entry) -> int:
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
