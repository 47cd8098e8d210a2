"""Registers: single keys that are read, written, compared and set, and deleted."""

from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from raftkv.client.types import Delete, DeleteResult, Get, KeyValue, Put, PutResult
from raftkv.workloads.steps import (
    Batch,
    Context,
    Opened,
    Outcome,
    Process,
    StaleGet,
    Staleness,
    Steps,
    Write,
    WrongAnswer,
    value_of,
)

MODEL = "register"
OUTDATED_SHARE = 0.2

Action = Callable[[Process, Context, str], Steps]


def register(process: Process, context: Context) -> Steps:
    """Read, write, compare and set or delete one of a few keys; sometimes several in a batch."""
    random = process.random
    key = context.keys.take("register", random)
    actions: dict[Action, int] = {
        read: 28,
        write: 22,
        _cas: 18,
        _create: 10,
        delete: 8,
        _delete_if: 4,
    }
    if context.staleness is not None:
        actions[partial(_read_stale, context.staleness)] = 10
    if context.batches:
        actions |= {_batch: 7, _write_large: 3}
    action = random.choices(list(actions), list(actions.values()))[0]
    yield from action(process, context, key)


def read(_: Process, context: Context, key: str) -> Steps:
    """Read value and revision."""
    opened = context.recorder.begin(MODEL, "read", key)
    end_read(opened, (yield Get(key)))


def end_read(opened: Opened, outcome: Outcome) -> None:
    """What a read of a key gave."""
    entry = outcome.answer
    if not outcome.is_ok:
        opened.not_ok(outcome)
    elif isinstance(entry, KeyValue):
        opened.ok(entry.value.decode().rstrip("."), revision=entry.revision)
    else:
        opened.ok(None, revision=None)


def write(process: Process, context: Context, key: str) -> Steps:
    """Write whatever is there."""
    value = value_of(process)
    opened = context.recorder.begin(MODEL, "write", key, value)
    end_write(opened, (yield Write(Put(key, padded(value, process.random)))), context)


def end_write(opened: Opened, outcome: Outcome, context: Context) -> None:
    """What came of a write, or of a compare and set."""
    if isinstance(outcome.answer, PutResult):
        context.written(opened.key, outcome.answer.revision)
        opened.ok(opened.value, revision=outcome.answer.revision)
    else:
        opened.not_ok(outcome)


def _cas(process: Process, context: Context, key: str) -> Steps:
    seen = yield Get(key)
    if not seen.is_ok:
        return
    expected = revision_in(seen)
    value = value_of(process)
    asked = {"expected_revision": expected, "value": value}
    opened = context.recorder.begin(MODEL, "cas", key, asked)
    body = padded(value, process.random)
    put = Put(key, body, if_revision=expected, if_absent=expected is None)
    end_write(opened, (yield Write(put)), context)


def _create(process: Process, context: Context, key: str) -> Steps:
    """Write a key if it is absent, which it seldom is: to acknowledge that would be a lie."""
    value = value_of(process)
    asked = {"expected_revision": None, "value": value}
    opened = context.recorder.begin(MODEL, "cas", key, asked)
    put = Put(key, padded(value, process.random), if_absent=True)
    end_write(opened, (yield Write(put)), context)


def _write_large(process: Process, context: Context, key: str) -> Steps:
    """Write as much as fits an entry, or more, which must be refused and leave nothing."""
    value = value_of(process)
    too_large = process.random.random() < 0.3  # noqa: PLR2004 -- share of those
    size = 2 * context.value_bytes + 10_000 if too_large else context.value_bytes
    opened = context.recorder.begin(MODEL, "write", key, value)
    outcome = yield Write(Put(key, value.encode().ljust(size, b".")), refusal="too_large")
    if too_large and outcome.is_ok:
        raise WrongAnswer(f"a value of {size} bytes was taken")
    end_write(opened, outcome, context)


def delete(_: Process, context: Context, key: str) -> Steps:
    """Delete whatever is there."""
    opened = context.recorder.begin(MODEL, "delete", key)
    context.deleting(key)
    end_delete(opened, (yield Write(Delete(key))), context)


