"""Single keys over HTTP: values, ETags, conditions, limits, identity, failures."""

from typing import get_type_hints

import pytest
from carriers import OWNER, Carrier
from documented import unchecked
from fake_engine import NODE, SHARD, STALE_AGE_MS, TERM, FakeEngine

from raftkv.core.operations import Command, FreeKey, Idempotency, Put, Refused, SessionKey
from raftkv.rpc.messages import BatchResult, Facts, Failure, FailureCode, GetRequest, WriteRequest
from raftkv.web.api.problems import KINDS

_EVERY_BYTE = bytes(range(256))


def _percent(key: bytes) -> bytes:
    return b"".join(b"%%%02X" % byte for byte in key)


def test_put_creates_then_replaces(api: Carrier) -> None:
    """A put answers 201 for a new key and 200 for a known one, with revision and version."""
    first = api("PUT", b"/v1/kv/color", body=b"red")
    assert (first.status, first.json()["key"], first.json()["version"]) == (201, "color", 1)
    second = api("PUT", b"/v1/kv/color", body=b"blue")
    assert (second.status, second.json()["version"]) == (200, 2)
    assert second.json()["revision"] > first.json()["revision"]
    assert second.headers["etag"] == f'"{second.json()["revision"]}"'


@pytest.mark.parametrize("value", [b"", b"\0\xff", _EVERY_BYTE, b"x" * 4096])
def test_value_comes_back_byte_for_byte(api: Carrier, value: bytes) -> None:
    """The body of a put is the body of a get, with its length, as octets, not to be sniffed."""
    put = api("PUT", b"/v1/kv/k", {"Content-Type": "text/html"}, value)
    answer = api("GET", b"/v1/kv/k")
    assert (answer.status, answer.body) == (200, value)
    assert answer.headers["content-length"] == str(len(value))
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["etag"] == put.headers["etag"]
    assert answer.headers["raftkv-version"] == "1"
    assert answer.headers["raftkv-create-revision"] == str(put.json()["revision"])


def test_head_tells_the_length_without_the_value(api: Carrier) -> None:
    """HEAD has the headers of GET and no body."""
    api("PUT", b"/v1/kv/k", body=b"12345")
    answer = api("HEAD", b"/v1/kv/k")
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "5")
    missing = api("HEAD", b"/v1/kv/none")
    assert (missing.status, missing.body) == (404, b"")


@pytest.mark.parametrize(
    ("target", "key"),
    [
        (b"a/b", b"a/b"),
        (b"a%2Fb", b"a/b"),
        (b"a%2fb", b"a/b"),
        (b"/", b"/"),
        (b"//", b"//"),
        (b"a//b/", b"a//b/"),
        (b"..", b".."),
        (b"a/../b", b"a/../b"),
        (b".", b"."),
        (b"%00", b"\0"),
        (b"%FF%FE", b"\xff\xfe"),
        (b"%25", b"%"),
        (b"%2525", b"%25"),
        (b"a%0A%0Db", b"a\n\rb"),
        (b"+%2B", b"++"),
        (b"%3Fq=1", b"?q=1"),
        (_percent(_EVERY_BYTE), _EVERY_BYTE),
        (_percent(b"k" * 1024), b"k" * 1024),
    ],
)
def test_any_bytes_make_a_key(api: Carrier, engine: FakeEngine, target: bytes, key: bytes) -> None:
    """Slashes, dots, zero bytes and bytes that are not UTF-8 all reach the engine as they are."""
    assert api("PUT", b"/v1/kv/" + target, body=b"v").status == 201
    assert engine.state.get(key).entry is not None
    assert api("GET", b"/v1/kv/" + target).body == b"v"


def test_key_that_is_not_text_is_base64_in_json(api: Carrier) -> None:
    """A JSON answer names the key as text or as base64, never both."""
    assert api("PUT", b"/v1/kv/%FF", body=b"v").json().keys() >= {"key_base64"}
    assert "key" not in api("PUT", b"/v1/kv/%FF", body=b"v").json()


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
@pytest.mark.parametrize(("key", "status"), [(b"", 400), (b"k" * 1025, 413)])
def test_key_length_is_bounded(api: Carrier, method: str, key: bytes, status: int) -> None:
    """A key has 1 to 1,024 bytes."""
    body = b"v" if method == "PUT" else b""
    assert api(method, b"/v1/kv/" + key, body=body).status == status


