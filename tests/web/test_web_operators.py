"""What operators ask for: JSON, conventions, and the front page."""

from collections.abc import Callable
from typing import Any

import fake_engine
import pytest
from carriers import Carrier
from conftest import LIMITS
from fake_engine import FACTS, FakeEngine

from raftkv.rpc.messages import ExplainRequest, Facts, Failure, StatusRequest, TransferRequest
from raftkv.web.config import WebConfig
from raftkv.web.operators import health_sentence

_JSON = {"Content-Type": "application/json"}


def test_status(api: Carrier, engine: FakeEngine) -> None:
    """Status is about this node unless the whole cluster is asked for."""
    assert api("GET", b"/v1/status").json() == FACTS
    api("GET", b"/v1/status?scope=cluster")
    assert engine.asked == [StatusRequest("local"), StatusRequest("cluster")]
    assert api("GET", b"/v1/status?scope=world").code == "invalid"


def test_nodes_and_shards(api: Carrier) -> None:
    """Nodes and shards are parts of the cluster's status; one shard can be asked for."""
    assert api("GET", b"/v1/nodes").json() == {"nodes": FACTS["nodes"]}
    assert api("GET", b"/v1/shards").json() == {"shards": FACTS["shards"]}
    assert api("GET", b"/v1/shards/1").json() == FACTS["shards"][1]
    assert api("GET", b"/v1/shards/2").code == "not_found"
    assert api("GET", b"/v1/shards/x").code == "not_found"


@pytest.mark.parametrize(
    ("target", "key"),
    [(b"a", b"a"), (b"%FF%00", b"\xff\0"), (b"a//b", b"a//b"), (b"/", b"/"), (b"..", b"..")],
)
def test_explain(api: Carrier, engine: FakeEngine, target: bytes, key: bytes) -> None:
    """Any key can be explained, byte for byte."""
    assert api("GET", b"/v1/explain/" + target).status == 200
    assert engine.asked == [ExplainRequest(key)]


@pytest.mark.parametrize(("key", "status"), [(b"", 400), (b"k" * 1025, 413)])
def test_explain_checks_the_key(api: Carrier, key: bytes, status: int) -> None:
    """Only keys that could exist can be explained."""
    assert api("GET", b"/v1/explain/" + key).status == status


@pytest.mark.parametrize(
    ("body", "target"), [(b"", None), (b"{}", None), (b'{"target": "n2"}', "n2")]
)
def test_transfer(api: Carrier, engine: FakeEngine, body: bytes, target: str | None) -> None:
    """Leadership is handed to the node named, or to the preferred one."""
    answer = api("POST", b"/v1/shards/1/transfer-leader", _JSON, body)
    assert (answer.status, engine.asked) == (200, [TransferRequest(1, target)])


def test_refused_transfers(api: Carrier, engine: FakeEngine) -> None:
    """A transfer that makes no sense or cannot be done now says so."""
    path = b"/v1/shards/1/transfer-leader"
    assert api("POST", path, {}, b"{}").status == 415
    assert api("POST", path, {"Content-Type": "text/plain"}, b"{}").status == 415
    assert api("POST", path, _JSON, b'{"to": "n2"}').status == 400
    assert api("POST", path, _JSON, b'{"target": 2}').status == 400
    assert api("POST", path, _JSON, b" " * 100_000).status == 413
    assert api("GET", path).status == 405
    assert engine.asked == []
    assert api("POST", b"/v1/shards/9/transfer-leader", _JSON).code == "not_found"
    engine.answers.append(Failure("refused", "n2 is behind", definite=True))
    answer = api("POST", path, _JSON, b'{"target": "n2"}')
    assert (answer.status, answer.json()["detail"]) == (409, "n2 is behind")


def test_health_and_readiness(api: Carrier, engine: FakeEngine) -> None:
    """Alive is alive; ready is what the engine says, with its reasons."""
    assert (api("GET", b"/healthz").status, api("GET", b"/healthz").body) == (200, b"ok\n")
    ready = api("GET", b"/readyz")
    assert (ready.status, ready.json()) == (200, {"ready": True, "failing": []})
    engine.ready = False
    unready = api("GET", b"/readyz")
    assert (unready.status, unready.json()["failing"]) == (503, ["no leader"])


