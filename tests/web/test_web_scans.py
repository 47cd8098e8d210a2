"""Scans over HTTP: ranges, pages, cursors, streams."""

import base64
import json
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from raftkv.core.operations import BATCH_FORMAT, Batch, Command, Put, Range
from raftkv.rpc.messages import Failure, ScanRequest
from raftkv.rpc.web_config import WebConfig
from raftkv.web.api.cursors import Cursors
from raftkv.web.api.encoding import prefix_end
from tests.support.fake_engine import FakeEngine
from tests.web.carriers import Answer, Carrier

_NDJSON = {"Accept": "application/x-ndjson"}


def _fill(engine: FakeEngine, keys: list[bytes], value: bytes = b"v") -> None:
    commands = tuple(Command(Put(key, value)) for key in keys)
    engine.state.apply(Batch(BATCH_FORMAT, 1, 0, commands))


def _numbered(count: int) -> list[bytes]:
    return [b"k%03d" % i for i in range(count)]


def _keys(answer: Answer) -> list[str]:
    assert answer.status == 200, answer
    return [entry["key"] for entry in answer.json()["entries"]]


def _lines(answer: Answer) -> list[Any]:
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.body.splitlines()]


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        (b"", ["a", "b", "b/1", "b/2", "c"]),
        (b"?prefix=b", ["b", "b/1", "b/2"]),
        (b"?prefix=b%2F", ["b/1", "b/2"]),
        (b"?prefix=", ["a", "b", "b/1", "b/2", "c"]),
        (b"?prefix=%FF", []),
        (b"?start=b", ["b", "b/1", "b/2", "c"]),
        (b"?end=b/2", ["a", "b", "b/1"]),
        (b"?start=b&end=c", ["b", "b/1", "b/2"]),
        (b"?start=b&end=b", []),
        (b"?limit=2", ["a", "b"]),
    ],
)
def test_ranges(api: Carrier, engine: FakeEngine, query: bytes, keys: list[str]) -> None:
    """A scan takes a prefix, or a start and an end, in byte order."""
    _fill(engine, [b"a", b"b", b"b/1", b"b/2", b"c"])
    assert _keys(api("GET", b"/v1/kv" + query)) == keys


def test_entry_members(api: Carrier, engine: FakeEngine) -> None:
    """An entry has text or base64 for its bytes, and its three numbers; keys_only no value."""
    _fill(engine, [b"text", b"\xff"], b"\xfe")
    first, second = api("GET", b"/v1/kv").json()["entries"]
    assert first["key"] == "text"
    assert base64.b64decode(first["value_base64"]) == b"\xfe"
    assert base64.b64decode(second["key_base64"]) == b"\xff"
    assert {"revision", "create_revision", "version"} < first.keys()
    assert not {"value", "key_base64"} & first.keys()
    bare = api("GET", b"/v1/kv?keys_only=true").json()["entries"][0]
    assert bare.keys() == {"key", "revision", "create_revision", "version"}


def test_plus_is_a_space_in_a_query(api: Carrier, engine: FakeEngine) -> None:
    """Form encoders write a space as a plus; a plus itself comes as %2B."""
    _fill(engine, [b"a b", b"a+b"])
    assert _keys(api("GET", b"/v1/kv?prefix=a+b")) == ["a b"]
    assert _keys(api("GET", b"/v1/kv?prefix=a%2Bb")) == ["a+b"]


@pytest.mark.parametrize("query", [b"", b"prefix=k&", b"start=k000&end=l&"])
def test_cursor_walks_all_pages(api: Carrier, engine: FakeEngine, query: bytes) -> None:
    """Following cursors gives every key once, in order, and ends with a null cursor."""
    _fill(engine, _numbered(25))
    seen: list[str] = []
    target = b"/v1/kv?" + query + b"limit=10"
    answer = api("GET", target)
    for _ in range(3):
        seen += _keys(answer)
        cursor = answer.json()["cursor"]
        if cursor is None:
            break
        answer = api("GET", target + b"&cursor=" + cursor.encode())
    assert seen == [key.decode() for key in _numbered(25)]
    assert answer.json()["cursor"] is None


