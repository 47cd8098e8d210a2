"""A real HTTP worker process on loopback: raw bytes, half requests, slow clients, its end."""

import contextlib
import json
import os
import re
import resource
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raftkv.interpreter import PYTHON_M
from raftkv.web.worker import DESCRIPTORS_KEPT, YIELDED_NICENESS, connections_max

_SCRIPT = Path(__file__).with_name("fake_worker.py")
_ROOT = Path(__file__).parents[2]
_PATIENCE_S = 20.0


class Worker:
    """One worker process over the fake engine; ``engine`` is the pipe that stands for its life."""

    def __init__(self, *, delay_s: float = 0.0, stderr: int | None = None, **limits: Any) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
            self.port: int = listener.getsockname()[1]
            gone, self.engine = os.pipe()
            self.process = subprocess.Popen(  # noqa: S603 -- our own script
                [sys.executable, str(_SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                pass_fds=(listener.fileno(), gone),
                env={
                    **os.environ,
                    "PYTHONPATH": str(_ROOT),
                    "FAKE_ENGINE_FD": str(gone),
                    "FAKE_ENGINE_DELAY_S": str(delay_s),
                },
            )
            os.close(gone)
            config = {"node_name": "n1", "listen_fd": listener.fileno(), "limits": limits}
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.write(json.dumps(config).encode())
            self.process.stdin.close()
            assert self.process.stdout.readline() == b"ready\n"

    def connect(self) -> socket.socket:
        """Return a connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=_PATIENCE_S)

    def exchange(self, request: bytes) -> tuple[int, bytes]:
        """Send bytes and return status and body of the answer."""
        with self.connect() as connection:
            connection.sendall(request)
            return read_answer(connection)

    def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Make one ordinary request."""
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        return self.exchange(head.encode() + body)

    def close(self) -> None:
        """End the process, however it is."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(_PATIENCE_S)
        for output in (self.process.stdout, self.process.stderr):
            if output is not None:
                output.close()
        os.close(self.engine)


def read_answer(connection: socket.socket) -> tuple[int, bytes]:
    """Read one answer with a Content-Length."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return 0, data
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    match = re.search(rb"content-length: (\d+)", head)
    length = int(match[1]) if match else 0
    while len(body) < length:
        body += connection.recv(65536)
    return int(head.split()[1]), body


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """Return a worker that the tests of this module share."""
    with contextlib.closing(Worker(value_bytes_max=2**20, body_timeout_s=1.0)) as made:
        yield made


@contextlib.contextmanager
def _own(**options: Any) -> Iterator[Worker]:
    with contextlib.closing(Worker(**options)) as made:
        yield made


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("a//b", b"a//b"),
        ("/", b"/"),
        ("a/../b", b"a/../b"),
        ("..", b".."),
        ("%00%FF", b"\0\xff"),
        ("a%2Fb", b"a/b"),
        ("%0D%0A", b"\r\n"),
    ],
)
def test_bytes_of_a_path_survive_the_server(worker: Worker, path: str, key: bytes) -> None:
    """Nothing between the socket and the key folds, decodes or drops a byte."""
    status, _ = worker.request("PUT", f"/v1/kv/{path}", b"v")
    assert status in {200, 201}
    assert worker.request("GET", f"/v1/kv/{path}") == (200, b"v")
    quoted = "".join(f"%{byte:02X}" for byte in key)
    assert worker.request("GET", f"/v1/kv/{quoted}") == (200, b"v")
    assert worker.request("GET", f"/v1/explain/{path}")[0] == 200


