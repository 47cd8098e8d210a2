"""What operators ask for: JSON and conventions."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from raftkv.rpc.messages import ExplainRequest, Facts, Failure, StatusRequest, TransferRequest
from raftkv.rpc.web_config import WebConfig
from raftkv.status.facts import ClusterFacts, Event, NodeFacts, RingShape, read
from tests.support import fake_engine
from tests.support.fake_engine import CLUSTER, LOCAL, FakeEngine
from tests.web.carriers import Carrier
from tests.web.conftest import LIMITS


def _as_json(told: object) -> Any:
    return msgspec.json.decode(msgspec.json.encode(told))


_JSON = {"Content-Type": "application/json"}


def test_status(api: Carrier, engine: FakeEngine) -> None:
    """Status is about this node unless the whole cluster is asked for."""
    alone = read(api("GET", b"/v1/status").json(), NodeFacts)
    assert alone == msgspec.structs.replace(LOCAL, http=alone.http)
    whole = api("GET", b"/v1/status?scope=cluster").json()
    assert whole.pop("health")["state"] == "unavailable"
    assert read(whole, ClusterFacts) == CLUSTER
    assert engine.asked == [StatusRequest("local"), StatusRequest("cluster")]
    assert api("GET", b"/v1/status?scope=world").code == "invalid"


def test_nodes_and_shards(api: Carrier) -> None:
    """Nodes and shards are parts of the cluster's status; one shard can be asked for."""
    assert api("GET", b"/v1/nodes").json() == {"nodes": _as_json(CLUSTER.nodes)}
    assert api("GET", b"/v1/shards").json() == {"shards": _as_json(CLUSTER.shards)}
    for path in (b"/v1/shards/2", b"/v1/shards/x", b"/v1/nodes/n4"):
        assert api("GET", path).code == "not_found"


def test_one_node_or_shard_comes_with_its_events(api: Carrier, engine: FakeEngine) -> None:
    """What happened there lately, and who could not be asked, is told beside it."""
    here = Event(at_us=1, kind="leader", node="n1", shard=1)
    there = Event(at_us=2, kind="link_down", node="n2")
    told = msgspec.structs.replace(CLUSTER, events=(here, there), not_answering=("n3",))
    engine.answers.extend([Facts.of(told)] * 2)
    rows: list[tuple[bytes, object, Event]] = [
        (b"/v1/shards/1", CLUSTER.shards[1], here),
        (b"/v1/nodes/n2", CLUSTER.nodes[1], there),
    ]
    for path, row, event in rows:
        beside = {"events": [_as_json(event)], "not_answering": ["n3"]}
        assert api("GET", path).json() == _as_json(row) | beside


def test_ring(api: Carrier, engine: FakeEngine) -> None:
    """Shares of circle, keys and load; without a load the shares of it are not known."""
    for kind in ("ring", "of tomorrow"):
        told = msgspec.structs.replace(CLUSTER, ring=RingShape(kind, (0, 1), 64))
        engine.answers.append(Facts.of(told))
    ring = api("GET", b"/v1/ring").json()
    assert sum(row["share"] for row in ring["shards"]) == pytest.approx(1, abs=1e-5)
    assert [row["keys_share"] for row in ring["shards"]] == [0.375, 0.625]
    assert [row["load_share"] for row in ring["shards"]] == [None, None]
    assert (ring["arcs"][0]["from"], ring["arcs"][-1]["to"]) == (0, 1)
    assert ring["if_added"]["shard"] == 2
    moved = ring["if_added"]["from"]
    assert sum(row["share"] for row in moved) == pytest.approx(ring["if_added"]["moved_share"])
    assert api("GET", b"/v1/ring").json() == {}


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
    ("body", "target", "for_s"),
    [
        (b"", None, None),
        (b"{}", None, None),
        (b'{"target": "n2"}', "n2", None),
        (b'{"target": "n2", "for_s": 90.5}', "n2", 90.5),
    ],
)
def test_transfer(
    api: Carrier, engine: FakeEngine, body: bytes, target: str | None, for_s: float | None
) -> None:
    """Leadership is handed to the node named, for some time, or to the preferred one."""
    answer = api("POST", b"/v1/shards/1/transfer-leader", _JSON, body)
    assert (answer.status, engine.asked) == (200, [TransferRequest(1, target, for_s)])


def test_refused_transfers(api: Carrier, engine: FakeEngine) -> None:
    """A transfer that makes no sense or cannot be done now says so."""
    path = b"/v1/shards/1/transfer-leader"
    assert api("POST", path, {}, b"{}").status == 415
    assert api("POST", path, {"Content-Type": "text/plain"}, b"{}").status == 415
    assert api("POST", path, _JSON, b'{"to": "n2"}').status == 400
    assert api("POST", path, _JSON, b'{"target": 2}').status == 400
    for for_s in (b"0", b"-1", b"1e9", b'"1h"'):
        assert api("POST", path, _JSON, b'{"target": "n2", "for_s": %s}' % for_s).status == 400
    assert api("POST", path, _JSON, b'{"for_s": 60}').status == 400
    assert api("POST", path, _JSON, b" " * 100_000).status == 413
    assert api("GET", path).status == 405
    assert engine.asked == []
    assert api("POST", b"/v1/shards/9/transfer-leader", _JSON).code == "not_found"
    engine.answers.append(Failure("refused", "n2 is behind", definite=True))
    answer = api("POST", path, _JSON, b'{"target": "n2"}')
    assert (answer.status, answer.json()["detail"]) == (409, "n2 is behind")


