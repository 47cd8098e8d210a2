"""Every command takes the URLs of a cluster in the same ways."""

import socket

import click
import pytest
from click.testing import CliRunner, Result

from raftkv.cli.endpoints import endpoints_option
from raftkv.cli.main import cli
from tests.support.front_end import front_end


@click.command
@endpoints_option("Where.", variable="RAFTKV_ENDPOINTS")
def show(*, endpoints: tuple[str, ...]) -> None:
    """Say what was understood."""
    click.echo(" ".join(endpoints))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--endpoint", "http://a", "--endpoint", "http://b"],
        ["--endpoints", "http://a,http://b"],
        ["--endpoint", "http://a, http://b,"],
        ["--endpoints", "http://a", "--endpoint", "http://b"],
    ],
)
def test_urls_are_repeated_or_listed_under_either_name(arguments: list[str]) -> None:
    """However they come, it is the same list in the order given."""
    assert CliRunner().invoke(show, arguments).stdout == "http://a http://b\n"


@pytest.mark.parametrize("text", ["http://a http://b", "http://a,http://b", "http://a, http://b"])
def test_the_variable_takes_spaces_and_commas(text: str) -> None:
    """The option goes before it."""
    environment = {"RAFTKV_ENDPOINTS": text}
    assert CliRunner().invoke(show, env=environment).stdout == "http://a http://b\n"
    given = CliRunner().invoke(show, ["--endpoint", "http://c"], env=environment)
    assert given.stdout == "http://c\n"


def bench_load(*arguments: str) -> Result:
    """Run it on a cluster that is not there."""
    return CliRunner().invoke(cli, ["bench", "load", *arguments])


def test_commands_that_ask_a_cluster_take_a_list() -> None:
    """The second node answers when the first does not."""
    with front_end() as served:
        asked = ["get", "none", "--endpoints", f"http://127.0.0.1:1,{served.url}"]
        assert CliRunner().invoke(cli, asked).stderr == "raftkv: no such key: none\n"


@pytest.mark.parametrize("command", [["get", "k"], ["bench", "load"]])
@pytest.mark.parametrize("text", ["foo", "", ",", "http://h:port", "ftp://h"])
def test_what_is_no_url_is_wrong_usage(command: list[str], text: str) -> None:
    """An empty list was meant to be one, perhaps by a variable that is not set."""
    refused = CliRunner().invoke(cli, [*command, "--endpoints", text])
    assert refused.exit_code == 2
    assert repr(text) in refused.stderr


def test_bench_load_says_which_endpoint_is_not_there() -> None:
    """In one line, before anything is measured."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    refused = bench_load("--endpoints", url)
    assert refused.exit_code == 1
    assert refused.stderr.splitlines()[-1] == f"raftkv: {url}: Connection refused"


def test_bench_load_says_what_is_wrong_with_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line has the URL in it."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    refused = bench_load("--endpoint", "http://foo:8000")
    assert refused.exit_code == 1
    assert refused.stderr.splitlines()[-1] == "raftkv: http://foo:8000: Name or service not known"


def test_bench_load_speaks_no_tls() -> None:
    """It is said, rather than sent as plain text to such a port."""
    refused = bench_load("--endpoints", "https://127.0.0.1:1")
    assert refused.exit_code == 2
    assert "https://127.0.0.1:1: the load generator speaks http:// only" in refused.stderr