def test_worker_yields_to_its_engine(worker: Worker) -> None:
    """Where there is not processor enough for both, the engine runs first."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getpriority(os.PRIO_PROCESS, worker.process.pid) == own + YIELDED_NICENESS


def test_refusal_before_the_body_keeps_the_connection() -> None:
    """A full worker leaves a small body unread, and the next request is understood all the same."""
    with _own(in_flight_max=0) as full, full.connect() as connection:
        for _ in range(3):
            request = b"PUT /v1/kv/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc"
            connection.sendall(request)
            status, body = read_answer(connection)
            assert (status, json.loads(body)["code"]) == (503, "overloaded")


def test_largest_value(worker: Worker) -> None:
    """A value of exactly the limit goes in and comes back."""
    value = os.urandom(2**20)
    assert worker.request("PUT", "/v1/kv/large", value)[0] in {200, 201}
    assert worker.request("GET", "/v1/kv/large") == (200, value)


def test_declared_oversize_is_refused_unread(worker: Worker) -> None:
    """A body that says itself that it is too large is 413 before a byte of it came."""
    head = b"PUT /v1/kv/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n"
    assert worker.exchange(head)[0] == 413
    with_expect = head.replace(b"Host: localhost", b"Host: localhost\r\nExpect: 100-continue")
    assert worker.exchange(with_expect)[0] == 413


def test_chunked_oversize_is_cut_off(worker: Worker) -> None:
    """A body without a length is refused once it is over the limit, not read to its end."""
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    with worker.connect() as connection:
        connection.sendall(
            b"PUT /v1/kv/k HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        sent = 0
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while sent < 2**26:
                connection.sendall(chunk)
                sent += 65536
        assert sent < 2**26
        assert read_answer(connection)[0] == 413


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GARBAGE\r\n\r\n",
        b"GET /v1/kv/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: abc\r\n\r\n",
        b"GET /v1/kv/\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/kv/%zz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PUT /v1/kv/k HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_broken_requests(worker: Worker, request_bytes: bytes) -> None:
    """What is no HTTP, or no key, is 400, and the worker goes on."""
    status, _ = worker.exchange(request_bytes)
    assert status == 400
    assert worker.request("GET", "/healthz") == (200, b"ok\n")


def test_half_sent_body_is_given_up(worker: Worker) -> None:
    """A body that stops is 408 after its time, also on the Flask side."""
    for target in (b"PUT /v1/kv/half", b"POST /v1/shards/0/transfer-leader"):
        head = target + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc"
        assert worker.exchange(head)[0] == 408
    assert worker.request("GET", "/v1/kv/half")[0] == 404


def test_client_that_leaves_in_its_body(worker: Worker) -> None:
    """Half a value is never written."""
    with worker.connect() as connection:
        connection.sendall(
            b"PUT /v1/kv/left HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc"
        )
    assert worker.request("GET", "/v1/kv/left")[0] == 404


def test_slow_bodies_hold_up_nobody(worker: Worker) -> None:
    """A hundred bodies a byte at a time, for data and for Flask, leave the others their speed."""
    slow = [worker.connect() for _ in range(100)]
    stop = threading.Event()
    for i, connection in enumerate(slow):
        target = b"PUT /v1/kv/s" if i % 2 else b"POST /v1/shards/0/transfer-leader"
        connection.sendall(target + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\n")

    def drip() -> None:
        while not stop.wait(0.2):
            for connection in slow:
                with contextlib.suppress(OSError):
                    connection.send(b"x")

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        started = time.monotonic()
        for _ in range(50):
            assert worker.request("PUT", "/v1/kv/quick", b"v")[0] in {200, 201}
            assert worker.request("GET", "/healthz")[0] == 200
        # All slow bodies have their time; had they held the threads, this would have waited.
        assert time.monotonic() - started < 10
        assert {read_answer(connection)[0] for connection in slow} == {408}
    finally:
        stop.set()
        dripping.join()
        for connection in slow:
            connection.close()


def test_many_idle_connections(worker: Worker) -> None:
    """Five thousand open connections leave room for the next one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 5000
    if hard < wanted + 500:
        pytest.fail(f"the open file limit of {hard} is too small for this test")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    idle: list[socket.socket] = []
    try:
        idle.extend(worker.connect() for _ in range(wanted))
        idle[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_answer(idle[-1])[0] == 200
        assert worker.request("PUT", "/v1/kv/many", b"v")[0] in {200, 201}
    finally:
        for connection in idle:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_clients_that_read_nothing_hold_up_nobody(worker: Worker) -> None:
    """Neither with pages in a row nor with streams, however their path is spelled."""
    for i in range(24):
        assert worker.request("PUT", f"/v1/kv/wide/{i:03}", b"x" * 2**20)[0] in {200, 201}
    end = b" HTTP/1.1\r\nHost: localhost\r\nAccept: application/x-ndjson\r\n\r\n"
    asked = [b"GET /openapi.json" + end, b"GET /%761/kv?prefix=wide/" + end]
    silent = [socket.socket() for _ in range(32)]
    try:
        for i, connection in enumerate(silent):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", worker.port))
            connection.sendall(asked[i % 2] * 100)
        time.sleep(1.0)  # most have filled all buffers; a test that comes too early sees less
        for _ in range(20):
            for path in ("/readyz", "/healthz", "/metrics", "/v1/status", "/"):
                assert worker.request("GET", path)[0] == 200
            assert worker.request("PUT", "/v1/kv/beside", b"v")[0] in {200, 201}
    finally:
        for connection in silent:
            connection.close()


def test_an_answer_that_nobody_reads_has_an_end() -> None:
    """The worker does not keep a large answer for a client that never takes it."""
    with _own(value_bytes_max=2**24, unread_wait_s=0.2, stderr=subprocess.PIPE) as worker:
        value = b"x" * 2**24
        assert worker.request("PUT", "/v1/kv/large", value)[0] == 201
        with worker.connect() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            connection.sendall(b"GET /v1/kv/large HTTP/1.1\r\nHost: localhost\r\n\r\n")
            # The worker says so in its log; only from then on is anything read here.
            assert worker.process.stderr is not None
            assert b"was given up" in worker.process.stderr.readline()
            got = 0
            while piece := connection.recv(2**20):
                got += len(piece)
        assert 0 < got < len(value)
        assert worker.request("GET", "/v1/kv/large") == (200, value)


def test_stream_waits_for_its_reader(worker: Worker) -> None:
    """A stream larger than any buffer does not pile up in the worker for a client that waits."""
    value = b"x" * 2**19
    for i in range(64):
        assert worker.request("PUT", f"/v1/kv/stream/{i:03}", value)[0] in {200, 201}
    before = _resident_bytes(worker.process.pid)
    with worker.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.sendall(
            b"GET /v1/kv?prefix=stream/ HTTP/1.1\r\nHost: localhost\r\n"
            b"Accept: application/x-ndjson\r\nConnection: close\r\n\r\n"
        )
        first = connection.recv(1024)
        assert first.startswith(b"HTTP/1.1 200")
        time.sleep(0.5)
        assert _resident_bytes(worker.process.pid) - before < 20 * 2**20
        tail = first
        total = len(first)
        while piece := connection.recv(2**16):
            total += len(piece)
            tail = (tail + piece)[-200:]
    assert b'{"done":true,"count":64,' in tail
    assert total > 64 * len(value)


def _resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def test_stop_finishes_what_is_in_flight() -> None:
    """SIGTERM lets a request be answered, waits for no idle or half-sent one, and exits 0."""
    with _own(delay_s=0.5) as worker, worker.connect() as idle, worker.connect() as half:
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_answer(idle)[0] == 200
        half.sendall(b"GET /v1/kv/k HT")
        with worker.connect() as waiting:
            waiting.sendall(b"GET /v1/kv/k HTTP/1.1\r\nHost: localhost\r\n\r\n")
            selector = selectors.DefaultSelector()
            selector.register(waiting, selectors.EVENT_READ)
            assert not selector.select(0.2)
            selector.close()
            worker.process.send_signal(signal.SIGTERM)
            assert read_answer(waiting)[0] == 404
        assert worker.process.wait(_PATIENCE_S) == 0


def test_worker_ends_with_its_engine() -> None:
    """Once the engine's socket closes the worker is gone at once, and its port with it."""
    with _own(delay_s=60.0) as worker, worker.connect() as waiting:
        waiting.sendall(b"GET /v1/kv/k HTTP/1.1\r\nHost: localhost\r\n\r\n")
        os.write(worker.engine, b"x")
        assert worker.process.wait(_PATIENCE_S) == 3
        with pytest.raises(ConnectionRefusedError):
            worker.connect()


def test_ctrl_c_is_left_to_the_engine() -> None:
    """SIGINT reaches the whole process group; a worker waits for its engine to stop it."""
    with _own() as worker:
        worker.process.send_signal(signal.SIGINT)
        assert worker.request("GET", "/healthz")[0] == 200


def test_worker_without_an_engine() -> None:
    """A worker whose engine cannot be reached says so in one line and exits."""
    config = {"node_name": "n1", "port": 0, "engine_socket": "/nonexistent/engine.sock"}
    done = subprocess.run(  # noqa: S603 -- our own module
        [*PYTHON_M, "raftkv.web.worker"],
        input=json.dumps(config).encode(),
        capture_output=True,
        check=False,
        timeout=_PATIENCE_S,
        cwd=_ROOT,
    )
    assert done.returncode == 2
    assert b"/nonexistent/engine.sock" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_bad_settings() -> None:
    """Settings that do not fit are refused with the name of the member."""
    done = subprocess.run(  # noqa: S603 -- our own module
        [*PYTHON_M, "raftkv.web.worker"],
        input=b'{"node_name": "n1", "colour": 5}',
        capture_output=True,
        check=False,
        timeout=_PATIENCE_S,
        cwd=_ROOT,
    )
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"colour" in done.stderr


def test_worker_dies_with_its_parent() -> None:
    """When the engine is killed the kernel kills its workers: none goes on serving."""
    parent_code = (
        "import subprocess, sys, time\n"
        "worker = subprocess.Popen([sys.executable, sys.argv[1]],"
        " stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        'worker.stdin.write(b\'{"node_name": "n1", "port": 0}\')\n'
        "worker.stdin.close()\n"
        "worker.stdout.readline()\n"
        "print(worker.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(  # noqa: S603 -- our own script
        [sys.executable, "-c", parent_code, str(_SCRIPT)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
    )
    assert parent.stdout is not None
    worker_pid = int(parent.stdout.readline())
    handle = os.pidfd_open(worker_pid)
    try:
        parent.kill()
        selector = selectors.DefaultSelector()
        selector.register(handle, selectors.EVENT_READ)
        assert selector.select(_PATIENCE_S), "the worker outlived its parent"
        selector.close()
    finally:
        os.close(handle)
        parent.wait()
        parent.stdout.close()


def test_connections_beyond_the_descriptors_wait_in_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Accepting one without a descriptor for it would be tried again and again."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    assert connections_max(500) == 500
    assert connections_max(10_000) == 1024 - DESCRIPTORS_KEPT
    monkeypatch.setattr(resource, "getrlimit", lambda _: (32, 32))
    assert connections_max(10_000) == 1


def test_a_worker_with_few_descriptors_has_places_for_more_than_one_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A single place is held by one busy client, and nobody else is answered, not even /readyz."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    assert connections_max(10_000) >= 20
