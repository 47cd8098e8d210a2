"""What the pages show, made of the facts: pure, one function for each part of a page.

Templates only lay out what these return. Every state has a sign and a word besides its colour.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from raftkv.status.health import Facts, reachable, rows, shard_health
from raftkv.web.quantities import UNKNOWN, count, duration, moment

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

    shard: Any
    facts: Facts
    state: str
    margin: int | None
    cells: tuple[Cell, ...]


class EventLine(NamedTuple):
    """One event, newest first."""

    at_us: Any
    kind: str
    sign: str
    text: str
    where: str
    detail: str
    node: str | None
    shard: Any


class MemberLine(NamedTuple):
    """One replica on a shard's own page."""

    name: str
    cell: Cell
    facts: Facts
    match_index: Any
    lag_entries: Any
    lag_s: Any
    contact_age_s: Any
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
    "slow_disk": ("warn", "▲", "slow disk"),
    "refused": ("warn", "▲", "refused requests"),
    "worker_ended": ("warn", "▲", "an HTTP worker ended"),
}


def mapping(value: object) -> Facts:
    """Return ``value`` if it is a mapping, an empty one otherwise."""
    return value if isinstance(value, Mapping) else {}


def node_names(facts: Facts) -> list[str]:
    """Return the nodes' names in the map's order."""
    return [str(row.get("name")) for row in rows(facts, "nodes")]


def answering(facts: Facts) -> set[str]:
    """Return the names of the nodes that answer."""
    return {str(row.get("name")) for row in rows(facts, "nodes") if reachable(row)}


def grid(facts: Facts) -> list[ShardLine]:
    """Return shards by nodes: who leads, who follows and how far behind, who is silent."""
    names, alive = node_names(facts), answering(facts)
    lines = []
    for row in rows(facts, "shards"):
        health = shard_health(row, alive)
        cells = tuple(replica_cell(row, name, alive) for name in names)
        lines.append(ShardLine(row.get("shard"), row, health.state, health.margin, cells))
    return lines


def replica_cell(row: Facts, name: str, alive: set[str]) -> Cell:
    """Return how one replica of a shard is."""
    listed = row.get("replicas")
    if name not in (listed if isinstance(listed, (list, tuple)) else ()):
        return Cell("none", "·", "", "holds no replica")
    if name not in alive:
        return Cell("bad", "✕", "silent", "does not answer")
    member = mapping(mapping(row.get("members")).get(name))
    if row.get("leader") == name:  # a deposed one may still believe that it leads
        return Cell("leader", "★", "leader", "leads")
    return _follower_cell(row, name, member)


def _follower_cell(row: Facts, name: str, member: Facts) -> Cell:
    if member.get("installing_snapshot") is True:
        return Cell("warn", "▣", "snapshot", "is installing a snapshot")
    entries, seconds = lag(row, name)
    if (entries or 0) >= LAGGING_ENTRIES or (seconds or 0) >= LAGGING_S:
        behind = f"−{count(entries)}" if entries else f"−{duration(seconds)}"  # noqa: RUF001
        return Cell("warn", "▲", behind, "lags behind its leader")
    if not row.get("leader"):
        return Cell("warn", "?", "no leader", "knows no leader")
    return Cell("good", "✓", "follows", "follows the leader")


def lag(row: Facts, name: str) -> tuple[float | None, float | None]:
    """Return how far a follower is behind, in entries and in seconds; None is not known."""
    told = mapping(mapping(row.get("followers")).get(name))
    member = mapping(mapping(row.get("members")).get(name))
    entries = told.get("lag_entries", member.get("lag_entries"))
    if entries is None:
        committed, applied = row.get("commit_index"), member.get("applied_index")
        if isinstance(committed, int) and isinstance(applied, int):
            entries = max(committed - applied, 0)
    seconds = told.get("lag_s")
    return _figure(entries), _figure(seconds)


def members(row: Facts, facts: Facts) -> list[MemberLine]:
    """Return the replicas of one shard, in the order in which leadership is preferred."""
    alive = answering(facts)
    lines = []
    listed = row.get("replicas")
    for name in map(str, listed if isinstance(listed, (list, tuple)) else ()):
        member = mapping(mapping(row.get("members")).get(name))
        told = mapping(mapping(row.get("followers")).get(name))
        entries, seconds = lag(row, name)
        leads = row.get("leader") == name
        match = told.get("match_index", mapping(row.get("match")).get(name))
        lines.append(
            MemberLine(
                name,
                replica_cell(row, name, alive),
                member,
                member.get("last_index", member.get("applied_index")) if leads else match,
                0 if leads else entries,
                0 if leads else seconds,
                0 if leads else told.get("contact_age_s", member.get("leader_contact_age_s")),
                _digest(row, member, leads=leads),
            )
        )
    return lines


