"""A client brings no server: what runs with the dependencies of the client alone."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from raftkv.cli.main import COMMANDS, EXIT_NO_SERVER, SERVER_COMMANDS, SERVER_MODULES

WITHOUT_SERVER = f"import sys; sys.modules.update(dict.fromkeys({SERVER_MODULES!r}));"
"""Python takes a module that is None in ``sys.modules`` for one that is not there."""
RAFTKV = WITHOUT_SERVER + "from raftkv.cli.main import main; main()"


def python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own."""
    return subprocess.run(  # noqa: S603 -- our own program
        [sys.executable, "-P", "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


class _OneKey(BaseHTTPRequestHandler):
    """A node as far as one get goes."""

    def do_GET(self) -> None:
        """Answer with a value."""
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.send_header("ETag", '"17"')
        self.send_header("Raftkv-Version", "1")
        self.send_header("Raftkv-Create-Revision", "17")
        self.end_headers()
        self.wfile.write(b"apple")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    """The URL of a server that has one value for every key."""
    with HTTPServer(("127.0.0.1", 0), _OneKey) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_client_works_without_the_server(endpoint: str) -> None:
    """``import raftkv`` and a get need none of the server's packages."""
    program = WITHOUT_SERVER + (
        "import raftkv;"
        "kv = raftkv.Client(sys.argv[1]);"
        "print([getattr(raftkv, name).__name__ for name in raftkv.__all__[:-1]]);"
        "print(kv.get('fruit').value)"
    )
    done = python(program, endpoint)
    assert done.stderr == ""
    assert done.stdout.splitlines()[1] == "b'apple'"


def test_get_on_the_command_line_works_without_the_server(endpoint: str) -> None:
    """``raftkv get`` is the client and nothing else."""
    done = python(RAFTKV, "get", "fruit", "--endpoint", endpoint)
    assert (done.returncode, done.stdout, done.stderr) == (0, "apple", "")


def test_every_other_command_of_a_client_starts_without_the_server() -> None:
    """Each one that is not said to be the server's imports none of it."""
    program = WITHOUT_SERVER + (
        "import json; from raftkv.cli.main import cli;"
        "print(json.dumps([cli.get_command(None, name).name for name in sys.argv[1:]]))"
    )
    names = [name for name in COMMANDS if name not in SERVER_COMMANDS]
    done = python(program, *names)
    assert done.stderr == ""
    assert json.loads(done.stdout) == names


@pytest.mark.parametrize("command", sorted(SERVER_COMMANDS))
def test_a_command_of_the_server_says_what_to_install(command: str) -> None:
    """In one line, with an exit code of its own, before it looks at anything else."""
    done = python(RAFTKV, command, "--help")
    (line,) = done.stderr.splitlines()
    assert done.returncode == EXIT_NO_SERVER
    assert line.startswith(f"raftkv: {command} needs the server (")
    assert "pip install 'raftkv[server]'" in line


def test_tests_of_a_client_can_have_the_plugin_installed() -> None:
    """The pytest plugin is loaded by everybody's pytest, with a server or without."""
    done = python(WITHOUT_SERVER + "import raftkv.testing.fixtures")
    assert done.stderr == ""
