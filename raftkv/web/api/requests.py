"""From an HTTP request to the question for the engine; pure, shared by both carriers.

Every function here takes an :class:`HttpRequest` and returns a plan: what to ask, how long to
wait, and how to render the answer. Anything wrong raises :class:`HttpError` before the engine
hears of it, so it is definite.
"""

import functools
from collections.abc import Callable, Mapping

import msgspec

from raftkv.core.operations import (
    REVISION_LIMIT,
    Command,
    Delete,
    FreeKey,
    Idempotency,
    Put,
    SessionKey,
)
from raftkv.rpc.messages import (
    Consistency,
    GetRequest,
    Reply,
    Request,
    ScanRequest,
    Served,
    WriteRequest,
)
from raftkv.rpc.web_config import Limits, Role
from raftkv.web.api.cursors import Cursors
from raftkv.web.api.encoding import check_key, parse_query, prefix_end
from raftkv.web.api.exchange import Header, HttpRequest, HttpResponse
from raftkv.web.api.problems import HttpError, invalid
from raftkv.web.api.responses import (
    JSON,
    MSGPACK,
    NDJSON,
    ndjson_lines,
    range_of,
    render_delete,
    render_get,
    render_page,
    render_put,
    served_headers,
    stream_headers,
)

MAX_AGE_MS_MAX = 86_400_000
"""A day: nobody asks how old data may be, and means more."""

_IDEMPOTENCY_KEY_MAX = 255
_SESSION_ID_MAX = 64
SEQUENCE_MAX = 2**53 - 1
"""Largest sequence of a session: a JSON number holds it exactly."""

_REVISION_DIGITS_MAX = 16
_COUNT_DIGITS_MAX = 19

_READ_PARAMETERS = frozenset({b"consistency", b"max_age_ms"})
_SCAN_PARAMETERS = _READ_PARAMETERS | {
    b"prefix",
    b"start",
    b"end",
    b"limit",
    b"cursor",
    b"keys_only",
}
_NO_PARAMETERS: frozenset[bytes] = frozenset()


class Plan(msgspec.Struct, gc=False):
    """One question for the engine, and what to do with its answer.

    ``role``: what the operations of the body want, where that is more than their route does.
    """

    request: Request
    timeout_s: float
    render: Callable[[Reply], HttpResponse]
    role: Role | None = None

    def respond(self, reply: Reply) -> HttpResponse:
        """Return the response for ``reply``, be it a result or a failure."""
        try:
            return self.render(reply)
        except HttpError as error:
            return error.response(served_headers(reply.served))


# --- pieces that several requests share ---------------------------------------------------------


def timeout_s(headers: Mapping[bytes, bytes], limits: Limits) -> float:
    """Return how long the client wants to wait: ``Raftkv-Timeout-Ms`` or the default."""
    raw = headers.get(b"raftkv-timeout-ms")
    if raw is None:
        return limits.timeout_ms_default / 1000
    milliseconds = _count(raw, "Raftkv-Timeout-Ms", 1, limits.timeout_ms_max)
    return milliseconds / 1000


def idempotency(http: HttpRequest) -> Idempotency | None:
    """Return the idempotency key of a write, free-form or of a client session."""
    headers = http.headers
    free = headers.get(b"idempotency-key")
    session = headers.get(b"raftkv-session")
    if free is None:
        return None if session is None else _session_key(session, http.owner)
    if session is not None:
        raise invalid("Idempotency-Key and Raftkv-Session exclude each other")
    if not 1 <= len(free) <= _IDEMPOTENCY_KEY_MAX or not _visible_ascii(free):
        raise invalid("Idempotency-Key must be 1 to 255 visible ASCII characters")
    return FreeKey(free.decode(), http.owner)


def _session_key(raw: bytes, owner: int) -> SessionKey:
    parts = [p.strip() for p in raw.split(b";")]
    expected = 4
    if len(parts) != expected:
        raise invalid(
            "Raftkv-Session must read <id>;<sequence>;<low>;<born>, born being when the session"
            " began in microseconds: without it a late copy could be applied again"
        )
    name, sequence, low, born = parts
    if not 1 <= len(name) <= _SESSION_ID_MAX or not _visible_ascii(name):
        raise invalid("the id of Raftkv-Session must be 1 to 64 visible ASCII characters")
    return session_key(
        name.decode(),
        _count(sequence, "the sequence of Raftkv-Session", 0, SEQUENCE_MAX),
        _count(low, "the low watermark of Raftkv-Session", 0, SEQUENCE_MAX),
        _count(born, "the birth of Raftkv-Session", 1, SEQUENCE_MAX),
        owner,
    )


