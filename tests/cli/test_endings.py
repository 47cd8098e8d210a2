"""How commands end when they are interrupted, or when nobody takes what they print."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator

import pytest

from raftkv.testing.processes import RAFTKV_COMMAND
from tests.support.front_end import FrontEnd, front_end

INTERRUPTED = 130
UNKNOWN = 4
OUTPUT = 74


@pytest.fixture
def served() -> Iterator[FrontEnd]:
    """A front end with one key."""
    with front_end() as made:
        command = (*RAFTKV_COMMAND, "put", "k", "v", "--endpoint", made.url)
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 -- our own command
        yield made


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def start(*arguments: str, stdout: int = subprocess.PIPE) -> "subprocess.Popen[bytes]":
    """Start a command."""
    return subprocess.Popen(  # noqa: S603 -- our own command
        (*RAFTKV_COMMAND, *arguments), stdout=stdout, stderr=subprocess.PIPE
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("put", "k", "v"), UNKNOWN, b"may"),
        (("put", "k", "--file", os.devnull, "--if-absent"), UNKNOWN, b"may"),
        (("del", "k"), UNKNOWN, b"may"),
        (("transfer-leader", "0"), UNKNOWN, b"may"),
        (("get", "k"), INTERRUPTED, b""),
        (("scan",), INTERRUPTED, b""),
        (("status",), INTERRUPTED, b""),
        (("backup", "-"), INTERRUPTED, b""),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_ctrl_c(silent: socket.socket, arguments: tuple[str, ...], code: int, said: bytes) -> None:
    """Never 1, which means "no": what changes something has an unknown outcome, and says so."""
    host, port = silent.getsockname()
    running = start(*arguments, "--endpoint", f"http://{host}:{port}", "--timeout", "60")
    connection, _ = silent.accept()
    with connection, running:
        connection.recv(1)  # the request is under way
        running.send_signal(signal.SIGINT)
        _, stderr = running.communicate(timeout=30)
    assert running.returncode == code, stderr
    assert said in stderr
    assert b"Traceback" not in stderr


ANSWERS = [
    ("get", "k"),
    ("get", "k", "--json"),
    ("get", "none", "--json"),
    ("put", "k", "w"),
    ("scan",),
    ("status",),
    ("backup", "-"),
    ("explain", "k"),
    ("--version",),
    ("--help",),
    ("get", "--help"),
]
PRINTS_NOTHING = {("get", "none", "--json")}


@pytest.mark.parametrize("arguments", ANSWERS, ids=" ".join)
def test_a_full_disk_behind_the_output(served: FrontEnd, arguments: tuple[str, ...]) -> None:
    """One line says that the output could not be written, and the code means nothing else."""
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        running = start(*arguments, *_endpoint(served, arguments), stdout=full)
    finally:
        os.close(full)
    _, stderr = running.communicate(timeout=30)
    if arguments in PRINTS_NOTHING:
        assert running.returncode == 1
        return
    assert running.returncode == OUTPUT, stderr
    assert stderr.startswith(b"raftkv: ")
    assert b"No space left on device" in stderr
    assert stderr.count(b"\n") == 1


@pytest.mark.parametrize("arguments", ANSWERS, ids=" ".join)
def test_a_closed_pipe(served: FrontEnd, arguments: tuple[str, ...]) -> None:
    """Whoever reads no more, as ``head`` does, wants no message; the code is not "no"."""
    read, write = os.pipe()
    os.close(read)
    try:
        running = start(*arguments, *_endpoint(served, arguments), stdout=write)
    finally:
        os.close(write)
    _, stderr = running.communicate(timeout=30)
    if arguments in PRINTS_NOTHING:
        assert running.returncode == 1
        return
    assert (running.returncode, stderr) == (OUTPUT, b"")


def _endpoint(served: FrontEnd, arguments: tuple[str, ...]) -> tuple[str, ...]:
    return () if arguments[-1] in {"--version", "--help"} else ("--endpoint", served.url)


def test_a_terminal_that_cannot_show_a_sign(served: FrontEnd) -> None:
    """It gets an escape in its place, not a traceback."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "RAFTKV_ENDPOINTS": served.url}
    for arguments in (("put", "größe", "żółw"), ("scan",), ("get", "größe", "--json"), ("status",)):
        done = subprocess.run(  # noqa: S603 -- our own command
            (*RAFTKV_COMMAND, *arguments), capture_output=True, check=False, env=environment
        )
        assert b"Traceback" not in done.stderr
        assert done.returncode in {0, 2}  # status tells of what this front end lacks
