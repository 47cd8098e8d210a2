"""The picture of ``raftkv bench load``: throughput and latency, second by second."""

import math
from collections.abc import Callable, Iterator, Sequence

from raftkv.bench.load.run_load import Latency, LoadResult, Second
from raftkv.bench.report import shown
from raftkv.cli import svg

_WIDTH = 960
_HEIGHT = 640
_LEFT = 90
_RIGHT = 800
_BOTTOM_S = 1e-5
"""No latency is drawn below this: logarithms need an end."""

_PERCENTILES: Sequence[tuple[str, str, Callable[[Latency], float | None]]] = (
    ("worst", "#9b1c1c", lambda latency: latency.max_s),
    ("p99.9", "#d9480f", lambda latency: latency.p999_s),
    ("p99", "#e8a100", lambda latency: latency.p99_s),
    ("p90", "#2b8a9d", lambda latency: latency.p90_s),
    ("median", "#1c4f9c", lambda latency: latency.p50_s),
)
_ACCEPTED = "#5b8def"
_FAILED = "#c92a2a"
_GRID = "#e4e7eb"


def draw(title: str, result: LoadResult) -> str:
    """Return the picture as an SVG document.

    Raises:
        ValueError: Nothing was measured.
    """
    if not result.per_second:
        raise ValueError("nothing was measured")
    parts = [
        svg.text(_LEFT, 36, title, size=13),
        *_throughput(result, top=80, bottom=300),
        *_latencies(result, top=360, bottom=590),
        svg.text((_LEFT + _RIGHT) / 2, 626, "seconds", size=12, anchor="middle", fill=svg.QUIET),
    ]
    return svg.document(_WIDTH, _HEIGHT, title, parts)


def _throughput(result: LoadResult, *, top: float, bottom: float) -> Iterator[str]:
    """Yield a column for each second: accepted requests, failed ones on top of them."""
    seconds = result.per_second
    highest = max(1, *(second.accepted + second.failed for second in seconds))
    scale = (bottom - top) / (1.05 * highest)
    yield svg.text(_LEFT, top - 14, "requests in each second", size=14)
    for value in _round_steps(highest):
        yield from _line(bottom - value * scale, f"{value:,.0f}")
    step = (_RIGHT - _LEFT) / len(seconds)
    for number, second in enumerate(seconds):
        base = bottom
        for count, colour, what in (
            (second.accepted, _ACCEPTED, "accepted"),
            (second.failed, _FAILED, "failed"),
        ):
            tall = count * scale
            base -= tall
            if count:
                yield (
                    f'<rect x="{_LEFT + number * step + step * 0.06:.2f}" y="{base:.2f}" '
                    f'width="{step * 0.88:.2f}" height="{tall:.2f}" fill="{colour}">'
                    f"<title>second {number + 1}: {count:,} {what}</title></rect>"
                )
    yield svg.text(_RIGHT + 14, top + 12, f"{result.requests_per_s:,.0f}/s", size=16)
    yield svg.text(_RIGHT + 14, top + 30, "accepted", size=12, fill=_ACCEPTED)
    if result.failed:
        yield svg.text(_RIGHT + 14, top + 52, f"{result.failed:,} failed", size=12, fill=_FAILED)


def _latencies(result: LoadResult, *, top: float, bottom: float) -> Iterator[str]:
    """Yield a line for each percentile, on a logarithmic scale, with gaps where nothing came."""
    seconds = result.per_second
    found = [
        value
        for second in seconds
        for _, _, of in _PERCENTILES
        if (value := of(second.latency)) is not None
    ]
    yield svg.text(_LEFT, top - 14, "latency of what was accepted", size=14)
    yield from _times(len(seconds), bottom)
    if not found:
        return
    low = math.floor(math.log10(max(_BOTTOM_S, min(found))))
    high = max(low + 1, math.ceil(math.log10(max(found))))

    def place(value: float) -> float:
        share = (math.log10(max(_BOTTOM_S, value)) - low) / (high - low)
        return bottom - share * (bottom - top)

    for power in range(low, high + 1):
        label = f"{10**power:g} s" if power >= 0 else f"{10 ** (power + 3):g} ms"
        yield from _line(place(10**power), label)
    for row, (name, colour, of) in enumerate(_PERCENTILES):
        for run in _runs(seconds, of):
            yield _polyline(run, len(seconds), colour, place)
        yield svg.text(_RIGHT + 14, top + 12 + 38 * row, name, size=12, fill=colour)
        overall = shown(of(result.latency), "s")
        yield svg.text(_RIGHT + 14, top + 29 + 38 * row, overall, size=15)


def _runs(
    seconds: Sequence[Second], of: Callable[[Latency], float | None]
) -> Iterator[list[tuple[int, float]]]:
    """Yield unbroken runs of (second, value)."""
    run: list[tuple[int, float]] = []
    for number, second in enumerate(seconds):
        value = of(second.latency)
        if value is not None:
            run.append((number, value))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _polyline(
    run: Sequence[tuple[int, float]], count: int, colour: str, place: Callable[[float], float]
) -> str:
    step = (_RIGHT - _LEFT) / count
    points = [(_LEFT + (number + 0.5) * step, place(value)) for number, value in run]
    if len(points) == 1:  # a line of one point is nothing
        x, y = points[0]
        return f'<circle cx="{x:.2f}" cy="{y:.2f}" r="3" fill="{colour}"/>'
    joined = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
    return f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _line(y: float, label: str) -> Iterator[str]:
    yield (
        f'<line x1="{_LEFT}" y1="{y:.2f}" x2="{_RIGHT}" y2="{y:.2f}" '
        f'stroke="{_GRID}" stroke-width="1"/>'
    )
    yield svg.text(_LEFT - 10, y + 4, label, size=11, anchor="end", fill=svg.QUIET)


def _times(count: int, bottom: float) -> Iterator[str]:
    step = (_RIGHT - _LEFT) / count
    for second in _round_steps(count):
        yield svg.text(
            _LEFT + second * step,
            bottom + 18,
            f"{second:g}",
            size=11,
            anchor="middle",
            fill=svg.QUIET,
        )


def _round_steps(highest: float) -> Iterator[float]:
    """Yield 0 and about five round numbers up to ``highest``, whole ones."""
    rough = max(1.0, highest / 5)
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    value = 0.0
    while value <= highest:
        yield value
        value += step
