"""The timeline as one picture: faults, throughput, latency and leaders under one axis of time.

Plain SVG by hand, so that it can be read without JavaScript; colours come from the style sheet by
class. What is drawn is bounded, whatever the run was.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import islice

from raftkv.check.history import Operation
from raftkv.check.report.events import Fault, LeaderEvent
from raftkv.check.report.text import cut, duration
from raftkv.check.report.timeline import Slice, Span, steps

WIDTH = 960
LEFT = 96
RIGHT = 944
FAULTS_MAX = 1_000
"""Fault bands that are drawn, the first ones; beyond that many they hide one another."""

SHARDS_MAX = 16
CHANGES_MAX = 1_600
MARKS_MAX = 20
NAME_CHARS_MAX = 60
PALETTE = 8
"""Colours of fault kinds in the style sheet; more kinds begin again."""

EFFECT = {
    True: "seen to take effect",
    False: "not seen to take effect",
    None: "not known whether it took effect",
}
"""What ``effective`` of a fault means."""

_ROW = 20
_PLOT = 120
_GAP = 34
_WORD_CHARS_MAX = 13
"""What fits left of the plots."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Where a moment of the run stands in the picture."""

    span: Span

    def x(self, time_ns: float) -> float:
        """Return its distance from the left edge, kept within the plots."""
        share = (time_ns - self.span.start_ns) / self.span.length_ns
        return LEFT + (RIGHT - LEFT) * min(1.0, max(0.0, share))

    def after(self, time_ns: float) -> str:
        """Return the time since the start of the run, in words."""
        return duration(max(0.0, time_ns - self.span.start_ns))


def colours_of(faults: Sequence[Fault]) -> dict[str, int]:
    """Return the colour of every kind of fault, in the order of their first start."""
    return {kind: at % PALETTE for at, kind in enumerate(dict.fromkeys(f.f for f in faults))}


def draw(
    slices: Sequence[Slice],
    span: Span,
    faults: Sequence[Fault],
    leaders: Mapping[int, Sequence[LeaderEvent]],
    offences: Sequence[Operation] = (),
) -> str:
    """Return the picture as an SVG element; ``offences`` are marked by a line."""
    axis, colours = Axis(span), colours_of(faults)
    rows = {kind: row for row, kind in enumerate(colours)}
    throughput = len(rows) * _ROW + _GAP
    latency = throughput + _PLOT + _GAP
    shards = latency + _PLOT + 12
    bottom = shards + min(len(leaders), SHARDS_MAX) * _ROW
    drawn = faults[:FAULTS_MAX]
    parts = [
        *_bands(drawn, axis, colours, bottom),
        *_fault_rows(drawn, axis, colours, rows),
        *_throughput(slices, axis, throughput),
        *_latency(slices, axis, latency),
        *_leader_rows(leaders, axis, shards),
        *_time_axis(axis, bottom),
        *_marks(offences, axis, throughput, bottom),
        *_hints(slices, axis, drawn, top=throughput, bottom=shards),
    ]
    return (
        f'<svg id="timeline-chart" viewBox="0 0 {WIDTH} {bottom + 40}" role="img" '
        f'aria-label="Faults, throughput, latency and leader changes over time" '
        f'data-left="{LEFT / WIDTH}" data-right="{RIGHT / WIDTH}">{"".join(parts)}</svg>'
    )


def _bands(
    faults: Sequence[Fault], axis: Axis, colours: Mapping[str, int], bottom: float
) -> Iterator[str]:
    for fault in faults:
        left, width = _extent(fault, axis)
        yield (
            f'<rect class="band fault-{colours[fault.f]}" x="{left:.1f}" y="0" '
            f'width="{width:.1f}" height="{bottom:.1f}"/>'
        )


