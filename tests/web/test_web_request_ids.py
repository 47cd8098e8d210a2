"""What a request is called: the client's name for it, or one of ours, everywhere the same."""

import re
from collections.abc import Callable

import pytest

from raftkv.rpc.web_config import WebConfig
from tests.support.fake_engine import FakeEngine
from tests.web.carriers import Carrier
from tests.web.conftest import LIMITS

PATHS = [b"/v1/kv/a", b"/v1/kv", b"/v1/status", b"/healthz", b"/", b"/nowhere"]


@pytest.mark.parametrize("path", PATHS)
def test_the_clients_name_is_kept(api: Carrier, path: bytes) -> None:
    """It comes back with the answer, also with an error."""
    assert api("GET", path, {"X-Request-Id": "a.b:c-1_2"}).headers["x-request-id"] == "a.b:c-1_2"


@pytest.mark.parametrize("path", PATHS)
def test_every_request_has_a_name(api: Carrier, path: bytes) -> None:
    """Without one of the client's it gets its own."""
    names = {api("GET", path).headers["x-request-id"] for _ in range(3)}
    assert len(names) == 3
    assert all(re.fullmatch("[0-9a-f]{8}-[0-9a-f]+", name) for name in names)


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "a\tb", "\xe9", '"><script>'])
def test_what_would_harm_a_log_is_replaced(api: Carrier, given: str) -> None:
    """A name that could forge or flood a log is not used; the request is served all the same."""
    answer = api("GET", b"/v1/kv", {"X-Request-Id": given})
    assert answer.status == 200
    assert answer.headers["x-request-id"] != given


def test_the_engine_is_told(api: Carrier, engine: FakeEngine) -> None:
    """So that its log and those of other nodes call the request the same; streams too."""
    named = {"X-Request-Id": "mine"}
    api("PUT", b"/v1/kv/a", named, b"v")
    api("GET", b"/v1/kv", {**named, "Accept": "application/x-ndjson"})
    assert set(engine.request_ids) == {"mine"}


def test_slow_requests_are_logged(
    make_api: Callable[[WebConfig], Carrier], caplog: pytest.LogCaptureFixture
) -> None:
    """With route, status, time and name; never with key or value."""
    api = make_api(WebConfig(node_name="n1", limits=LIMITS, slow_request_ms=0))
    api("PUT", b"/v1/kv/secret-key", {"X-Request-Id": "mine"}, b"secret-value")
    (record,) = [r for r in caplog.records if r.getMessage().startswith("slow request")]
    facts = record.__dict__["facts"]
    assert (facts["route"], facts["status"], facts["request_id"]) == ("kv_put", 201, "mine")
    assert "secret" not in caplog.text + str(facts)