def test_delete(api: Carrier) -> None:
    """Deleting says whether there was something; a missing key is no error."""
    api("PUT", b"/v1/kv/k", body=b"v")
    gone = api("DELETE", b"/v1/kv/k")
    assert gone.status == 200
    assert gone.json()["deleted"] is True
    assert gone.json()["revision"] > 0
    assert api("DELETE", b"/v1/kv/k").json() == {"deleted": False, "revision": None}
    missing = api("GET", b"/v1/kv/k")
    assert (missing.status, missing.code, missing.definite) == (404, "key_not_found", True)


def test_if_match(api: Carrier) -> None:
    """A put with the current ETag goes through; with an old one it is 412 with the current one."""
    old = api("PUT", b"/v1/kv/k", body=b"1").headers["etag"]
    new = api("PUT", b"/v1/kv/k", {"If-Match": old}, b"2").headers["etag"]
    for method in ("PUT", "DELETE"):
        refused = api(method, b"/v1/kv/k", {"If-Match": old}, b"3" if method == "PUT" else b"")
        assert (refused.status, refused.code, refused.definite) == (412, "precondition", True)
        assert refused.headers["etag"] == new
        assert f'"{refused.json()["revision"]}"' == new
    assert api("DELETE", b"/v1/kv/k", {"If-Match": new}).status == 200
    absent = api("PUT", b"/v1/kv/k", {"If-Match": new}, b"4")
    assert absent.status == 412
    assert "etag" not in absent.headers
    assert absent.json()["revision"] is None
    assert absent.json()["detail"] == "the key does not exist"


def test_if_none_match_star_creates_only(api: Carrier) -> None:
    """A put with If-None-Match: * never replaces."""
    assert api("PUT", b"/v1/kv/k", {"If-None-Match": "*"}, b"1").status == 201
    refused = api("PUT", b"/v1/kv/k", {"If-None-Match": "*"}, b"2")
    assert (refused.status, refused.code) == (412, "precondition")
    revision = refused.json()["revision"]
    assert refused.json()["detail"] == f"the key exists, with revision {revision}"
    assert api("GET", b"/v1/kv/k").body == b"1"