def _fault_rows(
    faults: Sequence[Fault], axis: Axis, colours: Mapping[str, int], rows: Mapping[str, int]
) -> Iterator[str]:
    for kind, row in rows.items():
        yield _word(LEFT - 8, row * _ROW + 14, kind)
    for fault in faults:
        left, width = _extent(fault, axis)
        seen = {True: "seen", False: "unseen", None: "untold"}[fault.effective]
        yield (
            f'<rect class="fault {seen} fault-{colours[fault.f]}" x="{left:.1f}" '
            f'y="{rows[fault.f] * _ROW + 3}" width="{width:.1f}" height="{_ROW - 6}" rx="2">'
            f"<title>{escape(told(fault, axis))}</title></rect>"
        )


def told(fault: Fault, axis: Axis) -> str:
    """Return all that is known of a fault, on a few lines."""
    lines = [
        _name(fault),
        f"from {axis.after(fault.start_ns)} for {duration(fault.end_ns - fault.start_ns)}",
        EFFECT[fault.effective],
        cut(fault.detail),
    ]
    return "\n".join(line for line in lines if line)


def _name(fault: Fault) -> str:
    return f"{cut(fault.f, NAME_CHARS_MAX)} {cut(fault.target, NAME_CHARS_MAX)}".strip()


def _extent(fault: Fault, axis: Axis) -> tuple[float, float]:
    left = axis.x(fault.start_ns)
    return left, max(2.0, axis.x(fault.end_ns) - left)


def _throughput(slices: Sequence[Slice], axis: Axis, top: float) -> Iterator[str]:
    highest = max((p.rate(max(p.ok, p.fail, p.info)) for p in slices), default=0.0) or 1.0

    def y(rate: float) -> float:
        return top + _PLOT * (1 - rate / highest / 1.05)

    yield _heading(top, "operations per second")
    for rate in steps(highest, 4):
        yield _grid(y(rate), f"{rate:,.10g}")
    yield _path("ok-area", _area([(axis, p, y(p.rate(p.ok))) for p in slices], y(0)))
    for name in ("fail", "info"):
        if any(getattr(p, name) for p in slices):
            line = [(_middle(axis, p), y(p.rate(getattr(p, name)))) for p in slices]
            yield _path(f"{name}-line", _line(line))


def _latency(slices: Sequence[Slice], axis: Axis, top: float) -> Iterator[str]:
    yield _heading(top, "latency of operations that were ok, log scale")
    known = [(p, p.latency_ns(50), p.latency_ns(99)) for p in slices]
    points = [(p, max(1, low), max(1, high)) for p, low, high in known if low is not None and high]
    if not points:
        yield _grid(top + _PLOT, "")
        return
    y, decades = _log_scale(
        min(low for _, low, _ in points), max(high for _, _, high in points), top
    )
    for decade in decades:
        yield _grid(y(decade), duration(decade))
    present = {id(p): (low, high) for p, low, high in points}
    for name, which in (("p50", 0), ("p99", 1)):
        line = [
            (_middle(axis, p), y(present[id(p)][which])) if id(p) in present else None
            for p in slices
        ]
        yield _path(f"{name}-line", _line(line))


def _log_scale(low: int, high: int, top: float) -> tuple[Callable[[float], float], list[int]]:
    """Return the scale from the decade below ``low`` to the one above ``high``, and its decades."""
    first = math.floor(math.log10(low))
    last = max(first + 1, math.ceil(math.log10(high)))

    def y(value: float) -> float:
        return top + _PLOT * (last - math.log10(value)) / (last - first)

    return y, [10**power for power in range(first, last + 1)]


