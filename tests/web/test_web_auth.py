"""Tokens: who may do what, over both carriers."""

import base64
import hashlib
from collections.abc import Callable

import pytest

from raftkv.rpc.web_config import Role, TokenHash, WebConfig
from raftkv.web.app import create_app
from tests.support.fake_engine import FakeEngine, SyncFace
from tests.web.carriers import Carrier
from tests.web.conftest import LIMITS
from tests.web.documented import unchecked

_ROLES: tuple[Role, ...] = ("read", "write", "admin")


def _token(role: str) -> str:
    return f"token-of-{role}"


@pytest.fixture
def api(make_api: Callable[[WebConfig], Carrier]) -> Carrier:
    """Return an API that wants tokens."""
    hashes = tuple(
        TokenHash(hashlib.sha256(_token(role).encode()).hexdigest(), role) for role in _ROLES
    )
    return make_api(WebConfig(node_name="n1", limits=LIMITS, tokens=hashes))


def _bearer(role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {_token(role)}"}


_REQUESTS: list[tuple[str, bytes, Role]] = [
    ("GET", b"/v1/kv/k", "read"),
    ("HEAD", b"/v1/kv/k", "read"),
    ("GET", b"/v1/kv", "read"),
    ("PUT", b"/v1/kv/k", "write"),
    ("DELETE", b"/v1/kv/k", "write"),
    ("POST", b"/v1/batch", "read"),
    ("POST", b"/v1/txn", "write"),
    ("GET", b"/v1/status", "read"),
    ("GET", b"/v1/nodes", "read"),
    ("GET", b"/v1/shards", "read"),
    ("GET", b"/v1/shards/0", "read"),
    ("GET", b"/v1/explain/k", "read"),
    ("POST", b"/v1/shards/0/transfer-leader", "admin"),
    ("GET", b"/", "read"),
    ("GET", b"/metrics", "read"),
]


@pytest.mark.parametrize(("method", "path", "role"), _REQUESTS)
def test_roles(api: Carrier, engine: FakeEngine, method: str, path: bytes, role: Role) -> None:
    """Without a token 401, with too small a role 403, neither reaches the engine; else it goes."""
    nobody = api(method, path)
    assert nobody.status == 401
    assert "Bearer" in nobody.headers["www-authenticate"]
    assert ("Basic" in nobody.headers["www-authenticate"]) == (path == b"/")
    assert api(method, path, {"Authorization": "Bearer wrong"}).status == 401
    for other in _ROLES:
        allowed = _ROLES.index(other) >= _ROLES.index(role)
        if not allowed:
            assert api(method, path, _bearer(other)).status == 403
    assert engine.asked == []
    for other in _ROLES[_ROLES.index(role) :]:
        assert api(method, path, _bearer(other)).status not in {401, 403}


_GET = b'{"op":"get","key":"k"}'
_PUT = b'{"op":"put","key":"k","value":"v"}'
_DELETE = b'{"op":"delete","key":"k"}'


@pytest.mark.parametrize(
    ("operations", "statuses"),
    [
        ([_GET, _GET], [200, 200, 200]),
        ([_GET, _PUT], [403, 200, 200]),
        ([_DELETE, _GET], [403, 200, 200]),
    ],
)
def test_the_role_of_a_batch_follows_its_operations(
    api: Carrier, engine: FakeEngine, operations: list[bytes], statuses: list[int]
) -> None:
    """Whoever may read may read many at once; one write among them wants the role to write."""
    lines = {"Content-Type": "application/x-ndjson"}
    body = b"\n".join(operations)
    answers = [api("POST", b"/v1/batch", {**_bearer(role), **lines}, body) for role in _ROLES]
    assert [answer.status for answer in answers] == statuses
    assert len(engine.asked) == statuses.count(200)
    assert api("POST", b"/v1/batch", lines, body).status == 401


_OPEN = {"/healthz", "/readyz", "/openapi.json", "/static/<path:filename>"}
_WRITES = {
    ("PUT", "/v1/kv/<key:key>"),
    ("DELETE", "/v1/kv/<key:key>"),
    ("POST", "/v1/txn"),
}


def _wants(method: str, rule: str) -> Role | None:
    if rule in _OPEN:
        return None
    if "transfer" in rule:
        return "admin"
    return "write" if (method, rule) in _WRITES else "read"


_ROUTES = [
    (method, rule.rule)
    for rule in create_app(SyncFace(FakeEngine()), WebConfig(node_name="n1")).url_map.iter_rules()
    for method in sorted(rule.methods or ())
]


@pytest.mark.parametrize(("method", "rule"), _ROUTES)
def test_every_route_is_authorized(
    api: Carrier, engine: FakeEngine, method: str, rule: str
) -> None:
    """Of all routes that exist only the probes, the document and what is static need no token.

    Everywhere else it is 401 without one and 403 with too small a role, whatever else is wrong.
    """
    role = _wants(method, rule)
    key = "k" * 2000  # longer than any
    path = rule.replace("<key:key>", key).replace("<shard:shard>", "0").replace("<name>", "n9")
    target = f"{path}?no=such".encode()
    asked = unchecked(api)
    if role is None:
        assert asked(method, target).status not in {401, 403}
        return
    assert asked(method, target).status == 401
    for other in _ROLES[: _ROLES.index(role)]:
        assert asked(method, target, _bearer(other)).status == 403
    assert asked(method, target, _bearer(role)).status not in {401, 403}
    assert engine.asked == []


@pytest.mark.parametrize("path", [b"/healthz", b"/readyz", b"/openapi.json"])
def test_open_routes(api: Carrier, path: bytes) -> None:
    """Probes and the description need no token: they tell no secrets."""
    assert api("GET", path).status == 200


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic",
        "Token token-of-admin",
        "token-of-admin",
        "Bearer token-of-admin extra",
        "Bearer " + "x" * 5000,
        "Basic " + base64.b64encode(b"x:token-of-admin").decode(),
    ],
)
def test_other_authorizations(api: Carrier, header: str) -> None:
    """Nothing but a known bearer token opens the API."""
    answer = api("GET", b"/v1/kv/k", {"Authorization": header})
    assert (answer.status, answer.code, answer.definite) == (401, "unauthorized", True)