@pytest.mark.parametrize("digits", [10, 11, 20, 400, 5000])
def test_numbers_that_no_shard_has(api: Carrier, digits: int) -> None:
    """They are not found, however long, on every route that takes a shard."""
    number = b"9" * digits
    assert api("GET", b"/v1/shards/" + number).code == "not_found"
    assert api("GET", b"/shards/" + number, {"Accept": "application/json"}).status == 404
    transfer = b"/v1/shards/" + number + b"/transfer-leader"
    assert api("POST", transfer, _JSON, b"{}").code == "not_found"


def test_health_and_readiness(api: Carrier, engine: FakeEngine) -> None:
    """Alive is alive; ready is what the engine says, with its reasons."""
    assert (api("GET", b"/healthz").status, api("GET", b"/healthz").body) == (200, b"ok\n")
    json = {"Accept": "application/json"}
    ready = api("GET", b"/readyz", json)
    assert (ready.status, ready.json()["ready"], ready.json()["failing"]) == (200, True, [])
    assert ready.json()["checks"] == [{"name": "shard 0", "ok": True, "detail": ""}]
    assert api("GET", b"/readyz").body == b"ready\nok    shard 0\n"
    engine.ready = False
    unready = api("GET", b"/readyz", json)
    assert (unready.status, unready.json()["failing"]) == (503, ["shard 0: no leader"])
    unready = api("GET", b"/readyz")
    assert (unready.status, unready.body) == (503, b"not ready\nFAIL  shard 0: no leader\n")
    assert unready.headers["content-type"].startswith("text/plain")


def test_not_ready_without_an_engine(api: Carrier, engine: FakeEngine) -> None:
    """A worker whose engine is silent lives, and is not ready."""
    engine.failing.add("ready")
    answer = api("GET", b"/readyz")
    assert (answer.status, answer.body) == (503, b"not ready\nFAIL  engine: it does not answer\n")
    assert api("GET", b"/healthz").status == 200


@pytest.mark.parametrize("path", [b"/v1/status", b"/v1/shards/0", b"/v1/ring", b"/v1/explain/k"])
def test_facts_are_not_waited_for_longer_than_they_take(
    api: Carrier, engine: FakeEngine, path: bytes
) -> None:
    """A silent engine is noticed within about a second, unless the client wants to wait."""
    api("GET", path)
    api("GET", path, {"Raftkv-Timeout-Ms": "4000"})
    assert engine.timeouts == [0.75, 4.0]


def test_metrics_of_a_silent_engine(api: Carrier, engine: FakeEngine) -> None:
    """They say so, after one wait and not after two."""
    engine.answers.append(Failure("timeout", "the engine did not answer"))
    assert b"raftkv_engine_up 0.0" in api("GET", b"/metrics").body
    assert len(engine.asked) == 1


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
        'raftkv_http_requests_total{route="kv_put",status="201"} 1.0',
        'raftkv_http_requests_total{route="kv_get",status="404"} 1.0',
        "raftkv_engine_up 1.0",
        'raftkv_shard_leader{shard="0"} 1.0',
        'raftkv_shard_leader{shard="1"} 0.0',
        'raftkv_shard_term{shard="0"} 7.0',
        'raftkv_http_requests_total{route="unmatched",status="405"} 1.0',
        "raftkv_engine_wal_bytes 17.0",
        'raftkv_requests_total{kind="put"} 3.0',
        'raftkv_build_info{version="0.1.0"} 1.0',
        'raftkv_http_in_flight{worker="0"} 0.0',
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
        b"/v1/nodes/n1",
        b"/v1/ring",
        b"/v1/shards/0",
        b"/v1/explain/a",
        b"/healthz",
        b"/readyz",
        b"/metrics",
        b"/openapi.json",
        b"/",
        b"/shards/0",
        b"/nodes/n1",
        b"/ring",
        b"/explain",
        b"/explain/a",
        b"/shards/0/transfer",
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
    allowed = {"GET", "HEAD", "POST"} if path.endswith(b"transfer") else {"GET", "HEAD"}
    assert (refused.status, set(refused.headers["allow"].split(", "))) == (405, allowed)


@pytest.mark.parametrize(
    "path", [b"/nowhere", b"/v1", b"/v1/", b"/v1/kvx", b"//v1/kv/a", b"/v1//status", b"/v1/nodes/"]
)
def test_unknown_route(api: Carrier, path: bytes) -> None:
    """An unknown route is a problem document, too."""
    answer = api("GET", path)
    assert (answer.status, answer.code) == (404, "not_found")
    assert answer.headers["raftkv-node"] == "n1"


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
