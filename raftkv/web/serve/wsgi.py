"""Carries the pure functions over WSGI: what Flask's views share."""

from collections.abc import Callable, Iterator, Sequence

import flask
from werkzeug.exceptions import RequestEntityTooLarge

from raftkv.rpc.messages import Failure, Reply, Request, Served, TransferRequest
from raftkv.rpc.web_config import Limits, Role, WebConfig
from raftkv.web.api.auth import AccessError, Authenticator
from raftkv.web.api.exchange import HttpRequest, HttpResponse
from raftkv.web.api.limits import BodyLimit
from raftkv.web.api.requests import Plan, ScanStream
from raftkv.web.api.responses import served_headers
from raftkv.web.api.routes import KEY_PREFIX, Action, Route, declared_length, too_large
from raftkv.web.serve.audit import AUDIT
from raftkv.web.serve.engine import SyncEngine
from raftkv.web.serve.request_ids import RequestIds


class ApiResponse(flask.Response):
    """A response that has no content type unless it is given one (304 has none)."""

    default_mimetype = None


class Carrier:
    """Carries the pure functions over WSGI."""

    def __init__(self, engine: SyncEngine, config: WebConfig, auth: Authenticator) -> None:
        self.engine = engine
        self.limits: Limits = config.limits
        self.auth = auth
        self.me = served_headers(Served(node=config.node_name))
        self.ids = RequestIds()
        self.slow_s = config.slow_request_ms / 1000

    def authenticate(self, header: bytes | None, role: Role, *, page: bool = False) -> None:
        """Check the ``Authorization`` header as the authenticator does, and note who it is."""
        try:
            flask.g.token = self.auth.check(header, role, page=page)
        except AccessError as error:
            AUDIT.login_failed(flask.request.remote_addr, error, flask.g.request_id)
            raise

    def transfer(self, request: TransferRequest, timeout_s: float) -> Reply:
        """Hand leadership over, and note who asked for it and what came of it."""
        reply = self.engine.call(request, timeout_s, flask.g.request_id)
        response = reply.response
        AUDIT.done(
            f"transfer of shard {request.shard} to {request.target or 'the preferred node'}",
            f"refused, {response.detail}" if isinstance(response, Failure) else "done",
            client=flask.request.remote_addr,
            token=flask.g.token,
            request_id=flask.g.request_id,
        )
        return reply

    def data_view(self, route: Route) -> Callable[..., flask.Response]:
        """Return the view for a data route."""

        def view(key: str = "") -> flask.Response:
            del key  # routing has made text of it; the bytes are taken from the environment
            return self._data(route.action(flask.request.method))

        return view

    def _data(self, action: Action) -> flask.Response:
        flask.g.label = action.label
        headers = request_headers()
        self.authenticate(headers.get(b"authorization"), action.role)
        body = b""
        if action.body is not None:
            declared_length(headers, action.body)  # refuses here what says that it is too large
            body = read_body(action.body)
        plan = action.parse(
            HttpRequest(
                flask.request.method,
                flask.request.query_string,
                headers,
                path_bytes()[len(KEY_PREFIX) :],
                body,
                flask.g.token,
                flask.request.remote_addr,
            ),
            self.limits,
        )
        if isinstance(plan, Plan):
            if plan.role is not None:
                self.authenticate(headers.get(b"authorization"), plan.role)
            return to_flask(plan.respond(self._ask(plan.request, plan.timeout_s)))
        return self._stream(plan)

    def _ask(self, request: Request, timeout_s: float) -> Reply:
        return self.engine.call(request, timeout_s, flask.g.request_id)

    def _stream(self, scan: ScanStream) -> flask.Response:
        if scan.request is None:
            raise RuntimeError("a scan begins with a request")
        reply = self._ask(scan.request, scan.timeout_s)
        first = scan.first(reply)
        if isinstance(first, HttpResponse):
            return to_flask(first)
        response = ApiResponse(self._pages(scan, first, flask.g.request_id))
        for name, value in scan.headers(reply.served):
            response.headers.add(name.decode(), value.decode("latin-1"))
        return response

    def _pages(self, scan: ScanStream, first: bytes, request_id: str) -> Iterator[bytes]:
        yield first
        while scan.request is not None:
            yield scan.feed(self.engine.call(scan.request, scan.timeout_s, request_id))


Listed = Sequence[tuple[str, Callable[..., flask.Response], str]]
"""Paths with their views and the one method that each answers."""


def blueprint_of(name: str, listed: Listed) -> flask.Blueprint:
    """Make the routes."""
    blueprint = flask.Blueprint(name, __name__)
    for path, view, method in listed:
        blueprint.add_url_rule(
            path, view.__name__, view, methods=[method], provide_automatic_options=False
        )
    return blueprint


def path_bytes() -> bytes:
    """Return the decoded path, byte for byte; WSGI hands it over as Latin-1."""
    path: str = flask.request.environ["PATH_INFO"]
    return path.encode("latin-1")


def request_headers() -> dict[bytes, bytes]:
    """Return the request's headers as the pure functions expect them."""
    return {
        name.lower().encode("latin-1"): value.encode("latin-1")
        for name, value in flask.request.headers.items()
    }


def read_body(limit: BodyLimit) -> bytes:
    """Return the body, reading no more of it than it may have."""
    flask.request.max_content_length = limit.bytes_max
    try:
        return flask.request.get_data(cache=False)
    except RequestEntityTooLarge as error:
        raise too_large(limit) from error


def to_flask(response: HttpResponse) -> flask.Response:
    """Translate a finished response."""
    return ApiResponse(
        response.body,
        response.status,
        [(name.decode(), value.decode("latin-1")) for name, value in response.headers],
    )
