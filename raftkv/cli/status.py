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

from raftkv.cli.connect import connected_to_each, described, json_option, print_json
from raftkv.cli.witnesses import Scope, Testimony, ask_each, best_informed, remarks
from raftkv.client import Client
from raftkv.core.visible import visible, visible_facts
from raftkv.status.health import Health, health_of, rows, silent_nodes
from raftkv.web import quantities as q
from raftkv.web import views

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

Facts = Mapping[str, Any]
View = Callable[[Facts, Sequence[Facts], Sequence[str]], RenderableType]
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
        health = health_of(look.facts)
        if as_json:
            print_json({**look.facts, **_asked(look), "health": health.as_facts()})
        else:
            Console(highlight=False).print(_shown(look, status_view, []))
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

    facts: Facts
    remarks: list[str]
    told: list[Testimony]


def _look(clients: Sequence[Client], scope: Scope) -> _Look:
    told = ask_each(clients, scope)
    answered = (one for one in told if one.error is None)
    best = next(answered, None) if scope == "local" else best_informed(told)
    if best is None:
        return _Look({}, [described(one.error) for one in told if one.error is not None], told)
    return _Look(best.facts, remarks(told, best), told)


def _asked(look: _Look) -> Facts:
    """What ``--json`` says of the asking itself; ``error`` is there if nobody told."""
    asked = [
        {
            "endpoint": one.endpoint,
            "node": one.facts.get("node"),
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
    console = Console(highlight=False)
    before: list[Facts] = []
    try:
        with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
            while True:
                look = _look(clients, scope)
                live.update(_shown(look, view, before), refresh=True)
                before = [look.facts] if look.facts else []
                time.sleep(interval_s)
    except KeyboardInterrupt:
        return


def _shown(look: _Look, view: View, before: Sequence[Facts]) -> RenderableType:
    remarks = [visible(remark) for remark in look.remarks]
    if look.facts:
        return view(visible_facts(look.facts), before, remarks)
    lines = ["✕ No node tells how the cluster is:", *remarks]
    return Text(("\n  " if len(lines) > 2 else " ").join(lines), style="bold red")  # noqa: PLR2004


# --- views -----------------------------------------------------------------------------------


def status_view(facts: Facts, _before: Sequence[Facts], said: Sequence[str] = ()) -> RenderableType:
    """The sentence, shards by nodes, nodes, and what happened last."""
    return Group(*_head(facts, said), "", _grid(facts), "", _nodes(facts), *_events(facts))


def top_view(facts: Facts, before: Sequence[Facts], said: Sequence[str] = ()) -> RenderableType:
    """The sentence, load and disk of every node, load and lag of every shard."""
    return Group(*_head(facts, said), "", _busy_nodes(facts, before), "", _busy_shards(facts))


def _head(facts: Facts, said: Sequence[str]) -> list[RenderableType]:
    health: Health = health_of(facts)
    style, sign = _STYLES[health.state]
    lines: list[RenderableType] = [Text(f"{sign} {health.sentence}", style=style)]
    lines += [Text(f"  {reason}", style="yellow") for reason in (*health.reasons, *said)]
    for row in rows(facts, "shards"):
        if pinned := views.pinned(row):
            lines.append(Text(f"  The leadership of shard {row.get('shard')} is {pinned}."))
    seen = f"seen from {facts.get('node')}, map epoch {q.count(facts.get('map_epoch'))}"
    if silent := silent_nodes(facts):
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


def _grid(facts: Facts) -> RenderableType:
    return Group(_Fitting(*(_grid_table(facts, **form) for form in _GRID_FORMS)))


_GRID_FORMS = (
    {"words": True, "figures": True},
    {"words": False, "figures": True},
    {"words": False, "figures": False},
)
"""With words beside the signs and with figures, as far as there is room for them."""


def _grid_table(facts: Facts, *, words: bool, figures: bool) -> Table:
    names = views.node_names(facts)
    table = _table("shard", *names, "reserve", *((">led since", ">term", ">keys") * figures))
    now_us = time.time_ns() // 1000
    for line in views.grid(facts):
        cells = [
            Text(_cell(c, words=words), style=_CELL_STYLES.get(c.kind, "dim")) for c in line.cells
        ]
        since = q.age(line.facts.get("leader_since_us"), now_us)
        numbers = (
            since if line.facts.get("leader") else Text(_leaderless(line.facts), style="red"),
            q.count(line.facts.get("term")),
            q.count(line.facts.get("keys")),
        )
        table.add_row(str(line.shard), *cells, _reserve(line.margin), *(numbers * figures))
    return table


def _cell(cell: views.Cell, *, words: bool) -> str:
    """The sign says it all but for how far a replica is behind."""
    plain = cell.kind in {"good", "leader"}
    return f"{cell.sign} {cell.text}" if words or not plain else cell.sign


def _leaderless(row: Facts) -> str:
    since = row.get("no_leader_since_us")
    return "no leader" + (f" for {q.elapsed(since, time.time_ns() // 1000)}" if since else "")


def _reserve(margin: int | None) -> Text:
    if margin is None:
        return Text("not known", style="yellow")
    if margin < 0:
        return Text("quorum lost", style="bold red")
    return Text(
        "none" if margin == 0 else f"{margin} may fail", style="yellow" if not margin else ""
    )


def _nodes(facts: Facts) -> RenderableType:
    return Group(_Fitting(_nodes_table(facts, figures=True), _nodes_table(facts, figures=False)))


def _nodes_table(facts: Facts, *, figures: bool) -> Table:
    more = (">disk p99", ">memory") * figures
    table = _table("node", "state", "leads", ">link", ">disk free", ">up", *more)
    silent = silent_nodes(facts)
    for row in rows(facts, "nodes"):
        answers = str(row.get("name")) not in silent
        numbers = (
            q.milliseconds(views.mapping(row.get("fdatasync_ms")).get("p99")),
            q.size(row.get("rss_bytes")),
        )
        table.add_row(
            escape(str(row.get("name"))),
            Text("✓ answers", style="green") if answers else Text("✕ silent", style="red"),
            _led(row.get("led")),
            q.milliseconds(row.get("round_trip_ms")) if answers else q.UNKNOWN,
            q.size(views.mapping(row.get("disk")).get("free_bytes")),
            q.duration(row.get("uptime_s")),
            *(numbers * figures),
        )
    return table


def _led(led: object) -> str:
    """The shards that a node leads, or how many they are."""
    if not isinstance(led, list):
        return q.UNKNOWN
    return " ".join(map(str, led)) if len(led) <= _LED_LISTED else f"{len(led)} shards"


def _events(facts: Facts) -> list[RenderableType]:
    found = views.events(facts, shown=_EVENTS_SHOWN)
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


def _busy_nodes(facts: Facts, before: Sequence[Facts]) -> Table:
    table = _table(
        "node", ">requests/s", ">p99", ">errors/s", ">cpu", ">memory", ">disk p99", ">waiting"
    )
    for row in rows(facts, "nodes"):
        told = {spark.title: spark.now for spark in views.sparks([row])}
        cpu = row.get("cpu_share", _cpu_share(row, before))
        table.add_row(
            escape(str(row.get("name"))),
            q.rate(told.get("Requests")),
            q.milliseconds(told.get("p99")),
            q.rate(told.get("Errors")),
            q.percent(cpu),
            q.size(row.get("rss_bytes")),
            q.milliseconds(views.mapping(row.get("fdatasync_ms")).get("p99")),
            q.count(row.get("waiting_operations")),
        )
    return table


def _cpu_share(row: Facts, before: Sequence[Facts]) -> float | None:
    """Of one core since the last look, from the engine's own account of its time."""
    for earlier in before:
        for old in rows(earlier, "nodes"):
            if old.get("name") == row.get("name") and old.get("pid") == row.get("pid"):
                try:
                    seconds = (row["as_of_us"] - old["as_of_us"]) / 1e6
                    return float(row["cpu_s"] - old["cpu_s"]) / seconds if seconds > 0 else None
                except (KeyError, TypeError):
                    return None
    return None


def _busy_shards(facts: Facts) -> Table:
    table = _table(
        "shard", "leader", ">reads/s", ">writes/s", ">waiting", ">furthest behind", ">log"
    )
    for row in rows(facts, "shards"):
        load = views.mapping(row.get("load"))
        behind = [views.lag(row, str(name))[0] for name in row.get("replicas") or ()]
        table.add_row(
            str(row.get("shard")),
            escape(str(row["leader"])) if row.get("leader") else Text("none", style="red"),
            q.rate(load.get("reads_per_s")),
            q.rate(load.get("writes_per_s")),
            q.count(row.get("waiting")),
            q.count(max((lag for lag in behind if lag is not None), default=None)),
            q.size(row.get("log_bytes")),
        )
    return table
