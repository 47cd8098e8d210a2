"""What all commands that talk to a cluster share: where it is, and how they end."""

import contextlib
import functools
import json
import math
import shlex
import sys
import threading
from collections.abc import Callable
from typing import Any

import click

from raftkv.cli.endpoints import endpoints_option
from raftkv.client import (
    Client,
    DefiniteError,
    NotFoundError,
    PreconditionFailedError,
    RaftkvError,
)
from raftkv.client.endpoints import DEFAULT_ENDPOINT, ENDPOINTS_VARIABLE
from raftkv.client.types import Bytes
from raftkv.core.visible import visible, visible_json

EXIT_NO = 1
"""The answer is no: no such key, or a condition that does not hold."""
EXIT_DEFINITE = 3
EXIT_UNKNOWN = 4

WRITES = "_writes"


def _check_timeout(_context: click.Context, _parameter: click.Parameter, timeout_s: float) -> float:
    """Refuse what never ends: ``nan`` is in every range."""
    if not math.isfinite(timeout_s):
        raise click.BadParameter(f"{timeout_s} is not a number of seconds")
    return timeout_s


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options for reaching a cluster, pass a client first, and turn errors into codes."""
    return _with_clients(command, each=False)


def connected_to_each(command: Callable[..., None]) -> Callable[..., None]:
    """As :func:`connected`, but pass a list with one client for each endpoint."""
    return _with_clients(command, each=True)


def _with_clients(command: Callable[..., None], *, each: bool) -> Callable[..., None]:
    @endpoints_option(
        "URL of a node; repeat it, or separate several by commas, in the variable also by spaces.  "
        f"[default: {DEFAULT_ENDPOINT}]",
        variable=ENDPOINTS_VARIABLE,
    )
    @click.option(
        "--token",
        envvar="RAFTKV_TOKEN",
        show_envvar=True,
        help="Bearer token.",
    )
    @click.option(
        "--ca",
        envvar="RAFTKV_CA",
        show_envvar=True,
        type=click.Path(exists=True, dir_okay=False),
        help="CA file for https.",
    )
    @click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0.001),
        default=10.0,
        show_default=True,
        callback=_check_timeout,
        help="Seconds to try.",
    )
    @functools.wraps(command)
    def run(
        *,
        endpoints: tuple[str, ...],
        token: str | None,
        ca: str | None,
        timeout_s: float,
        **options: Any,
    ) -> None:
        urls = endpoints or (DEFAULT_ENDPOINT,)
        say = _say_once(timeout_s)
        try:
            clients = [
                Client(one, token=token, ca=ca, timeout_s=timeout_s, on_wait=say)
                for one in (urls if each else (urls,))
            ]
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        try:
            with contextlib.ExitStack() as stack:
                for client in clients:
                    stack.enter_context(client)
                command(clients if each else clients[0], **options)
        except RaftkvError as error:
            click.echo(f"raftkv: {described(error)}", err=True)
            sys.exit(exit_code_of(error))
        except KeyboardInterrupt:
            if not getattr(command, WRITES, False):
                raise
            click.echo("raftkv: interrupted: it may be done, or be done yet", err=True)
            sys.exit(EXIT_UNKNOWN)

    return run


def _say_once(timeout_s: float) -> Callable[[RaftkvError], None]:
    """Tell what is waited for, once in a command, so that silence is not taken for a hang."""
    said = threading.Lock()

    def say(error: RaftkvError) -> None:
        if said.acquire(blocking=False):
            click.echo(f"raftkv: {described(error)}; trying for {timeout_s:g} s", err=True)

    return say


def writes(command: Callable[..., None]) -> Callable[..., None]:
    """Mark a command that changes something: when it is interrupted its outcome is unknown."""
    setattr(command, WRITES, True)
    return command


# What a line from below means for whoever typed the command.
_ADVICE = (
    (
        "Connection refused",
        "is a cluster running there? raftkv dev starts one, --endpoint names another",
    ),
    ("Name or service not known", "is the name of the host right?"),
    ("No address associated with hostname", "is the name of the host right?"),
    ("Temporary failure in name resolution", "is the name of the host right? no server knows it"),
    ("WRONG_VERSION_NUMBER", "does it speak http:// and not https://?"),
    (r"BadStatusLine('\x15\x03", "does it speak https:// and not http://?"),
    ("unable to get local issuer certificate", "--ca names the file of the cluster's CA"),
    ("no reachable leader", "raftkv status says which nodes do not answer"),
    ("no bearer token came", "--token or RAFTKV_TOKEN"),
    ("self-signed certificate", "--ca names the file of the cluster's CA"),
)


def described(error: RaftkvError) -> str:
    """The error in one line, and what to look at first."""
    text = visible(str(error.args[0]))  # without its key, which was typed just now
    advice = next((advice for sign, advice in _ADVICE if sign in text), None)
    return text if advice is None else f"{text} ({advice})"


def exit_code_of(error: RaftkvError) -> int:
    """The code that a script can rely on; docs/cli.md lists them."""
    if isinstance(error, PreconditionFailedError | NotFoundError):
        return EXIT_NO
    return EXIT_DEFINITE if isinstance(error, DefiniteError) else EXIT_UNKNOWN


class KeyCommand(click.Command):
    """A command whose arguments may be any text, and so may look like options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; say how what looks like an option is given as a key or a value."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            at = next((i for i, arg in enumerate(given) if arg.startswith(error.option_name)), None)
            if at is None or error.possibilities:
                raise
            again = visible(shlex.join(["raftkv", self.name or "", *given[:at], "--", *given[at:]]))
            advice = f"{error.message} As a key or a value it comes behind --: {again}"
            raise click.NoSuchOption(error.option_name, advice, ctx=ctx) from error


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")


def print_json(document: object) -> None:
    """One document on one line."""
    click.echo(visible_json(json.dumps(document, ensure_ascii=False)))


def key_argument(text: str) -> bytes:
    """The bytes of an argument, also of one that is not UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def shown(data: Bytes) -> str:
    """Bytes as text for a person: escapes where it is not UTF-8 or not printable."""
    try:
        text = data if isinstance(data, str) else data.decode()
    except UnicodeDecodeError:
        text = ""
    if text.isprintable() and (text or not data):
        return text
    return repr(data)[2:-1] if isinstance(data, bytes) else repr(data)[1:-1]
