"""The records that a shard's state is written as: a header, then one section after another.

Each section begins with a header of its own, and goes on with pieces of bounded size. Where records
are kept and how they are sent is not known here; a record is just bytes. Bounded pieces let whoever
builds a state from them do a little at a time between other work.
"""

import msgspec

from raftkv.core.errors import DECODE_FAILURES, CorruptSnapshot, UnknownFormat
from raftkv.core.shard.sections import KeyValuePiece, RecordPart, RecordPiece

SNAPSHOT_FORMAT = 3
"""Version of these records. Formats 1 and 2 have one header for everything, and no owners of
idempotency keys. Format 1, moreover, has no births of sessions, nor ``forgotten_birth``, nor parts
of records."""

_FORMATS_READ = (1, 2, SNAPSHOT_FORMAT)


class SnapshotHeader(
    msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True
):
    """The first record: what belongs to no section, and the digest of the whole state."""

    format: int
    generation: int
    last_revision: int
    sealed_for: int | None
    digest: bytes
    sections: tuple[str, ...]
    """The names of all that follow, in this order."""


class SectionHeader(
    msgspec.Struct, array_like=True, frozen=True, tag=4, gc=False, forbid_unknown_fields=True
):
    """The first record of a section: what its pieces must add up to."""

    name: str
    numbers: tuple[int, ...]
    counts: tuple[int, ...]
    digest: bytes | None
    """The section's hash; None in formats 1 and 2, which do not say it."""


class _HeaderFormat1(
    msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True
):
    """The first record in formats 1 and 2, which is the header of its two sections as well."""

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

    def split(self) -> "Headers":
        names = ("entries", "outcomes")
        header = SnapshotHeader(
            self.format, self.generation, self.last_revision, self.sealed_for, self.digest, names
        )
        counts = (self.outcome_count, self.session_count, 0)
        return header, (
            SectionHeader(names[0], (), (self.key_count,), None),
            SectionHeader(names[1], (self.epoch, self.forgotten_birth), counts, None),
        )


class _FormatOnly(msgspec.Struct, array_like=True, frozen=True):
    format: int


Headers = tuple[SnapshotHeader, tuple[SectionHeader, ...]]

Piece = KeyValuePiece | RecordPiece | RecordPart

_encode = msgspec.msgpack.Encoder().encode
_header_decoder = msgspec.msgpack.Decoder(SnapshotHeader)
_decoder_format_1 = msgspec.msgpack.Decoder(_HeaderFormat1)
_format_decoder = msgspec.msgpack.Decoder(_FormatOnly)
_record_decoder: msgspec.msgpack.Decoder[SectionHeader | Piece] = msgspec.msgpack.Decoder(
    SectionHeader | Piece
)


def encode_record(record: SnapshotHeader | SectionHeader | Piece) -> bytes:
    """Encode a header or a piece."""
    return _encode(record)


def decode_header(record: bytes) -> Headers:
    """Decode the first record, and with it the headers of sections that formats 1 and 2 have there.

    Raises:
        UnknownFormat: A newer version wrote it.
        CorruptSnapshot: It is not a snapshot's header.
    """
    try:
        # By itself first: a newer format may have any other shape behind the number.
        version = _format_decoder.decode(record).format
        if version not in _FORMATS_READ:
            raise UnknownFormat(
                f"snapshot of format {version}, this version knows up to {SNAPSHOT_FORMAT}"
            )
        if version < SNAPSHOT_FORMAT:
            return _decoder_format_1.decode(record).split()
        return _header_decoder.decode(record), ()
    except DECODE_FAILURES as error:
        raise CorruptSnapshot(f"not a snapshot's header: {error}") from error


def decode_record(record: bytes) -> SectionHeader | Piece:
    """Decode any other record; raise :class:`CorruptSnapshot`."""
    try:
        return _record_decoder.decode(record)
    except DECODE_FAILURES as error:
        raise CorruptSnapshot(f"not a snapshot's piece: {error}") from error
