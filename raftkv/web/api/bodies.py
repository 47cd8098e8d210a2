"""The bodies of batches and transactions: JSON, NDJSON and MessagePack to operations.

A body with one bad operation is refused whole, naming the operation, before any of it is done.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar, get_args

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from raftkv.core.operations import (
    KEY_BYTES_MAX,
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
from raftkv.rpc.messages import (
    PINNED_S_MAX,
    BatchRequest,
    Consistency,
    GetRequest,
    WriteRequest,
)
from raftkv.rpc.web_config import Limits
from raftkv.web.api import validation_messages
from raftkv.web.api.encoding import check_key, parse_query, prefix_end
from raftkv.web.api.exchange import HttpRequest
from raftkv.web.api.problems import HttpError, invalid
from raftkv.web.api.requests import (
    MAX_AGE_MS_MAX,
    SEQUENCE_MAX,
    Plan,
    idempotency,
    media_type_of,
    negotiate,
    session_key,
    timeout_s,
)
from raftkv.web.api.responses import JSON, MSGPACK, NDJSON, render_batch, render_txn
from raftkv.web.api.schemas import Length, bytes_of, json_form, json_type, marks, tags_of

_BATCH_TYPES = (JSON, NDJSON, MSGPACK)
_TXN_TYPES = (JSON, MSGPACK)
_RANGE_LIMIT_DEFAULT = 100
_RANGE_LIMIT_MAX = 10_000
_Value = TypeVar("_Value")
_Member = TypeVar("_Member", bound=Struct)


# --- declarations -------------------------------------------------------------------------------


class OnlyInBatch(NamedTuple):
    """Marks a member that operations of a transaction do not have; ``refusal`` says where it is."""

    refusal: str


_CONDITION = OnlyInBatch("conditions of a transaction belong into 'compare'")
_MEMORY = OnlyInBatch("the idempotency key of a transaction belongs into the header")
_FRESHNESS = OnlyInBatch("a get of a transaction reads what the transaction sees")

# What is not said is left away; null is refused, as it could mean either of two things.
Key = Annotated[bytes, Length(1, KEY_BYTES_MAX)]
Bound = bytes | UnsetType
Condition = Annotated[Annotated[int, Meta(ge=1, lt=REVISION_LIMIT)] | UnsetType, _CONDITION]
Age = Annotated[int, Meta(ge=0, le=MAX_AGE_MS_MAX)] | UnsetType
RangeLimit = Annotated[int, Meta(ge=1, le=_RANGE_LIMIT_MAX)]
CompareTarget = Literal["value", "create", "mod", "version"]
CompareOperator = Literal["=", "!=", "<", ">"]
SessionNumber = Annotated[int, Meta(ge=0, le=SEQUENCE_MAX)]


class _Closed(Struct, forbid_unknown_fields=True):
    """Base of all bodies; an unknown field is an error, never ignored."""


class _Operation(_Closed, tag_field="op"):
    RULES: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """What a schema says beside the members: by the name of the member that it is about."""


class Session(_Closed):
    """A session's key; sequence must not be below low; born is when it began."""

    id: Annotated[str, Meta(pattern="^[!-~]{1,64}$")]
    sequence: SessionNumber
    low: SessionNumber
    born: Annotated[int, Meta(ge=1, le=SEQUENCE_MAX)]


class _Write(_Operation, kw_only=True):
    idempotency_key: Annotated[
        Annotated[str, Meta(pattern="^[!-~]{1,255}$")] | UnsetType, _MEMORY
    ] = UNSET
    session: Annotated[Session | UnsetType, _MEMORY] = UNSET

    RULES = {"session": {"not": {"required": ["idempotency_key", "session"]}}}


class PutBody(_Write, tag="put"):
    """Set a key."""

    key: Key
    value: bytes
    if_revision: Condition = UNSET
    if_absent: Annotated[bool, _CONDITION] = False

    RULES = {
        **_Write.RULES,
        "if_absent": {
            "not": {
                "required": ["if_revision", "if_absent"],
                "properties": {"if_absent": {"const": True}},
            }
        },
    }


