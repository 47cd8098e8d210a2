"""Drives a workload by a simulated client: each of its steps becomes a request to a node."""

import asyncio
from typing import Any

from raftkv.client import types
from raftkv.client.types import to_bytes
from raftkv.core import operations as core
from raftkv.rpc.messages import BatchResult, Failure, GetRequest, ScanRequest
from raftkv.sim import client as sim
from raftkv.sim.violation import Violation
from raftkv.workloads import final_reads
from raftkv.workloads.steps import (
    Ask,
    Batch,
    Context,
    Outcome,
    Page,
    Pause,
    Scan,
    Span,
    StaleGet,
    Steps,
    Txn,
    Write,
    WrongAnswer,
)

SCAN_ENTRIES_MAX = 10_000


async def play(client: sim.Client, steps: Steps) -> None:
    """Go through a workload's steps.

    Raises:
        Violation: an answer cannot be true.
    """
    try:
        ask = next(steps)
        while True:
            ask = steps.send(_outcome_of(await _asked(client, ask)))
    except StopIteration:
        return
    except WrongAnswer as wrong:
        raise Violation(str(wrong)) from wrong


async def read_all(client: sim.Client, context: Context) -> None:
    """Read everything that was ever written."""
    for _, read in final_reads(client, context):
        await play(client, read())


async def _asked(  # noqa: PLR0911 -- one for each kind of step
    client: sim.Client, ask: Ask
) -> sim.Outcome:
    match ask:
        case Pause(seconds):
            await asyncio.sleep(seconds)
            return sim.Outcome("ok")
        case Write(operation, refusal):
            return await client.write(_write_of(operation), refusal=refusal)
        case Batch(operations):
            return await client.batch(
                [
                    GetRequest(to_bytes(one.key))
                    if isinstance(one, types.Get)
                    else _single_write_of(one)
                    for one in operations
                ]
            )
        case types.Get(key):
            return await client.read(GetRequest(to_bytes(key)))
        case StaleGet(key, max_age_ms):
            return await client.read(GetRequest(key.encode(), "stale", max_age_ms))
        case Page(start, end, limit, bytes_max):
            return await client.read(ScanRequest(start, end, limit, bytes_max=bytes_max))
        case Scan(prefix):
            last = prefix[:-1] + chr(ord(prefix[-1]) + 1)
            request = ScanRequest(prefix.encode(), last.encode(), SCAN_ENTRIES_MAX, keys_only=True)
            return await client.read(request)


def _write_of(operation: types.Put | types.Delete | Txn) -> core.Write:
    if not isinstance(operation, Txn):
        return _single_write_of(operation)
    return core.Txn(
        tuple(
            core.Compare(
                to_bytes(one.key),
                one.target,
                one.operator,
                to_bytes(one.operand) if isinstance(one.operand, str) else one.operand,
            )
            for one in operation.compare
        ),
        tuple(map(_part_of, operation.then)),
        tuple(map(_part_of, operation.otherwise)),
    )


def _single_write_of(operation: types.Put | types.Delete) -> core.Put | core.Delete:
    key, if_revision = to_bytes(operation.key), operation.if_revision
    if isinstance(operation, types.Delete):
        return core.Delete(key, if_revision=if_revision)
    value, if_absent = to_bytes(operation.value), operation.if_absent
    return core.Put(key, value, if_revision=if_revision, if_absent=if_absent)


def _part_of(
    operation: types.Put | types.Delete | types.Get | Span,
) -> core.Put | core.Delete | core.Get | core.Range:
    match operation:
        case types.Get(key):
            return core.Get(to_bytes(key))
        case Span(start, end, limit, keys_only):
            return core.Range(start, end, limit, keys_only=keys_only)
    return _single_write_of(operation)


def _outcome_of(told: sim.Outcome) -> Outcome:
    """What a workload hears of what a client was told."""
    if isinstance(told.answer, core.Refused):
        failed = told.answer.reason == "precondition"
        return Outcome(
            told.status,
            detail=told.detail,
            condition_failed=failed,
            observed_revision=told.answer.current_revision if failed else None,
        )
    if told.status != "ok":
        return Outcome(told.status, detail=told.detail)
    if told.answer is None:
        return Outcome("ok")
    if isinstance(told.answer, BatchResult):
        return Outcome("ok", [_outcome_of(_single(result)) for result in told.answer.results])
    return Outcome("ok", _result(told.answer))


def _single(result: Any) -> sim.Outcome:
    """The outcome of one operation of a batch."""
    if isinstance(result, Failure):
        detail = f"{result.code}: {result.detail}"
        return sim.Outcome("fail" if result.definite else "info", detail=detail)
    return sim.Outcome("fail" if isinstance(result, core.Refused) else "ok", result)


def _result(result: Any) -> Any:
    match result:
        case core.GetResult(entry=entry):
            return None if entry is None else _entry(entry)
        case core.PutResult(revision=revision, version=version):
            return types.PutResult(revision, version)
        case core.DeleteResult(deleted=deleted, revision=revision):
            return types.DeleteResult(deleted, revision)
        case core.RangeResult(entries=entries, more=more):
            return types.RangeResult(tuple(map(_entry, entries)), more)
        case core.TxnResult(succeeded=succeeded, revision=revision, results=results):
            return types.TxnResult(succeeded, revision, tuple(map(_result, results)))
    raise TypeError(f"{type(result).__name__} is no result of an operation")


def _entry(entry: core.KeyValue) -> types.KeyValue:
    return types.KeyValue(
        entry.key, entry.value, entry.mod_revision, entry.version, entry.create_revision
    )
