"""Byte layout of write-ahead log segments; docs/storage.md has the same as tables.

Pure: bytes in, values out. All integers are little-endian.
"""

import struct
import zlib
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

FORMAT: Final = 1
MAGIC: Final = b"raftkvWL"

SEGMENT_HEADER: Final = struct.Struct("<8sIQ16s8sI")
"""Magic, format, segment number, node hash, marker, CRC of all that."""

UNIT_HEADER: Final = struct.Struct("<8sQIIII")
"""Marker, sequence, body length, header CRC of the unit before, body CRC, CRC of all that.

The last field covers the body's CRC and the unit before, so it stands for the whole chain.
"""

RECORD: Final = struct.Struct("<BIIQQI")
"""Kind, shard, generation, two numbers that depend on the kind, length of the bytes after it."""

CARRY: Final = struct.Struct("<QQQB")
"""Body of a CARRY record: compacted index and term, last index, whether a vote follows."""

_CRC: Final = struct.Struct("<I")

UNIT_HEADER_SPACE: Final = bytes(UNIT_HEADER.size)


class Kind:
    """Kinds of records; plain integers because recovery compares them millions of times."""

    APPEND: Final = 1  # (index, term), payload
    TRUNCATE: Final = 2  # (first index that is gone, 0)
    HARD_STATE: Final = 3  # (term, 1 if there is a vote), vote
    COMPACT: Final = 4  # (index, term) of the last entry that the snapshot covers
    SEGMENT_START: Final = 5  # (number of CARRY records that follow, 0); first in every segment
    CARRY: Final = 6  # (term, 0), CARRY body and vote: the group as of the unit before


class WalDamaged(Exception):  # noqa: N818 - says what the log is
    """The log cannot be trusted at ``offset`` of ``file``; nothing on disk was changed."""

    def __init__(self, file: Path, offset: int, reason: str) -> None:
        self.file = file
        self.offset = offset
        self.reason = reason
        super().__init__(f"{file}: write-ahead log damaged at byte {offset}: {reason}")


def segment_name(number: int) -> str:
    """File name of a segment; hexadecimal of fixed width, so that names sort by number."""
    return f"wal-{number:016x}.log"


def segment_number(name: str) -> int | None:
    """Inverse of :func:`segment_name`, None for any other name."""
    if len(name) != len("wal-.log") + 16 or not (name.startswith("wal-") and name.endswith(".log")):
        return None
    try:
        number = int(name[4:20], 16)
    except ValueError:
        return None
    return number if segment_name(number) == name else None


def node_hash(identity: str) -> bytes:
    """What a segment says about whose it is; 16 bytes whatever the identity's length."""
    return blake2b(identity.encode(), digest_size=16, person=b"raftkv-wal-node").digest()


def segment_marker(identity: str, number: int) -> bytes:
    """Eight bytes that begin every unit of one segment and, by all odds, nothing else in it.

    They let recovery find units behind a damaged one. They differ between nodes and segments so
    that no value that a client stores can look like a unit by accident.
    """
    digest = blake2b(identity.encode(), digest_size=8, person=b"raftkv-wal-mark")
    digest.update(number.to_bytes(8, "little"))
    return digest.digest()


def encode_segment_header(number: int, identity: str) -> bytes:
    """Header of a new segment."""
    return _with_crc(
        SEGMENT_HEADER.pack(
            MAGIC, FORMAT, number, node_hash(identity), segment_marker(identity, number), 0
        )
    )


def check_segment_header(data: bytes, file: Path, number: int, identity: str) -> bytes:
    """Check a segment's header and return its marker; raise WalDamaged with the reason."""

    def damaged(reason: str) -> WalDamaged:
        return WalDamaged(file, 0, reason)

    if len(data) < SEGMENT_HEADER.size:
        raise damaged(f"{len(data)} bytes are too few for a segment")
    magic, form, found, owner, marker, crc = SEGMENT_HEADER.unpack_from(data)
    if magic != MAGIC:
        raise damaged("this is not a segment of a raftkv log")
    if zlib.crc32(data[: SEGMENT_HEADER.size - _CRC.size]) != crc:
        raise damaged("segment header checksum mismatch")
    if form != FORMAT:
        raise damaged(f"format {form} is unknown to this version (it knows {FORMAT})")
    if found != number:
        raise damaged(f"the header says segment {found}, the file name {number}")
    if owner != node_hash(identity):
        raise damaged("segment was written by another node")
    return bytes(marker)


class Unit(NamedTuple):
    """A checked unit header and where its body lies in the segment."""

    sequence: int
    before: int
    body_crc: int
    crc: int
    start: int
    body: int
    end: int


def encode_unit(
    marker: bytes, sequence: int, before: int, parts: list[bytes]
) -> tuple[bytearray, int]:
    """Join ``parts`` (the first is UNIT_HEADER_SPACE) into a unit; return it and its CRC."""
    unit = bytearray().join(parts)
    body = memoryview(unit)[UNIT_HEADER.size :]
    fields = UNIT_HEADER.pack(marker, sequence, len(body), before, zlib.crc32(body), 0)
    header = _with_crc(fields)
    del body  # a bytearray with an exported view refuses some operations
    unit[: UNIT_HEADER.size] = header
    return unit, _CRC.unpack_from(header, UNIT_HEADER.size - _CRC.size)[0]


def read_unit_header(data: bytes, offset: int, marker: bytes) -> Unit | None:
    """Return the unit header at ``offset`` if its own checksum holds; the body is unchecked."""
    body = offset + UNIT_HEADER.size
    if body > len(data):
        return None
    found, sequence, length, before, body_crc, crc = UNIT_HEADER.unpack_from(data, offset)
    if found != marker or zlib.crc32(data[offset : body - _CRC.size]) != crc:
        return None
    return Unit(sequence, before, body_crc, crc, offset, body, body + length)


def body_holds(data: bytes, unit: Unit) -> bool:
    """Whether the body is all there and its checksum holds."""
    return (
        unit.end <= len(data)
        and zlib.crc32(memoryview(data)[unit.body : unit.end]) == unit.body_crc
    )


def find_unit_header(
    data: bytes, start: int, marker: bytes, wanted: Callable[[Unit], bool]
) -> Unit | None:
    """First unit header at or after ``start`` that is ``wanted``."""
    position = data.find(marker, start)
    while position >= 0:
        unit = read_unit_header(data, position, marker)
        if unit is not None and wanted(unit):
            return unit
        position = data.find(marker, position + 1)
    return None


_ZEROS = bytes(1 << 16)


def written_end(data: bytes, start: int) -> int:
    """Where the zeros begin that fill the rest of ``data``; ``start`` if all after it is zero."""
    end = len(data)
    while end > start:
        begin = max(start, end - len(_ZEROS))
        if data[begin:end] != _ZEROS[: end - begin]:
            return begin + len(data[begin:end].rstrip(b"\0"))
        end = begin
    return start


def _with_crc(fields: bytes) -> bytes:
    """Replace the last four bytes by the CRC of those before."""
    covered = fields[: -_CRC.size]
    return covered + _CRC.pack(zlib.crc32(covered))
