"""From what the engine answered to status, headers and body; pure, shared by both carriers."""

import functools
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from raftkv.core.operations import (
    DeleteResult,
    GetResult,
    KeyValue,
    PutResult,
    RangeResult,
    Refused,
    TxnResult,
)
from raftkv.rpc.messages import BatchResult, Facts, Failure, Reply, Served
from raftkv.web.api.encoding import text_or_base64
from raftkv.web.api.exchange import Header, HttpResponse
from raftkv.web.api.problems import HttpError, from_failure, from_refusal

F = TypeVar("F")

JSON = b"application/json"
NDJSON = b"application/x-ndjson"
MSGPACK = b"application/msgpack"

_OCTETS: Header = (b"content-type", b"application/octet-stream")
_JSON: Header = (b"content-type", JSON)
# A cache may keep a value but has to ask with If-None-Match before it uses it.
_NO_CACHE: Header = (b"cache-control", b"no-cache")
_NO_STORE: Header = (b"cache-control", b"no-store")

_encode_json = msgspec.json.Encoder().encode
_encode_msgpack = msgspec.msgpack.Encoder().encode


@functools.lru_cache(maxsize=1024)
def _identity(node: str, shard: int | None, term: int | None) -> tuple[Header, ...]:
    headers = [(b"raftkv-node", node.encode())]
    if shard is not None:
        headers.append((b"raftkv-shard", b"%d" % shard))
    if term is not None:
        headers.append((b"raftkv-term", b"%d" % term))
    return tuple(headers)


def served_headers(served: Served) -> tuple[Header, ...]:
    """Return the headers that say who answered, and how old a stale answer may be."""
    headers = _identity(served.node, served.shard, served.term)
    if served.age_ms is None:
        return headers
    return (*headers, (b"raftkv-age-ms", b"%d" % served.age_ms))


def unexpected(answer: object) -> HttpError:
    """Return the error for an answer that does not belong to the question: a bug."""
    detail = f"the engine answered with {type(answer).__name__}"
    return HttpError("internal", detail, definite=False)


# --- single keys ----------------------------------------------------------------------------


def render_get(if_none_match: bytes | None, reply: Reply) -> HttpResponse:
    """The value with its ETag, 304 if the client has it already, or 404."""
    answer = reply.response
    if type(answer) is not GetResult:
        raise _no_result(answer, read=True)
    entry = answer.entry
    if entry is None:
        raise HttpError("key_not_found", "the key does not exist")
    etag = b'"%d"' % entry.mod_revision
    headers = [
        (b"etag", etag),
        (b"raftkv-version", b"%d" % entry.version),
        (b"raftkv-create-revision", b"%d" % entry.create_revision),
        _NO_CACHE,
        *served_headers(reply.served),
    ]
    if if_none_match is not None and _any_matches(if_none_match, etag):
        return HttpResponse(304, headers)
    headers += (_OCTETS, (b"content-length", b"%d" % len(entry.value)))
    return HttpResponse(200, headers, entry.value)


def _any_matches(if_none_match: bytes, etag: bytes) -> bool:
    """Compare weakly, as RFC 9110 section 13.1.2 asks for ``If-None-Match``."""
    if if_none_match == etag:
        return True
    candidates = [c.strip().removeprefix(b"W/") for c in if_none_match.split(b",")]
    return b"*" in candidates or etag in candidates


def render_put(key: bytes, reply: Reply) -> HttpResponse:
    """201 for a created key, 200 for a replaced value, with the new revision."""
    answer = reply.response
    if type(answer) is not PutResult:
        raise _no_result(answer, read=False)
    name, text = text_or_base64("key", key)
    body = _encode_json({name: text, "revision": answer.revision, "version": answer.version})
    headers = [
        (b"etag", b'"%d"' % answer.revision),
        *_json_headers(body, reply.served),
    ]
    return HttpResponse(201 if answer.version == 1 else 200, headers, body)


def render_delete(reply: Reply) -> HttpResponse:
    """Whether something was deleted; deleting a missing key is a success too."""
    answer = reply.response
    if type(answer) is not DeleteResult:
        raise _no_result(answer, read=False)
    body = _encode_json({"deleted": answer.deleted, "revision": answer.revision})
    return HttpResponse(200, _json_headers(body, reply.served), body)


def _json_headers(body: bytes, served: Served) -> list[Header]:
    return [
        _JSON,
        _NO_STORE,
        (b"content-length", b"%d" % len(body)),
        *served_headers(served),
    ]


def _no_result(answer: object, *, read: bool) -> HttpError:
    if isinstance(answer, Failure):
        return from_failure(answer, read=read)
    if isinstance(answer, Refused):
        return from_refusal(answer)
    return unexpected(answer)


def range_of(reply: Reply) -> RangeResult:
    """Return the entries of a scan's page.

    Raises:
        HttpError: The engine answered with a failure instead.
    """
    answer = reply.response
    if type(answer) is not RangeResult:
        raise _no_result(answer, read=True)
    return answer


# --- entries and results, in JSON and MessagePack ----------------------------------------------


def entry_json(entry: KeyValue, *, keys_only: bool) -> dict[str, Any]:
    """Return an entry for JSON: text where it is UTF-8, base64 where it is not."""
    name, text = text_or_base64("key", entry.key)
    members: dict[str, Any] = {name: text}
    if not keys_only:
        name, text = text_or_base64("value", entry.value)
        members[name] = text
    return _with_numbers(members, entry)


