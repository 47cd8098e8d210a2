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

from raftkv.core.health import health_of, reachable, rows, silent_nodes
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
from raftkv.version import __version__
from raftkv.web import quantities, ring_picture, views
from raftkv.web.csrf import COOKIE, FormGuard
from raftkv.web.encoding import check_key, parse_query
from raftkv.web.limits import BodyLimit
from raftkv.web.problems import HttpError
from raftkv.web.ring_facts import ring_facts
from raftkv.web.shared_facts import Shared
from raftkv.web.wsgi import Carrier, Listed, blueprint_of, path_bytes, read_body, to_flask

Told = Mapping[str, Any]
"""Facts as an engine tells them, whatever is in them."""

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
            return self._page("explain_form.html", self._frame({}))
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
            content = {**self._frame({}), "error": error, "about_token": about_token}
            response.set_data(flask.render_template("refused.html", part=None, **content))
            response.mimetype = "text/html"
        return response

    # --- what they show ------------------------------------------------------------------------

    def _overview(self, facts: Told) -> dict[str, Any]:
        nodes = rows(facts, "nodes")
        return {
            **self._frame(facts),
            "lines": views.grid(facts),
            "nodes": nodes,
            "sparks": views.sparks(nodes),
            "events": views.events(facts),
        }

    def _shard(self, facts: Told, shard: int) -> dict[str, Any]:
        row = _row(rows(facts, "shards"), "shard", shard)
        if row is None:
            raise HttpError("not_found", f"there is no shard {shard}")
        found = [e for e in views.events(facts, shown=100) if e.shard == shard]
        return {
            **self._frame(facts),
            "shard": shard,
            "row": row,
            "line": next(line for line in views.grid(facts) if line.shard == shard),
            "members": views.members(row, facts),
            "leaders": [*reversed(rows(row, "leaders"))],
            "events": found,
        }

    def _one_node(self, facts: Told, name: str) -> dict[str, Any]:
        row = _row(rows(facts, "nodes"), "name", name)
        if row is None:
            raise HttpError("not_found", f"there is no node {name}")
        found = [e for e in views.events(facts, shown=100) if e.node == name]
        return {
            **self._frame(facts),
            "name": name,
            "row": row,
            "answers": reachable(row),
            "links": [link for link in rows(row, "links") if link.get("name") != name],
            "sparks": views.sparks([row]),
            "workers": rows(views.mapping(row.get("http")), "workers"),
            "events": found,
        }

    def _ring(self, facts: Told) -> dict[str, Any]:
        told = ring_facts(facts)
        arcs, shares = ring_picture.arcs(told), ring_picture.shares(told)
        return {**self._frame(facts), "ring": told, "arcs": arcs, "shares": shares}

    def _explain(self, facts: Told, asked: ExplainRequest) -> dict[str, Any]:
        key, told = asked.key, self._facts(asked)
        shard = told.get("shard")
        row = views.mapping(told.get("state")) or _row(rows(facts, "shards"), "shard", shard) or {}
        return {
            **self._frame(facts),
            "key": key.decode("utf-8", "backslashreplace"),
            "key_path": quote(key, safe=""),
            "told": told,
            "row": row,
            "members": views.members(row, facts),
            "slow": views.mapping(row.get("slow")),
        }

    def _frame(self, facts: Told) -> dict[str, Any]:
        """What every page shows around its own content."""
        alone = "as_of_us" in facts and not any("reachable" in n for n in rows(facts, "nodes"))
        return {
            "node": self._node,
            "cluster": facts.get("cluster"),
            "version": __version__,
            "wants_login": self._wants_login,
            "health": health_of(facts),
            "silent": silent_nodes(facts),
            "alone": alone,
            "facts": facts,
            "now_us": time.time_ns() // 1000,
            "names": views.node_names(facts),
            "q": quantities,
            "views": views,
            "path": flask.request.path,
        }

    def _confirm(self, shard: int, refusal: str | None) -> flask.Response:
        facts = self._cluster()
        if not facts:
            return self._page("no_engine.html", self._frame(facts), 503)
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
        content: Callable[[Told], dict[str, Any]],
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
            if not facts:
                page = flask.render_template("no_engine.html", part=part, **self._frame(facts))
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

    def _cluster(self, beside: Request | None = None) -> Told:
        """What all nodes say; what this one knows if they cannot be asked; nothing at worst."""
        if beside is not None:
            with ThreadPoolExecutor(1) as other:
                other.submit(self._told, beside)
                return self._cluster()
        response = self._told(StatusRequest("cluster"))
        if isinstance(response, Facts):
            return response.facts
        if isinstance(response, Failure) and response.code == "timeout":
            return {}  # whoever is silent would let us wait for a second time
        return self._facts(StatusRequest("local"))

    def _facts(self, request: Request) -> Told:
        response = self._told(request)
        return response.facts if isinstance(response, Facts) else {}

    def _told(self, request: Request) -> Response:
        return self._replies.get(
            request, lambda: self._carrier.engine.call(request, PAGE_TIMEOUT_S)
        ).response


def _see(path: str) -> flask.Response:
    """Send the browser to another page, by GET."""
    return flask.Response(status=303, headers={"Location": path})


def _row(listed: list[Mapping[str, Any]], name: str, wanted: object) -> Mapping[str, Any] | None:
    return next((row for row in listed if row.get(name) == wanted), None)


def page_routes(carrier: Carrier, config: WebConfig) -> flask.Blueprint:
    """Return the routes of the pages."""
    pages = Pages(carrier, config)
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