def session_key(name: str, sequence: int, low: int, born: int, owner: int) -> SessionKey:
    """Return a session's key; its own sequence cannot be below its own watermark."""
    if sequence < low:
        raise invalid("a session's sequence cannot be below its low watermark")
    return SessionKey(name, sequence, low, born, owner)


def _visible_ascii(text: bytes) -> bool:
    lowest, highest = 0x21, 0x7E
    return min(text) >= lowest and max(text) <= highest


def _count(raw: bytes, name: str, lowest: int, highest: int) -> int:
    if raw.isdigit() and len(raw) <= _COUNT_DIGITS_MAX:
        number = int(raw)
        if lowest <= number <= highest:
            return number
    raise invalid(f"{name} must be a whole number from {lowest} to {highest}")


def if_match_revision(headers: Mapping[bytes, bytes]) -> int | None:
    """Return the revision of ``If-Match``: exactly one strong ETag as this server hands out."""
    raw = headers.get(b"if-match")
    if raw is None:
        return None
    digits = raw[1:-1]
    quoted = raw[:1] == raw[-1:] == b'"' and len(raw) > 1
    if quoted and digits.isdigit() and len(digits) <= _REVISION_DIGITS_MAX:
        revision = int(digits)
        if 0 < revision < REVISION_LIMIT:
            return revision
    raise invalid('If-Match must be one ETag of this server, such as "1721901234567890"')


def _refuse(headers: Mapping[bytes, bytes], name: bytes, why: str) -> None:
    if name in headers:
        raise invalid(f"{name.decode()} {why}")


def _consistency(parameters: Mapping[bytes, bytes]) -> tuple[Consistency, int | None]:
    wanted = parameters.get(b"consistency", b"linearizable")
    raw_age = parameters.get(b"max_age_ms")
    if wanted == b"stale":
        age = None if raw_age is None else _count(raw_age, "max_age_ms", 0, MAX_AGE_MS_MAX)
        return "stale", age
    if wanted != b"linearizable":
        raise invalid("consistency is 'linearizable' or 'stale'")
    if raw_age is not None:
        raise invalid("max_age_ms goes with consistency=stale only")
    return "linearizable", None


# --- single keys --------------------------------------------------------------------------------


def parse_get(http: HttpRequest, limits: Limits) -> Plan:
    """``GET`` and ``HEAD`` of one key."""
    headers = http.headers
    _refuse(headers, b"if-match", "makes no sense on a read")
    request = GetRequest(check_key(http.key))
    if http.query:
        consistency, age = _consistency(parse_query(http.query, _READ_PARAMETERS))
        request = GetRequest(request.key, consistency, age)
    render = functools.partial(render_get, headers.get(b"if-none-match"))
    return Plan(request, timeout_s(headers, limits), render)


def parse_put(http: HttpRequest, limits: Limits) -> Plan:
    """``PUT`` of one key; the body is the value, byte for byte."""
    headers = http.headers
    key = check_key(http.key)
    parse_query(http.query, _NO_PARAMETERS)
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise HttpError(
            "unsupported_media_type",
            "values are stored as they come, so they cannot come with a Content-Encoding",
        )
    revision = if_match_revision(headers)
    absent = headers.get(b"if-none-match")
    if absent is not None:
        if revision is not None:
            raise invalid("If-Match and If-None-Match exclude each other")
        if absent != b"*":
            raise invalid("If-None-Match of a write must be *")
    put = Put(key, http.body, revision, absent is not None)
    request = WriteRequest(Command(put, idempotency(http)))
    return Plan(request, timeout_s(headers, limits), functools.partial(render_put, key))


def parse_delete(http: HttpRequest, limits: Limits) -> Plan:
    """``DELETE`` of one key."""
    headers = http.headers
    key = check_key(http.key)
    parse_query(http.query, _NO_PARAMETERS)
    _refuse(headers, b"if-none-match", "makes no sense on a delete")
    delete = Delete(key, if_match_revision(headers))
    request = WriteRequest(Command(delete, idempotency(http)))
    return Plan(request, timeout_s(headers, limits), render_delete)


