"""``raftkv status`` and ``raftkv top``: the cluster in a terminal, its health first."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import click
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from raftkv.cli import consoles
from raftkv.cli.connect import connected_to_each, described, json_option, print_json
from raftkv.cli.node_answers import NodeAnswer, Scope, ask_each, best_informed, remarks
from raftkv.client import Client
from raftkv.core.visible import visible
from raftkv.status import quantities as q
from raftkv.status import views
from raftkv.status.facts import ClusterFacts, NodeSummary, ShardFacts
from raftkv.status.health import health_of

EXIT_CODES = {"healthy": 0, "degraded": 1, "unavailable": 2}
_STYLES = {
    "healthy": ("green", "✓"),
    "degraded": ("yellow", "▲"),
    "unavailable": ("bold red", "✕"),
}
_CELL_STYLES = {"leader": "bold cyan", "good": "green", "warn": "yellow", "bad": "red"}
_EVENTS_SHOWN = 8
_LED_LISTED = 8
_WIDEST = 10_000
"""Columns; wider than any table."""

View = Callable[[ClusterFacts, Sequence[ClusterFacts], Sequence[str]], RenderableType]
"""Shows facts, given those of the look before and what the endpoints said besides."""


def _watching(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--interval",
        "interval_s",
        type=click.FloatRange(min=0.2, max=3600),
        default=1.0,
        show_default=True,
        help="Seconds between two looks.",
    )(command)


@click.command("status")
@click.option("--local", is_flag=True, help="Only what the first node that answers knows itself.")
@click.option("--watch", is_flag=True, help="Look again and again, until Ctrl-C.")
@_watching
@json_option
@connected_to_each
def status_command(
    clients: list[Client], *, local: bool, watch: bool, interval_s: float, as_json: bool
) -> None:
    """Say how the cluster is: 0 if healthy, 1 if degraded, 2 if unavailable.

    Every --endpoint is asked, and the node that hears most of the others is believed.
    """
    scope: Scope = "local" if local else "cluster"
    if watch and not as_json:
        _live(clients, scope, interval_s, status_view)
        return
    while True:
        look = _look(clients, scope)
        health = health_of(look.facts or ClusterFacts())
        if as_json:
            print_json({**look.document, **_asked(look), "health": health.as_facts()})
        else:
            consoles.console(highlight=False).print(_shown(look, status_view, []))
        if not watch:
            sys.exit(EXIT_CODES[health.state])
        time.sleep(interval_s)


@click.command("top")
@_watching
@connected_to_each
def top_command(clients: list[Client], *, interval_s: float) -> None:
    """Watch load, lag and disks of every node and shard, until Ctrl-C."""
    _live(clients, "cluster", interval_s, top_view)


class _Look(NamedTuple):
    """What was seen, no facts if nobody told, and what the endpoints said besides."""

    facts: ClusterFacts | None
    document: Mapping[str, Any]
    remarks: list[str]
    told: list[NodeAnswer]


def _look(clients: Sequence[Client], scope: Scope) -> _Look:
    told = ask_each(clients, scope)
    answered = (one for one in told if one.error is None)
    best = next(answered, None) if scope == "local" else best_informed(told)
    if best is None:
        errors = [described(one.error) for one in told if one.error is not None]
        return _Look(None, {}, errors, told)
    return _Look(best.facts, best.document, remarks(told, best), told)


def _asked(look: _Look) -> dict[str, Any]:
    """What ``--json`` says of the asking itself; ``error`` is there if nobody told."""
    asked = [
        {
            "endpoint": one.endpoint,
            "node": one.facts.node,
            "error": None if one.error is None else described(one.error),
        }
        for one in look.told
    ]
    unasked = {} if look.facts else {"error": "; ".join(look.remarks)}
    return {**unasked, "asked": asked, "remarks": look.remarks if look.facts else []}


def _live(
    clients: Sequence[Client],
    scope: Scope,
    interval_s: float,
    view: View,
) -> None:
    """Draw again and again; a node that does not answer is said, and asked again."""
    console = consoles.console(highlight=False)
    before: list[ClusterFacts] = []
    try:
        with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
            while True:
                look = _look(clients, scope)
                live.update(_shown(look, view, before), refresh=True)
                before = [look.facts] if look.facts else []
                time.sleep(interval_s)
    except KeyboardInterrupt:
        return


def _shown(look: _Look, view: View, before: Sequence[ClusterFacts]) -> RenderableType:
    remarks = [visible(remark) for remark in look.remarks]
    if look.facts:
        return view(look.facts, before, remarks)
    lines = ["✕ No node tells how the cluster is:", *remarks]
    return Text(("\n  " if len(lines) > 2 else " ").join(lines), style="bold red")  # noqa: PLR2004


# --- views -----------------------------------------------------------------------------------


def status_view(
    facts: ClusterFacts, _before: Sequence[ClusterFacts], said: Sequence[str] = ()
) -> RenderableType:
    """The sentence, shards by nodes, nodes, and what happened last."""
    return Group(*_head(facts, said), "", _grid(facts), "", _nodes(facts), *_events(facts))


def top_view(
    facts: ClusterFacts, before: Sequence[ClusterFacts], said: Sequence[str] = ()
) -> RenderableType:
    """The sentence, load and disk of every node, load and lag of every shard."""
    return Group(*_head(facts, said), "", _busy_nodes(facts, before), "", _busy_shards(facts))


def _head(facts: ClusterFacts, said: Sequence[str]) -> list[RenderableType]:
    health = health_of(facts)
    style, sign = _STYLES[health.state]
    lines: list[RenderableType] = [Text(f"{sign} {health.sentence}", style=style)]
    lines += [Text(f"  {reason}", style="yellow") for reason in (*health.reasons, *said)]
    for row in facts.shards:
        if pinned := views.pinned(row):
            lines.append(Text(f"  The leadership of shard {row.shard} is {pinned}."))
    seen = f"seen from {facts.node}, map epoch {q.count(facts.map_epoch)}"
    if silent := facts.silent:
        seen += f"; could not be asked: {', '.join(silent)}"
    return [*lines, Text(seen, style="dim")]


def _table(*columns: str) -> Table:
    """Columns whose name begins with ``>`` are figures."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(
            escape(column.removeprefix(">")), justify="right" if column.startswith(">") else "left"
        )
    return table


