"""The real front end over a state machine in this process, for a client to talk to."""

import contextlib
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from raftkv.rpc.messages import Reply, Request
from raftkv.rpc.web_config import WebConfig
from raftkv.web.app import create_app
from tests.support.fake_engine import FakeEngine


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """The standard library's server; Werkzeug's loses bytes of a path that are not UTF-8."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    """Does not write every request to standard error."""

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class _InThread:
    """The engine as the Flask side asks it."""

    engine: FakeEngine

    def call(self, request: Request, timeout_s: float, request_id: str = "") -> Reply:
        """Answer at once."""
        del request_id  # is for logs
        return self.engine.answer(request, timeout_s)


@dataclass(frozen=True)
class FrontEnd:
    """Where it listens, and the engine behind it."""

    url: str
    engine: FakeEngine


@contextlib.contextmanager
def front_end(**settings: object) -> Iterator[FrontEnd]:
    """Serve the Flask application; ``settings`` are those of WebConfig."""
    engine = FakeEngine()
    app = create_app(_InThread(engine), WebConfig(node_name="n1", **settings))  # type: ignore[arg-type]
    server = make_server("127.0.0.1", 0, app, server_class=_Server, handler_class=_Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield FrontEnd(f"http://127.0.0.1:{server.server_port}", engine)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
