"""The picture of ``raftkv ring``: bars per shard for each partitioner, and the ring itself."""

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

from raftkv.cli import svg
from raftkv.cli.svg import INK, QUIET
from raftkv.core.ring import RING_POSITIONS, Ring

_WIDTH = 960
_MARGIN = 40
_BAR_AREA_HEIGHT = 180
_RADIUS = 130
_BAND = 40
_ZOOM = 64
"""The strip under the circle shows one part in this many, large enough to see single points."""


class Measured(Protocol):
    """What is drawn of a partitioner's spread."""

    @property
    def partitioner(self) -> str:
        """Its name."""
        ...

    @property
    def keys_per_shard(self) -> dict[int, int]:
        """How many keys each shard got."""
        ...

    @property
    def moved_share(self) -> float:
        """Share of the keys that move when a shard is added."""
        ...


def draw(ring: Ring, keys: int, spreads: Sequence[Measured]) -> str:
    """Return the picture as an SVG document."""
    colours = {shard: _colour(index) for index, shard in enumerate(ring.shards)}
    column = (_WIDTH - 3 * _MARGIN) / 2
    parts: list[str] = []
    for index, spread in enumerate(spreads):
        left = _MARGIN + index * (column + _MARGIN)
        parts += _bars(spread, keys, colours, left=left, top=70, width=column)
    top = 70 + _BAR_AREA_HEIGHT + 70
    parts += _circle(ring, colours, centre_x=_MARGIN + _RADIUS + _BAND, centre_y=top + 190)
    parts += _strip(ring, colours, left=2 * _MARGIN + 2 * (_RADIUS + _BAND) + 40, top=top + 130)
    height = top + 400
    title = f"{keys:,} keys over {len(ring.shards)} shards"
    heading = svg.text(_MARGIN, 34, title, size=20)
    return svg.document(_WIDTH, height, title, [heading, *parts])


def _bars(
    spread: Measured,
    keys: int,
    colours: dict[int, str],
    *,
    left: float,
    top: float,
    width: float,
) -> Iterator[str]:
    """Yield one bar per shard, the mean as a dashed line, and what moves as the caption."""
    counts = spread.keys_per_shard
    mean = keys / len(counts)
    scale = _BAR_AREA_HEIGHT / (1.25 * max(mean, *counts.values()))
    bottom = top + _BAR_AREA_HEIGHT
    step = width / len(counts)
    for index, (shard, count) in enumerate(counts.items()):
        tall = count * scale
        yield (
            f'<rect x="{left + index * step + step * 0.08:.2f}" y="{bottom - tall:.2f}" '
            f'width="{step * 0.84:.2f}" height="{tall:.2f}" fill="{colours[shard]}">'
            f"<title>shard {shard}: {count:,} keys, {count / mean:.3f} of the mean</title></rect>"
        )
        if step > 30:  # noqa: PLR2004 -- room for a label
            middle = left + (index + 0.5) * step
            above = bottom - max(tall, mean * scale) - 5  # clear of the line of the mean
            yield svg.text(middle, above, f"{count / mean:.2f}", size=11, anchor="middle")
            yield svg.text(middle, bottom + 15, str(shard), size=11, anchor="middle", fill=QUIET)
    line = bottom - mean * scale
    yield (
        f'<line x1="{left:.2f}" y1="{line:.2f}" x2="{left + width:.2f}" y2="{line:.2f}" '
        f'stroke="{INK}" stroke-dasharray="4 3"/>'
    )
    yield svg.text(left, top - 8, f"{spread.partitioner}: keys per shard, of the mean", size=14)
    yield svg.text(
        left,
        bottom + 36,
        f"one shard more moves {spread.moved_share:.1%} of the keys",
        size=13,
    )


def _circle(
    ring: Ring, colours: dict[int, str], *, centre_x: float, centre_y: float
) -> Iterator[str]:
    """Yield one dashed circle per shard: its dashes are the arcs that the shard owns."""
    circumference = 2 * math.pi * _RADIUS
    dashes: dict[int, list[float]] = {shard: [] for shard in ring.shards}
    reached = dict.fromkeys(ring.shards, 0.0)
    for start, end, shard in ring.arcs():
        first = (start + 1) / RING_POSITIONS * circumference
        last = (end + 1) / RING_POSITIONS * circumference
        dashes[shard] += [first - reached[shard], last - first]
        reached[shard] = last
    for shard, lengths in dashes.items():
        # A dash pattern begins with a dash, the arcs with a gap: hence the leading zero, and a
        # closing gap that keeps the pattern from starting again before the circle is round.
        pattern = " ".join(f"{length:.3f}" for length in [0.0, *lengths, circumference])
        yield (
            f'<circle cx="{centre_x}" cy="{centre_y}" r="{_RADIUS}" fill="none" '
            f'stroke="{colours[shard]}" stroke-width="{_BAND}" stroke-dasharray="{pattern}" '
            f'transform="rotate(-90 {centre_x} {centre_y})"/>'
        )
    points = len(ring.shards) * ring.vnodes
    yield svg.text(centre_x, centre_y - 4, "the ring", size=16, anchor="middle")
    yield svg.text(centre_x, centre_y + 16, f"{points:,} points", size=12, anchor="middle")


def _strip(ring: Ring, colours: dict[int, str], *, left: float, top: float) -> Iterator[str]:
    """Yield the first part of the circle unrolled, so that single arcs can be seen."""
    width = _WIDTH - _MARGIN - left
    shown = RING_POSITIONS // _ZOOM
    yield svg.text(left, top - 12, f"the first 1/{_ZOOM} of it, clockwise from the top", size=13)
    for start, end, shard in ring.arcs():
        if start >= shown:
            break
        first = (start + 1) / shown * width
        last = min(end + 1, shown) / shown * width
        yield (
            f'<rect x="{left + first:.2f}" y="{top}" width="{last - first:.2f}" height="70" '
            f'fill="{colours[shard]}" stroke="#ffffff" stroke-width="0.5">'
            f"<title>shard {shard}</title></rect>"
        )
    yield from _legend(colours, left=left, top=top + 100, width=width)


def _legend(colours: dict[int, str], *, left: float, top: float, width: float) -> Iterator[str]:
    columns = int(width // 50)
    for index, (shard, colour) in enumerate(list(colours.items())[: columns * 5]):
        x = left + index % columns * 50
        y = top + index // columns * 22
        yield f'<rect x="{x:.2f}" y="{y - 11:.2f}" width="12" height="12" fill="{colour}"/>'
        yield svg.text(x + 17, y, str(shard), size=12)


def _colour(index: int) -> str:
    """Return a colour far from its neighbours': steps of the golden angle around the wheel."""
    lightness = (52, 38, 66)[index // 8 % 3]
    return f"hsl({index * 137.508 % 360:.0f} 62% {lightness}%)"
