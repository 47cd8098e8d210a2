"""The Flask application behind the async lane: run in a few threads, its answers sent by the loop.

A thread is held while the application runs, which asks the engine and waits for nobody else: the
request's body was read before, and the whole answer is handed back. So no client, however slowly
it sends or reads, holds a thread.
"""

import asyncio
import io
import sys
import urllib.parse
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from raftkv.web.api.exchange import Header, HttpResponse

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

ANSWER_BYTES_MAX = 64 * 2**20
"""Far above any page or status; an answer over it is a bug."""

Scope = Mapping[str, Any]


class MountedApplication:
    """Runs a WSGI application in ``threads`` threads of its own."""

    def __init__(self, app: "WSGIApplication", *, threads: int, name: str) -> None:
        self._app = app
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self.busy = 0
        """Requests that run or wait for a thread."""

    async def answer(self, scope: Scope, body: bytes) -> HttpResponse:
        """Return the application's answer to a request of ASGI whose body is here."""
        loop = asyncio.get_running_loop()
        running = self._executor.submit(self._run, environ_of(scope, body))
        self.busy += 1

        def ended(_: "Future[HttpResponse]") -> None:
            # A client that leaves ends the wait, not the thread.
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._ended)

        running.add_done_callback(ended)
        return await asyncio.wrap_future(running)

    def close(self) -> None:
        """Give back the threads."""
        self._executor.shutdown()

    def _ended(self) -> None:
        self.busy -= 1

    def _run(self, environ: dict[str, Any]) -> HttpResponse:
        started: list[tuple[str, list[tuple[str, str]]]] = []

        def start_response(
            status: str, headers: list[tuple[str, str]], _exc_info: object = None
        ) -> Any:
            started.append((status, headers))

        chunks = self._app(environ, start_response)
        try:
            body = _joined(chunks)
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()
        status, headers = started[-1]
        encoded: list[Header] = [
            (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers
        ]
        return HttpResponse(int(status.split()[0]), encoded, body)


def environ_of(scope: Scope, body: bytes) -> dict[str, Any]:
    """Return what WSGI (PEP 3333) calls a request; every byte of its path survives."""
    server = scope.get("server") or ("localhost", 80)
    client = scope.get("client") or ("", 0)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": urllib.parse.unquote_to_bytes(scope["raw_path"]).decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1] or 0),
        "REMOTE_ADDR": client[0],
        "REMOTE_PORT": str(client[1]),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for raw_name, raw_value in scope["headers"]:
        name = raw_name.decode("latin-1").upper().replace("-", "_")
        if name not in {"CONTENT_LENGTH", "CONTENT_TYPE"}:
            name = f"HTTP_{name}"
        value = raw_value.decode("latin-1")
        environ[name] = f"{environ[name]},{value}" if name in environ else value
    return environ


def _joined(chunks: Iterable[bytes]) -> bytes:
    body, size = [], 0
    for chunk in chunks:
        size += len(chunk)
        if size > ANSWER_BYTES_MAX:
            raise ValueError(f"an answer of more than {ANSWER_BYTES_MAX} bytes")
        body.append(chunk)
    return b"".join(body)
