"""Byte layout of write-ahead log segments; docs/storage.md has the same as tables.

Pure: bytes in, values out. All integers are little-endian.
"""

import struct
import zlib
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

from raftkv.core.errors import StartError

FORMAT: Final = 2
"""Units begin at sectors and say how many of theirs are blank. In format 1, which is read and gone
on with where a segment has it, they followed each other closely, and said nothing."""

SECTOR_BYTES: Final = 512
"""What a disk writes whole or not at all, at the least."""

MAGIC: Final = b"raftkvWL"

SEGMENT_HEADER: Final = struct.Struct("<8sIQ16s8sI")
"""Magic, format, segment number, node hash, marker, CRC of all that."""

UNIT_HEADER: Final = struct.Struct("<8sQIIII")
"""Marker, sequence and blanks, body length, header CRC of the unit before, body CRC, CRC of all.

The blanks are the upper 16 bits of the second field: how many sectors of the unit are zeros only.
The last field covers the body's CRC and the unit before, so it stands for the whole chain.
"""

RECORD: Final = struct.Struct("<BIIQQI")
"""Kind, shard, generation, two numbers that depend on the kind, length of the bytes after it."""

CARRY: Final = struct.Struct("<QQQB")
"""Body of a CARRY record: compacted index and term, last index, whether a vote follows."""

_CRC: Final = struct.Struct("<I")

_SEQUENCE_BITS: Final = 48
_BLANKS_MAX: Final = 2**16 - 1
_BLANK_SECTOR: Final = bytes(SECTOR_BYTES)

UNIT_HEADER_SPACE: Final = bytes(UNIT_HEADER.size)


class Kind:
    """Kinds of records; plain integers because recovery compares them millions of times."""

    APPEND: Final = 1  # (index, term), payload
    TRUNCATE: Final = 2  # (first index that is gone, 0)
    HARD_STATE: Final = 3  # (term, 1 if there is a vote), vote
    COMPACT: Final = 4  # (index, term) of the last entry that the snapshot covers
    SEGMENT_START: Final = 5  # (number of CARRY records that follow, 0); first in every segment
    CARRY: Final = 6  # (term, 0), CARRY body and vote: the group as of the unit before


class WalDamaged(StartError):  # noqa: N818 -- says what the log is
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


def encode_segment_header(number: int, identity: str, *, form: int = FORMAT) -> bytes:
    """Header of a new segment."""
    return _with_crc(
        SEGMENT_HEADER.pack(
            MAGIC, form, number, node_hash(identity), segment_marker(identity, number), 0
        )
    )


def check_segment_header(data: bytes, file: Path, number: int, identity: str) -> tuple[bytes, int]:
    """Return a segment's marker and the alignment of its units, in bytes.

    Raises:
        WalDamaged: the header is not that of this segment of this node.
    """

    def damaged(reason: str) -> WalDamaged:
        return WalDamaged(file, 0, reason)

    if len(data) < SEGMENT_HEADER.size:
        raise damaged(f"{len(data)} bytes are too few for a segment")
    magic, form, found, owner, marker, crc = SEGMENT_HEADER.unpack_from(data)
    if magic != MAGIC:
        raise damaged("this is not a segment of a raftkv log")
    if zlib.crc32(data[: SEGMENT_HEADER.size - _CRC.size]) != crc:
        raise damaged("segment header checksum mismatch")
    if form not in (1, FORMAT):
        raise damaged(f"format {form} is unknown to this version (it knows 1 and {FORMAT})")
    if found != number:
        raise damaged(f"the header says segment {found}, the file name {number}")
    if owner != node_hash(identity):
        raise damaged("segment was written by another node")
    return bytes(marker), 1 if form == 1 else SECTOR_BYTES


def aligned(position: int, alignment: int) -> int:
    """Return the first place at or after ``position`` where a unit may begin."""
    return -(-position // alignment) * alignment


class Unit(NamedTuple):
    """A checked unit header and where its body lies in the segment."""

    sequence: int
    before: int
    body_crc: int
    crc: int
    start: int
    body: int
    end: int
    blanks: int


def encode_unit(
    marker: bytes, sequence: int, before: int, parts: list[bytes], alignment: int = SECTOR_BYTES
) -> tuple[bytearray, int]:
    """Join ``parts`` (the first is UNIT_HEADER_SPACE) into a unit; return it and its CRC."""
    unit = bytearray().join(parts)
    body = memoryview(unit)[UNIT_HEADER.size :]
    blanks = 0 if alignment == 1 else min(_blank_sectors(unit), _BLANKS_MAX)
    numbers = sequence | blanks << _SEQUENCE_BITS
    fields = UNIT_HEADER.pack(marker, numbers, len(body), before, zlib.crc32(body), 0)
    header = _with_crc(fields)
    del body  # a bytearray with an exported view refuses some operations
    unit[: UNIT_HEADER.size] = header
    return unit, _CRC.unpack_from(header, UNIT_HEADER.size - _CRC.size)[0]


def _blank_sectors(unit: bytes | bytearray) -> int:
    """Of how many sectors a unit that begins with one has zeros only; the header's is none."""
    rest = max(SECTOR_BYTES, len(unit) // SECTOR_BYTES * SECTOR_BYTES)
    blanks = int(rest < len(unit) and not any(unit[rest:]))
    if _BLANK_SECTOR in unit:
        sectors = range(SECTOR_BYTES, rest, SECTOR_BYTES)
        blanks += sum([unit[at : at + SECTOR_BYTES] == _BLANK_SECTOR for at in sectors])
    return blanks


def read_unit_header(data: bytes, offset: int, marker: bytes) -> Unit | None:
    """Return the unit header at ``offset`` if its own checksum holds; the body is unchecked."""
    body = offset + UNIT_HEADER.size
    if body > len(data):
        return None
    found, numbers, length, before, body_crc, crc = UNIT_HEADER.unpack_from(data, offset)
    if found != marker or zlib.crc32(data[offset : body - _CRC.size]) != crc:
        return None
    sequence, blanks = numbers & (1 << _SEQUENCE_BITS) - 1, numbers >> _SEQUENCE_BITS
    return Unit(sequence, before, body_crc, crc, offset, body, body + length, blanks)


def lacks_sectors(data: bytes, start: int, end: int, blanks: int) -> bool:
    """Whether bytes ``start`` to ``end`` are what a write may leave that did not finish.

    A sector that was not written is zeros still; ``blanks`` sectors are so when all are written.
    What lies beyond the end of ``data`` was never written.
    """
    found, at = 0, start
    while at < end:
        after = min(end, at // SECTOR_BYTES * SECTOR_BYTES + SECTOR_BYTES)
        found += not any(data[at:after])
        at = after
    return end > len(data) or found > blanks


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
