"""``raftkv ready``: what health checks and rolling upgrades ask."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from raftkv.cli.main import cli
from raftkv.testing.ports import PortReservation

Answer = tuple[int, bytes]
READY: Answer = (200, b'{"ready": true}')
BUSY: Answer = (503, json.dumps({"ready": False, "failing": ["shard 3: no leader"]}).encode())


@contextmanager
def answering(port: int, answers: list[Answer]) -> Iterator[list[str]]:
    """An HTTP server that gives these answers, the last one for ever; yields what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            status, body = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- its name
            """Say nothing."""

    with HTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield asked
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def port() -> Iterator[int]:
    """Where the node would be."""
    reservation = PortReservation(1)
    yield reservation.ports[0]
    reservation.release()


@pytest.fixture
def config(tmp_path: Path, port: int) -> Path:
    """The configuration of a node that listens on all interfaces."""
    file = tmp_path / "node.toml"
    file.write_text(
        f"""
[cluster]
id = "demo"
replicas = 1
[cluster.nodes]
n1 = "127.0.0.1:{port + 1}"
[node]
name = "n1"
data_dir = "data"
[http]
listen = "0.0.0.0:{port}"
[security]
secret = "of at least 16 bytes"
insecure = true
"""
    )
    file.chmod(0o600)
    return file


def ready(config: Path, *options: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(cli, ["ready", "--config", str(config), *options])


def test_a_ready_node(config: Path, port: int) -> None:
    """Code 0; a node that listens everywhere is asked on loopback."""
    with answering(port, [READY]) as asked:
        done = ready(config)
    assert (done.exit_code, done.stdout) == (0, "n1 is ready\n")
    assert asked == ["/readyz"]


def test_a_node_that_is_not_ready_says_why(config: Path, port: int) -> None:
    """The checks that fail are in the one line."""
    with answering(port, [BUSY]):
        done = ready(config)
    assert done.exit_code == 1
    assert done.stderr == "raftkv: n1 is not ready: shard 3: no leader\n"


@pytest.mark.parametrize("body", [b"oops", b"[]", b'{"failing": 3}'])
def test_an_answer_without_reasons_is_named_by_its_status(
    config: Path, port: int, body: bytes
) -> None:
    """Whatever answers there, the command does not stumble over it."""
    with answering(port, [(500, body)]):
        done = ready(config)
    assert done.exit_code == 1
    assert done.stderr == "raftkv: n1 is not ready: it answers 500\n"


def test_nobody_there(config: Path) -> None:
    """A node that does not run is not ready."""
    done = ready(config)
    assert done.exit_code == 1
    assert "does not answer" in done.stderr


def test_wait_asks_until_it_is(config: Path, port: int) -> None:
    """With --wait a node that comes up is waited for."""
    with answering(port, [BUSY, BUSY, READY]) as asked:
        done = ready(config, "--wait", "60")
    assert done.exit_code == 0
    assert len(asked) == 3
