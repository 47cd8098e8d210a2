"""The commands that talk to a cluster: what they print and the code they end with."""

import base64
import hashlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from raftkv.cli.main import COMMANDS, cli
from tests.support.fake_server import Received, problem, serving
from tests.support.front_end import FrontEnd, front_end

Run = Callable[..., Result]


def run_python(program: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a program in an interpreter of its own."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, check=False, capture_output=True)  # noqa: S603 -- our own


@pytest.fixture
def served() -> Iterator[FrontEnd]:
    """A front end with an empty store."""
    with front_end() as made:
        yield made


@pytest.fixture
def run(served: FrontEnd) -> Run:
    """Run a raftkv command against it."""

    def invoke(*arguments: str, stdin: bytes | None = None) -> Result:
        environment = {"RAFTKV_ENDPOINTS": served.url, "RAFTKV_TOKEN": ""}
        return CliRunner().invoke(cli, arguments, input=stdin, env=environment)

    return invoke


def test_put_get_del(run: Run) -> None:
    """The everyday commands and what they say."""
    assert run("put", "k", "hello").stdout.startswith("created, revision ")
    assert run("put", "k", "again").stdout.startswith("replaced, revision ")
    got = run("get", "k")
    assert (got.exit_code, got.stdout_bytes) == (0, b"again")
    assert run("del", "k").stdout == "deleted\n"


def test_a_value_that_looks_like_an_option_is_said_how_to_give(run: Run) -> None:
    """Click takes -5 for an option; behind -- it is a value."""
    refused = run("put", "negative", "-5")
    assert refused.exit_code == 2
    assert "No such option" in refused.stderr
    assert "raftkv put negative -- -5" in refused.stderr
    assert run("put", "negative", "--", "-5").exit_code == 0
    assert run("get", "negative").stdout == "-5"
    assert " -- " not in run("put", "a", "b", "--if-absen").stderr, "that one is a slip"
    assert " -- " not in run("status", "-5").stderr, "that takes no argument"


def test_two_arguments_of_a_scan_are_said_to_be_no_range(run: Run) -> None:
    """Who gives two keys means from the first to the second."""
    refused = run("scan", "a", "b")
    assert refused.exit_code == 2
    assert "raftkv scan --start a --end b" in refused.stderr


def test_what_is_not_there_ends_with_1(run: Run) -> None:
    """A missing key is an answer, not an error, and scripts can tell."""
    got = run("get", "none")
    assert (got.exit_code, got.stdout, got.stderr) == (1, "", "raftkv: no such key: none\n")
    assert (run("del", "none").exit_code, run("del", "none").stdout) == (1, "no such key\n")


def test_a_condition_that_does_not_hold_ends_with_1(run: Run) -> None:
    """--if-absent and --if-revision decide on the server."""
    assert run("put", "k", "1", "--if-absent").exit_code == 0
    revision = json.loads(run("get", "k", "--json").stdout)["revision"]
    for condition in (["--if-absent"], ["--if-revision", "99"]):
        refused = run("put", "k", "2", *condition)
        assert refused.exit_code == 1
        assert refused.stderr == f"raftkv: the key exists, with revision {revision}\n"
    missing = run("put", "none", "2", "--if-revision", "9")
    assert missing.stderr == "raftkv: the key does not exist\n"
    assert run("del", "k", "--if-revision", "99").exit_code == 1
    assert run("get", "k").stdout == "1"


def test_a_revision_that_no_key_can_have_is_wrong_usage(run: Run) -> None:
    """0 means "absent" in etcd: the line names the option that means it here."""
    for command in (["put", "k", "1"], ["del", "k"]):
        refused = run(*command, "--if-revision", "0")
        assert refused.exit_code == 2
        assert "no key has revision 0; put --if-absent" in refused.stderr
        refused = run(*command, "--if-revision", str(10**30))
        assert refused.exit_code == 2
        assert "is not in the range 1<=x<=9007199254740991" in refused.stderr


def test_values_are_bytes(run: Run, tmp_path: Path) -> None:
    """A file or standard input goes in and comes out byte for byte."""
    content = bytes(range(256))
    (tmp_path / "value").write_bytes(content)
    assert run("put", "k", "--file", str(tmp_path / "value")).exit_code == 0
    assert run("get", "k").stdout_bytes == content
    assert run("put", "k", "--file", "-", stdin=b"\xff\n").exit_code == 0
    assert run("get", "k").stdout_bytes == b"\xff\n"


def test_json_is_as_in_the_http_api(run: Run) -> None:
    """Text where it is UTF-8, base64 under another name where it is not."""
    put = json.loads(run("put", "k", "grün", "--json").stdout)
    got = json.loads(run("get", "k", "--json").stdout)
    assert got == {
        "key": "k",
        "value": "grün",
        "revision": put["revision"],
        "create_revision": put["revision"],
        "version": 1,
    }
    run("put", "k", "--file", "-", stdin=b"\xff")
    got = json.loads(run("get", "k", "--json").stdout)
    assert got["value_base64"] == base64.b64encode(b"\xff").decode()
    assert json.loads(run("del", "k", "--json").stdout)["deleted"] is True


def test_scan_lists_in_order(run: Run) -> None:
    """Tables for people, one JSON object a line for scripts."""
    for key in ("b/2", "b/1", "a"):
        run("put", key, f"value of {key}")
    assert run("scan", "b/").stdout == "b/1\tvalue of b/1\nb/2\tvalue of b/2\n"
    assert run("scan", "--keys-only").stdout == "a\nb/1\nb/2\n"
    assert run("scan", "--start", "a", "--end", "b/2", "--keys-only").stdout == "a\nb/1\n"
    lines = [
        json.loads(line) for line in run("scan", "--json", "--limit", "2").stdout.split("\n")[:-1]
    ]
    assert [line["key"] for line in lines] == ["a", "b/1"]
    assert "value" not in json.loads(run("scan", "a", "--json", "--keys-only").stdout)


def test_what_is_not_printable_is_escaped_for_people(run: Run) -> None:
    """A value cannot play with the terminal."""
    run("put", "k", "--file", "-", stdin=b"\x1b[2J\xff")
    assert run("scan").stdout == "k\t\\x1b[2J\\xff\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("get",),
        ("put", "k"),
        ("put", "k", "v", "--file", "-"),
        ("put", "k", "v", "--if-absent", "--if-revision", "1"),
        ("scan", "p", "--start", "a"),
        ("get", "k", "--endpoint", "nonsense"),
        ("dev", "--nodes", "2", "--replicas", "3"),
        ("dev", "--nodes", "9", "--http-port", "65530"),
        ("token",),
        ("no-such-command",),
    ],
)
def test_wrong_usage_ends_with_2(run: Run, arguments: tuple[str, ...]) -> None:
    """The usage is shown and nothing is done."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr


def test_a_definite_failure_ends_with_3_and_an_unknown_outcome_with_4() -> None:
    """A script may repeat after 3; after 4 it has to look first."""
    refused = problem(413, "too_large", definite=True)
    with serving(refused) as server:
        result = CliRunner().invoke(cli, ["put", "k", "v", "--endpoint", server.url])
    assert (result.exit_code, result.stderr) == (3, "raftkv: about too_large\n")
    unknown = problem(504, "unknown", definite=False, retry_after_ms=60_000)
    with serving(unknown) as server:
        result = CliRunner().invoke(cli, ["put", "k", "v", "--endpoint", server.url])
    assert (result.exit_code, result.stderr) == (4, "raftkv: about unknown\n")


def test_the_wrong_scheme_is_told(run: Run, served: FrontEnd) -> None:
    """What TLS says about plain HTTP helps nobody."""
    url = served.url.replace("http:", "https:")
    result = run("get", "k", "--endpoint", url, "--timeout", "0.5")
    assert result.exit_code == 3
    assert "does it speak http:// and not https://?" in result.stderr


def test_what_is_waited_for_is_said_after_a_second() -> None:
    """Once, on standard error; the answer is then on standard output as ever."""

    def late(_request: Received, connection: socket.socket) -> bool:
        time.sleep(1.2)
        connection.sendall(b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n")
        return True

    with serving(late) as server:
        result = CliRunner().invoke(cli, ["get", "k", "--endpoint", server.url, "--timeout", "9"])
    assert result.stderr.splitlines()[0] == f"raftkv: {server.url}: no answer yet; trying for 9 s"
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("endpoint", "advice"),
    [
        ("http://127.0.0.1:1", "Connection refused (is a cluster running there?"),
        ("http://no-such-host.invalid:8000", "(is the name of the host right?"),
    ],
)
def test_an_obvious_error_is_told_at_once(endpoint: str, advice: str) -> None:
    """Nothing that is worth the ten seconds of --timeout can happen."""
    started = time.monotonic()
    result = CliRunner().invoke(cli, ["put", "k", "v", "--endpoint", endpoint])
    assert result.exit_code == 3
    assert advice in result.stderr
    assert time.monotonic() - started < 5


def test_nobody_there_is_one_line_and_3() -> None:
    """The line names the address and the reason."""
    arguments = ["get", "k", "--endpoint", "http://127.0.0.1:1", "--timeout", "0.05"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 3
    assert "http://127.0.0.1:1" in result.stderr
    assert "Connection refused (is a cluster running there?" in result.stderr
    assert result.stderr.count("\n") == 1


def test_explain_and_transfer_leader(run: Run) -> None:
    """Operators' commands answer with the engine's facts."""
    assert "shard" in run("explain", "some/key").stdout
    assert json.loads(run("explain", "k", "--json").stdout)["shard"] == 0
    assert run("transfer-leader", "0", "--to", "n2").stdout == "shard 0 is led by n2\n"
    assert run("transfer-leader", "0", "--to", "n2", "--for", "2h").exit_code == 0
    assert run("transfer-leader", "0", "--for", "2h").exit_code == 2
    for wrong in ("2", "h", "0s", "-1s", "1w", "9999d"):
        assert run("transfer-leader", "0", "--to", "n2", "--for", wrong).exit_code == 2
    assert run("transfer-leader", "99").exit_code == 1


def test_token_prints_what_node_toml_needs() -> None:
    """The hash goes to standard output, the token itself only to standard error."""
    result = CliRunner().invoke(cli, ["token", "--role", "write", "--name", "ci"])
    token = result.stderr.rpartition(" ")[2].strip()
    assert f'sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"' in result.stdout
    assert token not in result.stdout
    assert 'role = "write"' in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    """--help works for each name in the overview."""
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: raftkv {name}") or "Usage: " in result.stdout


def test_the_overview_imports_no_command() -> None:
    """Start-up time: neither the client nor the server is imported for the list of commands."""
    program = (
        "import sys; from raftkv.cli.main import cli\n"
        "cli(['--help'], standalone_mode=False)\n"
        "heavy = {'urllib3', 'msgspec', 'rich', 'flask', 'pysyncobj', 'cryptography'}\n"
        "sys.exit(','.join(heavy & set(sys.modules)) or 0)"
    )
    done = run_python(program)
    assert done.stderr == b""
    assert done.returncode == 0


def test_the_pytest_plugin_imports_nothing_heavy() -> None:
    """Everybody's test runs load it."""
    program = (
        "import sys; import pytest; before = set(sys.modules); import raftkv.testing.fixtures\n"
        "new = {m for m in set(sys.modules) - before if not m.startswith('raftkv')}\n"
        "sys.exit(','.join(new) or 0)"
    )
    done = run_python(program)
    assert done.stderr == b""
