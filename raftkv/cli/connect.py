"""What all commands that talk to a cluster share: where it is, and how they end."""

import functools
import json
import sys
from collections.abc import Callable
from typing import Any

import click

from raftkv.client import (
    Client,
    DefiniteError,
    NotFoundError,
    PreconditionFailedError,
    RaftkvError,
)
from raftkv.client.types import Bytes

EXIT_NO = 1
"""The answer is no: no such key, or a condition that does not hold."""
EXIT_DEFINITE = 3
EXIT_UNKNOWN = 4

DEFAULT_ENDPOINT = "http://127.0.0.1:8000"


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options for reaching a cluster, pass a client first, and turn errors into codes."""

    @click.option(
        "--endpoint",
        "endpoints",
        multiple=True,
        envvar="RAFTKV_ENDPOINTS",
        show_envvar=True,
        help="URL of a node; repeat it, or separate several by spaces in the variable.  "
        f"[default: {DEFAULT_ENDPOINT}]",
    )
    @click.option("--token", envvar="RAFTKV_TOKEN", show_envvar=True, help="Bearer token.")
    @click.option("--ca", envvar="RAFTKV_CA", show_envvar=True, help="CA file for https.")
    @click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0.001),
        default=10.0,
        show_default=True,
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
        try:
            client = Client(
                endpoints or (DEFAULT_ENDPOINT,), token=token, ca=ca, timeout_s=timeout_s
            )
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        try:
            with client:
                command(client, **options)
        except RaftkvError as error:
            click.echo(f"raftkv: {error}", err=True)
            sys.exit(exit_code_of(error))

    return run


def exit_code_of(error: RaftkvError) -> int:
    """The code that a script can rely on; docs/cli.md lists them."""
    if isinstance(error, PreconditionFailedError | NotFoundError):
        return EXIT_NO
    return EXIT_DEFINITE if isinstance(error, DefiniteError) else EXIT_UNKNOWN


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")


def print_json(document: object) -> None:
    """One document on one line."""
    click.echo(json.dumps(document, ensure_ascii=False))


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
