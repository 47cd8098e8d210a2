"""A server that does what a script says: answers, lies, hangs up, drips."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

REASONS = {200: "OK", 201: "Created"}


@dataclass
class Received:
    """A request as it arrived; header names in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


Behaviour = Callable[[Received, socket.socket], bool]
"""Takes a request, does something with the connection, says whether to keep it open."""


def answer(status: int, body: bytes = b"", **headers: str) -> Behaviour:
    """A whole answer; underscores in header names are hyphens."""

    def behave(_request: Received, connection: socket.socket) -> bool:
        connection.sendall(head(status, len(body), headers) + body)
        return True

    return behave


def head(status: int, length: int, headers: dict[str, str]) -> bytes:
    """The head of an answer."""
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'X')}", f"Content-Length: {length}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def put_answer(revision: int = 7, version: int = 1) -> Behaviour:
    """The answer to a put that was applied."""
    body = json.dumps({"key": "k", "revision": revision, "version": version}).encode()
    return answer(201 if version == 1 else 200, body, Content_Type="application/json")


def get_answer(value: bytes = b"v", revision: int = 7) -> Behaviour:
    """The answer to a get of a key that exists."""
    return answer(
        200,
        value,
        ETag=f'"{revision}"',
        Raftkv_Version="2",
        Raftkv_Create_Revision="5",
    )


def problem(status: int, code: str, *, definite: bool, **members: object) -> Behaviour:
    """A problem document."""
    document = {"code": code, "detail": f"about {code}", "definite": definite, **members}
    return answer(status, json.dumps(document).encode(), Content_Type="application/problem+json")


def hang_up(_request: Received, _connection: socket.socket) -> bool:
    """The request was read whole, then the connection ends without an answer."""
    return False


def hang_up_in_the_head(_request: Received, connection: socket.socket) -> bool:
    """The connection ends within the status line."""
    connection.sendall(b"HTTP/1.1 20")
    return False


def hang_up_in_the_body(_request: Received, connection: socket.socket) -> bool:
    """The connection ends within the body of a success."""
    connection.sendall(head(200, 100, {}) + b"not a hundred bytes")
    return False


def reset(_request: Received, connection: socket.socket) -> bool:
    """The connection is reset, as when the server is killed with data unread."""
    linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    return False


def silent(_request: Received, connection: socket.socket) -> bool:
    """No answer as long as the client keeps the connection open."""
    with contextlib.suppress(OSError):
        connection.recv(1)
    return False


def drip(_request: Received, connection: socket.socket) -> bool:
    """An answer that comes a byte at a time, always in time for the next one."""
    connection.sendall(head(200, 10_000, {}))
    with contextlib.suppress(OSError):
        for _ in range(10_000):
            connection.sendall(b"x")
            time.sleep(0.02)
    return False


@dataclass
class FakeServer:
    """Serves its script, one behaviour a request, and keeps what it received."""

    script: list[Behaviour] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = "http://{}:{}".format(*self._listener.getsockname())
        self._connections: list[socket.socket] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as reader:
            while (request := _read(reader.readline, reader.read)) is not None:
                with self._lock:
                    self.received.append(request)
                    behave = self.script.pop(0)
                if not behave(request, connection):
                    # The reader holds the socket open too: end it for both.
                    with contextlib.suppress(OSError):
                        if behave is not reset:
                            connection.shutdown(socket.SHUT_RDWR)
                    return

    def close(self) -> None:
        """Stop listening and end all connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _read(line: Callable[[], bytes], read: Callable[[int], bytes]) -> Received | None:
    first = line().decode().split(" ")
    if len(first) != 3:
        return None
    headers = {}
    while (text := line().decode().rstrip("\r\n")) != "":
        name, _, value = text.partition(": ")
        headers[name.lower()] = value
    return Received(first[0], first[1], headers, read(int(headers.get("content-length", "0"))))


@contextlib.contextmanager
def serving(*script: Behaviour) -> Iterator[FakeServer]:
    """A server with this script; the test fails if a part of it was not asked for."""
    server = FakeServer(list(script))
    try:
        yield server
    finally:
        server.close()
    assert not server.script, f"{len(server.script)} behaviours were never asked for"


def nobody() -> str:
    """A URL at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return "http://{}:{}".format(*listener.getsockname())
