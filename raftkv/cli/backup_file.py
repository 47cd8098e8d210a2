"""The file of ``raftkv backup``: lines of JSON that can be read without raftkv.

::

    {"format": "raftkv-backup", "version": 1, "cluster": "orders", "began": "2026-01-31T12:00:00Z"}
    {"key": "color", "value": "red", "revision": 1795381484689991, ...}
    {"key_base64": "/w==", "value": "", ...}
    {"entries": 2, "sha256": "...", "ended": "2026-01-31T12:00:09Z"}

Keys are in byte order. The last line has the SHA-256 of all bytes before it: a file without it was
not finished, and one that has another was changed.
"""

import base64
import binascii
import datetime as dt
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from raftkv.cli.data import entry_members
from raftkv.client import Entry, Put

FORMAT = "raftkv-backup"
VERSION = 1
LINE_BYTES_MAX = 64 * 2**20
"""More than the largest key and value in base64 take."""


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


def write_backup(out: BinaryIO, cluster: str, entries: Iterable[Entry]) -> Summary:
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


def verify_backup(file: Path) -> Summary:
    """Read the whole file once, and say what it holds.

    Raises:
        BackupFileError: It is no backup, not finished, or was changed.
    """
    digest, count = hashlib.sha256(), 0
    with _opened(file) as lines:
        first = lines.readline(LINE_BYTES_MAX)
        header = _header(file, first)
        digest.update(first)
        last = lines.readline(LINE_BYTES_MAX)
        while following := lines.readline(LINE_BYTES_MAX):
            digest.update(last)
            count += 1
            last = following
    trailer = _decoded(file, last or first)
    if "sha256" not in trailer:
        raise BackupFileError(f"{file}: ends before its end: the backup was not finished")
    if trailer["sha256"] != digest.hexdigest() or trailer.get("entries") != count:
        raise BackupFileError(f"{file}: is damaged: its content does not have its checksum")
    return Summary(
        str(header.get("cluster")),
        str(header.get("began")),
        str(trailer.get("ended")),
        count,
        digest.hexdigest(),
    )


def read_puts(file: Path, summary: Summary) -> Iterator[Put]:
    """Yield what a file that was verified holds, as unconditional writes."""
    with _opened(file) as lines:
        lines.readline(LINE_BYTES_MAX)
        for _ in range(summary.entries):
            members = _decoded(file, lines.readline(LINE_BYTES_MAX))
            yield Put(_bytes(file, members, "key"), _bytes(file, members, "value"))


def _opened(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise BackupFileError(f"{file}: {error.strerror}") from error


def _header(file: Path, line: bytes) -> dict[str, Any]:
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise BackupFileError(f"{file}: is not a file of raftkv backup")
    if header.get("version") != VERSION:
        raise BackupFileError(
            f"{file}: has version {header.get('version')}, and this raftkv reads {VERSION}"
        )
    return header


def _decoded(file: Path, line: bytes) -> dict[str, Any]:
    try:
        members = json.loads(line)
    except ValueError as error:
        raise BackupFileError(f"{file}: ends before its end: no JSON: {line[:40]!r}") from error
    if not isinstance(members, dict):
        raise BackupFileError(f"{file}: a line is no object: {line[:40]!r}")
    return members


def _bytes(file: Path, members: dict[str, Any], name: str) -> bytes:
    try:
        if name in members:
            return str(members[name]).encode()
        return base64.b64decode(members[f"{name}_base64"], validate=True)
    except (KeyError, TypeError, UnicodeEncodeError, binascii.Error) as error:
        raise BackupFileError(f"{file}: an entry has no {name} that can be read") from error


def _encoded(members: dict[str, Any]) -> bytes:
    return json.dumps(members, separators=(",", ":")).encode("ascii") + b"\n"


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
