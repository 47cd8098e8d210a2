"""The records that a shard's state is written as: a header, then pieces of bounded size.

Where they are kept and how they are sent is not known here; a record is just bytes. Bounded pieces
let whoever builds a state from them do a little at a time between other work.
"""

import msgspec

from raftkv.core.errors import DECODE_FAILURES, CorruptSnapshot, UnknownFormat
from raftkv.core.shard.sections import EntryPiece, RecordPart, RecordPiece

SNAPSHOT_FORMAT = 3
"""Version of these records. Format 2 has no owners of idempotency keys. Format 1, moreover, has no
births of sessions, nor ``forgotten_birth``, nor parts of records."""

_FORMATS_READ = (1, 2, SNAPSHOT_FORMAT)


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


class _FormatOnly(msgspec.Struct, array_like=True, frozen=True):
    format: int


_encode = msgspec.msgpack.Encoder().encode
_header_decoder = msgspec.msgpack.Decoder(SnapshotHeader)
_format_decoder = msgspec.msgpack.Decoder(_FormatOnly)
Piece = EntryPiece | RecordPiece | RecordPart
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


def encode_piece(piece: Piece) -> bytes:
    """Encode any other record."""
    return _encode(piece)


def decode_piece(record: bytes) -> Piece:
    """Decode any other record; raise :class:`CorruptSnapshot`."""
    try:
        return _piece_decoder.decode(record)
    except DECODE_FAILURES as error:
        raise CorruptSnapshot(f"not a snapshot's piece: {error}") from error