# --- scans --------------------------------------------------------------------------------------


class Scan(msgspec.Struct, frozen=True):
    """A scan as asked for. ``start`` and ``end`` are of the whole range, ``after`` of the rest."""

    cursors: Cursors
    start: bytes
    end: bytes | None
    after: bytes | None
    limit: int | None
    keys_only: bool
    consistency: Consistency
    max_age_ms: int | None

    def cursor(self, after: bytes) -> str:
        """Return the cursor that goes on behind the key ``after``."""
        return self.cursors.encode(self.start, self.end, after)

    def request(self, after: bytes | None, limit: int, bytes_max: int) -> ScanRequest:
        """Return the question for the page behind the key ``after``."""
        return ScanRequest(
            start=self.start if after is None else after + b"\0",
            end=self.end,
            limit=limit,
            keys_only=self.keys_only,
            consistency=self.consistency,
            max_age_ms=self.max_age_ms,
            bytes_max=bytes_max,
        )


def parse_scan(cursors: Cursors, http: HttpRequest, limits: Limits) -> "Plan | ScanStream":
    """``GET /v1/kv``: a JSON page, or a stream of lines for ``Accept: application/x-ndjson``."""
    scan = _scan(parse_query(http.query, _SCAN_PARAMETERS), cursors)
    wait_s = timeout_s(http.headers, limits)
    media_type = negotiate(http.headers.get(b"accept"), (JSON, NDJSON))
    if media_type == NDJSON:
        return ScanStream(scan, wait_s, limits)
    limit = limits.scan_limit_default if scan.limit is None else scan.limit
    if limit > limits.scan_limit_max:
        raise invalid(f"limit of a page must be a whole number from 1 to {limits.scan_limit_max}")
    request = scan.request(scan.after, limit, limits.page_bytes_max)
    return Plan(request, wait_s, functools.partial(_render_page, scan))


def _scan(parameters: Mapping[bytes, bytes], cursors: Cursors) -> Scan:
    consistency, age = _consistency(parameters)
    start, end = _scan_range(parameters)
    cursor = parameters.get(b"cursor")
    raw_limit = parameters.get(b"limit")
    keys_only = parameters.get(b"keys_only", b"false")
    if keys_only not in {b"true", b"false"}:
        raise invalid("keys_only is 'true' or 'false'")
    return Scan(
        cursors=cursors,
        start=start,
        end=end,
        after=None if cursor is None else cursors.decode(cursor, start, end),
        limit=None if raw_limit is None else _count(raw_limit, "limit", 1, SEQUENCE_MAX),
        keys_only=keys_only == b"true",
        consistency=consistency,
        max_age_ms=age,
    )


def _scan_range(parameters: Mapping[bytes, bytes]) -> tuple[bytes, bytes | None]:
    prefix = parameters.get(b"prefix")
    start = parameters.get(b"start")
    end = parameters.get(b"end")
    if prefix is not None:
        if start is not None or end is not None:
            raise invalid("prefix excludes start and end")
        return prefix, prefix_end(prefix)
    if end == b"":
        raise invalid("end must not be empty; leave it away to scan to the last key")
    if start is not None and end is not None and end < start:
        raise invalid("end must not be before start")
    return start or b"", end


def _render_page(scan: Scan, reply: Reply) -> HttpResponse:
    result = range_of(reply)
    cursor = None
    if result.more and result.entries:
        cursor = scan.cursor(result.entries[-1].key)
    return render_page(result, cursor=cursor, keys_only=scan.keys_only, served=reply.served)


