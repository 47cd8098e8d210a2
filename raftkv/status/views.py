"""What the pages show, made of the facts: pure, one function for each part of a page.

Templates only lay out what these return. Every state has a sign and a word besides its colour.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Literal, NamedTuple

import msgspec

from raftkv.status.facts import (
    ClusterFacts,
    Event,
    Member,
    NodeSummary,
    SecondsFacts,
    ShardFacts,
)
from raftkv.status.health import shard_health
from raftkv.status.quantities import UNKNOWN, count, duration, moment

LAGGING_ENTRIES = 1000
LAGGING_S = 2.0
"""Behind by more than this a follower is shown as lagging; the nodes are asked one after the
other, so a few entries of difference mean nothing."""

EVENTS_SHOWN = 20


class Cell(NamedTuple):
    """One replica in the grid. ``kind`` is the style sheet's name for the state."""

    kind: str
    sign: str
    text: str
    hint: str


class ShardLine(NamedTuple):
    """One shard's line of the grid."""

    shard: int
    facts: ShardFacts
    state: str
    margin: int | None
    cells: tuple[Cell, ...]


class EventLine(NamedTuple):
    """One event, newest first."""

    at_us: int
    kind: str
    sign: str
    text: str
    where: str
    detail: str
    node: str | None
    shard: int | None


class MemberLine(NamedTuple):
    """One replica on a shard's own page."""

    name: str
    cell: Cell
    facts: Member
    match_index: int | None
    lag_entries: int | None
    lag_s: float | None
    contact_age_s: float | None
    digest: str


_EVENTS = {
    "leader": ("notice", "★", "became leader"),
    "follower": ("plain", "↓", "follows"),
    "candidate": ("notice", "?", "stood for election"),
    "transfer": ("notice", "⇄", "leadership handed over"),
    "pinned": ("notice", "⚑", "leadership pinned"),
    "snapshot_installed": ("plain", "▣", "installed a snapshot"),
    "snapshot_written": ("plain", "▣", "wrote a snapshot"),
    "snapshot_failed": ("bad", "✕", "snapshot failed"),
    "digest_mismatch": ("bad", "≠", "replicas differ"),
    "entries_lost": ("bad", "✕", "a replica lost what it had acknowledged"),
    "started": ("notice", "▶", "started"),
    "link_up": ("good", "✓", "link up"),
    "link_down": ("bad", "✕", "link down"),
    "agreed": ("good", "✓", "agrees with the other nodes"),
    "disagreed": ("bad", "✕", "serves nothing: its map differs"),
    "node_refused": ("bad", "✕", "refused a node"),
    "disk_silent": ("bad", "✕", "the disk does not answer"),
    "slow_disk": ("warn", "▲", "slow disk"),
    "refused": ("warn", "▲", "refused requests"),
    "worker_ended": ("warn", "▲", "an HTTP worker ended"),
}


def grid(facts: ClusterFacts) -> list[ShardLine]:
    """Return shards by nodes: who leads, who follows and how far behind, who is silent."""
    alive = facts.answering
    lines = []
    for row in facts.shards:
        health = shard_health(row, alive)
        cells = tuple(replica_cell(row, node.name, alive) for node in facts.nodes)
        lines.append(ShardLine(row.shard, row, health.state, health.margin, cells))
    return lines


def replica_cell(row: ShardFacts, name: str, alive: AbstractSet[str]) -> Cell:
    """Return how one replica of a shard is."""
    if name not in row.replicas:
        return Cell("none", "·", "", "holds no replica")
    if name not in alive:
        return Cell("bad", "✕", "silent", "does not answer")
    if row.leader == name:  # a deposed one may still believe that it leads
        return Cell("leader", "★", "leader", "leads")
    return _follower_cell(row, name)


