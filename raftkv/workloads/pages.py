"""Pages of a scan while their keys change: each key is a register."""

from collections.abc import Sequence

from raftkv.client.types import RangeResult
from raftkv.workloads.register import (
    MODEL,
    batch_of_all_kinds,
    delete,
    end_read,
    write,
)
from raftkv.workloads.steps import Context, Opened, Outcome, Page, Process, Steps

PAGE_KEYS = 5
"""Keys of one prefix."""


def pages(process: Process, context: Context) -> Steps:
    """Write keys of one prefix, and read them all in pages.

    A page says of every key up to its last one whether there is an entry, at one moment for each
    shard. The keys share a tag, or are spread over the shards.
    """
    random = process.random
    prefix = random.choice(("{{{}}}", "{}-")).format(context.keys.take("pages", random))
    keys = [f"{prefix}{number}" for number in range(PAGE_KEYS)]
    action = random.choices(("write", "delete", "batch", "read"), (35, 15, 10, 40))[0]
    if action == "write":
        yield from write(process, context, random.choice(keys))
    elif action == "delete":
        yield from delete(process, context, random.choice(keys))
    elif action == "batch":
        yield from batch_of_all_kinds(process, context, keys)
    else:
        yield from _read(process, context, prefix, keys)


def _read(process: Process, context: Context, prefix: str, keys: Sequence[str]) -> Steps:
    """From cursor to cursor, with a limit of entries or of bytes."""
    cursor, end = prefix.encode(), prefix.encode() + b"\xff"
    while True:
        opened = [
            context.recorder.begin(MODEL, "read", key) for key in keys if key.encode() >= cursor
        ]
        limit = process.random.choice((1, 2, 1000))
        bytes_max = process.random.choice((1, 100, 2**20))
        outcome = yield Page(cursor, end, limit, bytes_max)
        page = outcome.answer
        if not isinstance(page, RangeResult):
            for operation in opened:
                operation.fail(error=outcome.detail)
            return
        last = page.entries[-1].key if page.more else end
        end_reads(opened, page, last)
        if not page.more:
            return
        cursor = last + b"\0"


def end_reads(opened: Sequence[Opened], found: RangeResult, last: bytes) -> None:
    """What a range says of each key up to ``last``."""
    entries = {entry.key: entry for entry in found.entries}
    for operation in opened:
        key = operation.key.encode()
        if key > last:
            operation.fail(error="not on this page")
        else:
            end_read(operation, Outcome("ok", entries.get(key)))