def _leader_rows(
    leaders: Mapping[int, Sequence[LeaderEvent]], axis: Axis, top: float
) -> Iterator[str]:
    shown = list(leaders.items())[:SHARDS_MAX]
    for row, (shard, changes) in enumerate(shown):
        middle = top + row * _ROW + _ROW / 2
        yield _word(LEFT - 8, middle + 4, f"shard {shard}")
        yield f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{middle}" y2="{middle}"/>'
        for change in changes[: CHANGES_MAX // SHARDS_MAX]:
            yield _change(change, axis, middle)


def _change(change: LeaderEvent, axis: Axis, middle: float) -> str:
    x = axis.x(change.time_ns)
    who = "no leader" if change.node is None else f"{cut(change.node, NAME_CHARS_MAX)} leads"
    title = f"shard {change.shard}: {who}, term {change.term}, at {axis.after(change.time_ns)}"
    shape = "leader" if change.node is not None else "leader none"
    return (
        f'<path class="{shape}" d="M{x:.1f},{middle - 6}l5,6l-5,6l-5,-6z">'
        f"<title>{escape(title)}</title></path>"
    )


def _time_axis(axis: Axis, bottom: float) -> Iterator[str]:
    yield f'<line class="edge" x1="{LEFT}" x2="{RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    for after_ns in steps(axis.span.length_ns, 8):
        x = axis.x(axis.span.start_ns + after_ns)
        yield f'<line class="edge" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 5}"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 20}" class="middle">{duration(after_ns)}</text>'


def _marks(offences: Sequence[Operation], axis: Axis, top: float, bottom: float) -> Iterator[str]:
    for operation in offences[:MARKS_MAX]:
        x = axis.x(operation.invoked_ns)
        yield f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 4}" y2="{bottom}"/>'
        yield f'<text class="mark middle" x="{x:.1f}" y="{top - 8}">✗ #{operation.index}</text>'


def _hints(
    slices: Sequence[Slice], axis: Axis, faults: Sequence[Fault], *, top: float, bottom: float
) -> Iterator[str]:
    """Yield what says the numbers of a slice when pointed at: a rectangle that is not seen."""
    for part in slices:
        left = axis.x(part.start_ns)
        width = max(1.0, axis.x(part.end_ns) - left)
        title = "\n".join([*_numbers(part, axis), *_active(part, faults)])
        yield (
            f'<rect class="hint" x="{left:.1f}" y="{top}" width="{width:.1f}" '
            f'height="{bottom - top}"><title>{escape(title)}</title></rect>'
        )


def _numbers(part: Slice, axis: Axis) -> Iterator[str]:
    yield f"{axis.after(part.start_ns)} to {axis.after(part.end_ns)}"
    yield f"ok {part.ok:,} ({part.rate(part.ok):,.0f}/s)"
    yield f"failed {part.fail:,}, unknown {part.info:,}"
    low, high = part.latency_ns(50), part.latency_ns(99)
    if low is not None and high is not None:
        yield f"p50 {duration(low)}, p99 {duration(high)}"


def _active(part: Slice, faults: Sequence[Fault]) -> list[str]:
    """Return the first faults that a slice overlaps, a line for each."""
    active = (f for f in faults if f.start_ns < part.end_ns and f.end_ns > part.start_ns)
    return [f"during {_name(fault)} ({EFFECT[fault.effective]})" for fault in islice(active, 5)]


def _middle(axis: Axis, part: Slice) -> float:
    return (axis.x(part.start_ns) + axis.x(part.end_ns)) / 2


def _area(points: Sequence[tuple[Axis, Slice, float]], base: float) -> str:
    """Return steps with the ground below them, as bars without gaps."""
    if not points:
        return ""
    tops = (f"L{a.x(p.start_ns):.1f},{y:.1f}H{a.x(p.end_ns):.1f}" for a, p, y in points)
    return f"M{LEFT},{base:.1f}{''.join(tops)}V{base:.1f}Z"


def _line(points: Sequence[tuple[float, float] | None]) -> str:
    """Return a line that is broken where there is no point."""
    told = [f"{point[0]:.1f},{point[1]:.1f}" if point else "" for point in points]
    runs = " ".join(told).split("  ")
    return "".join(f"M{run.strip()}h.1" for run in runs if run.strip())


def _path(name: str, path: str) -> str:
    return f'<path class="{name}" d="{path}"/>'


def _heading(top: float, content: str) -> str:
    return f'<text x="{LEFT}" y="{top - 8}" class="heading">{content}</text>'


def _grid(y: float, label: str) -> str:
    line = f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + f'<text x="{LEFT - 8}" y="{y + 4:.1f}" class="end">{label}</text>'


def _word(x: float, y: float, content: str) -> str:
    return f'<text x="{x}" y="{y}" class="end">{escape(cut(content, _WORD_CHARS_MAX))}</text>'