def _follower_cell(row: ShardFacts, name: str) -> Cell:
    if member_of(row, name).installing_snapshot:
        return Cell("warn", "▣", "snapshot", "is installing a snapshot")
    entries, seconds = lag(row, name)
    if (entries or 0) >= LAGGING_ENTRIES or (seconds or 0) >= LAGGING_S:
        behind = f"−{count(entries)}" if entries else f"−{duration(seconds)}"  # noqa: RUF001
        return Cell("warn", "▲", behind, "lags behind its leader")
    if not row.leader:
        return Cell("warn", "?", "no leader", "knows no leader")
    return Cell("good", "✓", "follows", "follows the leader")


def member_of(row: ShardFacts, name: str) -> Member:
    """Return what a replica says of itself, which may be nothing."""
    return (row.members or {}).get(name, _SILENT)


_SILENT = Member()


def lag(row: ShardFacts, name: str) -> tuple[int | None, float | None]:
    """Return how far a follower is behind, in entries and in seconds; None is not known."""
    told, member = row.followers.get(name), member_of(row, name)
    if told is not None and told.lag_entries is not None:
        return told.lag_entries, told.lag_s
    entries = member.lag_entries
    if entries is None and row.commit_index is not None and member.applied_index is not None:
        entries = max(row.commit_index - member.applied_index, 0)
    return entries, None if told is None else told.lag_s


def members(row: ShardFacts, alive: AbstractSet[str]) -> list[MemberLine]:
    """Return the replicas of one shard, in the order in which leadership is preferred."""
    return [_member(row, name, alive) for name in row.replicas]


def _member(row: ShardFacts, name: str, alive: AbstractSet[str]) -> MemberLine:
    member, told = member_of(row, name), row.followers.get(name)
    cell = replica_cell(row, name, alive)
    if row.leader == name:
        last = member.applied_index if member.last_index is None else member.last_index
        return MemberLine(name, cell, member, last, 0, 0, 0, _digest(row, member, leads=True))
    entries, seconds = lag(row, name)
    return MemberLine(
        name,
        cell,
        member,
        row.match.get(name) if told is None else told.match_index,
        entries,
        seconds,
        member.leader_contact_age_s if told is None else told.contact_age_s,
        _digest(row, member, leads=False),
    )


def transfer_targets(row: ShardFacts, members: Sequence[MemberLine]) -> list[MemberLine]:
    """Return who can be asked to lead a shard; first, as the default, whoever can do it now.

    That is a follower that is not behind, the preferred node before others.
    """
    others = [member for member in members if member.name != row.leader]
    return sorted(others, key=lambda m: (m.cell.kind != "good", m.name != row.preferred_leader))


def _digest(row: ShardFacts, member: Member, *, leads: bool) -> str:
    """Say whether a replica's state is its leader's, as far as they can be compared."""
    if member is _SILENT:
        return UNKNOWN
    if leads:
        return "reference"
    if member.digest_agreed_index is not None:
        return f"agrees up to {count(member.digest_agreed_index)}"
    leader = _SILENT if row.leader is None else member_of(row, row.leader)
    if leader is not _SILENT and leader.applied_index == member.applied_index:
        return "agrees" if leader.digest == member.digest else "differs"
    return "not compared yet"


def pinned(row: ShardFacts) -> str:
    """Say where an operator has put the leadership of a shard, and until when; else nothing."""
    told = row.pinned
    if told is None:
        return ""
    if told.until_us is None:
        return f"pinned to {told.node} by an operator until that node stops"
    return f"pinned to {told.node} by an operator until {moment(told.until_us)}"


def events(told: Sequence[Event], *, shown: int = EVENTS_SHOWN) -> list[EventLine]:
    """Return the newest events first; what belongs to one change of leaders is one line."""
    return [_event_line(event) for event in reversed(_as_hand_overs(told)[-shown:])]


