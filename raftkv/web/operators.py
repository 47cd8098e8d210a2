"""What operators ask for: status, nodes, shards, explain, metrics and health.

The facts are the engine's. These are the members that this module looks into; whatever else an
engine reports is passed on as it is:

``local`` and ``cluster`` status
    ``node``, ``cluster``, ``map_epoch``;
    ``nodes``: a list of ``{name, reachable | connected, ...}``;
    ``shards``: a list of ``{shard, generation, leader, term, replicas, role, commit_index,
    applied_index, keys, bytes, log_bytes, ...}``, where ``leader`` is null if none is known;
    ``metrics`` (local only): figures for ``/metrics``, by name.
``ready``
    ``ready``: bool; ``failing``: a list of the checks that fail.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import flask
import msgspec

from raftkv.core.health import health_of, rows
from raftkv.rpc.messages import (
    PINNED_S_MAX,
    ExplainRequest,
    Facts,
    Reply,
    Request,
    StatusRequest,
    TransferRequest,
)
from raftkv.rpc.web_config import Role
from raftkv.web.encoding import check_key, parse_query
from raftkv.web.limits import OPERATOR_TIMEOUT_MS, BodyLimit
from raftkv.web.metrics import CONTENT_TYPE, WorkerMetrics, expose
from raftkv.web.openapi import openapi_document
from raftkv.web.problems import HttpError, invalid
from raftkv.web.requests import media_type_of, timeout_s
from raftkv.web.responses import JSON, facts_of, render_json
from raftkv.web.ring_facts import ring_facts
from raftkv.web.wsgi import (
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


class _Transfer(msgspec.Struct, forbid_unknown_fields=True):
    target: str | None = None
    for_s: Annotated[float, msgspec.Meta(gt=0, le=PINNED_S_MAX)] | None = None


_decode_transfer = msgspec.json.Decoder(_Transfer).decode


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

    def _json(self, reply: Reply, document: object, status: int = 200) -> flask.Response:
        return to_flask(render_json(document, reply.served, status))

    # --- JSON ----------------------------------------------------------------------------------

    def status(self) -> flask.Response:
        """``GET /v1/status``: this node alone, or with ``scope=cluster`` all nodes."""
        scope = self._begin("read", _SCOPE).get(b"scope", b"local")
        if scope == b"local":
            reply = self._ask(StatusRequest("local"))
        elif scope == b"cluster":
            reply = self._ask(StatusRequest("cluster"))
            told = facts_of(reply)
            return self._json(reply, {"health": health_of(told).as_facts(), **told})
        else:
            raise invalid("scope is 'local' or 'cluster'")
        return self._json(reply, facts_of(reply))

    def nodes(self) -> flask.Response:
        """``GET /v1/nodes``: every node and whether it answers."""
        self._begin("read")
        reply = self._ask(StatusRequest("cluster"))
        return self._json(reply, {"nodes": rows(facts_of(reply), "nodes")})

    def shards(self) -> flask.Response:
        """``GET /v1/shards``: every shard with its leader and replicas."""
        self._begin("read")
        reply = self._ask(StatusRequest("cluster"))
        return self._json(reply, {"shards": rows(facts_of(reply), "shards")})

    def shard(self, shard: int) -> flask.Response:
        """``GET /v1/shards/{shard}``: one of them, with what happened to it lately."""
        return self._one("shards", "shard", shard, f"there is no shard {shard}")

    def node(self, name: str) -> flask.Response:
        """``GET /v1/nodes/{name}``: one node, with what happened on it lately."""
        return self._one("nodes", "name", name, f"there is no node {name}", events_by="node")

    def _one(
        self, table: str, column: str, wanted: object, missing: str, events_by: str | None = None
    ) -> flask.Response:
        self._begin("read")
        reply = self._ask(StatusRequest("cluster"))
        facts = facts_of(reply)
        row = next((row for row in rows(facts, table) if row.get(column) == wanted), None)
        if row is None:
            raise HttpError("not_found", missing)
        happened = [e for e in rows(facts, "events") if e.get(events_by or column) == wanted]
        silent = facts.get("not_answering")
        return self._json(reply, {**row, "events": happened, "not_answering": silent})

    def ring(self) -> flask.Response:
        """``GET /v1/ring``: how keys and load are spread, and what one more shard would move."""
        self._begin("read")
        reply = self._ask(StatusRequest("cluster"))
        return self._json(reply, ring_facts(facts_of(reply)))

    def explain(self, key: str) -> flask.Response:
        """``GET /v1/explain/{key}``: where the key lives, and why."""
        del key  # routing has made text of it; the bytes are taken from the environment
        self._begin("read")
        reply = self._ask(ExplainRequest(check_key(path_bytes()[_EXPLAIN_PREFIX_BYTES:])))
        return self._json(reply, facts_of(reply))

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
        return self._json(reply, facts_of(reply))

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
            facts = reply.response.facts
        else:
            facts = {"failing": ["engine: it does not answer"]}
        ready = facts.get("ready") is True
        failing = list(map(str, facts.get("failing") or ()))
        checks = [dict(row) for row in rows(facts, "checks")]
        status = 200 if ready else 503
        accepted = flask.request.accept_mimetypes
        if accepted.best_match(["text/plain", "application/json"]) == "application/json":
            document = {"ready": ready, "failing": failing, "checks": checks}
            return self._json(reply, document, status)
        lines = ["ready" if ready else "not ready"]
        lines += [f"ok    {row.get('name')}" for row in checks if row.get("ok") is True]
        lines += [f"FAIL  {failure}" for failure in failing]
        return flask.Response("\n".join(lines) + "\n", status, mimetype="text/plain")

    def metrics(self) -> flask.Response:
        """``GET /metrics``: this node's figures, the same through every one of its workers."""
        self._begin("read")
        text = expose(self._figures(), self._metrics.collectors)
        return flask.Response(text, content_type=CONTENT_TYPE.decode())

    def _figures(self) -> Mapping[str, Any] | None:
        """What the engine counts, this worker's own included; None if it is silent."""
        ask = self._carrier.engine.call
        taken = ask(self._metrics.report(), _SCRAPE_TIMEOUT_S).response
        if not isinstance(taken, Facts):
            return None  # one wait for a silent engine is enough
        told = ask(StatusRequest("local"), _SCRAPE_TIMEOUT_S).response
        return told.facts if isinstance(told, Facts) else None

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
