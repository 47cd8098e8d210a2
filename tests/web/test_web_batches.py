"""Batches and transactions over HTTP, in JSON, NDJSON and MessagePack."""

import base64
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from raftkv.core.operations import (
    Command,
    Compare,
    Delete,
    FreeKey,
    Get,
    Put,
    Range,
    SessionKey,
    Txn,
)
from raftkv.rpc.messages import BatchRequest, BatchResult, Failure, GetRequest, WriteRequest
from raftkv.rpc.web_config import Limits, WebConfig
from tests.support.fake_engine import FakeEngine
from tests.web.carriers import OWNER, Answer, Carrier

_JSON = "application/json"
_NDJSON = "application/x-ndjson"
_MSGPACK = "application/msgpack"


def _post(
    api: Carrier, path: bytes, document: Any, headers: dict[str, str] | None = None
) -> Answer:
    body = json.dumps(document).encode()
    return api("POST", path, {"Content-Type": _JSON, **(headers or {})}, body)


def _batch(api: Carrier, *operations: Any) -> Answer:
    return _post(api, b"/v1/batch", {"operations": operations})


def _txn(api: Carrier, **document: Any) -> Answer:
    return _post(api, b"/v1/txn", document)


# --- batch --------------------------------------------------------------------------------------


def test_results_come_in_order_with_a_status_each(api: Carrier) -> None:
    """Each operation of a batch has the status that it would have had alone."""
    answer = _batch(
        api,
        {"op": "put", "key": "a", "value": "1"},
        {"op": "put", "key": "a", "value": "2"},
        {"op": "get", "key": "a"},
        {"op": "get", "key": "none"},
        {"op": "put", "key": "a", "value": "3", "if_absent": True},
        {"op": "delete", "key": "a"},
        {"op": "delete", "key": "a"},
    )
    assert answer.status == 200
    results = answer.json()["results"]
    assert [r["status"] for r in results] == [201, 200, 200, 404, 412, 200, 200]
    assert results[2]["entry"]["value"] == "2"
    assert results[3]["code"] == "key_not_found"
    assert (results[4]["code"], results[4]["definite"]) == ("precondition", True)
    assert results[4]["revision"] == results[1]["revision"]
    assert [results[5]["deleted"], results[6]["deleted"]] == [True, False]


def test_operations_reach_the_engine(api: Carrier, engine: FakeEngine) -> None:
    """Every field of every operation arrives, bytes as text or base64."""
    _batch(
        api,
        {"op": "put", "key": "a", "value": "é", "if_revision": 5, "idempotency_key": "x"},
        {"op": "put", "key_base64": "/w==", "value_base64": "AP8=", "if_absent": True},
        {"op": "delete", "key": "d", "session": {"id": "s", "sequence": 3, "low": 2, "born": 9}},
        {"op": "get", "key": "g", "consistency": "stale", "max_age_ms": 7},
        {"op": "put", "key": "e", "value": ""},
    )
    assert engine.asked == [
        BatchRequest(
            (
                Command(Put(b"a", "é".encode(), 5), FreeKey("x", OWNER)),
                Command(Put(b"\xff", b"\0\xff", None, if_absent=True)),
                Command(Delete(b"d"), SessionKey("s", 3, 2, 9, OWNER)),
                GetRequest(b"g", "stale", 7),
                Command(Put(b"e", b"")),
            )
        )
    ]


def test_ndjson(api: Carrier) -> None:
    """A batch of lines is answered with lines; empty lines are no operations."""
    body = b'{"op":"put","key":"a","value":"1"}\n\n{"op":"get","key":"a"}\r\n'
    answer = api("POST", b"/v1/batch", {"Content-Type": _NDJSON}, body)
    assert answer.headers["content-type"] == _NDJSON
    put, get = map(json.loads, answer.body.splitlines())
    assert (put["status"], get["entry"]["value"]) == (201, "1")


