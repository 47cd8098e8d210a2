"""The file of ``raftkv backup``: lines of JSON that can be read without raftkv.

::

    {"format": "raftkv-backup", "version": 1, "cluster": "orders", "began": "2026-01-31T12:00:00Z"}
    {"key": "color", "value": "red", "revision": 1795381484689991, ...}
    {"key_base64": "/w==", "value": "", ...}
    {"entries": 2, "sha256": "...", "ended": "2026-01-31T12:00:09Z"}

Keys are in byte order. The last line has the SHA-256 of all bytes before it (``head -n -1 FILE |
sha256sum``): a file without it was not finished, and one that has another was changed.
"""

import datetime as dt
import hashlib
import json
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from raftkv.cli.data import entry_members
from raftkv.client import KeyValue, Put
from raftkv.client.types import KEY_BYTES_MAX
from raftkv.core.errors import DECODE_FAILURES

FORMAT = "raftkv-backup"
VERSION = 1
LINE_BYTES_MAX = 64 * 2**20
"""More than the largest key and value in base64 take."""

COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".xz": "xz", ".bz2": "bzip2"}
"""The program that reads a compressed file, by how its name ends."""
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
}

_SHOWN_BYTES = 40


class BackupFileError(Exception):
    """The file cannot be used; one line for the operator."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a whole, unchanged file holds."""

    cluster: str
    began: str
    ended: str
    entries: int
    sha256: str


def write_backup(out: BinaryIO, cluster: str, entries: Iterable[KeyValue]) -> Summary:
    """Write all entries as they come, in bounded memory."""
    digest, count, began = hashlib.sha256(), 0, _now()

    def line(members: dict[str, Any]) -> None:
        data = _encoded(members)
        digest.update(data)
        out.write(data)

    line({"format": FORMAT, "version": VERSION, "cluster": cluster, "began": began})
    for entry in entries:
        line(entry_members(entry))
        count += 1
    summary = Summary(cluster, began, _now(), count, digest.hexdigest())
    out.write(_encoded({"entries": count, "sha256": summary.sha256, "ended": summary.ended}))
    return summary


def verify_backup(file: Path, lines: BinaryIO) -> Summary:
    """Read the whole file once, entry by entry, and say what it holds.

    Args:
        file: What it is called in errors.
        lines: The file, open at its beginning; left there.

    Raises:
        BackupFileError: It is no backup, not finished, was changed, or has an entry that cannot
            be written into a cluster.
    """
    try:
        return _verified(file, lines)
    finally:
        lines.seek(0)


def _verified(file: Path, lines: BinaryIO) -> Summary:
    digest, count, before = hashlib.sha256(), 0, b""
    wrong: BackupFileError | None = None  # said only of a file that is whole
    first = _line(file, lines)
    header = _header(file, first)
    digest.update(first)
    last = _line(file, lines)
    while following := _line(file, lines):
        digest.update(last)
        count += 1
        if wrong is None:
            try:
                before = _key_behind(before, file, last)
            except BackupFileError as error:
                wrong = error
        last = following
    trailer = _trailer(file, last)
    if trailer.sha256 != digest.hexdigest() or trailer.entries != count:
        raise BackupFileError(f"{file}: is damaged: its content does not have its checksum")
    if wrong is not None:
        raise wrong
    return Summary(header.cluster, header.began, trailer.ended, count, digest.hexdigest())


def _key_behind(before: bytes, file: Path, line: bytes) -> bytes:
    key = _entry(file, line).key_bytes
    if key <= before:
        raise BackupFileError(f"{file}: key {key[:_SHOWN_BYTES]!r} is not behind the one before it")
    return key


def read_puts(file: Path, lines: BinaryIO, summary: Summary) -> Iterator[Put]:
    """Yield what a file that was verified holds, as unconditional writes."""
    _line(file, lines)
    for _ in range(summary.entries):
        entry = _entry(file, _line(file, lines))
        yield Put(entry.key_bytes, entry.value_bytes)


def decompressing(reader: str, file: Path) -> str:
    """Return the command that restores a compressed file."""
    name = "FILE" if str(file) == "-" else shlex.quote(str(file))
    return f"{reader} -dc {name} | raftkv restore -"


def _line(file: Path, lines: BinaryIO) -> bytes:
    line = lines.readline(LINE_BYTES_MAX + 1)
    if len(line) > LINE_BYTES_MAX:
        raise BackupFileError(f"{file}: a line has more than {LINE_BYTES_MAX} bytes")
    return line


def _header(file: Path, line: bytes) -> "_Header":
    try:
        header = msgspec.json.decode(line, type=_Header)
    except DECODE_FAILURES as error:
        reader = next((name for magic, name in _MAGIC.items() if line.startswith(magic)), None)
        if reader is not None:
            advice = decompressing(reader, file)
            raise BackupFileError(f"{file}: is compressed: {advice}") from error
        raise BackupFileError(f"{file}: is not a file of raftkv backup") from error
    if header.format != FORMAT:
        raise BackupFileError(f"{file}: is not a file of raftkv backup")
    if header.version != VERSION:
        raise BackupFileError(
            f"{file}: has version {header.version}, and this raftkv reads {VERSION}"
        )
    return header


def _trailer(file: Path, line: bytes) -> "_Trailer":
    try:
        return msgspec.json.decode(line, type=_Trailer)
    except DECODE_FAILURES as error:
        raise BackupFileError(
            f"{file}: ends before its end: the backup was not finished"
        ) from error


def _entry(file: Path, line: bytes) -> "_Entry":
    try:
        return msgspec.json.decode(line, type=_Entry)
    except DECODE_FAILURES as error:
        shown = line[:_SHOWN_BYTES]
        raise BackupFileError(f"{file}: no entry that can be read: {shown!r}: {error}") from error


class _Header(msgspec.Struct):
    format: str
    version: int
    cluster: str
    began: str


class _Trailer(msgspec.Struct):
    entries: int
    sha256: str
    ended: str


class _Entry(msgspec.Struct):
    """Types are taken as they are and never bent: ``null`` is no key, and 5 is no text."""

    key: str | msgspec.UnsetType = msgspec.UNSET
    key_base64: bytes | msgspec.UnsetType = msgspec.UNSET
    value: str | msgspec.UnsetType = msgspec.UNSET
    value_base64: bytes | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        if not 1 <= len(self.key_bytes) <= KEY_BYTES_MAX:
            raise ValueError(f"a key has 1 to {KEY_BYTES_MAX} bytes")
        _ = self.value_bytes

    @property
    def key_bytes(self) -> bytes:
        """The key."""
        return _one_of("key", self.key, self.key_base64)

    @property
    def value_bytes(self) -> bytes:
        """The value."""
        return _one_of("value", self.value, self.value_base64)


def _one_of(name: str, text: str | msgspec.UnsetType, data: bytes | msgspec.UnsetType) -> bytes:
    if isinstance(text, str) and data is msgspec.UNSET:
        return text.encode()
    if isinstance(data, bytes) and text is msgspec.UNSET:
        return data
    raise ValueError(f"it has either {name} or {name}_base64")


def _encoded(members: dict[str, Any]) -> bytes:
    return json.dumps(members, separators=(",", ":")).encode("ascii") + b"\n"


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
