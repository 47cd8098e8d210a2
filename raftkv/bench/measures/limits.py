"""What no store can be faster than here: one sync, one round trip, one bare answer."""

import contextlib
import multiprocessing
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from raftkv.bench.load.generator import Load
from raftkv.bench.load.run_load import LoadError, LoadResult, run_load
from raftkv.bench.processes import descendants_of
from raftkv.interpreter import PYTHON_M

SYNCS = 500
ROUND_TRIPS = 2000
RECORD_BYTES = 256

_REGION_BYTES = 4 * 1024 * 1024
_START_S = 20.0
_LOOK_S = 0.05


def sync_s(directory: Path | None) -> float:
    """Median seconds of writing 256 bytes behind the last and one fdatasync, in ``directory``."""
    with tempfile.TemporaryFile(dir=directory) as file:
        descriptor = file.fileno()
        os.posix_fallocate(descriptor, 0, _REGION_BYTES)
        os.fsync(descriptor)
        times = []
        for number in range(SYNCS):
            began = time.perf_counter()
            os.pwrite(descriptor, bytes(RECORD_BYTES), number * RECORD_BYTES)
            os.fdatasync(descriptor)
            times.append(time.perf_counter() - began)
    return median(times)


def round_trip_s() -> float:
    """Median seconds of one byte to another process and back, over TCP on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        echo = multiprocessing.get_context("fork").Process(target=_echo, args=(server,))
        echo.start()
        with socket.create_connection(server.getsockname()) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            times = []
            for _ in range(ROUND_TRIPS):
                began = time.perf_counter()
                connection.sendall(b".")
                connection.recv(1)
                times.append(time.perf_counter() - began)
        echo.join()
    return median(times)


def _echo(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := connection.recv(1):
            connection.sendall(data)


def bare_answer(
    _environ: dict[str, object], start_response: Callable[[str, list[tuple[str, str]]], object]
) -> list[bytes]:
    """Answer "ok": the least that a WSGI application can do."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]


def bare_wsgi(seconds: float, connections: int) -> LoadResult:
    """Load :func:`bare_answer` under Granian with one worker.

    Raises:
        LoadError: It does not start.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [
        *(*PYTHON_M, "granian", "--interface", "wsgi", "--workers", "1"),
        *("--host", "127.0.0.1", "--port", str(port), "--log-level", "error"),
        "raftkv.bench.measures.limits:bare_answer",
    ]
    with subprocess.Popen(command) as server:  # noqa: S603 -- our own command
        try:
            wait_for(port)
            load = Load((("127.0.0.1", port),), connections, seconds, warmup_s=1.0)
            return run_load(load, servers={"server": [server.pid, *descendants_of(server.pid)]})
        finally:
            server.terminate()


def wait_for(port: int) -> None:
    """Until something listens there on loopback; LoadError if nothing does in time."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        with (
            contextlib.suppress(ConnectionRefusedError),
            socket.create_connection(("127.0.0.1", port)),
        ):
            return
        time.sleep(_LOOK_S)
    raise LoadError(f"what was to listen at port {port} does not start")
