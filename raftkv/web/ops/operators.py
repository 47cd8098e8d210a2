"""What operators ask for: status, nodes, shards, explain, metrics and health.

The documents are :mod:`raftkv.status.facts` as JSON.
"""

import flask
import msgspec

from raftkv.rpc.messages import (
    ExplainRequest,
    Facts,
    Reply,
    Request,
    StatusRequest,
    TransferRequest,
)
from raftkv.rpc.web_config import Role
from raftkv.status.facts import (
    ClusterFacts,
    Event,
    HandedOver,
    KeyFacts,
    NodeFacts,
    NodeSummary,
    Readiness,
    ShardFacts,
)
from raftkv.status.health import health_of
from raftkv.status.ring import ring_facts
from raftkv.web.api.bodies import TransferBody
from raftkv.web.api.encoding import check_key, parse_query
from raftkv.web.api.limits import OPERATOR_TIMEOUT_MS, BodyLimit
from raftkv.web.api.openapi import openapi_document
from raftkv.web.api.problems import HttpError, invalid
from raftkv.web.api.requests import media_type_of, timeout_s
from raftkv.web.api.responses import JSON, facts_of, render_json
from raftkv.web.ops.metrics import CONTENT_TYPE, expose
from raftkv.web.serve.worker_metrics import WorkerMetrics
from raftkv.web.serve.wsgi import (
    Carrier,
    Listed,
    blueprint_of,
    path_bytes,
    read_body,
    request_headers,
    to_flask,
)

_NO_PARAMETERS: frozenset[bytes] = frozenset()
_SCOPE = frozenset({b"scope"})
_EXPLAIN_PREFIX_BYTES = len(b"/v1/explain/")
_SCRAPE_TIMEOUT_S = 2.0


_decode_transfer = msgspec.json.Decoder(TransferBody).decode