class ScanStream:
    """A scan of any size as lines, in bounded memory: one page of the engine at a time.

    The carrier asks the engine for :attr:`request`, hands the reply to :meth:`feed`, sends what
    that returns, and goes on until :attr:`request` is None. The last line tells a complete
    stream from a broken one: ``{"done": true, ...}`` or ``{"problem": {...}}``.
    """

    def __init__(self, scan: Scan, timeout_s: float, limits: Limits) -> None:
        self._scan = scan
        self._limits = limits
        self._after = scan.after
        self._sent = 0
        self.timeout_s = timeout_s
        self.request: ScanRequest | None = self._next_request()

    def _next_request(self) -> ScanRequest:
        limit = self._limits.scan_limit_max
        if self._scan.limit is not None:
            limit = min(limit, self._scan.limit - self._sent)
        return self._scan.request(self._after, limit, self._limits.page_bytes_max)

    def headers(self, served: Served) -> list[Header]:
        """Return the headers of the response, said by whoever answered the first page."""
        return stream_headers(served)

    def first(self, reply: Reply) -> bytes | HttpResponse:
        """Take the first reply: bytes to stream, or a whole response if it already failed."""
        try:
            return self._page(reply)
        except HttpError as error:
            return error.response(served_headers(reply.served))

    def feed(self, reply: Reply) -> bytes:
        """Take a later reply; a failure now becomes the stream's last line."""
        try:
            return self._page(reply)
        except HttpError as error:
            return self.fail(error)

    def fail(self, error: HttpError) -> bytes:
        """End the stream with ``error`` and the cursor from which it can be continued."""
        self.request = None
        document = {"problem": error.document(), "cursor": self._cursor()}
        return msgspec.json.encode(document) + b"\n"

    def _page(self, reply: Reply) -> bytes:
        result = range_of(reply)
        lines = ndjson_lines(result, keys_only=self._scan.keys_only)
        self._sent += len(result.entries)
        if result.entries:
            self._after = result.entries[-1].key
        more = result.more and bool(result.entries)
        if more and (self._scan.limit is None or self._sent < self._scan.limit):
            self.request = self._next_request()
            return lines
        self.request = None
        cursor = self._cursor() if more else None
        end = {"done": True, "count": self._sent, "cursor": cursor}
        return lines + msgspec.json.encode(end) + b"\n"

    def _cursor(self) -> str | None:
        return None if self._after is None else self._scan.cursor(self._after)


# --- content types ------------------------------------------------------------------------------

_ALIASES = {
    b"application/x-msgpack": MSGPACK,
    b"application/vnd.msgpack": MSGPACK,
    b"application/ndjson": NDJSON,
    b"application/jsonl": NDJSON,
}


def media_type_of(content_type: bytes | None, understood: tuple[bytes, ...]) -> bytes:
    """Return the media type of a body.

    Raises:
        HttpError: 415 with what would have been understood.
    """
    raw = (content_type or b"").partition(b";")[0].strip().lower()
    media_type = _ALIASES.get(raw, raw)
    if media_type not in understood:
        names = ", ".join(t.decode() for t in understood)
        raise HttpError("unsupported_media_type", f"Content-Type must be one of {names}")
    return media_type


def negotiate(accept: bytes | None, offered: tuple[bytes, ...]) -> bytes:
    """Return the offered media type that the client likes best; the first one on a tie.

    Raises:
        HttpError: 406 if the client takes none of them.
    """
    if accept is None or accept == b"*/*":
        return offered[0]
    ranges = [_accept_range(part) for part in accept.split(b",")]
    best, best_quality = offered[0], 0.0
    for media_type in offered:
        quality = _quality(media_type, ranges)
        if quality > best_quality:
            best, best_quality = media_type, quality
    if best_quality == 0.0:
        names = ", ".join(t.decode() for t in offered)
        raise HttpError("not_acceptable", f"the answer can be {names}")
    return best


def _accept_range(part: bytes) -> tuple[bytes, float]:
    media_range, *parameters = [p.strip().lower() for p in part.split(b";")]
    quality = 1.0
    for parameter in parameters:
        if parameter.startswith(b"q="):
            quality = _quality_value(parameter[2:])
    return _ALIASES.get(media_range, media_range), quality


def _quality_value(raw: bytes) -> float:
    try:
        return min(max(float(raw), 0.0), 1.0)
    except ValueError as error:
        raise invalid("bad quality value in Accept") from error


def _quality(media_type: bytes, ranges: list[tuple[bytes, float]]) -> float:
    main = media_type.partition(b"/")[0]
    for wanted in (media_type, main + b"/*", b"*/*"):
        qualities = [quality for media_range, quality in ranges if media_range == wanted]
        if qualities:
            return max(qualities)
    return 0.0