def test_messagepack(api: Carrier) -> None:
    """MessagePack carries bytes as they are, in both directions."""
    operations = [
        {"op": "put", "key": b"\xff", "value": b"\xfe"},
        {"op": "get", "key": b"\xff"},
    ]
    body = msgspec.msgpack.encode({"operations": operations})
    answer = api("POST", b"/v1/batch", {"Content-Type": _MSGPACK}, body)
    assert answer.headers["content-type"] == _MSGPACK
    put, get = msgspec.msgpack.decode(answer.body)["results"]
    assert put["status"] == 201
    assert (get["entry"]["key"], get["entry"]["value"]) == (b"\xff", b"\xfe")


def test_a_put_in_messagepack_keeps_all_that_is_asked_of_it(
    api: Carrier, engine: FakeEngine
) -> None:
    """Conditions and idempotency keys arrive; one without any is only the quicker to read."""
    put = {"op": "put", "key": b"a", "value": b"v"}
    operations = [
        put,
        {**put, "if_absent": True},
        {**put, "if_revision": 5},
        {**put, "idempotency_key": "x"},
        {**put, "session": {"id": "s", "sequence": 3, "low": 2, "born": 9}},
    ]
    body = msgspec.msgpack.encode({"operations": operations})
    api("POST", b"/v1/batch", {"Content-Type": _MSGPACK}, body)
    commands = (
        Command(Put(b"a", b"v")),
        Command(Put(b"a", b"v", if_absent=True)),
        Command(Put(b"a", b"v", 5)),
        Command(Put(b"a", b"v"), FreeKey("x", OWNER)),
        Command(Put(b"a", b"v"), SessionKey("s", 3, 2, 9, OWNER)),
    )
    assert engine.asked == [BatchRequest(commands)]


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [(b"", b"v", "invalid"), (b"k" * 1025, b"v", "too_large"), (b"k", b"v" * 4097, "too_large")],
)
def test_limits_of_a_put_in_messagepack(
    api: Carrier, engine: FakeEngine, key: bytes, value: bytes, code: str
) -> None:
    """They are those of a put in JSON."""
    body = msgspec.msgpack.encode({"operations": [{"op": "put", "key": key, "value": value}]})
    answer = api("POST", b"/v1/batch", {"Content-Type": _MSGPACK}, body)
    assert (answer.code, answer.definite, engine.asked) == (code, True, [])


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [(_MSGPACK, _MSGPACK), (_NDJSON, _NDJSON), ("*/*", _JSON), ("application/x-msgpack", _MSGPACK)],
)
def test_answer_comes_in_the_type_that_is_accepted(
    api: Carrier, accept: str, content_type: str
) -> None:
    """Accept overrules the type of the request."""
    document = {"operations": [{"op": "get", "key": "a"}]}
    answer = _post(api, b"/v1/batch", document, {"Accept": accept})
    assert answer.headers["content-type"] == content_type
    assert _post(api, b"/v1/batch", document, {"Accept": "text/html"}).status == 406


def test_failure_of_one_operation(api: Carrier, engine: FakeEngine) -> None:
    """One failed operation says of itself whether it is definite; the batch is still 200."""
    engine.answers.append(
        BatchResult((Failure("timeout", "late"), Failure("no_leader", "none", definite=True)))
    )
    answer = _batch(api, {"op": "delete", "key": "a"}, {"op": "delete", "key": "b"})
    assert answer.status == 200
    first, second = answer.json()["results"]
    assert (first["status"], first["definite"]) == (504, False)
    assert (second["status"], second["definite"]) == (503, True)


def test_failure_of_the_whole_batch(api: Carrier, engine: FakeEngine) -> None:
    """A batch that was refused as a whole is a problem."""
    engine.answers.append(Failure("busy", "full", definite=True))
    answer = _batch(api, {"op": "delete", "key": "a"})
    assert (answer.status, answer.code, answer.definite) == (429, "busy", True)