@pytest.mark.parametrize("form", ["{0}", "W/{0}", '"1", {0}', "*", ' "9" ,W/{0}'])
def test_not_modified(api: Carrier, form: str) -> None:
    """A get with the current ETag among If-None-Match is 304 without a body."""
    etag = api("PUT", b"/v1/kv/k", body=b"v").headers["etag"]
    answer = api("GET", b"/v1/kv/k", {"If-None-Match": form.format(etag)})
    assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", etag)
    assert api("GET", b"/v1/kv/k", {"If-None-Match": '"7"'}).status == 200
    assert api("GET", b"/v1/kv/none", {"If-None-Match": "*"}).status == 404


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("PUT", b"k", {"If-Match": "5"}),
        ("PUT", b"k", {"If-Match": '"5'}),
        ("PUT", b"k", {"If-Match": '"'}),
        ("PUT", b"k", {"If-Match": '""'}),
        ("PUT", b"k", {"If-Match": 'W/"5"'}),
        ("PUT", b"k", {"If-Match": '"5", "6"'}),
        ("PUT", b"k", {"If-Match": "*"}),
        ("PUT", b"k", {"If-Match": '"-5"'}),
        ("PUT", b"k", {"If-Match": '"0"'}),
        ("PUT", b"k", {"If-Match": f'"{2**53}"'}),
        ("PUT", b"k", {"If-Match": f'"{"9" * 5000}"'}),
        ("PUT", b"k", {"If-Match": '"\xb2"'}),
        ("PUT", b"k", {"If-None-Match": '"5"'}),
        ("PUT", b"k", {"If-None-Match": "*", "If-Match": '"5"'}),
        ("DELETE", b"k", {"If-None-Match": "*"}),
        ("DELETE", b"k", {"If-Match": "x"}),
        ("GET", b"k", {"If-Match": '"5"'}),
        ("PUT", b"k?x=1", {}),
        ("PUT", b"k?consistency=stale", {}),
        ("DELETE", b"k?x", {}),
        ("GET", b"k?x=1", {}),
        ("GET", b"k?consistency=eventual", {}),
        ("GET", b"k?consistency=stale&consistency=stale", {}),
        ("GET", b"k?max_age_ms=5", {}),
        ("GET", b"k?consistency=linearizable&max_age_ms=5", {}),
        ("GET", b"k?consistency=stale&max_age_ms=-1", {}),
        ("GET", b"k?consistency=stale&max_age_ms=", {}),
        ("GET", b"k?consistency", {}),
        ("GET", b"k?%63onsistency=stale", {}),
        ("GET", b"k?consistency=%zz", {}),
        ("GET", b"k?&", {}),
        ("GET", b"k", {"Raftkv-Timeout-Ms": "0"}),
        ("GET", b"k", {"Raftkv-Timeout-Ms": "60001"}),
        ("GET", b"k", {"Raftkv-Timeout-Ms": "1.5"}),
        ("PUT", b"k", {"Raftkv-Timeout-Ms": ""}),
        ("PUT", b"k", {"Idempotency-Key": "a" * 256}),
        ("PUT", b"k", {"Idempotency-Key": ""}),
        ("PUT", b"k", {"Idempotency-Key": "a b"}),
        ("PUT", b"k", {"Idempotency-Key": "\xe9"}),
        ("PUT", b"k", {"Idempotency-Key": "a", "Raftkv-Session": "s;1;0;9"}),
        ("PUT", b"k", {"Raftkv-Session": "s;1;0"}),
        ("PUT", b"k", {"Raftkv-Session": "s;1;0;0"}),
        ("PUT", b"k", {"Raftkv-Session": f"s;1;0;{2**53}"}),
        ("PUT", b"k", {"Raftkv-Session": "s;1;2;9"}),
        ("PUT", b"k", {"Raftkv-Session": "s;-1;0;9"}),
        ("PUT", b"k", {"Raftkv-Session": ";1;0;9"}),
        ("PUT", b"k", {"Raftkv-Session": f"{'s' * 65};1;0;9"}),
        ("DELETE", b"k", {"Raftkv-Session": f"s;{2**63};0;9"}),
    ],
)
def test_nonsense_is_refused_before_the_engine_hears_of_it(
    api: Carrier, engine: FakeEngine, method: str, target: bytes, headers: dict[str, str]
) -> None:
    """A request that makes no sense is 400, definite, says why, and is not passed on."""
    answer = api(method, b"/v1/kv/" + target, headers, b"v" if method == "PUT" else b"")
    assert (answer.status, answer.code, answer.definite) == (400, "invalid", True)
    assert answer.json()["detail"]
    assert answer.headers["raftkv-node"] == NODE
    assert engine.asked == []


def test_stale_read(api: Carrier, engine: FakeEngine) -> None:
    """A stale read passes its bound on and says how old the answer may be."""
    api("PUT", b"/v1/kv/k", body=b"v")
    answer = api("GET", b"/v1/kv/k?consistency=stale&max_age_ms=250")
    assert engine.asked[-1] == GetRequest(b"k", "stale", 250)
    assert answer.headers["raftkv-age-ms"] == str(STALE_AGE_MS)
    assert "raftkv-age-ms" not in api("GET", b"/v1/kv/k").headers