def test_page_is_bounded_in_bytes(api: Carrier, engine: FakeEngine) -> None:
    """A page stops at its bytes before its limit, and its cursor goes on from there."""
    _fill(engine, _numbered(5), b"x" * 1500)
    answer = api("GET", b"/v1/kv")
    assert 1 <= len(_keys(answer)) < 5
    assert answer.json()["cursor"] is not None


def test_bad_cursor(api: Carrier, engine: FakeEngine) -> None:
    """A cursor that is garbled, or comes from another scan, is refused."""
    _fill(engine, _numbered(5))
    cursor = api("GET", b"/v1/kv?prefix=k&limit=2").json()["cursor"].encode()
    assert api("GET", b"/v1/kv?prefix=k&cursor=" + cursor).status == 200
    flipped = (b"B" if cursor[:1] == b"A" else b"A") + cursor[1:]
    for query in (
        b"cursor=" + cursor,
        b"prefix=kk&cursor=" + cursor,
        b"prefix=k&cursor=" + flipped,
        b"prefix=k&cursor=" + cursor[:-1],
        b"prefix=k&cursor=" + cursor + b"AAAA",
        b"prefix=k&cursor=",
        b"prefix=k&cursor=%00",
        b"prefix=k&cursor=" + b"A" * 5000,
    ):
        answer = api("GET", b"/v1/kv?" + query)
        assert (answer.status, answer.code) == (400, "invalid"), query


@pytest.mark.parametrize(
    "query",
    [
        b"prefix=a&start=a",
        b"prefix=a&end=b",
        b"end=",
        b"start=b&end=a",
        b"limit=0",
        b"limit=51",
        b"limit=-1",
        b"limit=x",
        b"limit=" + b"9" * 5000,
        b"keys_only=yes",
        b"unknown=1",
        b"prefix=%",
        b"prefix=a&prefix=a",
        b"max_age_ms=5",
    ],
)
def test_nonsense_is_refused(api: Carrier, engine: FakeEngine, query: bytes) -> None:
    """A scan that makes no sense is 400 and is not passed on."""
    answer = api("GET", b"/v1/kv?" + query)
    assert (answer.status, answer.code) == (400, "invalid")
    assert engine.asked == []


def test_stale_scan(api: Carrier, engine: FakeEngine) -> None:
    """A scan can be stale, too."""
    answer = api("GET", b"/v1/kv?consistency=stale&max_age_ms=9")
    request = engine.asked[-1]
    assert isinstance(request, ScanRequest)
    assert (request.consistency, request.max_age_ms) == ("stale", 9)
    assert "raftkv-age-ms" in answer.headers


def test_stream_has_every_key_and_says_that_it_is_done(api: Carrier, engine: FakeEngine) -> None:
    """A stream goes on over many pages of the engine; its last line counts the entries."""
    _fill(engine, _numbered(60), b"x" * 100)
    answer = api("GET", b"/v1/kv", _NDJSON)
    *entries, end = _lines(answer)
    assert [entry["key"].encode() for entry in entries] == _numbered(60)
    assert end == {"done": True, "count": 60, "cursor": None}
    assert len(engine.asked) > 2
    assert answer.headers["raftkv-node"] == "n1"


CURSOR_KEY = "00" * 32


@pytest.fixture
def keyed(make_api: Callable[[WebConfig], Carrier]) -> Carrier:
    """The API of a node whose cluster has a secret."""
    return make_api(WebConfig(node_name="n1", cursor_key=CURSOR_KEY))


def _unkeyed(start: bytes, end: bytes, after: bytes) -> bytes:
    """A cursor of the first version, whose check anybody can compute."""
    check = zlib.crc32(after, zlib.crc32(b"%d:%s%d:%s" % (len(start), start, len(end), end)))
    return base64.urlsafe_b64encode(b"\x01" + check.to_bytes(4, "big") + after).rstrip(b"=")


def test_nobody_but_the_cluster_makes_a_cursor(keyed: Carrier, engine: FakeEngine) -> None:
    """What was made under another key, or without one, is refused; another node's is taken."""
    _fill(engine, [b"b/1", b"b/2"])
    range_and_key = b"b/", b"b0", b"b/1"
    for cursor, status in [
        (Cursors(bytes.fromhex(CURSOR_KEY)).encode(*range_and_key).encode(), 200),
        (Cursors(b"\x01" * 32).encode(*range_and_key).encode(), 400),
        (Cursors(b"").encode(*range_and_key).encode(), 400),
        (_unkeyed(*range_and_key), 400),
    ]:
        assert keyed("GET", b"/v1/kv?prefix=b/&cursor=" + cursor).status == status