def test_scheme_is_case_insensitive(api: Carrier) -> None:
    """As RFC 9110 says."""
    assert api("GET", b"/v1/kv/k", {"Authorization": "bearer token-of-read"}).status == 404


def test_browser_opens_the_page_with_the_token_as_password(api: Carrier) -> None:
    """Basic authentication works for pages, and for nothing of the API."""
    credentials = base64.b64encode(b"me:token-of-admin").decode()
    basic = {"Authorization": f"Basic {credentials}"}
    assert api("GET", b"/", basic).status == 200
    assert api("GET", b"/v1/status", basic).status == 401
    assert api("POST", b"/v1/shards/0/transfer-leader", basic).status == 401
    wrong = base64.b64encode(b"me:wrong").decode()
    assert api("GET", b"/", {"Authorization": f"Basic {wrong}"}).status == 401
    assert api("GET", b"/", {"Authorization": "Basic ???"}).status == 401


def test_refused_write_is_not_read(api: Carrier) -> None:
    """A client without a token cannot make the server take its large body."""
    assert api("PUT", b"/v1/kv/k", body=b"x" * 100_000).status == 401


def test_a_route_of_which_nothing_is_said_is_for_nobody() -> None:
    """A view that is not in a table of routes is never reached, tokens or not."""
    app = create_app(SyncFace(FakeEngine()), WebConfig(node_name="n1"))
    app.add_url_rule("/forgotten", "forgotten", lambda: "reached")
    answer = app.test_client().get("/forgotten")
    assert answer.status_code == 500
    assert b"reached" not in answer.data
