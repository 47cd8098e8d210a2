"""The two carriers of the API behind one way to ask: raw bytes in, status, headers, bytes out."""

import asyncio
import io
import json
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

import flask
from fake_engine import AsyncFace, FakeEngine, SyncFace
from werkzeug.test import run_wsgi_app

from raftkv.rpc.web_config import WebConfig
from raftkv.web.api.owners import owner_of
from raftkv.web.app import create_app
from raftkv.web.serve.lane import Lane
from raftkv.web.serve.worker_metrics import WorkerMetrics

Headers = Mapping[str, str]
HOST = "localhost:8000"
ADDRESS = "127.0.0.1"
OWNER = owner_of("(no tokens are set)", ADDRESS)
"""Whose share new names come out of, without tokens."""


def _with_host(headers: Headers | None) -> dict[str, str]:
    """What every client sends; a test that says ``Host`` itself decides, ``""`` for none."""
    said = dict(headers or {})
    if not any(name.lower() == "host" for name in said):
        said["Host"] = HOST
    return {name: value for name, value in said.items() if name.lower() != "host" or value}


@dataclass
class Answer:
    """A response; header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Return the code of a problem document."""
        assert self.headers["content-type"] == "application/problem+json", self
        problem = self.json()
        assert problem["status"] == self.status
        assert problem["type"] == "urn:raftkv:problem:" + problem["code"]
        return str(problem["code"])

    @property
    def definite(self) -> bool:
        """Return what a problem document says about the outcome."""
        return bool(self.json()["definite"])


def _join(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in pairs:
        lower = name.lower()
        joined[lower] = f"{joined[lower]}, {value}" if lower in joined else value
    return joined


class Carrier(Protocol):
    """One way into the API."""

    address: str
    """Where requests come from."""

    def __call__(
        self, method: str, target: bytes, headers: Headers = ..., body: bytes = ...
    ) -> Answer:
        """Make one request; ``target`` is what the request line would say."""
        ...

    def close(self) -> None:
        """Give back threads and loops."""
        ...


class WsgiCarrier:
    """The Flask application under WSGI, as a server would call it."""

    def __init__(self, engine: FakeEngine, config: WebConfig) -> None:
        self.app: flask.Flask = create_app(SyncFace(engine), config)
        self.address = ADDRESS

    def __call__(  # noqa: D102 -- see Carrier
        self, method: str, target: bytes, headers: Headers | None = None, body: bytes = b""
    ) -> Answer:
        path, _, query = target.partition(b"?")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
            "QUERY_STRING": query.decode("latin-1"),
            "REMOTE_ADDR": self.address,
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        if body:
            environ["CONTENT_LENGTH"] = str(len(body))
        for name, value in _with_host(headers).items():
            variable = name.upper().replace("-", "_")
            if variable not in {"CONTENT_TYPE", "CONTENT_LENGTH"}:
                variable = "HTTP_" + variable
            environ[variable] = value
        chunks: Iterable[bytes]
        chunks, status, answer_headers = run_wsgi_app(self.app, environ, buffered=True)
        return Answer(int(status.split()[0]), _join(answer_headers), b"".join(chunks))

    def close(self) -> None:
        """Nothing to give back."""


class AsgiCarrier:
    """The async lane with the Flask application behind it, as Granian would call it."""

    def __init__(self, engine: FakeEngine, config: WebConfig) -> None:
        metrics = WorkerMetrics(config.worker)
        app = create_app(SyncFace(engine), config, metrics)
        self.address = ADDRESS
        self._runner = asyncio.Runner()
        self._runner.get_loop()
        self.lane = Lane(AsyncFace(engine), config, app.wsgi_app, metrics)

    def __call__(  # noqa: D102 -- see Carrier
        self, method: str, target: bytes, headers: Headers | None = None, body: bytes = b""
    ) -> Answer:
        path, _, query = target.partition(b"?")
        pairs = [(n.lower().encode(), v.encode("latin-1")) for n, v in _with_host(headers).items()]
        if body and b"content-length" not in dict(pairs):
            pairs.append((b"content-length", b"%d" % len(body)))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path.decode(errors="replace"),
            "raw_path": path,
            "query_string": query,
            "headers": pairs,
            "server": ("localhost", "80"),
            "client": (self.address, "1"),
        }
        # Two pieces, as a body comes over a network.
        pieces = [body[: len(body) // 2], body[len(body) // 2 :]]
        sent: list[MutableMapping[str, Any]] = []

        async def receive() -> MutableMapping[str, Any]:
            piece = pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        self._runner.run(self.lane(scope, receive, send))
        start, *rest = sent
        assert start["type"] == "http.response.start"
        assert not rest[-1].get("more_body", False)
        joined = _join((n.decode(), v.decode("latin-1")) for n, v in start["headers"])
        return Answer(start["status"], joined, b"".join(m.get("body", b"") for m in rest))

    def close(self) -> None:
        """Give back the loop and the threads of the Flask side."""
        self.lane.close()
        self._runner.close()