def test_metrics(api: Carrier, engine: FakeEngine) -> None:
    """Figures of the worker and of its engine; nothing of a client's makes a series."""
    api("PUT", b"/v1/kv/secret-name", body=b"v")
    api("GET", b"/v1/kv/other-name")
    api("BREW", b"/v1/kv/x")
    api("GET", b"/no/such/route")
    answer = api("GET", b"/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    text = answer.body.decode()
    for line in (
        'raftkv_http_requests_total{route="kv_put",status="201",worker="0"} 1.0',
        'raftkv_http_requests_total{route="kv_get",status="404",worker="0"} 1.0',
        "raftkv_engine_up 1.0",
        'raftkv_shard_leader{shard="0"} 1.0',
        'raftkv_shard_leader{shard="1"} 0.0',
        'raftkv_shard_term{shard="0"} 7.0',
        "raftkv_engine_fsyncs_total 17.0",
        'raftkv_engine_requests{kind="put"} 3.0',
        "raftkv_engine_rss_bytes 4096.0",
    ):
        assert line in text.splitlines()
    assert "name" not in text.replace("raftkv_", "")
    engine.failing.add("local")
    assert "raftkv_engine_up 0.0" in api("GET", b"/metrics").body.decode().splitlines()


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/status",
        b"/v1/nodes",
        b"/v1/shards",
        b"/v1/shards/0",
        b"/v1/explain/a",
        b"/healthz",
        b"/readyz",
        b"/metrics",
        b"/openapi.json",
        b"/",
    ],
)
def test_conventions_of_every_route(api: Carrier, path: bytes) -> None:
    """Every route refuses unknown parameters and other methods, answers HEAD, says who it is."""
    answer = api("GET", path)
    assert (answer.status, answer.headers["raftkv-node"]) == (200, "n1")
    assert api("GET", path + b"?x=1").code == "invalid"
    head = api("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    refused = api("DELETE", path)
    assert (refused.status, set(refused.headers["allow"].split(", "))) == (405, {"GET", "HEAD"})


@pytest.mark.parametrize(
    "path", [b"/nowhere", b"/v1", b"/v1/", b"/v1/kvx", b"//v1/kv/a", b"/v1//status", b"/v1/nodes/"]
)
def test_unknown_route(api: Carrier, path: bytes) -> None:
    """An unknown route is a problem document, too."""
    answer = api("GET", path)
    assert (answer.status, answer.code) == (404, "not_found")
    assert answer.headers["raftkv-node"] == "n1"


# --- the front page -----------------------------------------------------------------------------


def test_page(api: Carrier) -> None:
    """The page shows every shard's leader and every node, and what is wrong first."""
    answer = api("GET", b"/")
    page = answer.body.decode()
    assert answer.headers["content-type"].startswith("text/html")
    assert "Shard 1 has no leader" in page
    assert "Node n3 does not answer." in page
    assert "<td>n1</td>" in page
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["cache-control"] == "no-store"


def test_page_without_quorum(api: Carrier, engine: FakeEngine) -> None:
    """If the cluster cannot be asked the page shows what this node knows, or says that too."""
    engine.failing.add("cluster")
    answer = api("GET", b"/")
    assert answer.status == 200
    assert b"this is what n1 alone knows" in answer.body
    engine.failing.add("local")
    answer = api("GET", b"/")
    assert answer.status == 503
    assert b"The engine does not answer." in answer.body


def test_page_escapes_what_it_shows(api: Carrier, engine: FakeEngine) -> None:
    """A name that looks like HTML stays a name."""
    evil = "<script>alert(1)</script>"
    engine.answers.append(
        Facts(
            {
                "cluster": evil,
                "nodes": [{"name": evil, "reachable": False}],
                "shards": [{"shard": evil, "leader": evil, "replicas": [evil]}],
            }
        )
    )
    page = api("GET", b"/").body.decode()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    "facts", [{}, {"shards": None, "nodes": 5}, {"shards": [None, {}], "nodes": [{}]}]
)
def test_page_takes_any_facts(api: Carrier, engine: FakeEngine, facts: dict[str, Any]) -> None:
    """The page never fails over what an engine of another version reports."""
    engine.answers.append(Facts(facts))
    assert api("GET", b"/").status == 200
    engine.answers.append(Facts(facts))
    assert api("GET", b"/metrics").status == 200


def test_style_sheet(api: Carrier) -> None:
    """The page's style comes from this server; nothing else is needed."""
    assert api("GET", b"/static/raftkv.css").status == 200
    assert api("GET", b"/static/../config.py").status == 404


def _shard(number: int, leader: str | None) -> dict[str, Any]:
    return {"shard": number, "leader": leader}


@pytest.mark.parametrize(
    ("shards", "nodes", "sentence"),
    [
        (
            [_shard(0, "a"), _shard(1, "a")],
            [{"name": "a", "connected": True}],
            "All 2 shards have a leader. The only node answers.",
        ),
        (
            [_shard(0, None), _shard(1, None), _shard(2, "a")],
            [{"name": "a", "reachable": False}, {"name": "b", "reachable": False}],
            (
                "2 of 3 shards have no leader (0, 1): their keys cannot be read or written now. "
                "Nodes a, b do not answer."
            ),
        ),
    ],
)
def test_health_sentence(
    shards: list[dict[str, Any]], nodes: list[dict[str, Any]], sentence: str
) -> None:
    """The sentence names what is wrong."""
    assert health_sentence([*shards], [*nodes]) == sentence


def test_bug_in_the_engine_is_a_500(
    make_api: Callable[[WebConfig], Carrier],
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An exception becomes a problem that is not definite, on both sides of the front end."""
    monkeypatch.setattr(fake_engine.FakeEngine, "answer", lambda *_: 1 / 0)
    api = make_api(WebConfig(node_name="n1", limits=LIMITS))
    for path in (b"/v1/kv/k", b"/v1/status"):
        answer = api("GET", path)
        assert (answer.status, answer.code, answer.definite) == (500, "internal", False)
