"""The API's description, OpenAPI 3.1, as served at ``/openapi.json``.

It is built from the worker's own limits, so that it says what this server really accepts; the
tests hold the running server against it.
"""

from collections.abc import Set as AbstractSet
from typing import Any, get_args

from msgspec import Struct

from raftkv.core.operations import KEY_BYTES_MAX, REVISION_LIMIT
from raftkv.rpc.web_config import Limits
from raftkv.version import __version__
from raftkv.web.api import answers
from raftkv.web.api.bodies import (
    BatchMember,
    CompareBody,
    Session,
    TransferBody,
    TxnBody,
    TxnMember,
    only_in_batch,
)
from raftkv.web.api.limits import OPERATOR_TIMEOUT_MS
from raftkv.web.api.problems import KINDS
from raftkv.web.api.requests import MAX_AGE_MS_MAX, SEQUENCE_MAX
from raftkv.web.api.schemas import REF, either, schema_of

_MEDIA_TYPES = {
    "json": "application/json",
    "ndjson": "application/x-ndjson",
    "msgpack": "application/msgpack",
    "octets": "application/octet-stream",
    "problem": "application/problem+json",
    "html": "text/html",
    "text": "text/plain",
}
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

_COUNT = {"type": "integer", "minimum": 0}
_ONE_OR_MORE = {"type": "integer", "minimum": 1}
_TEXT = {"type": "string"}
_SOME_TEXT = {"type": "string", "minLength": 1}
_BINARY = {"type": "string", "format": "binary"}
_KEY = {**_SOME_TEXT, "maxLength": KEY_BYTES_MAX}
_ETAG = {"type": "string", "pattern": _ETAG_PATTERN}


def _described(description: str, schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"description": description, "schema": schema, **more}


_HEADERS = {
    "Raftkv-Node": _described("The node that answered", _TEXT, required=True),
    "Raftkv-Shard": _described("The shard that answered, if it was one", _COUNT),
    "Raftkv-Term": _described("The Raft term of that shard", _COUNT),
    "Raftkv-Age-Ms": _described("Stale reads only: how old the data may be", _COUNT),
    "Raftkv-Version": _described("How often the key was put since it was created", _ONE_OR_MORE),
    "Raftkv-Create-Revision": _described("The revision that created the key", _ONE_OR_MORE),
    "X-Request-Id": _described(
        "What logs call the request: as the client said, or made up",
        {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,64}$"},
        required=True,
    ),
    "ETag": _described("The key's mod revision, quoted", _ETAG),
    "Retry-After": _described("Seconds to wait before the next try", _ONE_OR_MORE),
}

_SERVED = ("Raftkv-Node", "Raftkv-Shard", "Raftkv-Term", "X-Request-Id")
_EVERYWHERE = {400, 401, 403, 405, 413, 415, 421, 429, 431, 500, 503, 504}
"""Every route can be refused with these."""


# --- pieces -------------------------------------------------------------------------------------


def _schema(name: str) -> dict[str, Any]:
    return {"$ref": REF + name}


def _content(**schemas: dict[str, Any]) -> dict[str, Any]:
    return {_MEDIA_TYPES[name]: {"schema": schema} for name, schema in schemas.items()}


def _json(name: str) -> dict[str, Any]:
    return _content(json=_schema(name))


def _response(
    description: str, content: dict[str, Any] | None = None, *headers: str
) -> dict[str, Any]:
    told = {name: {"$ref": "#/components/headers/" + name} for name in (*_SERVED, *headers)}
    response: dict[str, Any] = {"description": description, "headers": told}
    return response if content is None else {**response, "content": content}


def _problems(*statuses: int) -> dict[str, Any]:
    described = {}
    for status in sorted(_EVERYWHERE | set(statuses)):
        codes = sorted(code for code, kind in KINDS.items() if kind.status == status)
        headers: tuple[str, ...] = ("Retry-After",) if status in {429, 503, 507} else ()
        headers += ("ETag",) if status == 412 else ()  # noqa: PLR2004 -- the status is its name
        told = "`code` is one of: " + ", ".join(codes)
        described[str(status)] = _response(told, _content(problem=_schema("Problem")), *headers)
    return described