@pytest.mark.parametrize("after", [b"a/secret", b"a", b"c", b"c/later", b"b"])
def test_a_made_cursor_does_not_leave_its_range(
    keyed: Carrier, engine: FakeEngine, after: bytes
) -> None:
    """Where it goes on has to be in the range, also for who knows the key."""
    _fill(engine, [b"a/secret", b"b/1", b"b/2", b"c/later"])
    cursors = Cursors(bytes.fromhex(CURSOR_KEY))
    cursor = cursors.encode(b"b/", prefix_end(b"b/"), after).encode()
    for accept in ({}, _NDJSON):
        answer = keyed("GET", b"/v1/kv?prefix=b/&cursor=" + cursor, accept)
        assert answer.code == "invalid"
        assert b"secret" not in answer.body


def test_stream_with_a_limit_gives_a_cursor(api: Carrier, engine: FakeEngine) -> None:
    """A limited stream ends with the cursor from which the rest can be read."""
    _fill(engine, _numbered(60))
    *entries, end = _lines(api("GET", b"/v1/kv?limit=55", _NDJSON))
    assert len(entries) == 55
    rest = api("GET", b"/v1/kv?cursor=" + end["cursor"].encode())
    assert [key.encode() for key in _keys(rest)] == _numbered(60)[55:]


def test_empty_stream(api: Carrier) -> None:
    """A stream of nothing still says that it is done."""
    assert _lines(api("GET", b"/v1/kv?prefix=x", _NDJSON)) == [
        {"done": True, "count": 0, "cursor": None}
    ]


def test_stream_that_fails_at_once_has_a_status(api: Carrier, engine: FakeEngine) -> None:
    """A failure before the first line is an ordinary problem."""
    engine.answers.append(Failure("no_leader", "nobody", definite=True))
    answer = api("GET", b"/v1/kv", _NDJSON)
    assert (answer.status, answer.code) == (503, "no_leader")


def test_stream_that_fails_later_says_so_in_its_last_line(api: Carrier, engine: FakeEngine) -> None:
    """A failure in the middle is the last line, with the cursor from which to go on."""
    _fill(engine, _numbered(60))
    engine.answers.append(engine.state.range(_page(5)))
    engine.answers.append(Failure("no_leader", "nobody", definite=True))
    *entries, end = _lines(api("GET", b"/v1/kv", _NDJSON))
    assert len(entries) == 5
    assert end["problem"]["code"] == "no_leader"
    rest = api("GET", b"/v1/kv?limit=50&cursor=" + end["cursor"].encode())
    assert _keys(rest)[0] == "k005"


def _page(limit: int) -> Range:
    return Range(b"", None, limit)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("text/html, application/json;q=0.5", "application/json"),
        ("application/x-ndjson;q=0.9, application/json;q=0.1", "application/x-ndjson"),
        ("application/jsonl", "application/x-ndjson"),
        ("application/x-ndjson;q=0, */*", "application/json"),
    ],
)
def test_accept(api: Carrier, accept: str, content_type: str) -> None:
    """Accept decides between a page and a stream."""
    assert api("GET", b"/v1/kv", {"Accept": accept}).headers["content-type"] == content_type


def test_not_acceptable(api: Carrier) -> None:
    """An answer that nobody asked for is not given."""
    answer = api("GET", b"/v1/kv", {"Accept": "text/html"})
    assert (answer.status, answer.code) == (406, "not_acceptable")
    assert api("GET", b"/v1/kv", {"Accept": "application/json;q=high"}).status == 400


def test_head_of_a_scan(api: Carrier, engine: FakeEngine) -> None:
    """HEAD answers without entries, for a page and for a stream."""
    _fill(engine, _numbered(3))
    for headers in ({}, _NDJSON):
        answer = api("HEAD", b"/v1/kv", headers)
        assert (answer.status, answer.body) == (200, b"")