class DeleteBody(_Write, tag="delete"):
    """Remove a key; there need not be one."""

    key: Key
    if_revision: Condition = UNSET


class GetBody(_Operation, tag="get"):
    """Read a key."""

    key: Key
    consistency: Annotated[Consistency, _FRESHNESS] = "linearizable"
    max_age_ms: Annotated[Age, _FRESHNESS] = UNSET

    RULES = {
        "max_age_ms": {
            "if": {"required": ["max_age_ms"]},
            "then": {
                "required": ["consistency"],
                "properties": {"consistency": {"const": "stale"}},
            },
        }
    }


class RangeBody(_Operation, tag="range"):
    """Read keys in order: those with a prefix, or from start to before end."""

    prefix: Bound = UNSET
    start: Bound = UNSET
    end: Annotated[bytes, Length(1)] | UnsetType = UNSET
    limit: RangeLimit = _RANGE_LIMIT_DEFAULT
    keys_only: bool = False


class CompareBody(_Closed):
    """A missing key has create, mod and version 0, and no value: no comparison of it holds."""

    key: Key
    target: CompareTarget | UnsetType = UNSET
    operator: CompareOperator | UnsetType = UNSET
    exists: bool | UnsetType = UNSET
    operand: int | bytes | UnsetType = UNSET


BatchMember = PutBody | DeleteBody | GetBody
TxnMember = PutBody | DeleteBody | GetBody | RangeBody


class BatchBody(_Closed):
    """Independent operations."""

    operations: list[BatchMember]


class TxnBody(_Closed, rename={"otherwise": "else"}):
    """All keys, those of ranges too, must live in one shard: keys with the same {tag} do."""

    compare: list[CompareBody] = []
    then: list[TxnMember] = []
    otherwise: list[TxnMember] = []


class TransferBody(_Closed):
    """Where a shard's leadership is to go."""

    target: Annotated[str | None, Meta(description="Null: the preferred node")] = None
    for_s: Annotated[
        Annotated[float, Meta(gt=0, le=PINNED_S_MAX)] | None,
        Meta(description="How long it stays on the target; null: until that node stops"),
    ] = None


class _Excluded(NamedTuple):
    name: str
    default: Any
    refusal: str


def only_in_batch(operation: type[Struct]) -> tuple[_Excluded, ...]:
    """Return the members that an operation has in a batch, and not in a transaction."""
    return tuple(
        _Excluded(field.name, field.default, mark.refusal)
        for field in msgspec.structs.fields(operation)
        for mark in marks(field.type)
        if isinstance(mark, OnlyInBatch)
    )


_json_batch = msgspec.json.Decoder(json_form(BatchBody)).decode
_json_line = msgspec.json.Decoder(json_type(BatchMember)).decode
_json_txn = msgspec.json.Decoder(json_form(TxnBody)).decode
_pack_batch = msgspec.msgpack.Decoder(BatchBody).decode
_pack_txn = msgspec.msgpack.Decoder(TxnBody).decode
_CHOICES: validation_messages.Choices = {
    "target": get_args(CompareTarget),
    "operator": get_args(CompareOperator),
    "consistency": get_args(Consistency),
}
_BATCH_CHOICES = {**_CHOICES, "op": tags_of(BatchMember)}
_TXN_CHOICES = {**_CHOICES, "op": tags_of(TxnMember)}


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


def _batch_members(body: bytes, media_type: bytes, operations_max: int) -> Sequence[BatchMember]:
    members: Sequence[BatchMember]
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
    # Fast path of `_put` and `_idempotency`: nearly all members are plain puts.
    if (
        type(member) is PutBody
        and member.if_revision is UNSET
        and member.if_absent is False
        and member.idempotency_key is UNSET
        and member.session is UNSET
    ):
        _check_value(member.value, limits)
        return Command(Put(check_key(member.key), member.value))
    operation = _OPERATIONS[type(member)](member, limits)
    if not isinstance(operation, Get):
        return Command(operation, _idempotency(member, owner))
    age = _given(member.max_age_ms)
    if age is not None and member.consistency != "stale":
        raise invalid("max_age_ms goes with consistency 'stale' only")
    return GetRequest(operation.key, member.consistency, age)


