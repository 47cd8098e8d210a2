"""``raftkv status``, ``explain`` and ``transfer-leader``."""

from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from raftkv.cli.connect import connected, json_option, key_argument, print_json
from raftkv.client import Client

_NONE = "[red]none[/red]"
_SHARD_COLUMNS = ("shard", "generation", "leader", "term", "replicas", "keys", "applied_index")
_NODE_COLUMNS = (
    "name",
    "reachable",
    "connected",
    "led",
    "round_trip_ms",
    "has_space",
    "uptime_s",
    "version",
)


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "[red]no[/red]"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return str(value)


def _table(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    """A table of those columns that any row has."""
    known = [column for column in columns if any(column in row for row in rows)]
    table = Table(title=title, title_justify="left")
    for column in known:
        table.add_column(column.replace("_", " "))
    for row in rows:
        table.add_row(
            *(
                _NONE if column == "leader" and not row.get(column) else _text(row.get(column))
                for column in known
            )
        )
    return table


@click.command("status")
@click.option("--local", is_flag=True, help="Only what the node that answers knows by itself.")
@json_option
@connected
def status_command(client: Client, *, local: bool, as_json: bool) -> None:
    """Show nodes, shards and leaders."""
    facts = client.status("local" if local else "cluster")
    if as_json:
        print_json(facts)
        return
    console = Console()
    console.print(
        f"cluster {_text(facts.get('cluster'))}, map epoch {_text(facts.get('map_epoch'))}"
    )
    console.print(_table("nodes", facts.get("nodes") or [], _NODE_COLUMNS))
    console.print(_table("shards", facts.get("shards") or [], _SHARD_COLUMNS))


@click.command("explain")
@click.argument("key")
@json_option
@connected
def explain_command(client: Client, key: str, *, as_json: bool) -> None:
    """Show where KEY lives and why."""
    facts = client.explain(key_argument(key))
    if as_json:
        print_json(facts)
        return
    table = Table(show_header=False)
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), _text(value))
    Console().print(table)


@click.command("transfer-leader")
@click.argument("shard", type=click.IntRange(min=0))
@click.option("--to", "target", help="Name of the node; by default the preferred one.")
@json_option
@connected
def transfer_command(client: Client, shard: int, *, target: str | None, as_json: bool) -> None:
    """Hand the leadership of SHARD to another node."""
    facts = client.transfer_leader(shard, target)
    if as_json:
        print_json(facts)
    else:
        # Just after the transfer the old leader may not have heard of the new one yet.
        leader = facts.get("leader") or facts.get("target")
        click.echo(f"shard {shard} is led by {_text(leader)}")