def transfer_targets(row: Facts, members: Sequence[MemberLine]) -> list[MemberLine]:
    """Return who can be asked to lead a shard; first, as the default, whoever can do it now.

    That is a follower that is not behind, the preferred node before others.
    """
    preferred = row.get("preferred_leader")
    others = [member for member in members if member.name != row.get("leader")]
    return sorted(others, key=lambda m: (m.cell.kind != "good", m.name != preferred))


def _digest(row: Facts, member: Facts, *, leads: bool) -> str:
    """Say whether a replica's state is its leader's, as far as they can be compared."""
    if not member:
        return UNKNOWN
    if leads:
        return "reference"
    agreed = member.get("digest_agreed_index")
    if isinstance(agreed, int):
        return f"agrees up to {count(agreed)}"
    leader = mapping(mapping(row.get("members")).get(str(row.get("leader"))))
    if leader and leader.get("applied_index") == member.get("applied_index"):
        return "agrees" if leader.get("digest") == member.get("digest") else "differs"
    return "not compared yet"


def pinned(row: Facts) -> str:
    """Say where an operator has put the leadership of a shard, and until when; else nothing."""
    told = mapping(row.get("pinned"))
    if not told:
        return ""
    until = told.get("until_us")
    if not isinstance(until, int):
        return f"pinned to {told.get('node')} by an operator until that node stops"
    return f"pinned to {told.get('node')} by an operator until {moment(until)}"


def events(facts: Facts, *, shown: int = EVENTS_SHOWN) -> list[EventLine]:
    """Return the newest events first; what belongs to one change of leaders is one line."""
    told = _as_hand_overs(rows(facts, "events"))
    return [_event_line(row) for row in reversed(told[-shown:])]


def _as_hand_overs(told: Sequence[Facts]) -> list[Facts]:
    """Leave out what only says again that a leader was elected: on each node, before and after."""
    elected = {_election(row): row for row in told if row.get("kind") == "leader"}
    kept = []
    for row in told:
        shard, term = _election(row)
        kind = row.get("kind")
        if kind in {"follower", "candidate"} and (shard, term) in elected:
            continue
        if kind == "transfer" and isinstance(term, int) and (shard, term + 1) in elected:
            continue
        kept.append({**row, **_handed_over(row, told)} if kind == "leader" else row)
    return kept


def _handed_over(leader: Facts, told: Sequence[Facts]) -> Facts:
    """Say by whom, if it was."""
    shard, term = _election(leader)
    if not isinstance(term, int):
        return {}
    for row in told:
        if row.get("kind") == "transfer" and _election(row) == (shard, term - 1):
            return {"detail": f"handed over by {row.get('node')}"}
    return {}


def _election(row: Facts) -> tuple[Any, Any]:
    return row.get("shard"), row.get("term")


def _event_line(row: Facts) -> EventLine:
    name = str(row.get("kind"))
    kind, sign, text = _EVENTS.get(name, ("plain", "·", name.replace("_", " ")))
    node = row.get("node")
    shard, term = row.get("shard"), row.get("term")
    where = "" if shard is None else f"shard {shard}"
    where += f", term {term}" if term is not None and where else ""
    return EventLine(
        row.get("at_us"),
        kind,
        sign,
        text,
        where,
        str(row.get("detail") or ""),
        str(node) if node else None,
        shard,
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


def sparks(nodes: Sequence[Facts]) -> list[Spark]:
    """Return throughput, latency and errors of all these nodes over the last two minutes.

    Requests and errors are added up; of latencies the slowest node's counts.
    """
    series = [s for node in nodes if (s := mapping(mapping(node.get("http")).get("seconds")))]
    ends = [s["until_s"] for s in series if isinstance(s.get("until_s"), int)]
    if not ends:
        return []
    until = min(ends)  # the last second that all have completed
    listed = (
        ("Requests", "requests", "/s", True),
        ("p50", "p50_ms", "ms", False),
        ("p99", "p99_ms", "ms", False),
        ("Errors", "errors", "/s", True),
    )
    return [
        spark(title, _combined(series, name, until, added=added), unit)
        for title, name, unit, added in listed
    ]


def _combined(series: Sequence[Facts], name: str, until: int, *, added: bool) -> list[float | None]:
    columns: dict[int, list[float]] = {}
    oldest = until
    for one in series:
        values = one.get(name)
        end = one.get("until_s")
        if not isinstance(values, (list, tuple)) or not isinstance(end, int):
            continue
        for back, value in enumerate(reversed(values)):
            second = end - back
            figure = _figure(value)
            if second <= until:
                oldest = min(oldest, second)
                if figure is not None:
                    columns.setdefault(second, []).append(figure)
    combine = sum if added else max
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


def _figure(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value
