"""The bodies of batches and transactions: JSON, NDJSON and MessagePack to operations.

A body with one bad operation is refused whole, naming the operation, before any of it is done.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from raftkv.core.operations import (
    REVISION_LIMIT,
    Command,
    Compare,
    Delete,
    FreeKey,
    Get,
    Idempotency,
    Put,
    Range,
    Txn,
    TxnPart,
)
from raftkv.rpc.messages import BatchRequest, Consistency, GetRequest, WriteRequest
from raftkv.rpc.web_config import Limits
from raftkv.web import validation_messages
from raftkv.web.encoding import check_key, parse_query, prefix_end
from raftkv.web.exchange import HttpRequest
from raftkv.web.problems import HttpError, invalid
from raftkv.web.requests import (
    SEQUENCE_MAX,
    Plan,
    idempotency,
    media_type_of,
    negotiate,
    session_key,
    timeout_s,
)
from raftkv.web.responses import JSON, MSGPACK, NDJSON, render_batch, render_txn

_BATCH_TYPES = (JSON, NDJSON, MSGPACK)
_TXN_TYPES = (JSON, MSGPACK)
_MAX_AGE_MS_MAX = 86_400_000
_RANGE_LIMIT_DEFAULT = 100
_RANGE_LIMIT_MAX = 10_000

# In JSON bytes are text or base64 (msgspec decodes base64 for a field of type bytes); MessagePack
# has bytes of its own.
Text = str | UnsetType
Base64 = bytes | UnsetType

# What is not said is left away; null is refused, as it could mean either of two things.
Revision = Annotated[int, Meta(ge=1, lt=REVISION_LIMIT)] | UnsetType
IdempotencyText = Annotated[str, Meta(pattern="^[!-~]{1,255}$")] | UnsetType
Age = Annotated[int, Meta(ge=0, le=_MAX_AGE_MS_MAX)] | UnsetType
RangeLimit = Annotated[int, Meta(ge=1, le=_RANGE_LIMIT_MAX)]
CompareTarget = Literal["value", "create", "mod", "version"]
CompareOperator = Literal["=", "!=", "<", ">"]
SessionNumber = Annotated[int, Meta(ge=0, le=SEQUENCE_MAX)]
_Value = TypeVar("_Value")
_Member = TypeVar("_Member", bound=Struct)


class _Session(Struct, forbid_unknown_fields=True):
    id: Annotated[str, Meta(pattern="^[!-~]{1,64}$")]
    sequence: SessionNumber
    low: SessionNumber
    born: Annotated[int, Meta(ge=1, le=SEQUENCE_MAX)]


class _Body(Struct, forbid_unknown_fields=True, tag_field="op"):
    """Base of the members of a body; an unknown field is an error, never ignored."""


# --- JSON ---------------------------------------------------------------------------------------


class _JsonPut(_Body, tag="put"):
    key: Text = UNSET
    key_base64: Base64 = UNSET
    value: Text = UNSET
    value_base64: Base64 = UNSET
    if_revision: Revision = UNSET
    if_absent: bool = False
    idempotency_key: IdempotencyText = UNSET
    session: _Session | UnsetType = UNSET


class _JsonDelete(_Body, tag="delete"):
    key: Text = UNSET
    key_base64: Base64 = UNSET
    if_revision: Revision = UNSET
    idempotency_key: IdempotencyText = UNSET
    session: _Session | UnsetType = UNSET


class _JsonGet(_Body, tag="get"):
    key: Text = UNSET
    key_base64: Base64 = UNSET
    consistency: Consistency = "linearizable"
    max_age_ms: Age = UNSET


class _JsonRange(_Body, tag="range"):
    prefix: Text = UNSET
    prefix_base64: Base64 = UNSET
    start: Text = UNSET
    start_base64: Base64 = UNSET
    end: Text = UNSET
    end_base64: Base64 = UNSET
    limit: RangeLimit = _RANGE_LIMIT_DEFAULT
    keys_only: bool = False


class _JsonCompare(Struct, forbid_unknown_fields=True):
    target: CompareTarget | UnsetType = UNSET
    operator: CompareOperator | UnsetType = UNSET
    exists: bool | UnsetType = UNSET
    key: Text = UNSET
    key_base64: Base64 = UNSET
    operand: int | str | UnsetType = UNSET
    operand_base64: Base64 = UNSET


_JsonTxnOperation = _JsonPut | _JsonDelete | _JsonGet | _JsonRange


class _JsonTxn(Struct, forbid_unknown_fields=True, rename={"otherwise": "else"}):
    compare: list[_JsonCompare] = []
    then: list[_JsonTxnOperation] = []
    otherwise: list[_JsonTxnOperation] = []


_JsonOperation = _JsonPut | _JsonDelete | _JsonGet


class _JsonBatch(Struct, forbid_unknown_fields=True):
    operations: list[_JsonOperation]


# --- MessagePack --------------------------------------------------------------------------------


class _PackPut(_Body, tag="put"):
    key: bytes
    value: bytes
    if_revision: Revision = UNSET
    if_absent: bool = False
    idempotency_key: IdempotencyText = UNSET
    session: _Session | UnsetType = UNSET


class _PackDelete(_Body, tag="delete"):
    key: bytes
    if_revision: Revision = UNSET
    idempotency_key: IdempotencyText = UNSET
    session: _Session | UnsetType = UNSET


class _PackGet(_Body, tag="get"):
    key: bytes
    consistency: Consistency = "linearizable"
    max_age_ms: Age = UNSET


class _PackRange(_Body, tag="range"):
    prefix: bytes | UnsetType = UNSET
    start: bytes | UnsetType = UNSET
    end: bytes | UnsetType = UNSET
    limit: RangeLimit = _RANGE_LIMIT_DEFAULT
    keys_only: bool = False


class _PackCompare(Struct, forbid_unknown_fields=True):
    key: bytes
    target: CompareTarget | UnsetType = UNSET
    operator: CompareOperator | UnsetType = UNSET
    exists: bool | UnsetType = UNSET
    operand: int | bytes | UnsetType = UNSET


_PackTxnOperation = _PackPut | _PackDelete | _PackGet | _PackRange


class _PackTxn(Struct, forbid_unknown_fields=True, rename={"otherwise": "else"}):
    compare: list[_PackCompare] = []
    then: list[_PackTxnOperation] = []
    otherwise: list[_PackTxnOperation] = []


_PackOperation = _PackPut | _PackDelete | _PackGet


class _PackBatch(Struct, forbid_unknown_fields=True):
    operations: list[_PackOperation]


_json_batch = msgspec.json.Decoder(_JsonBatch).decode
_json_line = msgspec.json.Decoder(_JsonOperation).decode
_json_txn = msgspec.json.Decoder(_JsonTxn).decode
_pack_batch = msgspec.msgpack.Decoder(_PackBatch).decode
_pack_txn = msgspec.msgpack.Decoder(_PackTxn).decode
_CHOICES: validation_messages.Choices = {
    "target": get_args(CompareTarget),
    "operator": get_args(CompareOperator),
    "consistency": get_args(Consistency),
}
_BATCH_CHOICES = {**_CHOICES, "op": ("put", "delete", "get")}
_TXN_CHOICES = {**_CHOICES, "op": ("put", "delete", "get", "range")}


# --- batch --------------------------------------------------------------------------------------


def parse_batch(http: HttpRequest, limits: Limits) -> Plan:
    """``POST /v1/batch``: independent operations, each with its own idempotency key if any."""
    parse_query(http.query, frozenset())
    headers = http.headers
    for name in (b"idempotency-key", b"raftkv-session", b"if-match", b"if-none-match"):
        if name in headers:
            raise invalid(f"{name.decode()} belongs to each operation of a batch, not to it")
    media_type = media_type_of(headers.get(b"content-type"), _BATCH_TYPES)
    answer_type = _answer_type(headers.get(b"accept"), media_type, _BATCH_TYPES)
    wait_s = timeout_s(headers, limits)
    members = _batch_members(http.body, media_type, limits.batch_operations_max)
    owner = http.owner
    operations = tuple(_at(i, _batch_operation, m, limits, owner) for i, m in enumerate(members))
    render = functools.partial(render_batch, answer_type, len(operations))
    writes = any(isinstance(operation, Command) for operation in operations)
    return Plan(BatchRequest(operations), wait_s, render, "write" if writes else None)


def _answer_type(accept: bytes | None, asked_in: bytes, types: tuple[bytes, ...]) -> bytes:
    return negotiate(accept, (asked_in, *(t for t in types if t != asked_in)))


def _batch_members(body: bytes, media_type: bytes, operations_max: int) -> Sequence[Struct]:
    members: Sequence[Struct]
    if media_type == NDJSON:
        lines = [line for line in body.split(b"\n") if line.strip()]
        _check_count(len(lines), operations_max)
        members = [
            _at(i, _decode, line, _json_line, _BATCH_CHOICES) for i, line in enumerate(lines)
        ]
    elif media_type == MSGPACK:
        members = _decode(body, _pack_batch, _BATCH_CHOICES).operations
    else:
        members = _decode(body, _json_batch, _BATCH_CHOICES).operations
    _check_count(len(members), operations_max)
    return members


def _check_count(count: int, operations_max: int) -> None:
    if count == 0:
        raise invalid("at least one operation is needed")
    if count > operations_max:
        raise HttpError("too_large", f"at most {operations_max} operations are allowed")


def _decode(
    body: bytes, decoder: Callable[[bytes], _Member], choices: validation_messages.Choices
) -> _Member:
    try:
        return decoder(body)
    except msgspec.ValidationError as error:
        raise invalid(
            f"the body does not fit: {validation_messages.described(str(error), choices)}"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"the body is malformed: {error}") from error


_Result = TypeVar("_Result")


def _at(
    index: int,
    function: Callable[..., _Result],
    *arguments: Any,
) -> _Result:
    """Call ``function`` and name the operation in its error."""
    try:
        return function(*arguments)
    except HttpError as error:
        raise HttpError(error.code, f"operation {index}: {error.detail}") from error


def _batch_operation(member: Any, limits: Limits, owner: int) -> Command | GetRequest:
    match member:
        case _PackPut(
            if_revision=UnsetType(),
            if_absent=False,
            idempotency_key=UnsetType(),
            session=UnsetType(),
        ):
            _check_value(member.value, limits)
            return Command(Put(check_key(member.key), member.value))
        case _JsonPut() | _PackPut():
            return Command(_put(member, limits), _member_idempotency(member, owner))
        case _JsonDelete() | _PackDelete():
            return Command(_delete(member), _member_idempotency(member, owner))
        case _JsonGet() | _PackGet():
            age = _given(member.max_age_ms)
            if age is not None and member.consistency != "stale":
                raise invalid("max_age_ms goes with consistency 'stale' only")
            return GetRequest(_key(member), member.consistency, age)
        case _:
            raise TypeError(f"the decoder let a {type(member).__name__} through")


def _given(value: _Value | UnsetType) -> _Value | None:
    return None if value is UNSET else value


def _put(member: _JsonPut | _PackPut, limits: Limits) -> Put:
    revision = _given(member.if_revision)
    if member.if_absent and revision is not None:
        raise invalid("if_revision and if_absent exclude each other")
    value = _bytes(member, "value")
    if value is None:
        raise invalid("value or value_base64 is needed")
    _check_value(value, limits)
    return Put(_key(member), value, revision, member.if_absent)


def _check_value(value: bytes, limits: Limits) -> None:
    if len(value) > limits.value_bytes_max:
        raise HttpError(
            "too_large",
            f"a value has at most {limits.value_bytes_max} bytes (the node's http.value_bytes_max)",
        )


def _delete(member: _JsonDelete | _PackDelete) -> Delete:
    return Delete(_key(member), _given(member.if_revision))


def _member_idempotency(
    member: _JsonPut | _PackPut | _JsonDelete | _PackDelete, owner: int
) -> Idempotency | None:
    session, free = _given(member.session), _given(member.idempotency_key)
    if session is None:
        return None if free is None else FreeKey(free, owner)
    if free is not None:
        raise invalid("idempotency_key and session exclude each other")
    return session_key(session.id, session.sequence, session.low, session.born, owner)


def _key(member: Struct) -> bytes:
    key = _bytes(member, "key")
    if key is None:
        raise invalid("key or key_base64 is needed")
    return check_key(key)


def _bytes(member: Struct, name: str) -> bytes | None:
    """Return the bytes called ``name`` of a member of either format; None if they are not there."""
    plain = getattr(member, name)
    encoded = getattr(member, name + "_base64", UNSET)
    if encoded is not UNSET:
        if plain is not UNSET:
            raise invalid(f"{name} and {name}_base64 exclude each other")
        return bytes(encoded)
    if plain is UNSET:
        return None
    return plain.encode() if isinstance(plain, str) else bytes(plain)


# --- transaction --------------------------------------------------------------------------------


def parse_txn(http: HttpRequest, limits: Limits) -> Plan:
    """``POST /v1/txn``: compare, then one branch or the other, atomically in one shard."""
    parse_query(http.query, frozenset())
    headers = http.headers
    media_type = media_type_of(headers.get(b"content-type"), _TXN_TYPES)
    answer_type = _answer_type(headers.get(b"accept"), media_type, _TXN_TYPES)
    document: _JsonTxn | _PackTxn
    if media_type == MSGPACK:
        document = _decode(http.body, _pack_txn, _TXN_CHOICES)
    else:
        document = _decode(http.body, _json_txn, _TXN_CHOICES)
    branches = (document.then, document.otherwise)
    _check_count(sum(map(len, branches)), limits.txn_operations_max)
    if len(document.compare) > limits.txn_operations_max:
        raise HttpError("too_large", f"at most {limits.txn_operations_max} comparisons are allowed")
    txn = Txn(
        compare=tuple(_at(i, _compare, c) for i, c in enumerate(document.compare)),
        then=tuple(_at(i, _txn_operation, m, limits) for i, m in enumerate(document.then)),
        otherwise=tuple(
            _at(i, _txn_operation, m, limits) for i, m in enumerate(document.otherwise)
        ),
    )
    keys_only = (_keys_only(document.then), _keys_only(document.otherwise))
    render = functools.partial(render_txn, answer_type, keys_only)
    request = WriteRequest(Command(txn, idempotency(http)))
    return Plan(request, timeout_s(headers, limits), render)


def _keys_only(branch: Sequence[Struct]) -> tuple[bool, ...]:
    return tuple(getattr(member, "keys_only", False) for member in branch)


def _compare(member: _JsonCompare | _PackCompare) -> Compare:
    target, operator = member.target, member.operator
    if isinstance(member.exists, bool):
        _refuse_comparison(member)
        return Compare(_key(member), "version", ">" if member.exists else "=", 0)
    if isinstance(target, UnsetType) or isinstance(operator, UnsetType):
        raise invalid("a comparison has exists, or target, operator and operand")
    operand = _operand(member)
    if isinstance(operand, bytes) != (target == "value"):
        raise invalid(
            "operand must be a number, except for the target 'value', where it is "
            "a string, or operand_base64",
        )
    if isinstance(operand, int) and not 0 <= operand < REVISION_LIMIT:
        raise invalid(f"operand must be from 0 to {REVISION_LIMIT - 1}")
    return Compare(_key(member), target, operator, operand)


def _refuse_comparison(member: _JsonCompare | _PackCompare) -> None:
    for name in ("target", "operator", "operand", "operand_base64"):
        if getattr(member, name, UNSET) is not UNSET:
            raise invalid(f"exists excludes {name}")


def _operand(member: _JsonCompare | _PackCompare) -> int | bytes:
    if isinstance(member.operand, int) and getattr(member, "operand_base64", UNSET) is UNSET:
        return member.operand
    operand = _bytes(member, "operand")
    if operand is None:
        raise invalid("operand or operand_base64 is needed")
    return operand


def _txn_operation(member: Any, limits: Limits) -> TxnPart:
    match member:
        case _JsonPut() | _PackPut():
            _refuse_own_conditions(member, conditional=member.if_absent)
            return _put(member, limits)
        case _JsonDelete() | _PackDelete():
            _refuse_own_conditions(member, conditional=False)
            return _delete(member)
        case _JsonGet() | _PackGet():
            if member.consistency != "linearizable" or member.max_age_ms is not UNSET:
                raise invalid("a get of a transaction reads what the transaction sees")
            return Get(_key(member))
        case _JsonRange() | _PackRange():
            return _range(member)
        case _:
            raise TypeError(f"the decoder let a {type(member).__name__} through")


def _refuse_own_conditions(
    member: _JsonPut | _PackPut | _JsonDelete | _PackDelete, *, conditional: bool
) -> None:
    if conditional or member.if_revision is not UNSET:
        raise invalid("conditions of a transaction belong into 'compare'")
    if member.idempotency_key is not UNSET or member.session is not UNSET:
        raise invalid("the idempotency key of a transaction belongs into the header")


def _range(member: _JsonRange | _PackRange) -> Range:
    prefix, start, end = (_bytes(member, name) for name in ("prefix", "start", "end"))
    if prefix is not None:
        if start is not None or end is not None:
            raise invalid("prefix excludes start and end")
        start, end = prefix, prefix_end(prefix)
    if end is not None and end <= (start or b""):
        raise invalid("end must be after start")
    return Range(start or b"", end, member.limit, member.keys_only)
