"""``raftkv backup`` and ``raftkv restore``: all keys and values of a running cluster, as a file.

Both are clients like any other: they read by a scan and write by batches, while the cluster goes on
serving. docs/operations.md says what such a backup promises, and what it does not.
"""

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import click

from raftkv.cli.backup_file import (
    COMPRESSED,
    BackupFileError,
    Summary,
    decompressing,
    read_puts,
    verify_backup,
    write_backup,
)
from raftkv.cli.connect import EXIT_NO, connected, json_option, print_json, shown, writes
from raftkv.cli.serve import refuse
from raftkv.client import Client, Get, KeyValue, PreconditionFailedError, Put, RaftkvError
from raftkv.client.batches import BatchResult
from raftkv.client.types import to_bytes
from raftkv.core.visible import visible

PIECE_KEYS = 500
PIECE_BYTES = 4 * 2**20
"""Keys, and bytes of their values, that are read and written at a time."""
SHOWN_KEYS = 10


@click.command("backup")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path, allow_dash=True))
@json_option
@connected
def backup_command(client: Client, file: Path, *, as_json: bool) -> None:
    """Write all keys and values to FILE; - is standard output.

    FILE appears when it is whole and on the disk, and an older one is replaced.
    """
    cluster = str(client.status("local").get("cluster"))
    entries = client.scan()
    if str(file) == "-":
        summary = write_backup(sys.stdout.buffer, cluster, entries)
        sys.stdout.buffer.flush()
    else:
        try:
            summary = _write_file(file, cluster, entries)
        except OSError as error:
            refuse(f"{file}: {error.strerror}")
    _report(summary, "in the backup", as_json=as_json, to_stderr=str(file) == "-")


@click.command("restore")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path, allow_dash=True))
@click.option("--overwrite", is_flag=True, help="Replace what existing keys hold.")
@click.option("--check", "only_check", is_flag=True, help="Only see whether FILE is whole.")
@json_option
@connected
@writes
def restore_command(
    client: Client, file: Path, *, overwrite: bool, only_check: bool, as_json: bool
) -> None:
    """Write what FILE holds into the cluster, usually a new and empty one; - is standard input.

    The whole file is read before the first key is written.

    Keys that exist with another value are left alone and listed, and the code is 1. The command can
    be repeated: what is there already is not written again.
    """
    try:
        with _opened(file) as lines:
            summary = verify_backup(file, lines)
            if only_check:
                _report(summary, "in the file, which is whole", as_json=as_json)
                return
            found = _restore(client, read_puts(file, lines, summary), overwrite=overwrite)
    except BackupFileError as error:
        refuse(error)
    _report(summary, "restored", as_json=as_json, found=found)
    if found.different:
        sys.exit(EXIT_NO)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    """The file, at its beginning; standard input is kept on disk meanwhile, as it is read twice."""
    try:
        if str(file) != "-":
            with file.open("rb") as lines:
                yield lines
            return
        with tempfile.TemporaryFile() as spool:
            shutil.copyfileobj(sys.stdin.buffer, spool)
            spool.seek(0)
            yield spool
    except OSError as error:
        raise BackupFileError(f"{file}: {error.strerror}{_compressed_beside(file)}") from error


def _compressed_beside(file: Path) -> str:
    """What to do where only the compressed file is there."""
    for ending, reader in COMPRESSED.items():
        beside = file.with_name(file.name + ending)
        if not file.exists() and beside.is_file():
            return f", but {beside}: {decompressing(reader, beside)}"
    return ""


def _write_file(file: Path, cluster: str, entries: Iterator[KeyValue]) -> Summary:
    """Write beside ``file`` and put it in its place when it is whole.

    What a killed backup has left is written over: it is told from one that runs by its lock.
    """
    partial = file.with_name(f".{file.name}.partial")
    # Keys and values are for those who may read the cluster.
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(partial, flags, 0o600), "wb") as out:
        if not _is_ours_alone(out, partial):
            refuse(f"{file}: another backup is writing it")
        try:
            out.truncate()
            summary = write_backup(out, cluster, entries)
            _to_disk(out)
            partial.replace(file)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    directory = os.open(file.absolute().parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return summary


def _is_ours_alone(out: BinaryIO, partial: Path) -> bool:
    """Lock a file; whether nobody else has it, and nobody put it in its place before we had."""
    try:
        fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(out.fileno()), partial.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _to_disk(out: BinaryIO) -> None:
    out.flush()
    os.fsync(out.fileno())


@dataclass(slots=True)
class _Found:
    """What of a file was not written: keys with the file's value, and keys with another one."""

    same: int = 0
    different: list[bytes] = field(default_factory=list)


def _restore(client: Client, puts: Iterator[Put], *, overwrite: bool) -> _Found:
    """Write everything that is not there, or everything; return what was found instead."""
    found = _Found()
    for piece in _pieces(puts):
        if overwrite:
            _all_done(client.batch(piece))
        else:
            _restore_piece(client, piece, found)
    return found


def _pieces(puts: Iterator[Put]) -> Iterator[list[Put]]:
    piece: list[Put] = []
    size = 0
    for put in puts:
        if piece and (len(piece) == PIECE_KEYS or size + len(put.value) > PIECE_BYTES):
            yield piece
            piece, size = [], 0
        piece.append(put)
        size += len(put.value)
    if piece:
        yield piece


def _restore_piece(client: Client, piece: list[Put], found: _Found) -> None:
    creating = [Put(put.key, put.value, if_absent=True) for put in piece]
    existing = []
    for put, result in zip(piece, client.batch(creating), strict=True):
        if isinstance(result, PreconditionFailedError):
            existing.append(put)
        elif isinstance(result, RaftkvError):
            raise result
    entries = _all_done(client.batch([Get(put.key) for put in existing])) if existing else []
    for put, entry in zip(existing, entries, strict=True):
        if isinstance(entry, KeyValue) and entry.value == put.value:
            found.same += 1
        else:
            found.different.append(to_bytes(put.key))


def _all_done(results: list[BatchResult]) -> list[BatchResult]:
    for result in results:
        if isinstance(result, RaftkvError):
            raise result
    return results


def _report(
    summary: Summary,
    what: str,
    *,
    as_json: bool,
    to_stderr: bool = False,
    found: _Found | None = None,
) -> None:
    same, different = (found.same, found.different) if found is not None else (0, [])
    left_alone = [shown(key) for key in different]
    written = summary.entries - same - len(different)
    if as_json and not to_stderr:
        print_json(
            {
                "cluster": summary.cluster,
                "began": summary.began,
                "ended": summary.ended,
                "entries": summary.entries,
                **({} if found is None else {"restored": written, "there_already": same}),
                "sha256": summary.sha256,
                "left_alone": left_alone,
            }
        )
        return
    already = f", {same} were there already" if same else ""
    click.echo(
        visible(
            f"{written} keys {what}{already}; backup of cluster {summary.cluster}, "
            f"{summary.began} to {summary.ended}, "
            f"sha256 of all lines but the last {summary.sha256}"
        ),
        err=to_stderr,
    )
    if left_alone:
        listed = ", ".join(left_alone[:SHOWN_KEYS]) + (", ..." * (len(left_alone) > SHOWN_KEYS))
        click.echo(
            f"raftkv: {len(left_alone)} keys hold something else and were left alone "
            f"(--overwrite replaces them): {listed}",
            err=True,
        )