def test_missing_results_are_a_bug(api: Carrier, engine: FakeEngine) -> None:
    """Results that cannot be told apart are never passed on as if they could."""
    engine.answers.append(BatchResult(()))
    answer = _batch(api, {"op": "delete", "key": "a"})
    assert (answer.status, answer.definite) == (500, False)


_BAD_OPERATIONS: list[Any] = [
    {},
    {"op": "put"},
    {"op": "put", "key": "a"},
    {"op": "put", "key": "", "value": ""},
    {"op": "put", "key": "a", "value": "x", "value_base64": "eA=="},
    {"op": "put", "key": "a", "key_base64": "YQ==", "value": "x"},
    {"op": "put", "key_base64": "?", "value": "x"},
    {"op": "put", "key": "a", "value": 5},
    {"op": "put", "key": "a", "value": "x", "ttl": 5},
    {"op": "put", "key": "a", "value": "x", "if_revision": 5, "if_absent": True},
    {"op": "put", "key": "a", "value": "x", "if_revision": 0},
    {"op": "put", "key": "a", "value": "x", "if_revision": 2**53},
    {"op": "put", "key": "a", "value": "x", "idempotency_key": "a b"},
    {"op": "put", "key": "a", "value": "x", "idempotency_key": ""},
    {
        "op": "put",
        "key": "a",
        "value": "x",
        "idempotency_key": "a",
        "session": {"id": "s", "sequence": 1, "low": 0, "born": 9},
    },
    {"op": "delete", "key": "a", "session": {"id": "s", "sequence": 1, "low": 2, "born": 9}},
    {"op": "delete", "key": "a", "session": {"id": "s", "sequence": 1}},
    {"op": "delete", "key": "a", "session": {"id": "s", "sequence": 1, "low": 1}},
    {"op": "delete", "key": "a", "session": {"id": "s", "sequence": 1, "low": 1, "born": 0}},
    {"op": "get", "key": "a", "max_age_ms": 5},
    {"op": "get", "key": "a", "consistency": "eventual"},
    {"op": "range", "prefix": "a"},
    {"op": "txn"},
    5,
]


@pytest.mark.parametrize("operation", _BAD_OPERATIONS)
def test_one_bad_operation_refuses_the_batch(
    api: Carrier, engine: FakeEngine, operation: Any
) -> None:
    """A batch with a bad operation is refused whole, before any of it is done."""
    answer = _batch(api, {"op": "put", "key": "good", "value": "x"}, operation)
    assert (answer.status, answer.code, answer.definite) == (400, "invalid", True)
    assert engine.asked == []


def test_bad_operation_is_named(api: Carrier) -> None:
    """The error says which operation it is about."""
    answer = _batch(api, {"op": "get", "key": "a"}, {"op": "put", "key": "", "value": ""})
    assert answer.json()["detail"].startswith("operation 1: ")


@pytest.mark.parametrize("path", [b"/v1/batch", b"/v1/txn"])
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (_JSON, b""),
        (_JSON, b"{"),
        (_JSON, b"[]"),
        (_JSON, b'{"operations": []}'),
        (_JSON, b'{"operations": null}'),
        (_JSON, b'\xff{"operations": []}'),
        (_JSON, b'{"operations": [{"op": "get", "key": "\\ud800"}]}'),
        (_JSON, b"[" * 8000),
        (_JSON, b'{"then": [], "else": []}'),
        (_MSGPACK, b""),
        (_MSGPACK, b"\xc1"),
        (_MSGPACK, b"\x91" * 8000),
        (_MSGPACK, msgspec.msgpack.encode({"operations": [{"op": "get", "key": "text"}]})),
    ],
)
def test_malformed_body(api: Carrier, path: bytes, content_type: str, body: bytes) -> None:
    """A body that is not what its type says is 400."""
    answer = api("POST", path, {"Content-Type": content_type}, body)
    assert (answer.status, answer.code) == (400, "invalid")


