"""``raftkv explain`` and ``transfer-leader``."""

import re
import time
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import click
from rich.markup import escape
from rich.table import Table

from raftkv.cli import consoles
from raftkv.cli.connect import KeyCommand, connected, json_option, key_argument, print_json, writes
from raftkv.client import Client
from raftkv.core.visible import visible, visible_facts
from raftkv.rpc.messages import PINNED_S_MAX
from raftkv.web import quantities as q
from raftkv.web import views


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return str(value)


class Duration(click.ParamType[float]):
    """A time with its unit: ``90s``, ``30m``, ``2h``, ``1d``; in seconds."""

    name = "duration"
    _UNITS_S: ClassVar[dict[str, float]] = {"s": 1, "m": 60, "h": 3600, "d": 86400}

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return seconds."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)([smhd])", str(value))
        seconds = float(match[1]) * self._UNITS_S[match[2]] if match else 0.0
        if not 0 < seconds <= PINNED_S_MAX:
            self.fail(f"{value!r} is not a time such as 90s, 30m, 2h or 1d", param, ctx)
        return seconds


@click.command("explain", cls=KeyCommand)
@click.argument("key")
@json_option
@connected
def explain_command(client: Client, key: str, *, as_json: bool) -> None:
    """Show where KEY lives and why."""
    facts = client.explain(key_argument(key))
    if as_json:
        print_json(facts)
        return
    facts = visible_facts(facts)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in _explained(facts):
        table.add_row(escape(name), escape(value))
    consoles.console(highlight=False).print(table)


def _leader(facts: Mapping[str, Any], now_us: int) -> str:
    since, nobody_since = facts.get("leader_since_us"), facts.get("no_leader_since_us")
    if facts.get("leader"):
        return f"{facts['leader']}" + (f", since {q.age(since, now_us)}" if since else "")
    return "none" + (f", for {q.elapsed(nobody_since, now_us)}" if nobody_since else " is known")


def _explained(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the page ``/explain/{key}`` says, line by line."""
    state = views.mapping(facts.get("state"))
    now_us = time.time_ns() // 1000
    if facts.get("hash_tag"):
        yield "hashed", f"only the part in braces, hex {facts.get('hashed_part_hex')}"
    else:
        yield "hashed", f"the whole key, hex {facts.get('hashed_part_hex')}"
    if facts.get("hash") is not None:
        yield "hash", _text(facts["hash"])
    yield "partitioner", _text(facts.get("partitioner"))
    yield "shard", f"{_text(facts.get('shard'))}, generation {_text(facts.get('generation'))}"
    yield "replicas", _text(facts.get("replicas"))
    yield "leader", _leader(facts, now_us)
    if pinned := views.pinned(state):
        yield "pinned", pinned
    if kept := state.get("kept_because"):
        yield "not moved", _text(kept)
    yield "term", _text(facts.get("term"))
    yield f"revision at {_text(facts.get('asked'))}", _text(facts.get("local_revision"))
    yield "applied behind commit", q.count(facts.get("lag_entries"))
    for name in map(str, state.get("replicas") or ()):
        entries, seconds = views.lag(state, name)
        if name != state.get("leader"):
            yield f"{name} is behind by", f"{q.count(entries)} entries, {q.duration(seconds)}"
    slow = views.mapping(state.get("slow"))
    if slow:
        yield "last slow request", f"{slow.get('kind')}, {q.age(slow.get('at_us'), now_us)}"
        yield "  in all", q.milliseconds(slow.get("total_ms"))
        for stage, took_ms in views.mapping(slow.get("stages_ms")).items():
            yield f"  {stage}", q.milliseconds(took_ms)
    silent = facts.get("not_answering")
    if silent:
        yield "could not be asked", _text(silent)


@click.command("transfer-leader")
@click.argument("shard", type=click.IntRange(min=0))
@click.option(
    "--to",
    "target",
    help="Name of the node; by default the preferred one, and it may be balanced again.",
)
@click.option(
    "--for",
    "for_s",
    type=Duration(),
    help="With --to: how long it is to stay there, such as 90s, 30m, 2h or 1d; by default until "
    "that node stops.",
)
@json_option
@connected
@writes
def transfer_command(
    client: Client, shard: int, *, target: str | None, for_s: float | None, as_json: bool
) -> None:
    """Hand the leadership of SHARD to another node, and leave it there."""
    if for_s is not None and target is None:
        raise click.UsageError("--for goes with --to: on its preferred node it stays anyway")
    facts = client.transfer_leader(shard, target, for_s=for_s)
    if as_json:
        print_json(facts)
    else:
        # Just after the transfer the old leader may not have heard of the new one yet.
        leader = facts.get("leader") or facts.get("target")
        click.echo(f"shard {shard} is led by {visible(_text(leader))}")
