"""``raftkv get``, ``put``, ``del`` and ``scan``."""

import base64
import shlex
import sys
from typing import Any, BinaryIO

import click

from raftkv.cli.connect import (
    EXIT_NO,
    KeyCommand,
    connected,
    json_option,
    key_argument,
    print_json,
    shown,
    writes,
)
from raftkv.client import Client, KeyValue
from raftkv.client.types import REVISION_MAX
from raftkv.core.visible import visible

stale_option = click.option(
    "--stale", is_flag=True, help="Read whatever replica is asked, which may be behind."
)


class _Revision(click.IntRange):
    """The revision of a key. 0 means "absent" elsewhere, so its error says what does here."""

    def __init__(self) -> None:
        super().__init__(1, REVISION_MAX)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "0":
            self.fail("no key has revision 0; put --if-absent is for a new key", param, ctx)
        return int(super().convert(value, param, ctx))


if_revision_option = click.option(
    "--if-revision", type=_Revision(), metavar="REVISION", help="Only if KEY has this revision."
)


def bytes_members(name: str, data: bytes) -> dict[str, str]:
    """Bytes for JSON as the HTTP API writes them: text, or base64 under another name."""
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}


def entry_members(entry: KeyValue, *, keys_only: bool = False) -> dict[str, Any]:
    """An entry for JSON."""
    return {
        **bytes_members("key", entry.key),
        **({} if keys_only else bytes_members("value", entry.value)),
        "revision": entry.revision,
        "create_revision": entry.create_revision,
        "version": entry.version,
    }


@click.command("get", cls=KeyCommand)
@click.argument("key")
@stale_option
@json_option
@connected
def get_command(client: Client, key: str, *, stale: bool, as_json: bool) -> None:
    """Write the value of KEY to standard output, byte for byte.

    A newline is added on a terminal only.
    """
    entry = client.get(key_argument(key), consistency="stale" if stale else "linearizable")
    if entry is None:
        click.echo(f"raftkv: no such key: {shown(key_argument(key))}", err=True)
        sys.exit(EXIT_NO)
    if as_json:
        print_json(entry_members(entry))
        return
    sys.stdout.buffer.write(entry.value)
    if sys.stdout.isatty():
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()


@click.command("put", cls=KeyCommand)
@click.argument("key")
@click.argument("value", required=False)
@click.option("--file", type=click.File("rb"), help="Take the value from a file; - is stdin.")
@if_revision_option
@click.option("--if-absent", is_flag=True, help="Only if KEY does not exist.")
@json_option
@connected
@writes
def put_command(
    client: Client,
    key: str,
    value: str | None,
    *,
    file: BinaryIO | None,
    if_revision: int | None,
    if_absent: bool,
    as_json: bool,
) -> None:
    """Set KEY to VALUE, or to what --file holds."""
    if (value is None) == (file is None):
        raise click.UsageError("give either VALUE or --file")
    if if_absent and if_revision is not None:
        raise click.UsageError("--if-revision and --if-absent exclude each other")
    content = file.read() if file is not None else key_argument(value or "")
    result = client.put(key_argument(key), content, if_revision=if_revision, if_absent=if_absent)
    if as_json:
        print_json({"revision": result.revision, "version": result.version})
    else:
        verb = "created" if result.created else "replaced"
        click.echo(f"{verb}, revision {result.revision}")


@click.command("del", cls=KeyCommand)
@click.argument("key")
@if_revision_option
@json_option
@connected
@writes
def del_command(client: Client, key: str, *, if_revision: int | None, as_json: bool) -> None:
    """Remove KEY. One that does not exist ends with code 1, though nothing went wrong."""
    result = client.delete(key_argument(key), if_revision=if_revision)
    if as_json:
        print_json({"deleted": result.deleted, "revision": result.revision})
    else:
        click.echo("deleted" if result.deleted else "no such key")
    if not result.deleted:
        sys.exit(EXIT_NO)


@click.command("scan", cls=KeyCommand)
@click.argument("prefix", default="")
@click.argument("more", nargs=-1, metavar="")  # only to say what was meant
@click.option("--start", help="First key; with --end instead of PREFIX.")
@click.option("--end", help="Key before which to stop.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many.")
@click.option("--keys-only", is_flag=True)
@stale_option
@json_option
@connected
def scan_command(
    client: Client,
    prefix: str,
    more: tuple[str, ...],
    *,
    start: str | None,
    end: str | None,
    limit: int | None,
    keys_only: bool,
    stale: bool,
    as_json: bool,
) -> None:
    """List keys that begin with PREFIX, or all, in byte order.

    With --json one object a line, written as it comes, so any number of keys can be listed.
    """
    if more:
        meant = shlex.join(["raftkv", "scan", "--start", prefix, "--end", more[0]])
        raise click.UsageError(f"there is one PREFIX; a range is {visible(meant)}")
    if prefix and (start is not None or end is not None):
        raise click.UsageError("PREFIX excludes --start and --end")
    entries = client.scan(
        key_argument(prefix) if prefix else None,
        start=None if start is None else key_argument(start),
        end=None if end is None else key_argument(end),
        limit=limit,
        keys_only=keys_only,
        consistency="stale" if stale else "linearizable",
    )
    for entry in entries:
        if as_json:
            print_json(entry_members(entry, keys_only=keys_only))
        elif keys_only:
            click.echo(shown(entry.key))
        else:
            click.echo(f"{shown(entry.key)}\t{shown(entry.value)}")