def entry_binary(entry: KeyValue, *, keys_only: bool) -> dict[str, Any]:
    """Return an entry for MessagePack, which has bytes of its own."""
    members: dict[str, Any] = {"key": entry.key}
    if not keys_only:
        members["value"] = entry.value
    return _with_numbers(members, entry)


def _with_numbers(members: dict[str, Any], entry: KeyValue) -> dict[str, Any]:
    members["revision"] = entry.mod_revision
    members["create_revision"] = entry.create_revision
    members["version"] = entry.version
    return members


class ResultWriter:
    """Turns results of operations into members for one media type."""

    def __init__(self, media_type: bytes) -> None:
        self._entry = entry_binary if media_type == MSGPACK else entry_json

    def batch_member(self, result: object) -> dict[str, Any]:
        """Return one member of a batch's results; each has the ``status`` it would have alone."""
        if isinstance(result, PutResult):
            return {"status": 201 if result.version == 1 else 200, **self.member(result)}
        if isinstance(result, Failure):
            return from_failure(result, read=False).document()
        if isinstance(result, Refused):
            return from_refusal(result).document()
        if isinstance(result, GetResult) and result.entry is None:
            return HttpError("key_not_found", "the key does not exist").document()
        return {"status": 200, **self.member(result)}

    def member(self, result: object, *, keys_only: bool = False) -> dict[str, Any]:
        """Return the members for one result that is not an error."""
        match result:
            case PutResult(revision=revision, version=version):
                return {"op": "put", "revision": revision, "version": version}
            case DeleteResult(deleted=deleted, revision=revision):
                return {"op": "delete", "deleted": deleted, "revision": revision}
            case GetResult(entry=found):
                entry = None if found is None else self._entry(found, keys_only=False)
                return {"op": "get", "entry": entry}
            case RangeResult(entries=entries, more=more):
                listed = [self._entry(e, keys_only=keys_only) for e in entries]
                return {"op": "range", "entries": listed, "more": more}
            case TxnResult():
                return {"op": "txn", **self.txn_members(result, ((), ()))}
            case _:
                raise unexpected(result)

    def txn_members(
        self, result: TxnResult, keys_only: tuple[tuple[bool, ...], tuple[bool, ...]]
    ) -> dict[str, Any]:
        """Return the members of a transaction's answer.

        ``keys_only`` says for each operation of both branches whether it asked for keys only.
        """
        flags = keys_only[0 if result.succeeded else 1] or (False,) * len(result.results)
        return {
            "succeeded": result.succeeded,
            "revision": result.revision,
            "results": [
                self.member(r, keys_only=flag)
                for r, flag in zip(result.results, flags, strict=True)
            ],
        }


def encode_document(document: Mapping[str, Any], media_type: bytes) -> bytes:
    """Encode one document as JSON or MessagePack."""
    return _encode_msgpack(document) if media_type == MSGPACK else _encode_json(document)


def render_batch(media_type: bytes, count: int, reply: Reply) -> HttpResponse:
    """One result for each of ``count`` operations, in order; 200 whatever became of each."""
    answer = reply.response
    if not isinstance(answer, BatchResult):
        raise _no_result(answer, read=False)
    if len(answer.results) != count:
        raise unexpected(answer)
    writer = ResultWriter(media_type)
    members = [writer.batch_member(r) for r in answer.results]
    if media_type == NDJSON:
        body = b"".join(_encode_json(m) + b"\n" for m in members)
    else:
        body = encode_document({"results": members}, media_type)
    return _document_response(body, media_type, reply.served)


def render_txn(
    media_type: bytes,
    keys_only: tuple[tuple[bool, ...], tuple[bool, ...]],
    reply: Reply,
) -> HttpResponse:
    """Which branch ran and what its operations answered."""
    answer = reply.response
    if not isinstance(answer, TxnResult):
        raise _no_result(answer, read=False)
    members = ResultWriter(media_type).txn_members(answer, keys_only)
    return _document_response(encode_document(members, media_type), media_type, reply.served)


def _document_response(body: bytes, media_type: bytes, served: Served) -> HttpResponse:
    headers = [
        (b"content-type", media_type),
        _NO_STORE,
        (b"content-length", b"%d" % len(body)),
        *served_headers(served),
    ]
    return HttpResponse(200, headers, body)


def render_page(
    result: RangeResult, *, cursor: str | None, keys_only: bool, served: Served
) -> HttpResponse:
    """Render one page of a scan; ``cursor`` is null on the last one."""
    entries = [entry_json(e, keys_only=keys_only) for e in result.entries]
    body = _encode_json({"entries": entries, "cursor": cursor})
    return HttpResponse(200, _json_headers(body, served), body)


def ndjson_lines(result: RangeResult, *, keys_only: bool) -> bytes:
    """Return a page of a streamed scan: one entry a line."""
    return b"".join(
        _encode_json(entry_json(e, keys_only=keys_only)) + b"\n" for e in result.entries
    )


def stream_headers(served: Served) -> list[Header]:
    """Return the headers of a streamed scan; there is no length, because none is known."""
    return [(b"content-type", NDJSON), _NO_STORE, *served_headers(served)]


# --- operators --------------------------------------------------------------------------------


def facts_of(reply: Reply, kind: type[F]) -> F:
    """Return the facts of an operator's request.

    Raises:
        HttpError: The engine answered with a failure instead.
    """
    answer = reply.response
    if isinstance(answer, Facts):
        return answer.read(kind)
    raise _no_result(answer, read=False)


def render_json(document: object, served: Served, status: int = 200) -> HttpResponse:
    """Render any JSON-able document."""
    body = _encode_json(document)
    return HttpResponse(status, _json_headers(body, served), body)