class _Fitting:
    """The first of some tables that fits into the width that there is, or the last."""

    def __init__(self, *tables: Table) -> None:
        self._tables = tables

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        def fits(table: Table) -> bool:
            widest = options.update(width=_WIDEST)
            return Measurement.get(console, widest, table).maximum <= options.max_width

        yield next(filter(fits, self._tables), self._tables[-1])


def _grid(facts: ClusterFacts) -> RenderableType:
    return Group(_Fitting(*(_grid_table(facts, **form) for form in _GRID_FORMS)))


_GRID_FORMS = (
    {"words": True, "figures": True},
    {"words": False, "figures": True},
    {"words": False, "figures": False},
)
"""With words beside the signs and with figures, as far as there is room for them."""


def _grid_table(facts: ClusterFacts, *, words: bool, figures: bool) -> Table:
    names = [row.name for row in facts.nodes]
    table = _table("shard", *names, "reserve", *((">led since", ">term", ">keys") * figures))
    now_us = time.time_ns() // 1000
    for line in views.grid(facts):
        cells = [
            Text(_cell(c, words=words), style=_CELL_STYLES.get(c.kind, "dim")) for c in line.cells
        ]
        since = q.age(line.facts.leader_since_us, now_us)
        numbers = (
            since if line.facts.leader else Text(_leaderless(line.facts), style="red"),
            q.count(line.facts.term),
            q.count(line.facts.keys),
        )
        table.add_row(str(line.shard), *cells, _reserve(line.margin), *(numbers * figures))
    return table


def _cell(cell: views.Cell, *, words: bool) -> str:
    """The sign says it all but for how far a replica is behind."""
    plain = cell.kind in {"good", "leader"}
    return f"{cell.sign} {cell.text}" if words or not plain else cell.sign


def _leaderless(row: ShardFacts) -> str:
    since = row.no_leader_since_us
    return "no leader" + (f" for {q.elapsed(since, time.time_ns() // 1000)}" if since else "")