class Operators:
    """The views; each checks the role, then the parameters, then asks the engine."""

    def __init__(self, carrier: Carrier, metrics: WorkerMetrics) -> None:
        self._carrier = carrier
        self._metrics = metrics
        self._limits = msgspec.structs.replace(
            carrier.limits, timeout_ms_default=OPERATOR_TIMEOUT_MS
        )
        self._openapi = msgspec.json.encode(openapi_document(carrier.limits))

    # --- pieces --------------------------------------------------------------------------------

    def _begin(
        self, role: Role | None, allowed: frozenset[bytes] = _NO_PARAMETERS
    ) -> dict[bytes, bytes]:
        flask.g.label = str(flask.request.endpoint).rpartition(".")[2]
        if role is not None:
            header = flask.request.headers.get("Authorization")
            raw = None if header is None else header.encode("latin-1")
            self._carrier.authenticate(raw, role)
        return parse_query(flask.request.query_string, allowed)

    def _ask(self, request: Request) -> Reply:
        """Ask for facts."""
        return self._carrier.engine.call(request, timeout_s(request_headers(), self._limits))

    def _cluster(self) -> tuple[Reply, ClusterFacts]:
        """Ask all nodes."""
        reply = self._ask(StatusRequest("cluster"))
        return reply, facts_of(reply, ClusterFacts)

    def _json(self, reply: Reply, document: object, status: int = 200) -> flask.Response:
        return to_flask(render_json(document, reply.served, status))

    # --- JSON ----------------------------------------------------------------------------------

    def status(self) -> flask.Response:
        """``GET /v1/status``: this node alone, or with ``scope=cluster`` all nodes."""
        scope = self._begin("read", _SCOPE).get(b"scope", b"local")
        if scope == b"local":
            reply = self._ask(StatusRequest("local"))
            return self._json(reply, facts_of(reply, NodeFacts))
        if scope != b"cluster":
            raise invalid("scope is 'local' or 'cluster'")
        reply, facts = self._cluster()
        health = health_of(facts).as_facts()
        return self._json(reply, {"health": health, **msgspec.structs.asdict(facts)})

    def nodes(self) -> flask.Response:
        """``GET /v1/nodes``: every node and whether it answers."""
        self._begin("read")
        reply, facts = self._cluster()
        return self._json(reply, {"nodes": facts.nodes})

    def shards(self) -> flask.Response:
        """``GET /v1/shards``: every shard with its leader and replicas."""
        self._begin("read")
        reply, facts = self._cluster()
        return self._json(reply, {"shards": facts.shards})

    def shard(self, shard: int) -> flask.Response:
        """``GET /v1/shards/{shard}``: one of them, with what happened to it lately."""
        self._begin("read")
        reply, facts = self._cluster()
        row = facts.shard(shard)
        if row is None:
            raise HttpError("not_found", f"there is no shard {shard}")
        happened = [event for event in facts.events if event.shard == shard]
        return self._one(reply, facts, row, happened)

    def node(self, name: str) -> flask.Response:
        """``GET /v1/nodes/{name}``: one node, with what happened on it lately."""
        self._begin("read")
        reply, facts = self._cluster()
        row = facts.named(name)
        if row is None:
            raise HttpError("not_found", f"there is no node {name}")
        happened = [event for event in facts.events if event.node == name]
        return self._one(reply, facts, row, happened)

    def _one(
        self, reply: Reply, facts: ClusterFacts, row: ShardFacts | NodeSummary, events: list[Event]
    ) -> flask.Response:
        said = {"events": events, "not_answering": facts.not_answering}
        return self._json(reply, msgspec.structs.asdict(row) | said)

    def ring(self) -> flask.Response:
        """``GET /v1/ring``: how keys and load are spread, and what one more shard would move."""
        self._begin("read")
        reply, facts = self._cluster()
        return self._json(reply, ring_facts(facts) or {})

    def explain(self, key: str) -> flask.Response:
        """``GET /v1/explain/{key}``: where the key lives, and why."""
        del key  # routing has made text of it; the bytes are taken from the environment
        self._begin("read")
        reply = self._ask(ExplainRequest(check_key(path_bytes()[_EXPLAIN_PREFIX_BYTES:])))
        return self._json(reply, facts_of(reply, KeyFacts))

    def transfer(self, shard: int) -> flask.Response:
        """``POST /v1/shards/{shard}/transfer-leader``: hand leadership over.

        The content type must say JSON even without a body: a page of another site can make a
        browser send a bare POST to a node on loopback, but not one with that type.
        """
        self._begin("admin")
        content_type = flask.request.headers.get("Content-Type", "")
        media_type_of(content_type.encode("latin-1"), (JSON,))
        body = read_body(BodyLimit(self._carrier.limits.operator_body_bytes_max))
        try:
            wanted = _decode_transfer(body or b"{}")
        except msgspec.MsgspecError as error:
            raise invalid(f"the body does not fit: {error}") from error
        if wanted.for_s is not None and wanted.target is None:
            raise invalid("for_s goes with a target only: on its preferred node it stays anyway")
        wait_s = timeout_s(request_headers(), self._carrier.limits)
        request = TransferRequest(shard, wanted.target, wanted.for_s)
        reply = self._carrier.transfer(request, wait_s)
        return self._json(reply, facts_of(reply, HandedOver))

    # --- conventions ---------------------------------------------------------------------------

    def healthz(self) -> flask.Response:
        """``GET /healthz``: this worker lives; it would have ended with its engine."""
        self._begin(None)
        return flask.Response("ok\n", mimetype="text/plain")

    def readyz(self) -> flask.Response:
        """``GET /readyz``: 200 if this node can serve, 503 with the checks that fail if not."""
        self._begin(None)
        reply = self._carrier.engine.call(StatusRequest("ready"), _SCRAPE_TIMEOUT_S)
        if isinstance(reply.response, Facts):
            facts = reply.response.read(Readiness)
        else:
            facts = Readiness(ready=False, failing=("engine: it does not answer",))
        status = 200 if facts.ready else 503
        accepted = flask.request.accept_mimetypes
        if accepted.best_match(["text/plain", "application/json"]) == "application/json":
            return self._json(reply, facts, status)
        lines = ["ready" if facts.ready else "not ready"]
        lines += [f"ok    {check.name}" for check in facts.checks if check.ok]
        lines += [f"FAIL  {failure}" for failure in facts.failing]
        return flask.Response("\n".join(lines) + "\n", status, mimetype="text/plain")

    def metrics(self) -> flask.Response:
        """``GET /metrics``: this node's figures, the same through every one of its workers."""
        self._begin("read")
        text = expose(self._figures(), self._metrics.collectors)
        return flask.Response(text, content_type=CONTENT_TYPE.decode())

    def _figures(self) -> NodeFacts | None:
        """What the engine counts, this worker's own included; None if it is silent."""
        ask = self._carrier.engine.call
        taken = ask(self._metrics.report(), _SCRAPE_TIMEOUT_S).response
        if not isinstance(taken, Facts):
            return None  # one wait for a silent engine is enough
        told = ask(StatusRequest("local"), _SCRAPE_TIMEOUT_S).response
        return told.read(NodeFacts) if isinstance(told, Facts) else None

    def openapi(self) -> flask.Response:
        """``GET /openapi.json``: the description of all this."""
        self._begin(None)
        return flask.Response(self._openapi, mimetype="application/json")


def operator_routes(carrier: Carrier, metrics: WorkerMetrics) -> flask.Blueprint:
    """Return the routes for operators."""
    views = Operators(carrier, metrics)
    listed: Listed = [
        ("/v1/status", views.status, "GET"),
        ("/v1/nodes", views.nodes, "GET"),
        ("/v1/nodes/<name>", views.node, "GET"),
        ("/v1/ring", views.ring, "GET"),
        ("/v1/shards", views.shards, "GET"),
        ("/v1/shards/<shard:shard>", views.shard, "GET"),
        ("/v1/shards/<shard:shard>/transfer-leader", views.transfer, "POST"),
        ("/v1/explain/<key:key>", views.explain, "GET"),
        ("/healthz", views.healthz, "GET"),
        ("/readyz", views.readyz, "GET"),
        ("/metrics", views.metrics, "GET"),
        ("/openapi.json", views.openapi, "GET"),
    ]
    return blueprint_of("operators", listed)
