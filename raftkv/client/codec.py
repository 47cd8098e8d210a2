"""How keys, operations and results travel over HTTP (docs/http-api.md), and nothing else.

Single keys are raw bytes; batches and transactions go as MessagePack, which has bytes of its own;
pages of a scan come as JSON, with base64 where bytes are not UTF-8.
"""

import base64
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_args
from urllib.parse import quote, urlencode

import msgspec

from raftkv.client.answers import Answer, Problem
from raftkv.client.checks import check_comparisons, check_key, check_operations
from raftkv.client.errors import InvalidRequestError, ServerError
from raftkv.client.types import (
    BatchOperation,
    Bytes,
    Compare,
    Consistency,
    DeleteResult,
    Get,
    KeyValue,
    NotModified,
    OperationResult,
    Put,
    PutResult,
    Range,
    RangeResult,
    TxnOperation,
    TxnResult,
    to_bytes,
)

MSGPACK = "application/msgpack"
_STATUS_ERRORS_FROM = 400


class _Page(msgspec.Struct):
    entries: list[dict[str, Any]]
    cursor: str | None = None


class _Put(msgspec.Struct):
    revision: int
    version: int


class _Delete(msgspec.Struct):
    deleted: bool
    revision: int | None


class _MemberKeyValue(msgspec.Struct):
    key: bytes
    value: bytes
    revision: int
    version: int
    create_revision: int


class _BatchResult(msgspec.Struct):
    """One result of a batch: what an operation gave, or the members of a problem."""

    status: int
    op: str = ""
    revision: int | None = None
    version: int = 0
    deleted: bool = False
    entry: _MemberKeyValue | None = None
    code: str = ""
    title: str = ""
    detail: str = ""
    definite: bool = False
    retry_after_ms: int | None = None
    born_after: int | None = None


class _Batch(msgspec.Struct):
    results: list[_BatchResult]


class _Txn(msgspec.Struct):
    succeeded: bool
    revision: int | None
    results: list[dict[str, Any]]


def key_target(key: Bytes) -> str:
    """The path of a key. Every byte survives, also where a whole key reads ``.`` or ``..``."""
    data = check_key(key)
    path = quote(data, safe="")
    return "/v1/kv/" + (path if data.strip(b".") else path.replace(".", "%2E"))


def read_query(consistency: Consistency, max_age_ms: int | None) -> dict[str, str]:
    """The parameters of a read that are not the default."""
    query: dict[str, str] = {}
    if consistency != "linearizable":
        query["consistency"] = consistency
    if max_age_ms is not None:
        query["max_age_ms"] = str(max_age_ms)
    return query


def with_query(path: str, query: Mapping[str, Bytes]) -> str:
    """A path with its parameters; values may be any bytes."""
    return f"{path}?{urlencode(query, quote_via=quote)}" if query else path


def condition_headers(*, if_revision: int | None, if_absent: bool) -> dict[str, str]:
    """The conditions of a single write."""
    headers = {}
    if if_revision is not None:
        headers["If-Match"] = f'"{if_revision}"'
    if if_absent:
        headers["If-None-Match"] = "*"
    return headers


def known_headers(revision: int | None) -> dict[str, str]:
    """The condition of a read: not what has this revision."""
    return {} if revision is None else {"If-None-Match": f'"{revision}"'}


# --- single operations that travel in a batch with others (raftkv.client.coalescing) ------------


class Numbered(msgspec.Struct):
    """The place of a write in the client's session."""

    id: str
    sequence: int
    low: int
    born: int


class _Member(msgspec.Struct, tag_field="op", omit_defaults=True): ...


class PutMember(_Member, tag="put"):
    """A put; the session is filled in when it is sent, as its watermark moves."""

    key: bytes
    value: bytes
    if_revision: int | msgspec.UnsetType = msgspec.UNSET
    if_absent: bool = False
    session: Numbered | msgspec.UnsetType = msgspec.UNSET

    @property
    def size(self) -> int:
        """Bytes of key and value."""
        return len(self.key) + len(self.value)


class DeleteMember(_Member, tag="delete"):
    """A delete; its session as that of a put."""

    key: bytes
    if_revision: int | msgspec.UnsetType = msgspec.UNSET
    session: Numbered | msgspec.UnsetType = msgspec.UNSET

    @property
    def size(self) -> int:
        """Bytes of the key."""
        return len(self.key)


class GetMember(_Member, tag="get"):
    """A read."""

    key: bytes
    consistency: Consistency = "linearizable"
    max_age_ms: int | msgspec.UnsetType = msgspec.UNSET

    @property
    def size(self) -> int:
        """Bytes of the key."""
        return len(self.key)