def _reserve(margin: int | None) -> Text:
    if margin is None:
        return Text("not known", style="yellow")
    if margin < 0:
        return Text("quorum lost", style="bold red")
    return Text(
        "none" if margin == 0 else f"{margin} may fail", style="yellow" if not margin else ""
    )


def _nodes(facts: ClusterFacts) -> RenderableType:
    return Group(_Fitting(_nodes_table(facts, figures=True), _nodes_table(facts, figures=False)))


def _nodes_table(facts: ClusterFacts, *, figures: bool) -> Table:
    more = (">disk p99", ">memory") * figures
    table = _table("node", "state", "leads", ">link", ">disk free", ">up", *more)
    for row in facts.nodes:
        numbers = (_disk_p99(row), q.size(row.rss_bytes))
        table.add_row(
            escape(row.name),
            Text("✓ answers", style="green") if row.reachable else Text("✕ silent", style="red"),
            _led(row.led),
            q.milliseconds(row.round_trip_ms) if row.reachable else q.UNKNOWN,
            q.size(None if row.disk is None else row.disk.free_bytes),
            q.duration(row.uptime_s),
            *(numbers * figures),
        )
    return table


def _disk_p99(row: NodeSummary) -> str:
    return q.milliseconds(None if row.fdatasync_ms is None else row.fdatasync_ms.p99)


def _led(led: Sequence[int] | None) -> str:
    """The shards that a node leads, or how many they are."""
    if led is None:
        return q.UNKNOWN
    return " ".join(map(str, led)) if len(led) <= _LED_LISTED else f"{len(led)} shards"


def _events(facts: ClusterFacts) -> list[RenderableType]:
    found = views.events(facts.events, shown=_EVENTS_SHOWN)
    if not found:
        return []
    table = _table("when (UTC)", "node", "what", "where", "detail")
    now_us = time.time_ns() // 1000
    for event in found:
        table.add_row(
            q.clock(event.at_us, now_us),
            escape(event.node or ""),
            f"{event.sign} {event.text}",
            event.where,
            escape(event.detail),
        )
    return ["", table]


def _busy_nodes(facts: ClusterFacts, before: Sequence[ClusterFacts]) -> Table:
    table = _table(
        "node", ">requests/s", ">p99", ">errors/s", ">cpu", ">memory", ">disk p99", ">waiting"
    )
    for row in facts.nodes:
        told = {spark.title: spark.now for spark in views.sparks([row])}
        cpu = _cpu_share(row, before) if row.cpu_share is None else row.cpu_share
        table.add_row(
            escape(row.name),
            q.rate(told.get("Requests")),
            q.milliseconds(told.get("p99")),
            q.rate(told.get("Errors")),
            q.percent(cpu),
            q.size(row.rss_bytes),
            _disk_p99(row),
            q.count(row.waiting_operations),
        )
    return table


def _cpu_share(row: NodeSummary, before: Sequence[ClusterFacts]) -> float | None:
    """Of one core since the last look, from the engine's own account of its time."""
    for earlier in before:
        old = earlier.named(row.name)
        if old is None or old.pid != row.pid or row.cpu_s is None or old.cpu_s is None:
            continue
        seconds = ((row.as_of_us or 0) - (old.as_of_us or 0)) / 1e6
        return (row.cpu_s - old.cpu_s) / seconds if seconds > 0 else None
    return None


def _busy_shards(facts: ClusterFacts) -> Table:
    table = _table(
        "shard", "leader", ">reads/s", ">writes/s", ">waiting", ">furthest behind", ">log"
    )
    for row in facts.shards:
        behind = [views.lag(row, name)[0] for name in row.replicas]
        table.add_row(
            str(row.shard),
            escape(row.leader) if row.leader else Text("none", style="red"),
            q.rate(None if row.load is None else row.load.reads_per_s),
            q.rate(None if row.load is None else row.load.writes_per_s),
            q.count(row.waiting),
            q.count(max((lag for lag in behind if lag is not None), default=None)),
            q.size(row.log_bytes),
        )
    return table
