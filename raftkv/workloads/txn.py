"""Transactions with every kind of condition and operation: each key is a register."""

from random import Random

from raftkv.client.types import (
    Compare,
    Delete,
    DeleteResult,
    Get,
    KeyValue,
    Put,
    PutResult,
    TxnResult,
)
from raftkv.workloads.pages import end_reads
from raftkv.workloads.register import MODEL, end_delete, end_write, padded
from raftkv.workloads.steps import (
    Context,
    Outcome,
    Part,
    Process,
    Span,
    Steps,
    Txn,
    Write,
    range_in,
    value_of,
)

TXN_KEYS = 4


def txn(process: Process, context: Context) -> Steps:
    """Puts, deletes and ranges in both branches.

    The condition and the put behind it are a compare and set. That all keys change together is
    what the bank is for.
    """
    random = process.random
    tagged = random.random() < 0.7  # noqa: PLR2004 -- share of those
    base = context.keys.take("txn", random)
    prefix = f"{{{base}}}" if tagged else f"{base}-"
    # What is compared and what is put may be large; what is spread over shards is no transaction.
    refusal = "too_large" if tagged or context.shards == 1 else "cross_shard"
    keys = [f"{prefix}{number}" for number in range(TXN_KEYS)]
    guarded, removed, otherwise_put = random.sample(keys, 3)
    seen = yield Get(guarded)
    if not seen.is_ok:
        return
    entry = seen.answer if isinstance(seen.answer, KeyValue) else None
    begin = context.recorder.begin
    expected = None if entry is None else entry.revision
    value, other_value = value_of(process), value_of(process)
    cas = begin(MODEL, "cas", guarded, {"expected_revision": expected, "value": value})
    delete = begin(MODEL, "delete", removed)
    write = begin(MODEL, "write", otherwise_put, other_value)
    reads = [begin(MODEL, "read", key) for key in keys]
    context.deleting(removed)
    last = prefix.encode() + b"\xff"
    query = Span(prefix.encode(), last, 1000)
    then: list[Part] = [Put(guarded, padded(value, random)), Delete(removed), query]
    otherwise: list[Part] = [Put(otherwise_put, other_value), query]
    random.shuffle(then)
    random.shuffle(otherwise)
    asked = Txn(_unchanged(random, guarded, entry), tuple(then), tuple(otherwise))
    outcome = yield Write(asked, refusal)
    answer = outcome.answer
    found = range_in(outcome)
    if found is None or not isinstance(answer, TxnResult):
        end_write(cas, outcome, context)
        end_delete(delete, outcome, context)
        end_write(write, outcome, context)
        for read in reads:
            read.fail(error=outcome.detail)
        return
    not_done = Outcome("fail", detail="the other branch was taken")
    results = {type(result): result for result in answer.results}
    done = Outcome("ok", results[PutResult])
    end_write(cas, done if answer.succeeded else not_done, context)
    end_write(write, not_done if answer.succeeded else done, context)
    gone = Outcome("ok", results[DeleteResult]) if answer.succeeded else not_done
    end_delete(delete, gone, context)
    end_reads(reads, found, last)


def _unchanged(random: Random, key: str, entry: KeyValue | None) -> tuple[Compare, ...]:
    """One of the ways to say that nothing has happened to a key."""
    if entry is None:
        return random.choice((
            (Compare(key, "create", "=", 0),),
            (Compare(key, "version", "<", 1),),
            (Compare(key, "version", "=", 0), Compare(key, "mod", "=", 0)),
        ))  # fmt: skip
    mod = entry.revision
    return random.choice((
        (Compare(key, "mod", "=", mod),),
        (Compare(key, "mod", ">", mod - 1), Compare(key, "mod", "<", mod + 1)),
        (Compare(key, "value", "=", entry.value),),
        (
            Compare(key, "create", "=", entry.create_revision),
            Compare(key, "version", "=", entry.version),
            Compare(key, "value", "!=", b""),
        ),
    ))  # fmt: skip
