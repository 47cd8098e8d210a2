"""Stock PySyncObj behind an HTTP server, after the library's own example: one entry per command.

Run as ``python -m raftkv.bench.compare.pysyncobj_http PORT SELF PARTNER...``. As in the example
nothing is written to disk and reads are the node's own, which may lag. Unlike it a write is
answered when it is committed, many connections are served at once, and they stay open: without
these the example would be faster only by promising less, or slower only by its server.
"""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pysyncobj import SyncObj, SyncObjException, replicated

WRITE_TIMEOUT_S = 5.0


class KeyValues(SyncObj):  # type: ignore[misc] # PySyncObj ships no types
    """A dictionary that every node has."""

    def __init__(self, address: str, partners: list[str]) -> None:
        super().__init__(address, partners)
        self._values: dict[str, str] = {}

    @replicated  # type: ignore[untyped-decorator] # PySyncObj ships no types
    def set(self, key: str, value: str) -> None:
        """Set a key."""
        self._values[key] = value

    def get(self, key: str) -> str | None:
        """What this node has."""
        return self._values.get(key)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # one packet an answer
    store: KeyValues

    def do_GET(self) -> None:
        value = self.store.get(self.path)
        self._answer(404 if value is None else 200, value or "")

    def do_POST(self) -> None:
        value = self.rfile.read(int(self.headers["content-length"])).decode()
        try:
            self.store.set(self.path, value, sync=True, timeout=WRITE_TIMEOUT_S)
        except SyncObjException:
            self._answer(503, "")
        else:
            self._answer(201, "")

    def _answer(self, status: int, body: str) -> None:
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing: a line for each request would be measured, too."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024


def main(port: str, address: str, *partners: str) -> None:
    """Serve for ever."""
    _Handler.store = KeyValues(address, list(partners))
    with _Server(("127.0.0.1", int(port)), _Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