def _as_hand_overs(told: Sequence[Event]) -> list[Event]:
    """Leave out what only says again that a leader was elected: on each node, before and after."""
    elected = {(event.shard, event.term) for event in told if event.kind == "leader"}
    handed_over = {
        (event.shard, event.term + 1): event.node
        for event in told
        if event.kind == "transfer" and event.term is not None
    }
    kept = []
    for event in told:
        election = event.shard, event.term
        if event.kind in {"follower", "candidate"} and election in elected:
            continue
        if event.kind == "transfer" and (event.shard, (event.term or 0) + 1) in elected:
            continue
        if event.kind == "leader" and election in handed_over:
            detail = f"handed over by {handed_over[election]}"
            event = msgspec.structs.replace(event, detail=detail)  # noqa: PLW2901 -- its new detail
        kept.append(event)
    return kept


def _event_line(event: Event) -> EventLine:
    plain = ("plain", "·", event.kind.replace("_", " "))
    kind, sign, text = _EVENTS.get(event.kind, plain)
    where = "" if event.shard is None else f"shard {event.shard}"
    where += f", term {event.term}" if event.term is not None and where else ""
    return EventLine(
        event.at_us, kind, sign, text, where, event.detail, event.node or None, event.shard
    )


class Spark(NamedTuple):
    """One sparkline: its line and the area below as SVG paths, and what it says in words."""

    title: str
    now: float | None
    highest: float | None
    unit: str
    line: str
    area: str
    seconds: int


SPARK_WIDTH, SPARK_HEIGHT = 240, 44


def sparks(nodes: Sequence[NodeSummary]) -> list[Spark]:
    """Return throughput, latency and errors of all these nodes over the last two minutes.

    Requests and errors are added up; of latencies the slowest node's counts.
    """
    told = [node.http.seconds for node in nodes if node.http is not None]
    series = [seconds for seconds in told if seconds is not None]
    if not series:
        return []
    until = min(seconds.until_s for seconds in series)  # the last that all have completed
    return [spark(title, _combined(series, column, until), unit) for title, column, unit in _SPARKS]


Column = Literal["requests", "p50_ms", "p99_ms", "errors"]
_SPARKS: tuple[tuple[str, Column, str], ...] = (
    ("Requests", "requests", "/s"),
    ("p50", "p50_ms", "ms"),
    ("p99", "p99_ms", "ms"),
    ("Errors", "errors", "/s"),
)


def _combined(series: Sequence[SecondsFacts], column: Column, until: int) -> list[float | None]:
    columns: dict[int, list[float]] = {}
    oldest = until
    for seconds in series:
        values: tuple[float | None, ...] = getattr(seconds, column)
        for back, value in enumerate(reversed(values)):
            second = seconds.until_s - back
            if second <= until:
                oldest = min(oldest, second)
                if value is not None:
                    columns.setdefault(second, []).append(value)
    combine = sum if column in {"requests", "errors"} else max
    return [
        float(combine(columns[second])) if second in columns else None
        for second in range(oldest, until + 1)
    ]


def spark(title: str, values: Sequence[float | None], unit: str) -> Spark:
    """Draw one series; a second without a figure leaves a gap."""
    known = [value for value in values if value is not None]
    top = max(known, default=0.0) or 1.0
    step = SPARK_WIDTH / max(len(values) - 1, 1)
    runs: list[list[tuple[float, float]]] = [[]]
    for place, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            height = SPARK_HEIGHT - 2 - (SPARK_HEIGHT - 4) * value / top
            runs[-1].append((round(place * step, 1), round(height, 1)))
    line, area = "", ""
    for run in filter(None, runs):
        drawn = " ".join(f"L{x} {y}" for x, y in run[1:]) or "h1"
        line += f"M{run[0][0]} {run[0][1]} {drawn}"
        area += f"M{run[0][0]} {SPARK_HEIGHT} L{run[0][0]} {run[0][1]} {drawn} V{SPARK_HEIGHT}Z"
    return Spark(
        title,
        values[-1] if values else None,
        max(known, default=None),
        unit,
        line,
        area,
        len(values),
    )
