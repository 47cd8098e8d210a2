"""The pages for operators: rendered here, complete without a script, on any node.

They must work exactly when the cluster does not: asking all nodes ends after 0.7 s with those that
answered, and where even that fails the page shows what this node knows by itself, and says so. An
engine that is silent itself is given up after about a second, and every page says that instead.
With a script the page asks for its own ``main`` part every second; without one it reloads itself.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, quote

import flask

from raftkv.rpc.messages import (
    ExplainRequest,
    Facts,
    Failure,
    Reply,
    Request,
    Response,
    StatusRequest,
    TransferRequest,
)
from raftkv.rpc.web_config import Role, WebConfig
from raftkv.status import quantities, views
from raftkv.status.facts import ClusterFacts, KeyFacts, NodeFacts, alone
from raftkv.status.health import health_of
from raftkv.status.merging import EVENTS_SHOWN
from raftkv.status.ring import ring_facts
from raftkv.version import __version__
from raftkv.web.api.encoding import check_key, parse_query
from raftkv.web.api.limits import BodyLimit
from raftkv.web.api.problems import HttpError
from raftkv.web.ops import ring_picture
from raftkv.web.ops.csrf import COOKIE, FormGuard
from raftkv.web.ops.shared_facts import Shared
from raftkv.web.serve.wsgi import Carrier, Listed, blueprint_of, path_bytes, read_body, to_flask

Content = dict[str, Any]
"""What a template is given."""

PAGE_TIMEOUT_S = 0.75
"""Enough for asking all nodes; silence is noticed up to 0.35 s later."""

TRANSFER_TIMEOUT_S = 5.0
_PART = frozenset({b"part"})
_KEY = frozenset({b"key"})
_NONE: frozenset[bytes] = frozenset()
_EXPLAIN_PREFIX_BYTES = len(b"/explain/")
_FORM_LIMIT = BodyLimit(4096)

SECURITY_HEADERS = {
    # Without it a browser sends "Origin: null" with our own forms.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
}


class Pages:
    """The views; each checks the role, then the parameters, then asks the engine."""

    def __init__(self, carrier: Carrier, config: WebConfig) -> None:
        self._carrier = carrier
        self._node = config.node_name
        self._secure = config.tls_cert is not None
        self._wants_login = bool(config.tokens)
        self._guard = FormGuard(config.engine_token.encode())
        self._replies: Shared[Reply] = Shared()
        self._parts: Shared[tuple[str, int]] = Shared()

    # --- pages ---------------------------------------------------------------------------------

    def index(self) -> flask.Response:
        """``GET /``: how the cluster is, in the order in which one asks during an incident."""
        return self._live("overview.html", self._overview)

    def shard_page(self, shard: int) -> flask.Response:
        """``GET /shards/{shard}``: one shard and its replicas."""
        return self._live("shard.html", lambda facts: self._shard(facts, shard))

    def node_page(self, name: str) -> flask.Response:
        """``GET /nodes/{name}``: one node, its process, disk and links."""
        return self._live("node.html", lambda facts: self._one_node(facts, name))

    def ring_page(self) -> flask.Response:
        """``GET /ring``: where keys go."""
        return self._live("ring.html", self._ring)

    def explain_form(self) -> flask.Response:
        """``GET /explain?key=``: what the form in the head of every page sends."""
        key = self._begin("read", _KEY).get(b"key", b"")
        if not key:
            return self._page("explain_form.html", self._frame(None))
        return _see("/explain/" + quote(check_key(key), safe=""))

    def explain_page(self, key: str) -> flask.Response:
        """``GET /explain/{key}``: where one key lives, and why."""
        del key  # routing has made text of it; the bytes are taken from the environment
        raw = check_key(path_bytes()[_EXPLAIN_PREFIX_BYTES:])
        asked = ExplainRequest(raw)
        return self._live("explain.html", lambda facts: self._explain(facts, asked), asked)

    def ask_transfer(self, shard: int) -> flask.Response:
        """``GET /shards/{shard}/transfer``: asks before it does anything."""
        self._begin("admin")
        return self._confirm(shard, None)

    def transfer(self, shard: int) -> flask.Response:
        """``POST /shards/{shard}/transfer``: hand leadership over, as the form says."""
        self._begin("admin")
        fields = parse_qs(read_body(_FORM_LIMIT).decode("utf-8", "replace"))
        token = fields.get("token", [""])[0]
        cookie = flask.request.cookies.get(COOKIE)
        self._guard.check(flask.request.headers, cookie, token, f"transfer {shard}")
        request = TransferRequest(shard, fields.get("target", [""])[0] or None)
        reply = self._carrier.transfer(request, TRANSFER_TIMEOUT_S)
        self._replies.forget()
        self._parts.forget()
        if isinstance(reply.response, Failure):
            return self._confirm(shard, reply.response.detail)
        return _see(f"/shards/{shard}")

    def refused(self, error: HttpError) -> flask.Response:
        """Say why a page is not shown: as a page to a browser, as a problem to everybody else."""
        response = to_flask(error.response(self._carrier.me))
        offered = ["application/problem+json", "text/html"]
        if flask.request.accept_mimetypes.best_match(offered) == "text/html":
            names = {name for name, _ in error.headers}
            about_token = b"www-authenticate" in names
            content = {**self._frame(None), "error": error, "about_token": about_token}
            response.set_data(flask.render_template("refused.html", part=None, **content))
            response.mimetype = "text/html"
            flask.g.security_headers = SECURITY_HEADERS
        return response

    # --- what they show ------------------------------------------------------------------------

    def _overview(self, facts: ClusterFacts) -> Content:
        return {
            **self._frame(facts),
            "lines": views.grid(facts),
            "nodes": facts.nodes,
            "sparks": views.sparks(facts.nodes),
            "events": views.events(facts.events),
        }

    def _shard(self, facts: ClusterFacts, shard: int) -> Content:
        row = facts.shard(shard)
        if row is None:
            raise HttpError("not_found", f"there is no shard {shard}")
        told = views.events(facts.events, shown=EVENTS_SHOWN)
        return {
            **self._frame(facts),
            "shard": shard,
            "row": row,
            "line": next(line for line in views.grid(facts) if line.shard == shard),
            "members": views.members(row, facts.answering),
            "leaders": row.leaders[::-1],
            "events": [event for event in told if event.shard == shard],
        }

    def _one_node(self, facts: ClusterFacts, name: str) -> Content:
        row = facts.named(name)
        if row is None:
            raise HttpError("not_found", f"there is no node {name}")
        told = views.events(facts.events, shown=EVENTS_SHOWN)
        return {
            **self._frame(facts),
            "name": name,
            "row": row,
            "links": [link for link in row.links if link.name != name],
            "sparks": views.sparks([row]),
            "workers": () if row.http is None else row.http.workers,
            "events": [event for event in told if event.node == name],
        }

    def _ring(self, facts: ClusterFacts) -> Content:
        told = ring_facts(facts)
        arcs = [] if told is None else ring_picture.arcs(told)
        shares = [] if told is None else ring_picture.shares(told)
        return {**self._frame(facts), "ring": told, "arcs": arcs, "shares": shares}

    def _explain(self, facts: ClusterFacts, asked: ExplainRequest) -> Content:
        response = self._told(asked)
        told = response.read(KeyFacts) if isinstance(response, Facts) else None
        row = None if told is None else told.state or facts.shard(told.shard)
        return {
            **self._frame(facts),
            "key": asked.key.decode("utf-8", "backslashreplace"),
            "key_path": quote(asked.key, safe=""),
            "told": told,
            "row": row,
            "members": [] if row is None else views.members(row, facts.answering),
        }

    def _frame(self, facts: ClusterFacts | None) -> Content:
        """What every page shows around its own content; without facts where it needs none."""
        return {
            "node": self._node,
            "version": __version__,
            "wants_login": self._wants_login,
            "facts": facts,
            "health": None if facts is None else health_of(facts),
            "now_us": time.time_ns() // 1000,
            "q": quantities,
            "views": views,
            "path": flask.request.path,
        }

    def _confirm(self, shard: int, refusal: str | None) -> flask.Response:
        facts = self._cluster()
        if facts is None:
            return self._page("no_engine.html", self._frame(None), 503)
        content = self._shard(facts, shard)
        nonce = self._guard.nonce(flask.request.cookies.get(COOKIE))
        credentials = flask.request.headers.get("Authorization")
        content["token"] = self._guard.token(nonce, credentials, f"transfer {shard}")
        content["refusal"] = refusal
        content["targets"] = views.transfer_targets(content["row"], content["members"])
        response = self._page("transfer.html", content, 200 if refusal is None else 409)
        response.set_cookie(
            COOKIE, nonce, httponly=True, samesite="Strict", secure=self._secure, path="/"
        )
        return response

    # --- pieces --------------------------------------------------------------------------------

    def _begin(self, role: Role, allowed: frozenset[bytes] = _NONE) -> dict[bytes, bytes]:
        flask.g.label = str(flask.request.endpoint).rpartition(".")[2]
        flask.g.security_headers = SECURITY_HEADERS
        header = flask.request.headers.get("Authorization")
        raw = None if header is None else header.encode("latin-1")
        self._carrier.authenticate(raw, role, page=True)
        return parse_query(flask.request.query_string, allowed)

    def _live(
        self,
        template: str,
        content: Callable[[ClusterFacts], Content],
        beside: Request | None = None,
    ) -> flask.Response:
        """Answer with the page, or with the part of it that changes.

        That part is the same for everybody who may read, so it is rendered once for all.
        ``beside`` is what ``content`` will ask as well: asked together, as each question may
        wait for a node that is frozen.
        """
        part = self._begin("read", _PART).get(b"part")
        if part not in (None, b"main"):
            raise HttpError("invalid", "part is 'main'")

        def render() -> tuple[str, int]:
            facts = self._cluster(beside)
            if facts is None:
                page = flask.render_template("no_engine.html", part=part, **self._frame(None))
                return page, 503
            try:
                made = content(facts)
            except HttpError as error:
                if error.code != "not_found":
                    raise
                made = {**self._frame(facts), "detail": error.detail}
                return flask.render_template("not_found.html", part=part, **made), 404
            return flask.render_template(template, part=part, **made), 200

        text, status = self._parts.get((path_bytes(), part), render)
        return flask.Response(text, status)

    def _page(self, template: str, content: Mapping[str, Any], status: int = 200) -> flask.Response:
        return flask.Response(flask.render_template(template, part=None, **content), status)

    def _cluster(self, beside: Request | None = None) -> ClusterFacts | None:
        """What all nodes say; what this one knows if they cannot be asked; nothing at worst."""
        if beside is not None:
            with ThreadPoolExecutor(1) as other:
                other.submit(self._told, beside)
                return self._cluster()
        response = self._told(StatusRequest("cluster"))
        if isinstance(response, Facts):
            return response.read(ClusterFacts)
        if isinstance(response, Failure) and response.code == "timeout":
            return None  # whoever is silent would let us wait for a second time
        response = self._told(StatusRequest("local"))
        return alone(response.read(NodeFacts)) if isinstance(response, Facts) else None

    def _told(self, request: Request) -> Response:
        return self._replies.get(
            request, lambda: self._carrier.engine.call(request, PAGE_TIMEOUT_S)
        ).response


def _see(path: str) -> flask.Response:
    """Send the browser to another page, by GET."""
    return flask.Response(status=303, headers={"Location": path})


def page_routes(pages: Pages) -> flask.Blueprint:
    """Return the routes of the pages."""
    listed: Listed = [
        ("/", pages.index, "GET"),
        ("/shards/<shard:shard>", pages.shard_page, "GET"),
        ("/shards/<shard:shard>/transfer", pages.ask_transfer, "GET"),
        ("/shards/<shard:shard>/transfer", pages.transfer, "POST"),
        ("/nodes/<name>", pages.node_page, "GET"),
        ("/ring", pages.ring_page, "GET"),
        ("/explain", pages.explain_form, "GET"),
        ("/explain/<key:key>", pages.explain_page, "GET"),
    ]
    blueprint = blueprint_of("pages", listed)
    blueprint.register_error_handler(HttpError, pages.refused)
    return blueprint
