"""How much requests and answers carry, known before they are encoded.

What waits for its turn on a socket is bounded by this, and encoded only when it leaves. Keys and
values count, and a little for each of many results; what is left is small.
"""

from typing import cast

from raftkv.core.operations import (
    Command,
    Get,
    GetResult,
    KeyValue,
    Put,
    PutResult,
    Range,
    RangeResult,
    Txn,
    TxnResult,
)
from raftkv.rpc.messages import (
    BatchRequest,
    BatchResult,
    Failure,
    Request,
    Response,
    ScanPart,
    WriteRequest,
)

ITEM_BYTES = 64
"""What one of many results takes beside its key and value, roughly."""

SMALL_BYTES = 16 * 1024
"""What carries no more than this need not wait its turn behind what is large."""


def request_bytes(request: Request) -> int:
    """How many bytes of keys and values a request carries, roughly."""
    if isinstance(request, WriteRequest):
        return _command_bytes(request.command)
    if isinstance(request, BatchRequest):
        return sum(map(_member_bytes, request.operations))
    return 0


def _member_bytes(member: object) -> int:
    return ITEM_BYTES + (_command_bytes(member) if isinstance(member, Command) else 0)


def _command_bytes(command: Command) -> int:
    operation = command.operation
    if isinstance(operation, Put):
        return len(operation.value)
    if not isinstance(operation, Txn):
        return 0
    size = ITEM_BYTES * len(operation.compare)
    for compare in operation.compare:
        if isinstance(compare.operand, bytes):
            size += len(compare.operand)
    for part in (*operation.then, *operation.otherwise):
        size += ITEM_BYTES
        if isinstance(part, Put):
            size += len(part.value)
        elif isinstance(part, Range | Get):
            size += ITEM_BYTES
    return size


def response_bytes(response: Response) -> int:
    """How many bytes of keys and values an answer carries, roughly."""
    if isinstance(response, GetResult):
        entry = response.entry
        return 0 if entry is None else len(entry.value)
    if isinstance(response, PutResult):  # nearly all others
        return 0
    if isinstance(response, BatchResult | TxnResult):
        return sum(ITEM_BYTES + response_bytes(result) for result in response.results)
    if isinstance(response, RangeResult | ScanPart):
        return entries_bytes(response.entries)
    return len(response.detail) if isinstance(response, Failure) else 0


def entries_bytes(entries: tuple[KeyValue, ...]) -> int:
    """How many bytes entries take, roughly."""
    return sum(ITEM_BYTES + len(entry.key) + len(entry.value) for entry in entries)


def without_values(response: Response, detail: str, retry_after_ms: int) -> Response:
    """Refuse the reads of an answer, definitely; what it says of writes stays.

    So what does not fit can be asked for again, and nobody is left in doubt about a write.
    """
    only_read = isinstance(response, TxnResult) and response.revision is None
    if only_read or isinstance(response, GetResult | RangeResult | ScanPart):
        return Failure("busy", detail, definite=True, retry_after_ms=retry_after_ms)
    if isinstance(response, BatchResult):
        results = tuple(without_values(r, detail, retry_after_ms) for r in response.results)
        return BatchResult(cast("tuple[Failure, ...]", results))
    return response