Member = PutMember | DeleteMember | GetMember
_encode = msgspec.msgpack.Encoder().encode


def unset_if_none(number: int | None) -> int | msgspec.UnsetType:
    """What is not given is left away; the server refuses a null."""
    return msgspec.UNSET if number is None else number


def members_body(members: Sequence[Member]) -> bytes:
    """The body of a batch of these."""
    return _encode({"operations": members})


# --- answers ------------------------------------------------------------------------------------


_page = msgspec.json.Decoder(_Page)
_put = msgspec.json.Decoder(_Put)
_delete = msgspec.json.Decoder(_Delete)
_batch = msgspec.msgpack.Decoder(_Batch)
_txn = msgspec.msgpack.Decoder(_Txn)


def read_of(key: Bytes, if_none_match: int | None, answer: Answer) -> KeyValue | NotModified | None:
    """What a GET of one key gave; None if it does not exist."""
    match answer.status:
        case 200:
            return _entry_of(key, answer)
        case 304 if if_none_match is not None:
            return NotModified(if_none_match)
        case 404:
            return None
        case _:
            raise _foreign(answer)


def _entry_of(key: Bytes, answer: Answer) -> KeyValue:
    """The entry of a GET of one key; its numbers are in the headers."""
    headers = answer.headers
    try:
        return KeyValue(
            key=to_bytes(key),
            value=answer.body,
            revision=int(headers["etag"].strip('"')),
            version=int(headers["raftkv-version"]),
            create_revision=int(headers["raftkv-create-revision"]),
        )
    except (KeyError, ValueError) as error:
        raise _foreign(answer) from error


def put_of(answer: Answer) -> PutResult:
    """The result of a put."""
    try:
        result = _put.decode(answer.body)
    except msgspec.MsgspecError as error:
        raise _foreign(answer) from error
    return PutResult(result.revision, result.version)


def delete_of(answer: Answer) -> DeleteResult:
    """The result of a delete."""
    try:
        result = _delete.decode(answer.body)
    except msgspec.MsgspecError as error:
        raise _foreign(answer) from error
    return DeleteResult(result.deleted, result.revision)


def page_of(answer: Answer) -> tuple[list[KeyValue], str | None]:
    """One page of a scan and the cursor of the next one."""
    try:
        page = _page.decode(answer.body)
        return [_entry(member) for member in page.entries], page.cursor
    except (msgspec.MsgspecError, KeyError, ValueError) as error:
        raise _foreign(answer) from error