@pytest.mark.parametrize("path", [b"/v1/batch", b"/v1/txn"])
@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_unsupported_media_type(api: Carrier, path: bytes, content_type: str) -> None:
    """Another content type is 415 and says what is understood."""
    headers = {"Content-Type": content_type} if content_type else {}
    answer = api("POST", path, headers, b"{}")
    assert (answer.status, answer.code) == (415, "unsupported_media_type")
    assert _JSON in answer.json()["detail"]


def test_content_type_may_have_parameters(api: Carrier) -> None:
    """A charset does not hide the type."""
    body = b'{"operations":[{"op":"get","key":"a"}]}'
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert api("POST", b"/v1/batch", headers, body).status == 200


def test_limits_of_a_batch(api: Carrier) -> None:
    """Too many operations, too long a key or value, too large a body: 413."""
    get = {"op": "get", "key": "a"}
    assert _batch(api, *[get] * 20).status == 200
    for operations in (
        [get] * 21,
        [{"op": "put", "key": "a", "value": "x" * 4097}],
        [{"op": "get", "key": "k" * 1025}],
        [{"op": "put", "key": "a", "value": "x" * 4000}] * 5,
    ):
        answer = _batch(api, *operations)
        assert (answer.status, answer.code) == (413, "too_large")


@pytest.mark.parametrize("header", ["Idempotency-Key", "Raftkv-Session", "If-Match"])
def test_headers_of_single_writes_do_not_fit_a_batch(api: Carrier, header: str) -> None:
    """What belongs to each operation cannot be said of the whole batch."""
    document = {"operations": [{"op": "get", "key": "a"}]}
    assert _post(api, b"/v1/batch", document, {header: '"5"'}).status == 400
    assert _post(api, b"/v1/batch?x=1", document).status == 400


# --- transaction --------------------------------------------------------------------------------


def test_txn_takes_one_branch(api: Carrier) -> None:
    """If the comparisons hold the first branch runs, else the second."""
    compare = [{"key": "n", "target": "version", "operator": "=", "operand": 0}]
    then = [{"op": "put", "key": "n", "value": "1"}, {"op": "get", "key": "n"}]
    otherwise = [{"op": "get", "key": "none"}, {"op": "range", "prefix": "", "keys_only": True}]
    first = _post(api, b"/v1/txn", {"compare": compare, "then": then, "else": otherwise})
    assert first.status == 200
    assert first.json()["succeeded"] is True
    put, get = first.json()["results"]
    assert (put["op"], put["version"], get["entry"]["value"]) == ("put", 1, "1")
    assert put["revision"] == first.json()["revision"]
    second = _post(api, b"/v1/txn", {"compare": compare, "then": then, "else": otherwise})
    assert (second.json()["succeeded"], second.json()["revision"]) == (False, None)
    get, listed = second.json()["results"]
    assert get == {"op": "get", "entry": None}
    assert [e["key"] for e in listed["entries"]] == ["n"]
    assert "value" not in listed["entries"][0]


def test_txn_reaches_the_engine(api: Carrier, engine: FakeEngine) -> None:
    """Every part of a transaction arrives, with its idempotency key from the header."""
    document = {
        "compare": [
            {"key": "a", "target": "value", "operator": "!=", "operand": "x"},
            {"key": "a", "target": "value", "operator": "=", "operand_base64": "/w=="},
            {"key_base64": "/w==", "target": "mod", "operator": "<", "operand": 9},
            {"key": "a", "exists": True},
            {"key_base64": "/w==", "exists": False},
        ],
        "then": [
            {"op": "put", "key": "a", "value": "v"},
            {"op": "delete", "key": "b"},
            {"op": "range", "start": "a", "end": "c", "limit": 5},
        ],
        "else": [{"op": "get", "key": "a"}, {"op": "range", "prefix_base64": "/w=="}],
    }
    _post(api, b"/v1/txn", document, {"Raftkv-Session": "s;2;1;9"})
    txn = Txn(
        compare=(
            Compare(b"a", "value", "!=", b"x"),
            Compare(b"a", "value", "=", b"\xff"),
            Compare(b"\xff", "mod", "<", 9),
            Compare(b"a", "version", ">", 0),
            Compare(b"\xff", "version", "=", 0),
        ),
        then=(Put(b"a", b"v"), Delete(b"b"), Range(b"a", b"c", 5)),
        otherwise=(Get(b"a"), Range(b"\xff", None, 100)),
    )
    assert engine.asked == [WriteRequest(Command(txn, SessionKey("s", 2, 1, 9, OWNER)))]


