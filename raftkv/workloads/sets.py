"""Sets whose elements are keys that have the set's name in common."""

from raftkv.client.types import Put, RangeResult
from raftkv.workloads.steps import (
    Context,
    Process,
    Scan,
    Span,
    Steps,
    Txn,
    Write,
    WrongAnswer,
    range_in,
    value_of,
)

MODEL = "set"


def add_to_set(process: Process, context: Context) -> Steps:
    """Add an element, a key of its own under the set's name, or read all by a scan or range.

    The name is a tag, or it is not and then the elements lie in every shard.
    """
    random = process.random
    base = context.keys.take("set", random)
    is_tag = not context.ranges or random.random() < 0.6  # noqa: PLR2004 -- share of tags
    name = f"{{{base}}}" if is_tag else f"{base}/"
    if random.random() >= 0.7:  # noqa: PLR2004 -- share of adds
        yield from _read(process, context, name)
    elif is_tag and context.ranges and random.random() < 0.3:  # noqa: PLR2004 -- of both at once
        yield from _add_and_read(process, context, name)
    else:
        element = value_of(process)
        opened = context.recorder.begin(MODEL, "add", name, element)
        outcome = yield Write(Put(f"{name}{element}", b""))
        if outcome.is_ok:
            opened.ok(element)
        else:
            opened.not_ok(outcome)


def _add_and_read(process: Process, context: Context, name: str) -> Steps:
    """A range beside a write in one transaction, which sees that write."""
    element = value_of(process)
    added = context.recorder.begin(MODEL, "add", name, element)
    read = context.recorder.begin(MODEL, "read", name)
    outcome = yield Write(Txn((), (Put(f"{name}{element}", b""), _all_of(name))))
    found = range_in(outcome)
    if found is None:
        added.not_ok(outcome)
        read.fail(error=outcome.detail)
        return
    elements = _elements(name, found)
    if element not in elements:
        raise WrongAnswer(f"a transaction added {element} to {name} and did not find it there")
    added.ok(element)
    read.ok(elements)


def _read(process: Process, context: Context, name: str) -> Steps:
    """Read what is one moment's: a tag by scan or range, else a range, where that is allowed."""
    if context.ranges and (not _is_tag(name) or process.random.random() < 0.5):  # noqa: PLR2004
        yield from _read_by_range(context, name)
    else:
        yield from read_by_scan(process, context, name)


def _read_by_range(context: Context, name: str) -> Steps:
    """A transaction that only reads; one over several shards may be refused for that."""
    opened = context.recorder.begin(MODEL, "read", name)
    refusal = None if _is_tag(name) or context.shards == 1 else "cross_shard"
    outcome = yield Write(Txn((), (_all_of(name),)), refusal)
    found = range_in(outcome)
    if found is not None:
        opened.ok(_elements(name, found))
    else:
        opened.fail(error=outcome.detail)


def read_by_scan(_: Process, context: Context, name: str) -> Steps:
    """Ask every shard: linearizable if the elements lie in one, or if nobody writes."""
    opened = context.recorder.begin(MODEL, "read", name)
    outcome = yield Scan(name)
    if isinstance(outcome.answer, RangeResult):
        opened.ok(_elements(name, outcome.answer))
    else:
        opened.fail(error=outcome.detail)


def _is_tag(name: str) -> bool:
    return name.startswith("{")


def _all_of(name: str) -> Span:
    end = name[:-1] + chr(ord(name[-1]) + 1)
    return Span(name.encode(), end.encode(), 10_000, keys_only=True)


def _elements(name: str, found: RangeResult) -> list[str]:
    return [entry.key[len(name) :].decode() for entry in found.entries]
