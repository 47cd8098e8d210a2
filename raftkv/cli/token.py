"""``raftkv token``: mint a bearer token and show how to configure it."""

import hashlib
import json
import secrets

import click

TOKEN_BYTES = 32


@click.command("token")
@click.option(
    "--role",
    type=click.Choice(["read", "write", "admin"]),
    required=True,
    help="read; write (and read); admin (everything, also moving leaders).",
)
@click.option("--name", default="", help="For you to remember whose it is.")
def token_command(role: str, name: str) -> None:
    """Make a bearer token.

    The token is shown once, on standard error; what belongs into node.toml, which only has its
    hash, goes to standard output.
    """
    token = secrets.token_urlsafe(TOKEN_BYTES)
    click.echo(f"token, not shown again: {token}", err=True)
    click.echo("[[security.tokens]]")
    if name:
        click.echo(f"name = {json.dumps(name)}")
    click.echo(f'role = "{role}"')
    click.echo(f'sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"')
