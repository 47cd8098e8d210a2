"""The Flask application: every route of the API, complete under any WSGI server.

Under Granian the async lane (:mod:`raftkv.web.serve.lane`) answers the data routes before they get
here; the views below answer them from the same functions for every other WSGI server and for
Flask's test client.
"""

import logging
import time

import flask
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge
from werkzeug.routing import BaseConverter, IntegerConverter

from raftkv.rpc.web_config import WebConfig
from raftkv.web.api.cursors import Cursors
from raftkv.web.api.problems import HttpError
from raftkv.web.api.routes import KEY_PREFIX, DataRoutes, method_not_allowed
from raftkv.web.ops.operators import operator_routes
from raftkv.web.ops.pages import Pages, page_routes
from raftkv.web.serve.engine import SyncEngine
from raftkv.web.serve.guard import RequestGuard, always_headers
from raftkv.web.serve.request_ids import log_slow
from raftkv.web.serve.worker_metrics import WorkerMetrics
from raftkv.web.serve.wsgi import Carrier, Wanted, path_bytes, request_headers, to_flask

_logger = logging.getLogger(__name__)

_SECURITY_HEADERS = {
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


class KeyConverter(BaseConverter):
    """Matches what is left of the path, whatever bytes: slashes, dots and newlines too."""

    regex = "(?s:.*)"
    part_isolating = False


class ShardConverter(IntegerConverter):
    """Matches numbers that a shard might have: no message between processes takes much larger."""

    regex = r"\d{1,10}"


def create_app(
    engine: SyncEngine, config: WebConfig, metrics: WorkerMetrics | None = None
) -> flask.Flask:
    """Return the complete application, asking ``engine``."""
    app = flask.Flask("raftkv.web", template_folder="ops/templates", static_folder="ops/static")
    app.url_map.converters["key"] = KeyConverter
    app.url_map.converters["shard"] = ShardConverter
    app.url_map.merge_slashes = False
    app.url_map.strict_slashes = True
    app.jinja_options = {"trim_blocks": True, "lstrip_blocks": True}
    metrics = metrics or WorkerMetrics(config.worker)
    carrier = Carrier(engine, config)
    # The pages' style sheet, script and icon are the same for everybody.
    for method in ("GET", "OPTIONS"):
        carrier.want("static", method, Wanted("", None))
    _add_data_routes(app, carrier, Cursors(bytes.fromhex(config.cursor_key)))
    app.register_blueprint(operator_routes(carrier, metrics))
    pages = Pages(carrier, config)
    app.register_blueprint(page_routes(pages, carrier))
    _add_error_handlers(app, carrier, pages)
    _add_hooks(app, carrier, metrics, config)
    return app


def _add_data_routes(app: flask.Flask, carrier: Carrier, cursors: Cursors) -> None:
    routes = DataRoutes(carrier.limits, cursors)
    listed = {path.decode(): route for path, route in routes.exact.items()}
    listed[KEY_PREFIX.decode() + "<key:key>"] = routes.key
    for path, route in listed.items():
        app.add_url_rule(
            path,
            endpoint=path,
            view_func=carrier.data_view(route),
            methods=list(route.actions),
            provide_automatic_options=False,
        )
        for method, action in route.actions.items():
            carrier.want(path, method, Wanted(action.label, action.role))


def _add_error_handlers(app: flask.Flask, carrier: Carrier, pages: Pages) -> None:
    @app.errorhandler(HttpError)
    def refused(error: HttpError) -> flask.Response:
        return to_flask(error.response(carrier.me))

    @app.errorhandler(HTTPException)
    def aborted(error: HTTPException) -> flask.Response:
        return pages.refused(_translate(error))  # mostly of an address that somebody has typed

    @app.errorhandler(Exception)
    def failed(error: Exception) -> flask.Response:
        facts = {"request_id": flask.g.get("request_id")}
        method = flask.request.method
        _logger.error("request failed: %s", method, exc_info=error, extra={"facts": facts})
        bug = HttpError("internal", "see the server's log", definite=False)
        return to_flask(bug.response(carrier.me))


def _translate(error: HTTPException) -> HttpError:
    if isinstance(error, MethodNotAllowed):
        methods = sorted(set(error.valid_methods or ()) - {"OPTIONS"})
        return method_not_allowed(flask.request.method, ", ".join(methods).encode())
    if error.code == HttpError("not_found", "").status:
        return HttpError("not_found", "no such route")
    if isinstance(error, RequestEntityTooLarge):
        return HttpError("too_large", "the body is too large")
    return HttpError("invalid", error.description or error.name)


def _add_hooks(
    app: flask.Flask, carrier: Carrier, metrics: WorkerMetrics, config: WebConfig
) -> None:
    guard = RequestGuard(config)
    always = {name.decode(): value.decode() for name, value in always_headers(config)}

    @app.before_request
    def begin() -> None:
        flask.g.started = time.perf_counter()
        flask.g.request_id = carrier.ids.of(request_headers())
        flask.g.label = "unmatched"
        guard.check(flask.request.method, request_headers())
        if path_bytes().startswith(b"//"):
            # Werkzeug would drop the first slash, and the key would lose its first byte.
            raise HttpError("not_found", "no such route")
        if flask.request.url_rule is not None:
            carrier.authorize()

    @app.after_request
    def finish(response: flask.Response) -> flask.Response:
        # Pages say themselves what they may do; everything else may do nothing.
        headers = {**always, **_SECURITY_HEADERS, **flask.g.get("security_headers", {})}
        for name, value in headers.items():
            response.headers.setdefault(name, value)
        if "Raftkv-Node" not in response.headers:
            for raw_name, raw_value in carrier.me:
                response.headers.add(raw_name.decode(), raw_value.decode("latin-1"))
        seconds = time.perf_counter() - flask.g.started
        response.headers["X-Request-Id"] = flask.g.request_id
        metrics.observe(flask.g.label, response.status_code, seconds)
        if seconds > carrier.slow_s:
            log_slow(flask.g.label, response.status_code, seconds, flask.g.request_id)
        return response
