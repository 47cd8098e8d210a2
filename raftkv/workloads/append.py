"""Lists in single keys, appended to by read and compare and set: a lost update breaks the order."""

import json

from raftkv.client.types import Get, KeyValue, Put
from raftkv.workloads.register import revision_in
from raftkv.workloads.steps import Context, Outcome, Process, Steps, Write, value_of

MODEL = "append"


def append(process: Process, context: Context) -> Steps:
    """Append to a list by compare and set, or read it."""
    key = context.keys.take("append", process.random)
    if process.random.random() < 0.4:  # noqa: PLR2004 -- share of reads
        yield from read(process, context, key)
        return
    opened = context.recorder.begin(MODEL, "append", key, value_of(process))
    seen = yield Get(key)
    if not seen.is_ok:
        opened.fail(error=seen.detail)
        return
    body = json.dumps([*_list_in(seen), opened.value], separators=(",", ":"))
    revision = revision_in(seen)
    outcome = yield Write(Put(key, body, if_revision=revision, if_absent=revision is None))
    if outcome.is_ok:
        opened.ok(opened.value)
    else:
        opened.not_ok(outcome)


def read(_: Process, context: Context, key: str) -> Steps:
    """Read a whole list."""
    opened = context.recorder.begin(MODEL, "read", key)
    outcome = yield Get(key)
    if outcome.is_ok:
        opened.ok(_list_in(outcome))
    else:
        opened.not_ok(outcome)


def _list_in(outcome: Outcome) -> list[str]:
    entry = outcome.answer
    return list(json.loads(entry.value)) if isinstance(entry, KeyValue) else []