@pytest.mark.parametrize("there", [True, False])
def test_txn_asks_whether_a_key_exists(api: Carrier, *, there: bool) -> None:
    """``exists`` reads as it is meant; the value of a missing key compares with nothing."""
    if there:
        api("PUT", b"/v1/kv/k", body=b"")
    for compare, holds in (
        ({"exists": True}, there),
        ({"exists": False}, not there),
        ({"target": "value", "operator": "=", "operand": ""}, there),
        ({"target": "value", "operator": "!=", "operand": "x"}, there),
    ):
        answer = _txn(api, then=[_GET], compare=[{"key": "k", **compare}])
        assert answer.json()["succeeded"] is holds


def test_txn_in_messagepack(api: Carrier) -> None:
    """A transaction can be MessagePack, too."""
    document = {
        "compare": [
            {"key": b"\xff", "exists": False},
            {"key": b"\xff", "target": "mod", "operator": "=", "operand": 0},
        ],
        "then": [{"op": "put", "key": b"\xff", "value": b"\0"}, {"op": "get", "key": b"\xff"}],
    }
    body = msgspec.msgpack.encode(document)
    answer = api("POST", b"/v1/txn", {"Content-Type": _MSGPACK}, body)
    decoded = msgspec.msgpack.decode(answer.body)
    assert decoded["succeeded"] is True
    assert decoded["results"][1]["entry"]["key"] == b"\xff"


_GET = {"op": "get", "key": "a"}


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"then": []},
        {"then": [_GET], "otherwise": []},
        {"then": [{"op": "put", "key": "a", "value": "v", "if_absent": True}]},
        {"then": [{"op": "put", "key": "a", "value": "v", "if_revision": 3}]},
        {"then": [{"op": "delete", "key": "a", "if_revision": 3}]},
        {"then": [{"op": "put", "key": "a", "value": "v", "idempotency_key": "x"}]},
        {"then": [{"op": "get", "key": "a", "consistency": "stale"}]},
        {"then": [{"op": "range", "prefix": "a", "start": "a"}]},
        {"then": [{"op": "range", "start": "b", "end": "a"}]},
        {"then": [{"op": "range", "limit": 0}]},
        {"then": [_GET], "compare": [{"key": "a", "target": "mod", "operator": "="}]},
        {"then": [_GET], "compare": [{"key": "a"}]},
        {"then": [_GET], "compare": [{"key": "a", "operator": "=", "operand": 1}]},
        {"then": [_GET], "compare": [{"key": "a", "exists": 1}]},
        {"then": [_GET], "compare": [{"key": "a", "exists": None}]},
        {"then": [_GET], "compare": [{"exists": True}]},
        {"then": [_GET], "compare": [{"key": "a", "exists": True, "operator": "="}]},
        {"then": [_GET], "compare": [{"key": "a", "exists": True, "operand": 1}]},
        {
            "then": [_GET],
            "compare": [{"key": "a", "target": "mod", "operator": "=", "operand": "5"}],
        },
        {
            "then": [_GET],
            "compare": [{"key": "a", "target": "value", "operator": "=", "operand": 5}],
        },
        {
            "then": [_GET],
            "compare": [{"key": "a", "target": "mod", "operator": "=", "operand": -1}],
        },
        {
            "then": [_GET],
            "compare": [{"key": "a", "target": "mod", "operator": ">=", "operand": 1}],
        },
        {
            "then": [_GET],
            "compare": [{"key": "a", "target": "lease", "operator": "=", "operand": 1}],
        },
    ],
)
def test_nonsense_transactions(api: Carrier, engine: FakeEngine, document: Any) -> None:
    """A transaction that makes no sense is refused before the engine hears of it."""
    answer = _post(api, b"/v1/txn", document)
    assert (answer.status, answer.code, answer.definite) == (400, "invalid", True)
    assert engine.asked == []


