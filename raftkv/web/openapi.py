"""The API's description, OpenAPI 3.1, as served at ``/openapi.json``.

It is built from the worker's own limits, so that it says what this server really accepts; the
tests hold the running server against it.
"""

from typing import Any

from raftkv.core.operations import KEY_BYTES_MAX, REVISION_LIMIT
from raftkv.rpc.messages import PINNED_S_MAX
from raftkv.rpc.web_config import Limits
from raftkv.version import __version__
from raftkv.web.limits import OPERATOR_TIMEOUT_MS
from raftkv.web.problems import KINDS
from raftkv.web.requests import SEQUENCE_MAX

_REF = "#/components/schemas/"
_JSON = "application/json"
_NDJSON = "application/x-ndjson"
_MSGPACK = "application/msgpack"
_PROBLEM = "application/problem+json"
_ETAG_PATTERN = f'^"[1-9][0-9]{{0,{len(str(REVISION_LIMIT - 1)) - 1}}}"$'


def openapi_document(limits: Limits) -> dict[str, Any]:
    """Return the document for a server with ``limits``."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "raftkv",
            "version": __version__,
            "summary": "A Raft-replicated, sharded, strongly consistent key-value store",
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"bearer": []}],
        "paths": {
            "/v1/kv/{key}": _key_path(limits),
            "/v1/kv": _scan_path(limits),
            "/v1/batch": _batch_path(limits),
            "/v1/txn": _txn_path(limits),
            **_operator_paths(limits),
            **_convention_paths(),
        },
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {
                    "type": "http",
                    "scheme": "basic",
                    "description": "For the page / in a browser only; the password is the token",
                },
            },
            "schemas": _schemas(limits),
            "headers": _HEADERS,
        },
    }


_DESCRIPTION = (
    "Any node answers any request. Bytes called `x` are in JSON either the string `x` (UTF-8) or "
    "the base64 string `x_base64`, never both. An error's `definite: true` says that the "
    "operation was not applied and never will be."
)

_HEADERS: dict[str, Any] = {
    "Raftkv-Node": {
        "description": "The node that answered",
        "schema": {"type": "string"},
        "required": True,
    },
    "Raftkv-Shard": {
        "description": "The shard that answered, if it was one",
        "schema": {"type": "integer", "minimum": 0},
    },
    "Raftkv-Term": {
        "description": "The Raft term of that shard",
        "schema": {"type": "integer", "minimum": 0},
    },
    "Raftkv-Age-Ms": {
        "description": "Stale reads only: how old the data may be",
        "schema": {"type": "integer", "minimum": 0},
    },
    "Raftkv-Version": {
        "description": "How often the key was put since it was created",
        "schema": {"type": "integer", "minimum": 1},
    },
    "Raftkv-Create-Revision": {
        "description": "The revision that created the key",
        "schema": {"type": "integer", "minimum": 1},
    },
    "X-Request-Id": {
        "description": "What logs call the request: as the client said, or made up",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,64}$"},
        "required": True,
    },
    "ETag": {
        "description": "The key's mod revision, quoted",
        "schema": {"type": "string", "pattern": _ETAG_PATTERN},
    },
    "Retry-After": {
        "description": "Seconds to wait before the next try",
        "schema": {"type": "integer", "minimum": 1},
    },
}

_SERVED = ("Raftkv-Node", "Raftkv-Shard", "Raftkv-Term", "X-Request-Id")


# --- pieces -------------------------------------------------------------------------------------


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": "#/components/headers/" + name} for name in (*_SERVED, *names)}


def _schema(name: str) -> dict[str, Any]:
    return {"$ref": _REF + name}


def _json(name: str) -> dict[str, Any]:
    return {_JSON: {"schema": _schema(name)}}


def _response(
    description: str, content: dict[str, Any] | None = None, *headers: str
) -> dict[str, Any]:
    response: dict[str, Any] = {"description": description, "headers": _headers(*headers)}
    if content is not None:
        response["content"] = content
    return response


def _problems(*statuses: int) -> dict[str, Any]:
    """Describe error responses; every route can be refused for these reasons, too."""
    everywhere = {400, 401, 403, 405, 413, 415, 421, 429, 431, 500, 503, 504}
    described = {}
    for status in sorted(everywhere | set(statuses)):
        codes = sorted(code for code, kind in KINDS.items() if kind.status == status)
        headers: tuple[str, ...] = ("Retry-After",) if status in {429, 503, 507} else ()
        headers += ("ETag",) if status == 412 else ()  # noqa: PLR2004 -- the status is its name
        described[str(status)] = _response(
            "`code` is one of: " + ", ".join(codes),
            {_PROBLEM: {"schema": _schema("Problem")}},
            *headers,
        )
    return described


def _query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "required": False,
        "description": description,
        "schema": schema,
    }


def _header(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {**_query(name, schema, description), "in": "header"}


def _timeout(limits: Limits, default_ms: int | None = None) -> dict[str, Any]:
    schema = {
        "type": "integer",
        "minimum": 1,
        "maximum": limits.timeout_ms_max,
        "default": limits.timeout_ms_default if default_ms is None else default_ms,
    }
    return _header("Raftkv-Timeout-Ms", schema, "How long to wait for the answer")


_IDEMPOTENCY = [
    _header(
        "Idempotency-Key",
        {"type": "string", "pattern": "^[!-~]{1,255}$"},
        "A retry under the same key is applied once; excludes Raftkv-Session",
    ),
    _header(
        "Raftkv-Session",
        {"type": "string", "pattern": "^[!-:<-~]{1,64};[0-9]{1,18};[0-9]{1,18};[0-9]{1,16}$"},
        "`<id>;<sequence>;<low>;<born>`: a client session's key; all below low are answered; born"
        " is when the session began, in microseconds",
    ),
]
_IF_MATCH = _header(
    "If-Match",
    {"type": "string", "pattern": _ETAG_PATTERN},
    "Only if the key has this revision; excludes If-None-Match",
)
_READ = [
    _query(
        "consistency",
        {"enum": ["linearizable", "stale"], "default": "linearizable"},
        "`stale` reads the replica of the node asked, without its leader",
    ),
    _query(
        "max_age_ms",
        {"type": "integer", "minimum": 0, "maximum": 86_400_000},
        "With `consistency=stale`: fail rather than answer with older data",
    ),
]


# --- data ---------------------------------------------------------------------------------------


def _key_path(limits: Limits) -> dict[str, Any]:
    octets = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    key = {
        "name": "key",
        "in": "path",
        "required": True,
        "description": f"1 to {KEY_BYTES_MAX} bytes of anything, percent-encoded; / may stay",
        "schema": {"type": "string", "minLength": 1, "maxLength": KEY_BYTES_MAX},
    }
    found = ("ETag", "Raftkv-Version", "Raftkv-Create-Revision", "Raftkv-Age-Ms")
    none_match = _header("If-None-Match", {"type": "string"}, "304 if this ETag is current")
    absent = _header("If-None-Match", {"const": "*"}, "Only if the key does not exist")
    timeout = _timeout(limits)
    return {
        "parameters": [key],
        "get": {
            "operationId": "getKey",
            "summary": "Read a value",
            "parameters": [*_READ, none_match, timeout],
            "responses": {
                "200": _response("The value, byte for byte", octets, *found),
                "304": _response("The client has it already", None, *found),
                **_problems(404),
            },
        },
        "head": {
            "operationId": "headKey",
            "summary": "Ask for a key without its value",
            "parameters": [*_READ, none_match, timeout],
            "responses": {
                "200": _response("The key exists", None, *found),
                "304": _response("The client has it already", None, *found),
                **{
                    status: {k: v for k, v in response.items() if k != "content"}
                    for status, response in _problems(404).items()
                },
            },
        },
        "put": {
            "operationId": "putKey",
            "summary": "Write a value",
            "parameters": [_IF_MATCH, absent, *_IDEMPOTENCY, timeout],
            "requestBody": {
                "required": True,
                "description": f"The value, up to {limits.value_bytes_max} bytes of any type",
                "content": octets,
            },
            "responses": {
                "200": _response("Replaced", _json("Put"), "ETag"),
                "201": _response("Created", _json("Put"), "ETag"),
                **_problems(408, 409, 412, 422, 507),
            },
        },
        "delete": {
            "operationId": "deleteKey",
            "summary": "Remove a key",
            "parameters": [_IF_MATCH, *_IDEMPOTENCY, timeout],
            "responses": {
                "200": _response("Deleted, or not there", _json("Delete")),
                **_problems(409, 412, 422, 507),
            },
        },
    }


def _scan_path(limits: Limits) -> dict[str, Any]:
    text = {"type": "string"}
    parameters = [
        _query("prefix", text, "Keys that begin with this; excludes start and end"),
        _query("start", text, "Keys from this one on"),
        _query("end", {**text, "minLength": 1}, "Keys before this one"),
        _query(
            "limit",
            {
                "type": "integer",
                "minimum": 1,
                "maximum": SEQUENCE_MAX,
                "default": limits.scan_limit_default,
            },
            f"At most so many entries; a page takes {limits.scan_limit_max} at most, a stream has "
            "no limit unless it is given one",
        ),
        _query(
            "cursor",
            {"type": "string"},
            "From the page before; the other parameters must be the same",
        ),
        _query("keys_only", {"enum": ["true", "false"], "default": "false"}, "Without values"),
        *_READ,
        _timeout(limits),
    ]
    return {
        "get": {
            "operationId": "scan",
            "summary": "Read keys in order, over all shards",
            "description": (
                "Linearizable per shard, not a snapshot of all shards. A page is a JSON document; "
                f"`Accept: {_NDJSON}` streams one entry a line, and a last line `done` or "
                "`problem`."
            ),
            "parameters": parameters,
            "responses": {
                "200": _response(
                    "A page, or a stream",
                    {**_json("Page"), _NDJSON: {"schema": {"type": "string"}}},
                    "Raftkv-Age-Ms",
                ),
                **_problems(406),
            },
        },
    }


def _batch_path(limits: Limits) -> dict[str, Any]:
    return {
        "post": {
            "operationId": "batch",
            "summary": "Do many independent operations",
            "description": "Results come in the order of the operations, each with its own status. "
            "Needs the role read, or write if an operation writes",
            "parameters": [_timeout(limits)],
            "requestBody": {
                "required": True,
                "content": {
                    **_json("Batch"),
                    _NDJSON: {"schema": {"type": "string"}},
                    _MSGPACK: {"schema": {"type": "string", "format": "binary"}},
                },
            },
            "responses": {
                "200": _response(
                    "One result for each operation",
                    {
                        **_json("BatchResults"),
                        _NDJSON: {"schema": {"type": "string"}},
                        _MSGPACK: {"schema": {"type": "string", "format": "binary"}},
                    },
                ),
                **_problems(406, 408, 507),
            },
        },
    }


def _txn_path(limits: Limits) -> dict[str, Any]:
    return {
        "post": {
            "operationId": "txn",
            "summary": "Compare, then do one branch or the other, atomically within one shard",
            "parameters": [*_IDEMPOTENCY, _timeout(limits)],
            "requestBody": {
                "required": True,
                "content": {
                    **_json("Txn"),
                    _MSGPACK: {"schema": {"type": "string", "format": "binary"}},
                },
            },
            "responses": {
                "200": _response(
                    "Which branch ran, and its results",
                    {
                        **_json("TxnResults"),
                        _MSGPACK: {"schema": {"type": "string", "format": "binary"}},
                    },
                ),
                **_problems(406, 408, 409, 422, 507),
            },
        },
    }


# --- operators ----------------------------------------------------------------------------------


def _get(operation: str, summary: str, schema: str, *statuses: int) -> dict[str, Any]:
    return {
        "get": {
            "operationId": operation,
            "summary": summary,
            "responses": {"200": _response(summary, _json(schema)), **_problems(*statuses)},
        },
    }


def _operator_paths(limits: Limits) -> dict[str, Any]:
    shard = {
        "name": "shard",
        "in": "path",
        "required": True,
        "schema": {"type": "integer", "minimum": 0},
    }
    key = {
        "name": "key",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1, "maxLength": KEY_BYTES_MAX},
    }
    name = {**shard, "name": "name", "schema": {"type": "string", "minLength": 1}}
    status = _get("status", "What this node, or all nodes, know", "Facts")
    scope = {"enum": ["local", "cluster"], "default": "local"}
    status["get"]["parameters"] = [_query("scope", scope, "Whom to ask")]
    paths: dict[str, Any] = {
        "/v1/status": status,
        "/v1/nodes": _get("nodes", "Every node", "Nodes"),
        "/v1/nodes/{name}": {
            "parameters": [name],
            **_get("node", "One node, and what happened on it lately", "Facts", 404),
        },
        "/v1/ring": _get("ring", "How keys and load are spread over the shards", "Facts"),
        "/v1/shards": _get("shards", "Every shard", "Shards"),
        "/v1/shards/{shard}": {
            "parameters": [shard],
            **_get("shard", "One shard, and what happened to it lately", "Facts", 404),
        },
        "/v1/shards/{shard}/transfer-leader": {
            "parameters": [shard],
            "post": {
                "operationId": "transferLeader",
                "summary": "Hand a shard's leadership to another node",
                "parameters": [_timeout(limits)],
                "requestBody": {
                    "required": True,
                    "content": {_JSON: {"schema": _schema("Transfer")}},
                },
                "responses": {
                    "200": _response("Handed over", _json("Facts")),
                    **_problems(404, 408, 409),
                },
            },
        },
        "/v1/explain/{key}": {
            "parameters": [key],
            **_get("explain", "Where a key lives, and why", "Facts"),
        },
    }
    for path in paths.values():
        if "get" in path:
            wait = _timeout(limits, OPERATOR_TIMEOUT_MS)
            path["get"].setdefault("parameters", []).append(wait)
    return paths


def _convention_paths() -> dict[str, Any]:
    def text(operation: str, summary: str, media_type: str) -> dict[str, Any]:
        content = {media_type: {"schema": {"type": "string"}}}
        return {
            "get": {
                "operationId": operation,
                "summary": summary,
                "responses": {"200": _response(summary, content), **_problems()},
            },
        }

    page = text("index", "A page for people: shards, leaders, nodes", "text/html")
    page["get"]["security"] = [{}, {"bearer": []}, {"basic": []}]
    part = _query("part", {"const": "main"}, "Only what changes: what the page itself asks for")
    page["get"]["parameters"] = [part]
    for response in page["get"]["responses"].values():
        response["content"]["text/html"] = {"schema": {"type": "string"}}
    ready = _get("readyz", "Whether this node can serve", "Ready")
    lines = {"text/plain": {"schema": {"type": "string"}}}
    ready["get"]["responses"]["200"]["content"] |= lines
    ready["get"]["responses"]["503"]["content"] |= lines | _json("Ready")
    return {
        "/": page,
        "/healthz": text("healthz", "Whether this worker lives", "text/plain"),
        "/readyz": ready,
        "/metrics": text("metrics", "Figures for Prometheus", "text/plain"),
        "/openapi.json": _get("openapi", "This document", "Facts"),
    }


# --- schemas ------------------------------------------------------------------------------------


def _object(
    properties: dict[str, Any], *required: str, closed: bool = True, **more: Any
) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": properties, **more}
    if required:
        schema["required"] = list(required)
    if closed:
        schema["additionalProperties"] = False
    return schema


def _either(name: str) -> dict[str, Any]:
    """Describe the rule for bytes: exactly one of the text and the base64 member."""
    return {"oneOf": [{"required": [name]}, {"required": [name + "_base64"]}]}


_BASE64 = {
    "type": "string",
    "contentEncoding": "base64",
    "pattern": "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
}
_SOME_BASE64 = {**_BASE64, "minLength": 4}
_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_SEQUENCE = {**_COUNT, "maximum": SEQUENCE_MAX}
_REVISION = {"type": "integer", "minimum": 1, "exclusiveMaximum": REVISION_LIMIT}
_MAYBE_REVISION = {"type": ["integer", "null"], "minimum": 1, "exclusiveMaximum": REVISION_LIMIT}
_KEY = {
    "key": {"type": "string", "minLength": 1, "maxLength": KEY_BYTES_MAX},
    "key_base64": {**_SOME_BASE64, "maxLength": 4 * -(-KEY_BYTES_MAX // 3)},
}
_VALUE = {"value": _TEXT, "value_base64": _BASE64}
_NUMBERS = {"revision": _REVISION, "create_revision": _REVISION, "version": _COUNT}
_ENTRY_KEY = {"key": _TEXT, "key_base64": _BASE64}


def _operation(op: str, properties: dict[str, Any], *rules: dict[str, Any]) -> dict[str, Any]:
    more: dict[str, Any] = {"allOf": list(rules)} if rules else {}
    return _object({"op": {"const": op}, **properties}, "op", **more)


_OUTCOMES = ("put", "delete", "get")
_MEMBERS: dict[str, dict[str, Any]] = {
    "put": {"revision": _REVISION, "version": {"type": "integer", "minimum": 1}},
    "delete": {"deleted": {"type": "boolean"}, "revision": _MAYBE_REVISION},
    "get": {"entry": {"oneOf": [{"type": "null"}, _schema("KeyValue")]}},
    "range": {
        "entries": {"type": "array", "items": _schema("KeyValue")},
        "more": {"type": "boolean"},
    },
}


def _result(op: str, more: dict[str, Any]) -> dict[str, Any]:
    """Describe what one operation of a batch or transaction answered."""
    members = {"op": {"const": op}, **_MEMBERS[op], **more}
    return _object(members, *members)


def _schemas(limits: Limits) -> dict[str, Any]:
    session = _object(
        {
            "id": {"type": "string", "pattern": "^[!-~]{1,64}$"},
            "sequence": _SEQUENCE,
            "low": _SEQUENCE,
            "born": {**_SEQUENCE, "minimum": 1},
        },
        "id",
        "sequence",
        "low",
        "born",
        description="A session's key; sequence must not be below low; born is when it began",
    )
    memory = {
        "idempotency_key": {"type": "string", "pattern": "^[!-~]{1,255}$"},
        "session": session,
    }
    one_memory = {"not": {"required": ["idempotency_key", "session"]}}
    one_condition = {
        "not": {
            "required": ["if_revision", "if_absent"],
            "properties": {"if_absent": {"const": True}},
        }
    }
    get_options = {
        "consistency": {"enum": ["linearizable", "stale"]},
        "max_age_ms": {"type": "integer", "minimum": 0, "maximum": 86_400_000},
    }
    aged = {
        "if": {"required": ["max_age_ms"]},
        "then": {"required": ["consistency"], "properties": {"consistency": {"const": "stale"}}},
    }
    put = {**_KEY, **_VALUE}
    return {
        "Problem": _object(
            {
                "type": _TEXT,
                "title": _TEXT,
                "status": {"type": "integer"},
                "code": {"enum": sorted(KINDS)},
                "detail": _TEXT,
                "definite": {"type": "boolean"},
                "retry_after_ms": _COUNT,
                "revision": {"type": ["integer", "null"]},
                "born_after": _COUNT,
            },
            "type",
            "title",
            "status",
            "code",
            "detail",
            "definite",
        ),
        "Put": _object(
            {**_ENTRY_KEY, "revision": _REVISION, "version": {"type": "integer", "minimum": 1}},
            "revision",
            "version",
            **_either("key"),
        ),
        "Delete": _object(
            {"deleted": {"type": "boolean"}, "revision": _MAYBE_REVISION}, "deleted", "revision"
        ),
        "KeyValue": _object(
            {**_ENTRY_KEY, "value": _TEXT, "value_base64": _BASE64, **_NUMBERS},
            "revision",
            "create_revision",
            "version",
            **_either("key"),
        ),
        "Page": _object(
            {
                "entries": {"type": "array", "items": _schema("KeyValue")},
                "cursor": {"type": ["string", "null"]},
            },
            "entries",
            "cursor",
        ),
        "Batch": _object(
            {
                "operations": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": limits.batch_operations_max,
                    "items": {
                        "oneOf": [
                            _schema("BatchPut"),
                            _schema("BatchDelete"),
                            _schema("BatchGet"),
                        ]
                    },
                }
            },
            "operations",
        ),
        "BatchPut": _operation(
            "put",
            {**put, "if_revision": _REVISION, "if_absent": {"type": "boolean"}, **memory},
            _either("key"),
            _either("value"),
            one_condition,
            one_memory,
        ),
        "BatchDelete": _operation(
            "delete", {**_KEY, "if_revision": _REVISION, **memory}, _either("key"), one_memory
        ),
        "BatchGet": _operation("get", {**_KEY, **get_options}, _either("key"), aged),
        "BatchResults": _object(
            {
                "results": {
                    "type": "array",
                    "items": {
                        "oneOf": [
                            _schema("Problem"),
                            *(_result(op, {"status": {"enum": [200, 201]}}) for op in _OUTCOMES),
                        ]
                    },
                }
            },
            "results",
        ),
        "Txn": _object(
            {
                "compare": {
                    "type": "array",
                    "maxItems": limits.txn_operations_max,
                    "items": _schema("Compare"),
                },
                "then": _branch(limits),
                "else": _branch(limits),
            },
            anyOf=[
                {"required": ["then"], "properties": {"then": {"minItems": 1}}},
                {"required": ["else"], "properties": {"else": {"minItems": 1}}},
            ],
            description="All keys, those of ranges too, must live in one shard: keys with the same "
            "{tag} do",
        ),
        "Compare": {
            "oneOf": [
                _object(
                    {
                        **_KEY,
                        "target": {"const": "value"},
                        "operator": _schema("Operator"),
                        "operand": _TEXT,
                        "operand_base64": _VALUE["value_base64"],
                    },
                    "target",
                    "operator",
                    allOf=[_either("key"), _either("operand")],
                ),
                _object(
                    {
                        **_KEY,
                        "target": {"enum": ["create", "mod", "version"]},
                        "operator": _schema("Operator"),
                        "operand": {**_COUNT, "exclusiveMaximum": REVISION_LIMIT},
                    },
                    "target",
                    "operator",
                    "operand",
                    allOf=[_either("key")],
                ),
                _object({**_KEY, "exists": {"type": "boolean"}}, "exists", allOf=[_either("key")]),
            ],
            "description": "A missing key has create, mod and version 0, and no value: no "
            "comparison of its value holds",
        },
        "Operator": {"enum": ["=", "!=", "<", ">"]},
        "TxnPut": _operation("put", put, _either("key"), _either("value")),
        "TxnDelete": _operation("delete", _KEY, _either("key")),
        "TxnGet": _operation("get", _KEY, _either("key")),
        "TxnRange": _operation(
            "range",
            {
                "prefix": _TEXT,
                "start": _TEXT,
                "end": {"type": "string", "minLength": 1},
                "prefix_base64": _BASE64,
                "start_base64": _BASE64,
                "end_base64": _SOME_BASE64,
                "limit": {"type": "integer", "minimum": 1, "maximum": 10_000},
                "keys_only": {"type": "boolean"},
            },
        ),
        "TxnResults": _object(
            {
                "succeeded": {"type": "boolean"},
                "revision": _MAYBE_REVISION,
                "results": {
                    "type": "array",
                    "items": {
                        "oneOf": [*(_result(op, {}) for op in _OUTCOMES), _result("range", {})]
                    },
                },
            },
            "succeeded",
            "revision",
            "results",
        ),
        "Transfer": _object(
            {
                "target": {"type": ["string", "null"], "description": "Null: the preferred node"},
                "for_s": {
                    "type": ["number", "null"],
                    "exclusiveMinimum": 0,
                    "maximum": PINNED_S_MAX,
                    "description": "How long it stays on the target; null: until that node stops",
                },
            }
        ),
        "Ready": _object(
            {
                "ready": {"type": "boolean"},
                "failing": {"type": "array", "items": _TEXT},
                "checks": {"type": "array", "items": {"type": "object"}},
            },
            "ready",
            "failing",
            "checks",
        ),
        "Nodes": _object({"nodes": {"type": "array", "items": {"type": "object"}}}, "nodes"),
        "Shards": _object({"shards": {"type": "array", "items": {"type": "object"}}}, "shards"),
        "Facts": {"type": "object"},
    }


def _branch(limits: Limits) -> dict[str, Any]:
    return {
        "type": "array",
        "maxItems": limits.txn_operations_max,
        "items": {
            "oneOf": [
                _schema("TxnPut"),
                _schema("TxnDelete"),
                _schema("TxnGet"),
                _schema("TxnRange"),
            ]
        },
    }
