"""``raftkv ready``: whether the node of this machine is ready, for health checks and scripts.

Where the node listens is in its configuration, so nothing else has to be said, and no token: the
question is ``GET /readyz``, which everybody may ask.
"""

import http.client
import json
import ssl
import sys
import time
from pathlib import Path

import click

from raftkv.cli.serve import config_options, load_or_refuse
from raftkv.core.visible import visible
from raftkv.engine.config import NodeConfig

EXIT_NOT_READY = 1
ASK_TIMEOUT_S = 4.0
POLL_S = 0.2

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@click.command("ready")
@config_options
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0, max=86_400),
    default=0.0,
    show_default=True,
    help="Seconds to wait until it is ready.",
)
def ready_command(config_file: Path, node: str | None, *, wait_s: float) -> None:
    """Ask the node of this machine whether it is ready; end with code 0 if it is.

    Else the failing checks are one line on standard error and the code is 1.
    """
    config = load_or_refuse(config_file, node)
    deadline = time.monotonic() + wait_s
    while (failing := failing_checks(config)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    if failing:
        click.echo(f"raftkv: {config.node.name} is not ready: {visible(failing)}", err=True)
        sys.exit(EXIT_NOT_READY)
    click.echo(f"{config.node.name} is ready")


def failing_checks(config: NodeConfig) -> str:
    """Say what keeps the node from being ready; empty if nothing does."""
    connection = _connection(config)
    try:
        connection.request("GET", "/readyz", headers={"Accept": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException) as error:
        return f"{config.http_listen} does not answer: {error}"
    finally:
        connection.close()
    if answer.status == http.client.OK:
        return ""
    return _reasons(text) or f"it answers {answer.status}"


def _connection(config: NodeConfig) -> http.client.HTTPConnection:
    host, port = config.http_listen
    host = _ANY_ADDRESS.get(host, host)
    if config.http.tls_cert is None:
        return http.client.HTTPConnection(host, port, timeout=ASK_TIMEOUT_S)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Nothing secret is sent, and the certificate is for the names that clients use, not for this.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=ASK_TIMEOUT_S, context=context)


def _reasons(text: bytes) -> str:
    """The failing checks of an answer, however it lists them."""
    try:
        failing = json.loads(text)["failing"]
        return "; ".join(map(str, failing))
    except (ValueError, KeyError, TypeError):
        return ""