_COMPARE = {"key": "a", "target": "mod", "operator": "=", "operand": 1}


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (
            {"then": [_GET], "compare": [{**_COMPARE, "operator": "=="}]},
            "'==' - at `$.compare[0].operator`; it can be =, !=, <, >",
        ),
        (
            {"then": [_GET], "compare": [{**_COMPARE, "target": "lease"}]},
            "'lease' - at `$.compare[0].target`; it can be value, create, mod, version",
        ),
        (
            {"else": [_GET, {"op": "set", "key": "a"}]},
            "'set' - at `$.else[1].op`; it can be put, delete, get, range",
        ),
    ],
)
def test_a_transaction_that_asks_for_what_is_not_there_is_told_what_is(
    api: Carrier, document: Any, says: str
) -> None:
    """The place, and the values that are possible there."""
    answer = _post(api, b"/v1/txn", document)
    assert answer.status == 400
    assert answer.json()["detail"].endswith(says)


def test_a_batch_that_asks_for_what_is_not_there_is_told_what_is(api: Carrier) -> None:
    """A batch has no ranges."""
    ranged = _batch(api, {"op": "range", "prefix": "a"})
    assert ranged.json()["detail"].endswith("`$.operations[0].op`; it can be put, delete, get")
    fresh = _batch(api, {**_GET, "consistency": "fresh"})
    assert fresh.json()["detail"].endswith("consistency`; it can be linearizable, stale")
    line = api("POST", b"/v1/batch", {"Content-Type": _NDJSON}, b'{"op": "set", "key": "a"}\n')
    assert line.json()["detail"].endswith("`$.op`; it can be put, delete, get")
    body = msgspec.msgpack.encode({"operations": [{"op": "set", "key": b"a"}]})
    packed = api("POST", b"/v1/batch", {"Content-Type": _MSGPACK}, body)
    assert packed.json()["detail"].endswith("`$.operations[0].op`; it can be put, delete, get")


def test_limits_of_a_txn(api: Carrier) -> None:
    """Too many operations or comparisons: 413."""
    compare = {"key": "a", "target": "mod", "operator": "=", "operand": 1}
    assert _txn(api, then=[_GET] * 8).status == 200
    assert _txn(api, then=[_GET] * 9).status == 413
    assert _txn(api, then=[_GET], compare=[compare] * 9).status == 413


@pytest.mark.parametrize("post", [_batch, _txn])
def test_only_post(api: Carrier, post: Callable[..., Answer]) -> None:
    """Batches and transactions are posted, nothing else."""
    path = b"/v1/batch" if post is _batch else b"/v1/txn"
    answer = api("GET", path)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


def test_one_large_value_always_fits_a_batch(
    make_api: Callable[[WebConfig], Carrier],
) -> None:
    """Where values may be larger than batches, a batch of one value still goes through."""
    limits = Limits(value_bytes_max=30_000, batch_bytes_max=10, txn_bytes_max=10)
    api = make_api(WebConfig(node_name="n1", limits=limits))
    put = {"op": "put", "key": "a", "value_base64": base64.b64encode(b"\xff" * 30_000).decode()}
    assert _batch(api, put).json()["results"][0]["status"] == 201
    assert _txn(api, then=[put]).status == 200