def test_every_answer_says_who_served_it(api: Carrier) -> None:
    """Results and the engine's failures carry node, shard and term."""
    for answer in (
        api("PUT", b"/v1/kv/k", body=b"v"),
        api("GET", b"/v1/kv/k"),
        api("GET", b"/v1/kv/k", {"If-None-Match": "*"}),
        api("GET", b"/v1/kv/none"),
        api("DELETE", b"/v1/kv/k"),
        api("PUT", b"/v1/kv/k", {"If-Match": '"5"'}, b"v"),
    ):
        served = [answer.headers[f"raftkv-{part}"] for part in ("node", "shard", "term")]
        assert served == [NODE, str(SHARD), str(TERM)]


def test_timeout_header(api: Carrier, engine: FakeEngine) -> None:
    """The client says how long to wait; 5 s is the default."""
    api("GET", b"/v1/kv/k")
    api("PUT", b"/v1/kv/k", {"Raftkv-Timeout-Ms": "250"}, b"v")
    assert engine.timeouts == [5.0, 0.25]


@pytest.mark.parametrize(
    ("headers", "idempotency"),
    [
        ({}, None),
        ({"Idempotency-Key": "order-17!~"}, FreeKey("order-17!~", OWNER)),
        ({"Idempotency-Key": "a" * 255}, FreeKey("a" * 255, OWNER)),
        ({"Raftkv-Session": "s-1;4;2;9"}, SessionKey("s-1", 4, 2, 9, OWNER)),
        ({"Raftkv-Session": " s-1 ; 4 ; 4 ; 9 "}, SessionKey("s-1", 4, 4, 9, OWNER)),
    ],
)
def test_idempotency_key(
    api: Carrier,
    engine: FakeEngine,
    headers: dict[str, str],
    idempotency: Idempotency | None,
) -> None:
    """Both forms of idempotency key reach the engine with the write."""
    api("PUT", b"/v1/kv/k", headers, b"v")
    assert engine.asked == [WriteRequest(Command(Put(b"k", b"v"), idempotency))]


def test_retry_under_the_same_key_is_applied_once(api: Carrier) -> None:
    """The same put twice has one result; another put under its key is 422 and not applied."""
    headers = {"Idempotency-Key": "one"}
    first = api("PUT", b"/v1/kv/k", headers, b"v")
    again = api("PUT", b"/v1/kv/k", headers, b"v")
    assert (again.status, again.json()) == (first.status, first.json())
    other = api("PUT", b"/v1/kv/k", headers, b"w")
    assert (other.status, other.code, other.definite) == (422, "key_reused", True)
    assert api("GET", b"/v1/kv/k").body == b"v"


def test_body_over_the_limit(api: Carrier, engine: FakeEngine) -> None:
    """A value over the limit is 413, definite, and nothing is written."""
    assert api("PUT", b"/v1/kv/k", body=b"x" * 4096).status == 201
    answer = api("PUT", b"/v1/kv/big", body=b"x" * 4097)
    assert (answer.status, answer.code, answer.definite) == (413, "too_large", True)
    assert "larger than 4096 bytes: http.value_bytes_max" in answer.json()["detail"]
    assert engine.state.get(b"big").entry is None


def test_content_encoding_is_refused(api: Carrier) -> None:
    """A compressed body would come back as something else than it was sent as."""
    assert api("PUT", b"/v1/kv/k", {"Content-Encoding": "gzip"}, b"x").status == 415
    assert api("PUT", b"/v1/kv/k", {"Content-Encoding": "identity"}, b"x").status == 201


@pytest.mark.parametrize("method", ["POST", "PATCH", "OPTIONS", "TRACE", "BREW"])
def test_method_not_allowed(api: Carrier, method: str) -> None:
    """Another method is 405 and says what is allowed."""
    answer = api(method, b"/v1/kv/k")
    assert (answer.status, answer.code) == (405, "method_not_allowed")
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD", "PUT", "DELETE"}


_FAILURES: list[tuple[FailureCode, int, bool]] = [
    ("no_leader", 503, True),
    ("busy", 429, True),
    ("unavailable", 503, True),
    ("timeout", 504, False),
    ("unknown", 504, False),
    ("disk_full", 507, True),
    ("too_large", 413, True),
    ("cross_shard", 422, True),
    ("moved", 503, True),
    ("too_stale", 503, True),
    ("not_found", 404, True),
    ("refused", 409, True),
    ("invalid", 400, True),
    ("internal", 500, False),
]


