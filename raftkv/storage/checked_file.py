"""Small files that are replaced as a whole and carry a checksum.

One line for the contents, which people can read if they are text, and one with their CRC-32.
"""

import zlib
from contextlib import suppress
from pathlib import Path
from typing import Final

from raftkv.storage.disk import Disk, NoSuchFile

FILE_BYTES_MAX: Final = 16 * 2**20

_TEMPORARY: Final = ".tmp"
_TAIL: Final = b"\ncrc32 %08x\n"
_TAIL_BYTES: Final = len(_TAIL % 0)


class ChecksumError(Exception):
    """The file is not what was written; one line that names it."""


def write_checked(disk: Disk, path: Path, body: bytes) -> None:
    """Replace ``path``; after a crash it holds either the old contents or the new."""
    temporary = path.with_name(path.name + _TEMPORARY)
    with suppress(NoSuchFile):
        disk.unlink(temporary)
    file = disk.create(temporary)
    try:
        file.pwrite(body + _TAIL % zlib.crc32(body), 0)
        file.fdatasync()
    finally:
        file.close()
    disk.rename(temporary, path)
    disk.fsync_dir(path.parent)


def read_checked(disk: Disk, path: Path) -> bytes | None:
    """Return the contents, None if there is no such file; ChecksumError if it is not whole."""
    try:
        file = disk.open(path)
    except NoSuchFile:
        return None
    try:
        data = file.pread(FILE_BYTES_MAX, 0)
    finally:
        file.close()
    body, tail = data[:-_TAIL_BYTES], data[-_TAIL_BYTES:]
    if tail != _TAIL % zlib.crc32(body):
        raise ChecksumError(f"{path}: checksum mismatch: the file was damaged or edited")
    return body