def _delete_if(process: Process, context: Context, key: str) -> Steps:
    """Delete what was read; sometimes by a revision that it certainly has no more."""
    seen = yield Get(key)
    revision = revision_in(seen)
    if revision is None:
        return
    expected = revision - (process.random.random() < OUTDATED_SHARE)
    opened = context.recorder.begin(MODEL, "delete", key, {"expected_revision": expected})
    context.deleting(key)
    end_delete(opened, (yield Write(Delete(key, if_revision=expected))), context)


def end_delete(opened: Opened, outcome: Outcome, context: Context) -> None:
    """What came of a delete."""
    if isinstance(outcome.answer, DeleteResult):
        context.deleted(opened.key, outcome.answer.revision)
        opened.ok(None, deleted=outcome.answer.deleted, revision=outcome.answer.revision)
    else:
        if outcome.status == "fail":
            context.deleted(opened.key, None)
        opened.not_ok(outcome)


def _read_stale(staleness: Staleness, process: Process, _: Context, key: str) -> Steps:
    """Not for the checker: a stale read promises an age, and that is checked at once."""
    max_age_ms = process.random.choice((None, 0, 100, 1000))
    oldest = staleness.oldest(key, max_age_ms)
    outcome = yield StaleGet(key, max_age_ms)
    if outcome.is_ok:
        staleness.check(key, oldest, revision_in(outcome), max_age_ms)


def _batch(process: Process, context: Context, key: str) -> Steps:
    """Writes and reads of both keys in one request; each is an operation by itself."""
    keys = (key, context.keys.beside(key))
    values = [value_of(process) for _ in keys]
    begin = context.recorder.begin
    opened = [begin(MODEL, "write", k, v) for k, v in zip(keys, values, strict=True)]
    opened += [begin(MODEL, "read", k) for k in keys]
    puts = [Put(k, v) for k, v in zip(keys, values, strict=True)]
    outcome = yield Batch([*puts, *map(Get, keys)])
    for operation, single in zip(opened, each(outcome, len(opened)), strict=True):
        if operation.f == "read":
            end_read(operation, single)
        else:
            end_write(operation, single, context)


def batch_of_all_kinds(process: Process, context: Context, keys: Sequence[str]) -> Steps:
    """Puts, deletes and reads of several keys in one request, in any order."""
    random = process.random
    begin = context.recorder.begin
    opened: list[Opened] = []
    items: list[Put | Delete | Get] = []
    for key in random.choices(keys, k=random.randint(1, 6)):
        f = random.choice(("read", "write", "delete"))
        if f == "read":
            opened.append(begin(MODEL, f, key))
            items.append(Get(key))
        elif f == "delete":
            context.deleting(key)
            opened.append(begin(MODEL, f, key))
            items.append(Delete(key))
        else:
            value = value_of(process)
            opened.append(begin(MODEL, f, key, value))
            items.append(Put(key, padded(value, random)))
    outcome = yield Batch(items)
    ends: dict[str, Callable[[Opened, Outcome, Context], None]] = {
        "read": lambda operation, single, _: end_read(operation, single),
        "write": end_write,
        "delete": end_delete,
    }
    for operation, single in zip(opened, each(outcome, len(opened)), strict=True):
        ends[operation.f](operation, single, context)


def each(outcome: Outcome, count: int) -> Sequence[Outcome]:
    """The outcome of every operation of a batch; that of the batch, if it was not answered."""
    answer = outcome.answer
    return [outcome] * count if not isinstance(answer, Sequence) else answer


def revision_in(outcome: Outcome) -> int | None:
    """The revision of the key that was read; None if there is no such key."""
    return outcome.answer.revision if isinstance(outcome.answer, KeyValue) else None


def padded(value: str, random: Random) -> bytes:
    """Mostly small, sometimes larger than a disk's sector, a link's buffer or a log's unit."""
    return (value + "." * random.choice((0, 0, 0, 0, 600, 6000))).encode()