@pytest.mark.parametrize(("code", "status", "definite"), _FAILURES)
def test_failures_of_the_engine(
    api: Carrier, engine: FakeEngine, code: FailureCode, status: int, *, definite: bool
) -> None:
    """Each failure has its status and says of a write what the engine said."""
    engine.answers.append(Failure(code, "because", definite=definite))
    answer = unchecked(api)("PUT", b"/v1/kv/k", body=b"v")
    assert (answer.status, answer.code, answer.definite) == (status, code, definite)
    assert answer.json()["detail"] == "because"
    if status in {429, 503, 507}:
        assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize(("code", "status", "definite"), _FAILURES)
def test_failed_read_is_always_definite(
    api: Carrier, engine: FakeEngine, code: FailureCode, status: int, *, definite: bool
) -> None:
    """A read changed nothing, whatever became of it."""
    engine.answers.append(Failure(code, "because", definite=definite))
    answer = unchecked(api)("GET", b"/v1/kv/k")
    assert (answer.status, answer.definite) == (status, True)


def test_retry_after_of_the_engine(api: Carrier, engine: FakeEngine) -> None:
    """The engine's own advice is passed on: exact in the document, rounded up in the header."""
    engine.answers.append(Failure("busy", "full", definite=True, retry_after_ms=1200))
    answer = api("PUT", b"/v1/kv/k", body=b"v")
    assert (answer.headers["retry-after"], answer.json()["retry_after_ms"]) == ("2", 1200)


@pytest.mark.parametrize(
    ("refused", "status", "definite"),
    [
        (Refused("precondition", 5), 412, True),
        (Refused("moved"), 503, True),
        (Refused("key_reused"), 422, True),
        (Refused("table_full"), 429, True),
        (Refused("share_full"), 429, True),
        (Refused("forgotten"), 409, False),
        (Refused("forgotten", 7), 409, False),
    ],
)
def test_refusals_of_the_state_machine(
    api: Carrier, engine: FakeEngine, refused: Refused, status: int, *, definite: bool
) -> None:
    """A refusal is definite, but for a forgotten outcome: the write may have been applied once."""
    engine.answers.append(refused)
    answer = api("PUT", b"/v1/kv/k", body=b"v")
    assert (answer.status, answer.code, answer.definite) == (status, refused.reason, definite)


def test_an_unknown_session_is_told_which_would_be_let_in(api: Carrier, engine: FakeEngine) -> None:
    """A write of its own, and one in a batch; an outcome below the watermark says nothing."""
    engine.answers += [Refused("forgotten", 7), Refused("forgotten")]
    assert api("PUT", b"/v1/kv/k", body=b"v").json()["born_after"] == 7
    assert "born_after" not in api("PUT", b"/v1/kv/k", body=b"v").json()
    engine.answers.append(BatchResult((Refused("forgotten", 7),)))
    batch = b'{"operations": [{"op": "put", "key": "a", "value": "b"}]}'
    (result,) = api("POST", b"/v1/batch", {"Content-Type": "application/json"}, batch).json()[
        "results"
    ]
    members = {name: result[name] for name in ("status", "code", "definite", "born_after")}
    assert members == {"status": 409, "code": "forgotten", "definite": False, "born_after": 7}


def test_wrong_answer_is_a_bug_of_unknown_outcome(api: Carrier, engine: FakeEngine) -> None:
    """An answer that does not fit the question is 500 and never called definite for a write."""
    engine.answers.append(Facts.of({}))
    answer = api("PUT", b"/v1/kv/k", body=b"v")
    assert (answer.status, answer.code, answer.definite) == (500, "internal", False)


def test_every_code_of_the_engine_has_a_status() -> None:
    """A new failure or refusal cannot be forgotten in the table of statuses."""
    codes = set(FailureCode.__args__)  # type: ignore[attr-defined]
    reasons = set(get_type_hints(Refused)["reason"].__args__)
    assert codes | reasons <= set(KINDS)
