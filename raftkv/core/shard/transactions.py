"""Transactions: conditions, then one of two branches, all at one revision, as in etcd."""

from typing import TypeVar

from raftkv.core.operations import (
    Compare,
    Delete,
    DeleteResult,
    Get,
    KeyValue,
    PartResult,
    Put,
    PutResult,
    Range,
    Refused,
    Txn,
    TxnPart,
    TxnResult,
)
from raftkv.core.shard.keyspace import RANGE_BYTES_MAX, RANGE_ENTRIES_MAX, Keyspace

TXN_READ_BYTES_MAX = 8 * 2**20
"""What one transaction may read; one that could read more is refused before it writes anything,
because its outcome may have to be remembered."""

RESULT_BYTES = 48
"""What each result of a transaction, and each entry that it has read, takes in its outcome beside
key and value, at most."""

_Comparable = TypeVar("_Comparable", int, bytes)


def keys_of(txn: Txn) -> list[bytes]:
    """Return every key that a transaction names; of a range where it starts."""
    return [
        part.start if isinstance(part, Range) else part.key
        for part in (*txn.compare, *txn.then, *txn.otherwise)
    ]


def run(keyspace: Keyspace, txn: Txn, revision: int, form: int) -> TxnResult | Refused:
    """Run a transaction, whose writes get ``revision``; ``form`` is the format of its batch."""
    # Checked upstream; here only so that a condition is never silently ignored.
    if any(_is_conditional(part) for part in (*txn.then, *txn.otherwise)):
        return Refused("precondition")
    succeeded = all(_holds(keyspace, comparison, form) for comparison in txn.compare)
    branch = txn.then if succeeded else txn.otherwise
    if _bytes_read(keyspace, branch, form) > TXN_READ_BYTES_MAX:
        return Refused("too_large")
    results = tuple(_run_part(keyspace, part, revision) for part in branch)
    wrote = any(
        isinstance(result, PutResult) or (isinstance(result, DeleteResult) and result.deleted)
        for result in results
    )
    return TxnResult(succeeded, revision if wrote else None, results)


def outcome_bytes(keyspace: Keyspace, txn: Txn, form: int) -> int:
    """Bound what the results take in the idempotency memory, whichever branch runs."""
    return max(_result_bytes(keyspace, branch, form) for branch in (txn.then, txn.otherwise))


def _result_bytes(keyspace: Keyspace, branch: tuple[TxnPart, ...], form: int) -> int:
    # What would read more is refused, which is a small outcome.
    read = min(_bytes_read(keyspace, branch, form), TXN_READ_BYTES_MAX)
    entries = len(branch)
    for part in branch:
        if isinstance(part, Range):
            entries += min(max(0, part.limit), max(0, part.bytes_max), RANGE_ENTRIES_MAX)
    return read + RESULT_BYTES * entries


def _run_part(keyspace: Keyspace, part: TxnPart, revision: int) -> PartResult:
    if isinstance(part, Get):
        return keyspace.get(part.key)
    if isinstance(part, Range):
        return keyspace.range(part)
    old = keyspace.find(part.key)
    if isinstance(part, Put):
        return PutResult(revision, keyspace.put(part, old, revision))
    if old is None:
        return DeleteResult(deleted=False, revision=None)
    keyspace.delete(old, revision)
    return DeleteResult(deleted=True, revision=revision)


def _bytes_read(keyspace: Keyspace, parts: tuple[TxnPart, ...], form: int) -> int:
    """Bound what a branch reads, before it writes anything: its outcome may be kept.

    In batches of format 1 a range counts with what it asks for, though it returns one entry
    of any size: such outcomes could be too large for a snapshot.
    """
    written = {part.key: len(part.value) for part in parts if isinstance(part, Put)}
    deletes = sum(isinstance(part, Delete) for part in parts)
    total = 0
    for part in parts:
        if isinstance(part, Range):
            asked = min(max(0, part.bytes_max), RANGE_BYTES_MAX)
            first = 0 if form == 1 else _first_bytes(keyspace, part, written, deletes)
            total += max(asked, first)
        elif isinstance(part, Get):
            entry = keyspace.find(part.key)
            there = 0 if entry is None else len(entry.value)
            total += len(part.key) + max(there, written.get(part.key, 0))
    return total


def _first_bytes(keyspace: Keyspace, query: Range, written: dict[bytes, int], deletes: int) -> int:
    """Bound the first entry of a range, whatever the branch does before it reads it.

    It is one of the first that are there, as those before it may be deleted, or one that is
    put.
    """
    put = (key for key in written if _is_in(key, query))
    sizes = [0]
    for key in (*keyspace.first_keys(query, deletes + 1), *put):
        entry = keyspace.find(key)
        value = 0 if entry is None else len(entry.value)
        value = 0 if query.keys_only else max(value, written.get(key, 0))
        sizes.append(len(key) + value)
    return max(sizes)


def _is_in(key: bytes, query: Range) -> bool:
    return query.start <= key and (query.end is None or key < query.end)


def _is_conditional(part: TxnPart) -> bool:
    if isinstance(part, Put):
        return part.if_absent or part.if_revision is not None
    return isinstance(part, Delete) and part.if_revision is not None


def _holds(keyspace: Keyspace, comparison: Compare, form: int) -> bool:
    entry = keyspace.find(comparison.key)
    operand = comparison.operand
    if comparison.target == "value":
        if entry is None and form != 1:
            return False
        value = b"" if entry is None else entry.value
        return isinstance(operand, bytes) and _compares(value, comparison.operator, operand)
    number = 0 if entry is None else _number(entry, comparison.target)
    # An operand of the wrong type holds for no operator, not even "!=".
    return isinstance(operand, int) and _compares(number, comparison.operator, operand)


def _number(entry: KeyValue, target: str) -> int:
    if target == "create":
        return entry.create_revision
    return entry.mod_revision if target == "mod" else entry.version


def _compares(left: _Comparable, operator: str, right: _Comparable) -> bool:
    if operator == "=":
        return left == right
    if operator == "!=":
        return left != right
    return left < right if operator == "<" else left > right
