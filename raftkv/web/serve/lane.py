"""The ASGI application: an async lane for the data routes in front of the Flask application.

The lane answers keys, scans, batches and transactions itself, from the same pure functions as
the Flask views, at a fraction of their cost and without a thread per request. Everything else
goes to the Flask application, which runs in a small pool of threads; its request bodies are
read here first, so that no slow client ever holds a thread.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from raftkv.core.operations import Get, Range, Txn
from raftkv.rpc.messages import (
    BatchRequest,
    Failure,
    GetRequest,
    Reply,
    Request,
    Served,
    WriteRequest,
)
from raftkv.rpc.web_config import WebConfig
from raftkv.web.api.auth import Access, AccessError
from raftkv.web.api.cursors import Cursors
from raftkv.web.api.encoding import percent_decode
from raftkv.web.api.exchange import Header, HttpRequest, HttpResponse, join_headers
from raftkv.web.api.limits import BodyLimit
from raftkv.web.api.problems import HttpError
from raftkv.web.api.requests import Plan, ScanStream
from raftkv.web.api.responses import served_headers
from raftkv.web.api.routes import KEY_PREFIX, Action, DataRoutes, Route, declared_length
from raftkv.web.serve.admission import Admission
from raftkv.web.serve.audit import AUDIT
from raftkv.web.serve.engine import Engine
from raftkv.web.serve.guard import RequestGuard, always_headers
from raftkv.web.serve.intake import BodyIntake, Receive
from raftkv.web.serve.mounted import MountedApplication
from raftkv.web.serve.request_ids import HEADER, RequestIds, log_slow
from raftkv.web.serve.unread import PIECE_BYTES, ClientTooSlowError, Send, UnreadAnswers
from raftkv.web.serve.worker_metrics import WorkerMetrics

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

Scope = MutableMapping[str, Any]

_logger = logging.getLogger(__name__)
_KEY_PREFIX_BYTES = len(KEY_PREFIX)
_SMALL_BODY_DIGITS = len("9999")
_READS = frozenset({"GET", "HEAD"})
RESULT_BYTES = 256
"""What one of many results of a batch of writes takes in its answer, about."""

_SMALL_ANSWERS = frozenset({"kv_put", "kv_delete"})
_PROBES = frozenset({b"/healthz", b"/readyz", b"/metrics"})


class Lane:
    """The ASGI application of one worker."""

    def __init__(
        self,
        engine: Engine,
        config: WebConfig,
        operators: "WSGIApplication",
        metrics: WorkerMetrics,
    ) -> None:
        limits = config.limits
        self._engine = engine
        self._limits = limits
        self._metrics = metrics
        self._guard = RequestGuard(config)
        self._access = Access(config.tokens)
        self._routes = DataRoutes(limits, Cursors(bytes.fromhex(config.cursor_key)))
        self._intake = BodyIntake(
            timeout_s=limits.body_timeout_s, bytes_max=limits.bodies_bytes_max
        )
        self._me = served_headers(Served(node=config.node_name))
        self._always = always_headers(config)
        self._admission = Admission(
            wait_s=limits.engine_wait_s,
            floor=limits.in_flight_min,
            ceiling=limits.in_flight_max,
        )
        self._ids = RequestIds()
        self._slow_s = config.slow_request_ms / 1000
        self._answering = 0
        self._unread = UnreadAnswers(wait_s=limits.unread_wait_s, bytes_max=limits.unread_bytes_max)
        self._operators = MountedApplication(
            operators, threads=limits.operator_threads, name="operators"
        )
        # Who watches the node must hear of it whatever keeps the others' threads.
        self._probes = MountedApplication(operators, threads=limits.probe_threads, name="probes")
        metrics.in_flight = lambda: self._admission.in_flight
        metrics.body_bytes = lambda: self._intake.bytes_held

    @property
    def answering(self) -> int:
        """Requests that have arrived in full and are not answered yet; a stop waits for them."""
        return self._answering + self._operators.busy + self._probes.busy

    def close(self) -> None:
        """Give back the threads of the Flask side."""
        self._operators.close()
        self._probes.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (or the server's lifespan), as ASGI defines it."""
        try:
            if scope["type"] != "http":
                return  # the lifespan of the server, of which nothing is needed
            path: bytes = scope["raw_path"]
            if path.startswith(KEY_PREFIX):
                await self._serve(self._routes.key, path[_KEY_PREFIX_BYTES:], scope, receive, send)
            elif (route := self._routes.exact.get(path)) is not None:
                await self._serve(route, b"", scope, receive, send)
            else:
                await self._serve_other(path, scope, receive, send)
        except ClientTooSlowError:
            _logger.debug("the connection ends within an answer")
        except asyncio.CancelledError:
            # Granian cancels the task when the client has gone: the end of it, and no error.
            _logger.debug("the client went away before its answer")

    async def _serve_other(self, path: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve what is no data route by its first look, as nearly all of them are.

        Percent-encoding may spell one in many ways (RFC 3986, section 6.2.2.2); Flask would find
        it all the same, and answer it in a thread.
        """
        if b"%" in path:
            path = unquote_to_bytes(path)
            if path.startswith(KEY_PREFIX):
                raw_key = quote_from_bytes(path[_KEY_PREFIX_BYTES:], safe="").encode()
                await self._serve(self._routes.key, raw_key, scope, receive, send)
                return
            if (route := self._routes.exact.get(path)) is not None:
                await self._serve(route, b"", scope, receive, send)
                return
        mounted = self._probes if path in _PROBES else self._operators
        await self._mounted(mounted, scope, receive, send)

    # --- data routes ---------------------------------------------------------------------------

    async def _serve(
        self, route: Route, raw_key: bytes, scope: Scope, receive: Receive, send: Send
    ) -> None:
        started = time.perf_counter()
        label = "unmatched"
        headers = join_headers(scope["headers"])
        request_id = self._ids.of(headers)
        try:
            self._guard.check(scope["method"], headers)
            action = route.action(scope["method"])
            label = action.label
            response = await self._answer(
                action, raw_key, scope, receive, send, headers=headers, request_id=request_id
            )
        except HttpError as error:
            if isinstance(error, AccessError):
                AUDIT.login_failed(scope.get("client"), error, request_id)
            response = error.response(self._me)
        except ClientTooSlowError:
            response = None  # of a stream, which has begun
        except Exception:
            _logger.exception(
                "request failed: %s %r", scope["method"], scope["raw_path"][:200],
                extra={"facts": {"request_id": request_id}},
            )  # fmt: skip
            bug = HttpError("internal", "see the server's log", definite=False)
            response = bug.response(self._me)
        if response is None:
            self._done(label, 200, time.perf_counter() - started, request_id)
            return
        try:
            await self._send(response, scope["method"], send, request_id)
        finally:
            self._done(label, response.status, time.perf_counter() - started, request_id)

    def _done(self, label: str, status: int, took_s: float, request_id: str) -> None:
        self._metrics.observe(label, status, took_s)
        if took_s > self._slow_s:
            log_slow(label, status, took_s, request_id)

    async def _answer(
        self,
        action: Action,
        raw_key: bytes,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        headers: Mapping[bytes, bytes],
        request_id: str,
    ) -> HttpResponse | None:
        """Return the response; None if it was streamed already."""
        principal = self._access.authorize(headers.get(b"authorization"), action.role)
        if self._admission.is_full and _leaves_little_unread(headers):
            raise _full()  # before more work goes into it: refusing must stay cheap
        body = b""
        if action.body is not None:
            length = declared_length(headers, action.body)
            body = await self._intake.read(receive, action.body, length)
        self._answering += 1
        try:
            plan = action.parse(
                HttpRequest(
                    scope["method"],
                    scope["query_string"],
                    headers,
                    percent_decode(raw_key),
                    body,
                    principal.name,
                    scope.get("client"),
                ),
                self._limits,
            )
            is_small = action.label in _SMALL_ANSWERS
            if not is_small and self._unread.is_full and _may_answer_much(plan):
                raise _unread()
            if isinstance(plan, Plan):
                if plan.role is not None:
                    principal.require(plan.role)
                return plan.respond(await self._call(plan.request, plan.timeout_s, request_id))
            return await self._stream(plan, scope["method"], send, request_id)
        finally:
            self._answering -= 1
            self._intake.release(len(body))

    async def _call(self, request: Request, timeout_s: float, request_id: str) -> Reply:
        if self._admission.is_full:
            raise _full()
        answered = False
        self._admission.enter()
        try:
            reply = await self._engine.call(request, timeout_s, request_id)
            answered = not isinstance(reply.response, Failure)
            return reply
        finally:
            self._admission.leave(answered=answered)

    async def _stream(
        self, scan: ScanStream, method: str, send: Send, request_id: str
    ) -> HttpResponse | None:
        """Send page after page; ``send`` waits for a slow client, so memory stays bounded."""
        request = scan.request
        if request is None:
            raise RuntimeError("a scan begins with a request")
        reply = await self._call(request, scan.timeout_s, request_id)
        chunk = scan.first(reply)
        if isinstance(chunk, HttpResponse):
            return chunk
        headers = scan.headers(reply.served)
        if method == "HEAD":
            return HttpResponse(200, headers)
        named = [*headers, (HEADER, request_id.encode()), *self._always]
        await send({"type": "http.response.start", "status": 200, "headers": named})
        await self._unread.send(send, chunk, more_body=True)
        while scan.request is not None:
            try:
                chunk = scan.feed(await self._call(scan.request, scan.timeout_s, request_id))
            except HttpError as error:
                chunk = scan.fail(error)
            except Exception:
                _logger.exception("a streamed scan failed")
                chunk = scan.fail(HttpError("internal", "see the server's log"))
            await self._unread.send(send, chunk, more_body=True)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return None

    async def _send(self, response: HttpResponse, method: str, send: Send, request_id: str) -> None:
        headers: list[Header] = [
            *response.headers,
            (HEADER, request_id.encode()),
            *self._always,
        ]
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        body = b"" if method == "HEAD" else response.body
        if len(body) > PIECE_BYTES:
            await self._unread.send(send, body)
        else:
            await send({"type": "http.response.body", "body": body, "more_body": False})

    # --- everything else -----------------------------------------------------------------------

    async def _mounted(
        self, mounted: MountedApplication, scope: Scope, receive: Receive, send: Send
    ) -> None:
        method: str = scope["method"]
        body = b""
        try:
            body = await self._operator_body(mounted, scope, receive)
            response = await mounted.answer(scope, body)
        except HttpError as error:
            await self._refuse(error, scope, send)
            return
        except Exception:
            _logger.exception("request failed: %s %r", method, scope["raw_path"][:200])
            await self._refuse(
                HttpError("internal", "see the server's log", definite=False), scope, send
            )
            return
        finally:
            self._intake.release(len(body))
        start = {"type": "http.response.start", "status": response.status}
        await send({**start, "headers": response.headers})
        await self._unread.send(send, b"" if method == "HEAD" else response.body)

    async def _refuse(self, error: HttpError, scope: Scope, send: Send) -> None:
        request_id = self._ids.of(join_headers(scope["headers"]))
        await self._send(error.response(self._me), scope["method"], send, request_id)

    async def _operator_body(
        self, mounted: MountedApplication, scope: Scope, receive: Receive
    ) -> bytes:
        limit = BodyLimit(self._limits.operator_body_bytes_max)
        headers = join_headers(scope["headers"])
        self._guard.check(scope["method"], headers)
        length = declared_length(headers, limit)
        body = b""
        if b"content-length" in headers or b"transfer-encoding" in headers:
            body = await self._intake.read(receive, limit, length)
        if mounted.busy >= self._limits.operator_queue_max:
            self._intake.release(len(body))
            raise HttpError("overloaded", "as many operators' requests wait as may")
        # Pages and documents are not small, and some want no token; probes are always answered.
        if mounted is self._operators and scope["method"] in _READS and self._unread.is_full:
            self._intake.release(len(body))
            raise _unread()
        return body


def _full() -> HttpError:
    return HttpError("overloaded", "as many requests wait for the engine as may")


def _unread() -> HttpError:
    return HttpError("overloaded", "clients do not read what this worker holds for them")


def _may_answer_much(plan: Plan | ScanStream) -> bool:
    """Whether its answer may have to be held: it reads, or has very many results."""
    request = plan.request
    if isinstance(request, BatchRequest):
        return RESULT_BYTES * len(request.operations) > PIECE_BYTES or any(
            isinstance(operation, GetRequest) for operation in request.operations
        )
    if not isinstance(request, WriteRequest):
        return True
    operation = request.command.operation
    return isinstance(operation, Txn) and any(
        isinstance(part, Get | Range) for part in (*operation.then, *operation.otherwise)
    )


def _leaves_little_unread(headers: Mapping[bytes, bytes]) -> bool:
    """Whether the body is so small that it is here already.

    The server closes a connection with more of an unread body to come, and the client, still
    sending, might see that and not the answer.
    """
    declared = headers.get(b"content-length")
    if declared is None:
        return b"transfer-encoding" not in headers
    return len(declared) <= _SMALL_BODY_DIGITS
