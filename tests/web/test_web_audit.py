"""The audit's lines: logins that failed, and what only an admin may do."""

import hashlib
import logging
from collections.abc import Callable

import pytest

from raftkv.rpc.web_config import TokenHash, WebConfig
from raftkv.web.api.auth import AccessError
from raftkv.web.serve import lane, wsgi
from raftkv.web.serve.audit import ADDRESSES_MAX, MINUTE_S, AuditLog
from tests.web.carriers import Carrier
from tests.web.conftest import LIMITS

FAILED = AccessError("unauthorized", "the token is not known")


class Audit:
    """A log with a clock of its own, and the lines that it wrote."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.now_s = 0.0
        self.log = AuditLog(lambda: self.now_s)
        self._caplog = caplog

    @property
    def lines(self) -> list[str]:
        """The messages."""
        return [r.getMessage() for r in self._caplog.records if r.name == "raftkv.audit"]

    @property
    def facts(self) -> list[dict[str, str]]:
        """What came with them."""
        return [r.__dict__["facts"] for r in self._caplog.records if r.name == "raftkv.audit"]


@pytest.fixture
def audit(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Audit:
    """The audit's log of both carriers."""
    audit = Audit(caplog)
    for module in (lane, wsgi):
        monkeypatch.setattr(module, "AUDIT", audit.log)
    return audit


@pytest.fixture
def api(make_api: Callable[[WebConfig], Carrier]) -> Carrier:
    """An API with a token of an admin and one that has no name."""
    tokens = (
        TokenHash(hashlib.sha256(b"of ops").hexdigest(), "admin", "ops"),
        TokenHash(hashlib.sha256(b"of nobody").hexdigest(), "read"),
    )
    return make_api(WebConfig(node_name="n1", limits=LIMITS, tokens=tokens))


def bearer(token: str) -> dict[str, str]:
    """The header of a token, and a name for the request."""
    return {"Authorization": f"Bearer {token}", "X-Request-Id": "r-1"}


@pytest.mark.parametrize("path", [b"/v1/kv/k", b"/v1/status", b"/"])
def test_a_login_that_fails(api: Carrier, audit: Audit, path: bytes) -> None:
    """The address and the request's id are told, the token is not."""
    assert api("GET", path, bearer("guessed")).status == 401
    assert audit.lines == ["login failed: the token is not known"]
    [facts] = audit.facts
    assert (facts["token"], facts["request_id"]) == ("", "r-1")
    assert "guessed" not in str(audit.facts)


def test_a_token_of_too_small_a_role(api: Carrier, audit: Audit) -> None:
    """It is named; one without a name by its role and the beginning of its hash."""
    assert api("PUT", b"/v1/kv/k", bearer("of nobody")).status == 403
    assert audit.lines == ["login failed: this needs a token with role 'write'"]
    assert audit.facts[0]["token"] == f"read {hashlib.sha256(b'of nobody').hexdigest()[:8]}"


def test_a_batch_whose_operations_want_more(api: Carrier, audit: Audit) -> None:
    """Its role is known only when it has been read."""
    lines = bearer("of nobody") | {"Content-Type": "application/x-ndjson"}
    body = b'{"op": "put", "key": "k", "value": "v"}'
    assert api("POST", b"/v1/batch", lines, body).status == 403
    assert audit.lines == ["login failed: this needs a token with role 'write'"]


def test_what_is_allowed_and_usual_is_not_told(api: Carrier, audit: Audit) -> None:
    """The lines are for what is rare."""
    assert api("GET", b"/v1/kv/k", bearer("of ops")).status == 404
    assert api("GET", b"/v1/status", bearer("of ops")).status == 200
    assert audit.lines == []


def test_leadership_that_is_moved(api: Carrier, audit: Audit) -> None:
    """By whom, from where, as what request, and what came of it."""
    headers = bearer("of ops") | {"Content-Type": "application/json"}
    answer = api("POST", b"/v1/shards/0/transfer-leader", headers, b'{"target": "n2"}')
    outcome = "done" if answer.status == 200 else "refused, "
    assert len(audit.lines) == 1
    assert audit.lines[0].startswith(f"transfer of shard 0 to n2: {outcome}")
    assert (audit.facts[0]["token"], audit.facts[0]["request_id"]) == ("ops", "r-1")


def test_guessing_neither_fills_the_log_nor_hides_in_it(audit: Audit) -> None:
    """One line at once for each address, and after a minute how many there were."""
    for number in range(500):
        audit.log.login_failed(("10.0.0.1", number), FAILED, f"r-{number}")
    audit.log.login_failed("10.0.0.2", FAILED, "r")
    audit.log.tell()
    assert [facts["address"] for facts in audit.facts] == ["10.0.0.1", "10.0.0.2"]
    audit.now_s = MINUTE_S
    audit.log.tell()
    assert audit.lines[2:] == ["logins failed: 500 in a minute"]
    audit.log.login_failed("10.0.0.1", FAILED, "r")
    assert audit.lines[3:] == ["login failed: the token is not known"]


def test_addresses_are_bounded(audit: Audit) -> None:
    """Whoever has very many is counted all the same."""
    for number in range(2 * ADDRESSES_MAX):
        audit.log.login_failed(f"address {number}", FAILED, "r")
    assert len(audit.lines) == ADDRESSES_MAX + 1
    audit.now_s = MINUTE_S
    audit.log.tell()
    assert audit.lines[-1] == f"logins failed: {ADDRESSES_MAX} in a minute"
    assert audit.facts[-1]["address"] == "other addresses"


def test_the_audit_is_told_whatever_the_level() -> None:
    """A quiet log has it too."""
    assert logging.getLogger("raftkv.audit").isEnabledFor(logging.INFO)