def _given(value: _Value | UnsetType) -> _Value | None:
    return None if value is UNSET else value


def _idempotency(member: _Write, owner: int) -> Idempotency | None:
    session, free = _given(member.session), _given(member.idempotency_key)
    if session is None:
        return None if free is None else FreeKey(free, owner)
    if free is not None:
        raise invalid("idempotency_key and session exclude each other")
    return session_key(session.id, session.sequence, session.low, session.born, owner)


# --- transaction --------------------------------------------------------------------------------


def parse_txn(http: HttpRequest, limits: Limits) -> Plan:
    """``POST /v1/txn``: compare, then one branch or the other, atomically in one shard."""
    parse_query(http.query, frozenset())
    headers = http.headers
    media_type = media_type_of(headers.get(b"content-type"), _TXN_TYPES)
    answer_type = _answer_type(headers.get(b"accept"), media_type, _TXN_TYPES)
    document: TxnBody
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


def _keys_only(branch: Sequence[TxnMember]) -> tuple[bool, ...]:
    return tuple(getattr(member, "keys_only", False) for member in branch)


def _compare(member: CompareBody) -> Compare:
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


def _refuse_comparison(member: CompareBody) -> None:
    for name in ("target", "operator", "operand", "operand_base64"):
        if getattr(member, name, UNSET) is not UNSET:
            raise invalid(f"exists excludes {name}")


def _operand(member: CompareBody) -> int | bytes:
    if isinstance(member.operand, int) and getattr(member, "operand_base64", UNSET) is UNSET:
        return member.operand
    operand = bytes_of(member, "operand")
    if operand is None:
        raise invalid("operand or operand_base64 is needed")
    return operand


def _txn_operation(member: TxnMember, limits: Limits) -> TxnPart:
    for name, default, refusal in _ONLY_IN_BATCH[type(member)]:
        if getattr(member, name) != default:
            raise invalid(refusal)
    part: TxnPart = _OPERATIONS[type(member)](member, limits)
    return part


# --- operations, from either form -----------------------------------------------------------------


def _put(member: PutBody, limits: Limits) -> Put:
    revision = _given(member.if_revision)
    if member.if_absent and revision is not None:
        raise invalid("if_revision and if_absent exclude each other")
    value = _value(member, limits)
    return Put(_key(member), value, revision, member.if_absent)


def _value(member: Struct, limits: Limits) -> bytes:
    value = bytes_of(member, "value")
    if value is None:
        raise invalid("value or value_base64 is needed")
    _check_value(value, limits)
    return value


def _check_value(value: bytes, limits: Limits) -> None:
    if len(value) > limits.value_bytes_max:
        raise HttpError(
            "too_large",
            f"a value has at most {limits.value_bytes_max} bytes (the node's http.value_bytes_max)",
        )


def _delete(member: DeleteBody, _: Limits) -> Delete:
    return Delete(_key(member), _given(member.if_revision))


def _get(member: GetBody, _: Limits) -> Get:
    return Get(_key(member))


def _range(member: RangeBody, _: Limits) -> Range:
    prefix, start, end = (bytes_of(member, name) for name in ("prefix", "start", "end"))
    if prefix is not None:
        if start is not None or end is not None:
            raise invalid("prefix excludes start and end")
        start, end = prefix, prefix_end(prefix)
    if end is not None and end <= (start or b""):
        raise invalid("end must be after start")
    return Range(start or b"", end, member.limit, member.keys_only)


def _key(member: Struct) -> bytes:
    key = bytes_of(member, "key")
    if key is None:
        raise invalid("key or key_base64 is needed")
    return check_key(key)


_OPERATIONS: dict[type, Callable[[Any, Limits], Any]] = {
    form: operation
    for declared, operation in (
        (PutBody, _put),
        (DeleteBody, _delete),
        (GetBody, _get),
        (RangeBody, _range),
    )
    for form in (declared, json_form(declared))
}
"""What makes the operation of a member."""

_ONLY_IN_BATCH = {form: only_in_batch(form) for form in _OPERATIONS}
