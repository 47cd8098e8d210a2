"""``raftkv explain`` and ``transfer-leader``."""

import re
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import click
from rich.markup import escape
from rich.table import Table

from raftkv.cli import consoles
from raftkv.cli.connect import KeyCommand, connected, json_option, key_argument, print_json, writes
from raftkv.client import Client
from raftkv.core.visible import visible, visible_facts
from raftkv.rpc.messages import PINNED_S_MAX
from raftkv.status import quantities as q
from raftkv.status import views
from raftkv.status.facts import KeyFacts, ShardFacts, read


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
    document = client.explain(key_argument(key))
    if as_json:
        print_json(document)
        return
    facts = read(visible_facts(document), KeyFacts)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in _explained(facts):
        table.add_row(escape(name), escape(value))
    consoles.console(highlight=False).print(table)


def _leader(facts: KeyFacts, now_us: int) -> str:
    since, nobody_since = facts.leader_since_us, facts.no_leader_since_us
    if facts.leader is not None:
        return facts.leader + (f", since {q.age(since, now_us)}" if since else "")
    return "none" + (f", for {q.elapsed(nobody_since, now_us)}" if nobody_since else " is known")


def _explained(facts: KeyFacts) -> Iterator[tuple[str, str]]:
    """What the page ``/explain/{key}`` says, line by line."""
    now_us = time.time_ns() // 1000
    what = "only the part in braces" if facts.hash_tag else "the whole key"
    yield "hashed", f"{what}, hex {facts.hashed_part_hex}"
    yield "hash", facts.hash
    yield "partitioner", facts.partitioner
    yield "shard", f"{facts.shard}, generation {facts.generation}"
    yield "replicas", " ".join(facts.replicas)
    yield "leader", _leader(facts, now_us)
    if facts.state is not None:
        yield from _placed(facts.state)
    yield "term", _number(facts.term)
    yield f"revision at {facts.asked}", _number(facts.local_revision)
    yield "applied behind commit", q.count(facts.lag_entries)
    if facts.state is not None:
        yield from _replicas(facts.state, now_us)
    if facts.not_answering:
        yield "could not be asked", " ".join(facts.not_answering)


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _placed(state: ShardFacts) -> Iterator[tuple[str, str]]:
    if pinned := views.pinned(state):
        yield "pinned", pinned
    if state.kept_because is not None:
        yield "not moved", state.kept_because


def _replicas(state: ShardFacts, now_us: int) -> Iterator[tuple[str, str]]:
    for name in state.replicas:
        entries, seconds = views.lag(state, name)
        if name != state.leader:
            yield f"{name} is behind by", f"{q.count(entries)} entries, {q.duration(seconds)}"
    slow = state.slow
    if slow is not None:
        yield "last slow request", f"{slow.kind}, {q.age(slow.at_us, now_us)}"
        yield "  in all", q.milliseconds(slow.total_ms)
        for stage, took_ms in slow.stages_ms.items():
            yield f"  {stage}", q.milliseconds(took_ms)


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
        click.echo(f"shard {shard} is led by {visible(str(leader))}")
