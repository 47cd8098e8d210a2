"""Which hosts are answered, and which web pages may change something, over both carriers."""

import hashlib
from collections.abc import Callable

import pytest

from raftkv.rpc.web_config import TokenHash, WebConfig
from raftkv.web.serve.guard import HEAD_BYTES_MAX
from tests.support.fake_engine import FakeEngine
from tests.web.carriers import Carrier
from tests.web.conftest import LIMITS

ROUTES = [b"/v1/kv/k", b"/v1/kv", b"/v1/status", b"/", b"/healthz", b"/metrics", b"/nowhere"]


@pytest.fixture
def api(make_api: Callable[[WebConfig], Carrier]) -> Carrier:
    """Return an API without tokens, with names of its own."""
    hosts = ("n1", "store.example", ".pods.example")
    return make_api(WebConfig(node_name="n1", limits=LIMITS, hosts=hosts))


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8000", "10.1.2.3", "[::1]:8000", "localhost", "LocalHost:9", "localhost.:8000"],
)
def test_addresses_and_localhost_are_answered(api: Carrier, path: bytes, host: str) -> None:
    """No stranger can make a browser say these: they resolve to where they say."""
    assert api("GET", path, {"Host": host}).status != 421


@pytest.mark.parametrize("host", ["n1:8000", "store.example", "STORE.EXAMPLE:1", "a.pods.example"])
def test_own_names_are_answered(api: Carrier, host: str) -> None:
    """The node's configured names, and with a leading dot all names below one."""
    assert api("GET", b"/v1/kv/k", {"Host": host}).status == 404


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "host",
    ["evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "pods.example"],
)
def test_a_name_of_a_stranger_is_refused(
    api: Carrier, engine: FakeEngine, path: bytes, host: str
) -> None:
    """A page may have its own name resolve to this node; nothing is read or changed for it."""
    for method in ("GET", "PUT", "DELETE", "POST"):
        answer = api(method, path, {"Host": host})
        assert answer.status == 421
        assert answer.definite
        assert "http.allowed_hosts" in answer.json()["detail"]
    assert not engine.asked


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "host", ["", "a, b", "127.0.0.1, evil.example", "a b", "user@localhost", "localhost:x", "["]
)
def test_one_host_that_is_one(api: Carrier, path: bytes, host: str) -> None:
    """No Host, two of them (joined as both carriers do), or no authority: 400 (RFC 9112, 3.2)."""
    assert api("GET", path, {"Host": host}).status == 400


def test_with_tokens_any_name_is_answered(make_api: Callable[[WebConfig], Carrier]) -> None:
    """A page of a stranger has no token."""
    tokens = (TokenHash(hashlib.sha256(b"t").hexdigest(), "admin"),)
    api = make_api(WebConfig(node_name="n1", limits=LIMITS, tokens=tokens))
    answer = api("GET", b"/v1/kv/k", {"Host": "db.example", "Authorization": "Bearer t"})
    assert answer.status == 404
    assert api("GET", b"/v1/kv/k", {"Host": ""}).status == 400


FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:3000"},
    {"Origin": "http://["},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Origin": "http://localhost:8000", "Sec-Fetch-Site": "cross-site"},
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_pages_of_other_sites_change_nothing(
    api: Carrier, engine: FakeEngine, headers: dict[str, str]
) -> None:
    """A browser says whose page asks; what changes something is refused, with the reason."""
    for method, path in (
        ("PUT", b"/v1/kv/k"),
        ("DELETE", b"/v1/kv/k"),
        ("POST", b"/v1/batch"),
        ("POST", b"/v1/txn"),
        ("POST", b"/v1/shards/0/transfer-leader"),
    ):
        answer = api(method, path, {"Content-Type": "application/json", **headers}, b"{}")
        assert answer.status == 403
        assert answer.definite
        assert "nothing was done" in answer.json()["detail"]
    assert not engine.asked


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_own_pages_and_programs_may_change(api: Carrier, headers: dict[str, str]) -> None:
    """A page of this node, an address typed by a person, and whoever is no browser."""
    assert api("PUT", b"/v1/kv/k", headers, b"v").status == 201


@pytest.mark.parametrize("headers", FOREIGN)
def test_reading_is_not_refused(api: Carrier, headers: dict[str, str]) -> None:
    """A browser shows no answer to a page of another site; links to pages go on working."""
    assert api("GET", b"/v1/kv/k", headers).status == 404


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("name", ["Accept", "Cookie", "X-Request-Id", "If-None-Match", "X-Any"])
def test_heads_are_bounded(api: Carrier, engine: FakeEngine, path: bytes, name: str) -> None:
    """A head over its bound is refused before anything in it is read."""
    answer = api("GET", path, {name: "a," * (HEAD_BYTES_MAX // 2)})
    assert answer.status == 431
    assert answer.definite
    assert not engine.asked


@pytest.mark.parametrize("path", ROUTES)
def test_every_answer_forbids_guessing(api: Carrier, path: bytes) -> None:
    """Values, JSON, problems and pages alike."""
    assert api("GET", path).headers["x-content-type-options"] == "nosniff"
    assert "strict-transport-security" not in api("GET", path).headers


@pytest.mark.parametrize("path", ROUTES)
def test_over_tls_browsers_are_told_to_stay(
    make_api: Callable[[WebConfig], Carrier], path: bytes
) -> None:
    """HSTS (RFC 6797) on every answer where this node speaks TLS."""
    api = make_api(WebConfig(node_name="n1", limits=LIMITS, tls_cert="crt.pem", tls_key="key.pem"))
    assert api("GET", path).headers["strict-transport-security"] == "max-age=31536000"