def document_of(answer: Answer) -> dict[str, Any]:
    """A JSON document for operators."""
    try:
        return msgspec.json.decode(answer.body, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise _foreign(answer) from error


def _entry(member: Mapping[str, Any]) -> KeyValue:
    """An entry of a page (JSON) or of a result (MessagePack)."""
    return KeyValue(
        key=_bytes(member, "key"),
        value=_bytes(member, "value"),
        revision=member["revision"],
        version=member["version"],
        create_revision=member["create_revision"],
    )


def _bytes(member: Mapping[str, Any], name: str) -> bytes:
    encoded = member.get(f"{name}_base64")
    if encoded is not None:
        return base64.b64decode(encoded, validate=True)
    data = member.get(name, b"")
    if not isinstance(data, str | bytes):
        raise ValueError(f"{name} is no text")  # noqa: TRY004 -- a bad answer, not a bad call
    return to_bytes(data)


def _foreign(answer: Answer) -> ServerError:
    return ServerError(
        f"an answer with status {answer.status} that is not of a raftkv server",
        status=answer.status,
    )


def transfer_body(to: str | None, for_s: float | None) -> bytes:
    """The body that asks for a leader."""
    wanted: dict[str, object] = {} if to is None else {"target": to}
    return msgspec.json.encode(wanted if for_s is None else {**wanted, "for_s": for_s})


# --- batches and transactions -------------------------------------------------------------------


class _Declared(NamedTuple):
    """How an operation is called on the wire, and what it has; members are called as here."""

    op: str
    members: tuple[tuple[str, object, Callable[[Any], object] | None], ...]
    """Name, default, and what makes of a value what travels, if anything has to."""


def _declared(kind: type) -> _Declared:
    members = (
        (
            field.name,
            field.default,
            check_key
            if field.name == "key"
            else to_bytes
            if bytes in get_args(field.type)
            else None,
        )
        for field in dataclasses.fields(kind)
    )
    return _Declared(kind.__name__.lower(), tuple(members))


_DECLARED = {kind: _declared(kind) for kind in {*get_args(BatchOperation), *get_args(TxnOperation)}}


def _operation(operation: BatchOperation | TxnOperation) -> dict[str, Any]:
    """One operation: its members that are not as they are by default."""
    declared = _DECLARED.get(type(operation))
    if declared is None:  # of a class of the caller's own, made of one of ours
        declared = next(told for kind, told in _DECLARED.items() if isinstance(operation, kind))
    members: dict[str, Any] = {"op": declared.op}
    for name, default, convert in declared.members:
        value = getattr(operation, name)
        if value != default:
            members[name] = value if convert is None else convert(value)
    return members


def batch_member(operation: BatchOperation, session: Mapping[str, Any] | None) -> dict[str, Any]:
    """One operation of a batch, a write with its place in the client's session."""
    member = _operation(operation)
    if session is not None and not isinstance(operation, Get):
        member["session"] = session
    return member


def batch_body(members: Sequence[Mapping[str, Any]]) -> bytes:
    """The body of a batch."""
    return msgspec.msgpack.encode({"operations": members})


def batch_results(answer: Answer, count: int) -> list[OperationResult | Problem]:
    """What became of each operation; a problem is a value here, as the others have results."""
    try:
        members = _batch.decode(answer.body).results
        results = [_batch_result(member) for member in members]
    except (msgspec.MsgspecError, KeyError, ValueError) as error:
        raise _foreign(answer) from error
    if len(results) != count:
        raise _foreign(answer)
    return results


def _batch_result(member: _BatchResult) -> OperationResult | Problem:
    if member.status >= _STATUS_ERRORS_FROM:
        if member.code == "key_not_found":
            return None
        return Problem(
            code=member.code,
            detail=member.detail,
            title=member.title,
            status=member.status,
            definite=member.definite,
            retry_after_ms=member.retry_after_ms,
            revision=member.revision,
            born_after=member.born_after,
        )
    match member.op:
        case "put" if member.revision is not None:
            return PutResult(member.revision, member.version)
        case "delete":
            return DeleteResult(member.deleted, member.revision)
        case "get" if (entry := member.entry) is not None:
            return KeyValue(
                entry.key, entry.value, entry.revision, entry.version, entry.create_revision
            )
        case "get":
            return None
        case other:
            raise ValueError(f"a result of an unknown kind: {other!r}")


def txn_body(
    compare: Sequence[Compare],
    then: Sequence[TxnOperation],
    otherwise: Sequence[TxnOperation],
) -> bytes:
    """The body of a transaction."""
    check_operations((*then, *otherwise), "transaction", TxnOperation)
    check_comparisons(compare)
    for operation in (*then, *otherwise):
        conditional = isinstance(operation, Put) and operation.if_absent
        if conditional or getattr(operation, "if_revision", None) is not None:
            raise InvalidRequestError("the conditions of a transaction belong into compare")
    return msgspec.msgpack.encode(
        {
            "compare": [_comparison(comparison) for comparison in compare],
            "then": [_txn_operation(operation) for operation in then],
            "else": [_txn_operation(operation) for operation in otherwise],
        }
    )


def txn_of(answer: Answer) -> TxnResult:
    """The result of a transaction."""
    try:
        txn = _txn.decode(answer.body)
        results = tuple(_txn_result(member) for member in txn.results)
    except (msgspec.MsgspecError, KeyError, ValueError) as error:
        raise _foreign(answer) from error
    return TxnResult(txn.succeeded, txn.revision, results)


def _txn_operation(operation: TxnOperation) -> dict[str, Any]:
    if (
        isinstance(operation, Range)
        and operation.prefix is not None
        and (operation.start is not None or operation.end is not None)
    ):
        raise InvalidRequestError("prefix excludes start and end")
    return _operation(operation)


def _comparison(comparison: Compare) -> dict[str, Any]:
    operand = comparison.operand
    return {
        "key": check_key(comparison.key),
        "target": comparison.target,
        "operator": comparison.operator,
        "operand": operand if isinstance(operand, int) else to_bytes(operand),
    }


def _txn_result(member: Mapping[str, Any]) -> OperationResult | RangeResult:
    match member["op"]:
        case "put":
            return PutResult(member["revision"], member["version"])
        case "delete":
            return DeleteResult(member["deleted"], member["revision"])
        case "get":
            return None if member["entry"] is None else _entry(member["entry"])
        case "range":
            return RangeResult(tuple(_entry(entry) for entry in member["entries"]), member["more"])
        case other:
            raise ValueError(f"a result of an unknown kind: {other!r}")