def _query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, **_described(description, schema)}


def _header(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {**_query(name, schema, description), "in": "header"}


def _in_path(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _operation(
    name: str, summary: str, responses: dict[str, Any], *parameters: Any, **more: Any
) -> dict[str, Any]:
    listed = {"parameters": list(parameters)} if parameters else {}
    return {"operationId": name, "summary": summary, **more, **listed, "responses": responses}


def _body(content: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"required": True, "content": content, **more}


def _timeout(limits: Limits, default_ms: int | None = None) -> dict[str, Any]:
    default = limits.timeout_ms_default if default_ms is None else default_ms
    schema = {**_ONE_OR_MORE, "maximum": limits.timeout_ms_max, "default": default}
    return _header("Raftkv-Timeout-Ms", schema, "How long to wait for the answer")


_IDEMPOTENCY = (
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
)
_IF_MATCH = _header("If-Match", _ETAG, "Only if the key has this revision; excludes If-None-Match")
_READ = (
    _query(
        "consistency",
        {"enum": ["linearizable", "stale"], "default": "linearizable"},
        "`stale` reads the replica of the node asked, without its leader",
    ),
    _query(
        "max_age_ms",
        {**_COUNT, "maximum": MAX_AGE_MS_MAX},
        "With `consistency=stale`: fail rather than answer with older data",
    ),
)


# --- data ---------------------------------------------------------------------------------------


def _key_path(limits: Limits) -> dict[str, Any]:
    octets = _content(octets=_BINARY)
    key = {
        **_in_path("key", _KEY),
        "description": f"1 to {KEY_BYTES_MAX} bytes of anything, percent-encoded; / may stay",
    }
    found = ("ETag", "Raftkv-Version", "Raftkv-Create-Revision", "Raftkv-Age-Ms")
    none_match = _header("If-None-Match", _TEXT, "304 if this ETag is current")
    absent = _header(
        "If-None-Match", {"type": "string", "pattern": r"^\*$"}, "Only if the key does not exist"
    )
    timeout = _timeout(limits)
    read = (*_READ, none_match, timeout)
    written = (*_IDEMPOTENCY, timeout)
    current = _response("The client has it already", None, *found)
    value = _response("The value, byte for byte", octets, *found)
    got = {"200": value, "304": current, **_problems(404)}
    asked = {
        status: {name: said for name, said in response.items() if name != "content"}
        for status, response in got.items()
    } | {"200": _response("The key exists", None, *found)}
    put = {
        "200": _response("Replaced", _json("Put"), "ETag"),
        "201": _response("Created", _json("Put"), "ETag"),
        **_problems(408, 409, 412, 422, 507),
    }
    deleted = _response("Deleted, or not there", _json("Delete"))
    delete = {"200": deleted, **_problems(409, 412, 422, 507)}
    size = f"The value, up to {limits.value_bytes_max} bytes of any type"
    body = _body(octets, description=size)
    return {
        "parameters": [key],
        "get": _operation("getKey", "Read a value", got, *read),
        "head": _operation("headKey", "Ask for a key without its value", asked, *read),
        "put": _operation(
            "putKey", "Write a value", put, _IF_MATCH, absent, *written, requestBody=body
        ),
        "delete": _operation("deleteKey", "Remove a key", delete, _IF_MATCH, *written),
    }


def _scan_path(limits: Limits) -> dict[str, Any]:
    limit = {**_ONE_OR_MORE, "maximum": SEQUENCE_MAX, "default": limits.scan_limit_default}
    most = (
        f"At most so many entries; a page takes {limits.scan_limit_max} at most, a stream has no "
        "limit unless it is given one"
    )
    flag = {"enum": ["true", "false"], "default": "false"}
    parameters = (
        _query("prefix", _TEXT, "Keys that begin with this; excludes start and end"),
        _query("start", _TEXT, "Keys from this one on"),
        _query("end", _SOME_TEXT, "Keys before this one"),
        _query("limit", limit, most),
        _query("cursor", _TEXT, "From the page before; the other parameters must be the same"),
        _query("keys_only", flag, "Without values"),
    )
    content = _content(json=_schema("Page"), ndjson=_TEXT)
    found = {"200": _response("A page, or a stream", content, "Raftkv-Age-Ms"), **_problems(406)}
    description = (
        "Linearizable per shard, not a snapshot of all shards. A page is a JSON document; "
        "`Accept: application/x-ndjson` streams one entry a line, and a last line `done` or "
        "`problem`."
    )
    summary = "Read keys in order, over all shards"
    asked = (*parameters, *_READ, _timeout(limits))
    return {"get": _operation("scan", summary, found, *asked, description=description)}


def _batch_path(limits: Limits) -> dict[str, Any]:
    asked = _content(json=_schema("Batch"), ndjson=_TEXT, msgpack=_BINARY)
    told = _content(json=_schema("BatchResults"), ndjson=_TEXT, msgpack=_BINARY)
    return {
        "post": _operation(
            "batch",
            "Do many independent operations",
            {"200": _response("One result for each operation", told), **_problems(406, 408, 507)},
            _timeout(limits),
            description="Results come in the order of the operations, each with its own status. "
            "Needs the role read, or write if an operation writes",
            requestBody=_body(asked),
        )
    }


def _txn_path(limits: Limits) -> dict[str, Any]:
    done = _response(
        "Which branch ran, and its results", _content(json=_schema("TxnResults"), msgpack=_BINARY)
    )
    return {
        "post": _operation(
            "txn",
            "Compare, then do one branch or the other, atomically within one shard",
            {"200": done, **_problems(406, 408, 409, 422, 507)},
            *_IDEMPOTENCY,
            _timeout(limits),
            requestBody=_body(_content(json=_schema("Txn"), msgpack=_BINARY)),
        )
    }


# --- operators ----------------------------------------------------------------------------------


def _get(
    name: str, summary: str, content: dict[str, Any], *parameters: Any, status: int = 500
) -> dict[str, Any]:
    responses = {"200": _response(summary, content), **_problems(status)}
    return {"get": _operation(name, summary, responses, *parameters)}


def _operator_paths(limits: Limits) -> dict[str, Any]:
    wait = _timeout(limits, OPERATOR_TIMEOUT_MS)
    shard = {"parameters": [_in_path("shard", _COUNT)]}
    node = {"parameters": [_in_path("name", _SOME_TEXT)]}
    key = {"parameters": [_in_path("key", _KEY)]}
    scope = _query("scope", {"enum": ["local", "cluster"], "default": "local"}, "Whom to ask")
    facts = _json("Facts")
    one_node = "One node, and what happened on it lately"
    one_shard = "One shard, and what happened to it lately"
    spread = "How keys and load are spread over the shards"
    transfer = _operation(
        "transferLeader",
        "Hand a shard's leadership to another node",
        {"200": _response("Handed over", facts), **_problems(404, 408, 409)},
        _timeout(limits),
        requestBody=_body(_json("Transfer")),
    )
    return {
        "/v1/status": _get("status", "What this node, or all nodes, know", facts, scope, wait),
        "/v1/nodes": _get("nodes", "Every node", _json("Nodes"), wait),
        "/v1/nodes/{name}": {**node, **_get("node", one_node, facts, wait, status=404)},
        "/v1/ring": _get("ring", spread, facts, wait),
        "/v1/shards": _get("shards", "Every shard", _json("Shards"), wait),
        "/v1/shards/{shard}": {**shard, **_get("shard", one_shard, facts, wait, status=404)},
        "/v1/shards/{shard}/transfer-leader": {**shard, "post": transfer},
        "/v1/explain/{key}": {**key, **_get("explain", "Where a key lives, and why", facts, wait)},
    }


def _convention_paths() -> dict[str, Any]:
    html, plain = _content(html=_TEXT), _content(text=_TEXT)
    part = _query("part", {"const": "main"}, "Only what changes: what the page itself asks for")
    page = _get("index", "A page for people: shards, leaders, nodes", html, part)
    page["get"]["security"] = [{}, {"bearer": []}, {"basic": []}]
    for response in page["get"]["responses"].values():
        response["content"] |= html
    ready = _get("readyz", "Whether this node can serve", _json("Ready") | plain)
    ready["get"]["responses"]["503"]["content"] |= _json("Ready") | plain
    return {
        "/": page,
        "/healthz": _get("healthz", "Whether this worker lives", plain),
        "/readyz": ready,
        "/metrics": _get("metrics", "Figures for Prometheus", plain),
        "/openapi.json": _get("openapi", "This document", _json("Facts")),
    }


# --- schemas ------------------------------------------------------------------------------------


def _schemas(limits: Limits) -> dict[str, Any]:
    schemas: dict[str, Any] = {"Facts": {"type": "object"}}

    def added(of: str, declared: type[Struct], without: AbstractSet[str] = frozenset()) -> Any:
        name = of + declared.__name__.removesuffix("Body")
        schemas[name] = schema_of(declared, without=without)
        return _schema(name)

    whole: tuple[type[Struct], ...] = (*answers.DECLARED, Session, TransferBody)
    for declared in whole:
        added("", declared)
    batch = [added("Batch", operation) for operation in get_args(BatchMember)]
    txn = [
        added("Txn", operation, {member.name for member in only_in_batch(operation)})
        for operation in get_args(TxnMember)
    ]
    results = [added("Batch", result) for result in answers.BATCH_RESULTS]
    parts = [added("Txn", result, {"status"}) for result in answers.TXN_RESULTS]
    some = {"minItems": 1, "maxItems": limits.batch_operations_max}
    branch = {**_array(*txn), "maxItems": limits.txn_operations_max}
    comparisons = {**_array(_schema("Compare")), "maxItems": limits.txn_operations_max}
    revision = {"type": ["integer", "null"], "minimum": 1, "exclusiveMaximum": REVISION_LIMIT}
    return {
        **schemas,
        "Batch": _object({"operations": {**_array(*batch), **some}}, "operations"),
        "BatchResults": _object({"results": _array(_schema("Problem"), *results)}, "results"),
        "Compare": _compare(),
        "Txn": {
            **_object({"compare": comparisons, "then": branch, "else": branch}),
            "description": TxnBody.__doc__,
            "anyOf": [
                {"required": [name], "properties": {name: {"minItems": 1}}}
                for name in ("then", "else")
            ],
        },
        "TxnResults": _object(
            {"succeeded": {"type": "boolean"}, "revision": revision, "results": _array(*parts)},
            "succeeded",
            "revision",
            "results",
        ),
    }


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    return {**schema, "required": list(required), "additionalProperties": False}


def _array(*kinds: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": kinds[0] if len(kinds) == 1 else {"oneOf": list(kinds)}}


def _compare() -> dict[str, Any]:
    """Say that the operand's type follows from the target, or that there is neither."""
    members: dict[str, Any] = schema_of(CompareBody)["properties"]
    key = {name: members[name] for name in ("key", "key_base64")}
    compared = {**key, "operator": members["operator"]}
    number = {"type": "integer", "minimum": 0, "exclusiveMaximum": REVISION_LIMIT}
    value = {"operand": {"type": "string"}, "operand_base64": members["operand_base64"]}
    numbers = [target for target in members["target"]["enum"] if target != "value"]
    shapes = [
        {
            **_object({**compared, "target": {"const": "value"}, **value}, "target", "operator"),
            "allOf": [either("key"), either("operand")],
        },
        {
            **_object(
                {**compared, "target": {"enum": numbers}, "operand": number},
                "target",
                "operator",
                "operand",
            ),
            "allOf": [either("key")],
        },
        {**_object({**key, "exists": members["exists"]}, "exists"), "allOf": [either("key")]},
    ]
    return {"oneOf": shapes, "description": CompareBody.__doc__}
