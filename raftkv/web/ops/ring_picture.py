"""The ring as an SVG picture: arcs of the hash circle, coloured by shard."""

import math
from typing import NamedTuple

from raftkv.status.ring import RingFacts

CIRCLE = (96.0, 72.0)
"""Outer and inner radius of the band that shows the circle itself."""
TOTALS = (68.0, 52.0)
"""Of the band inside it, where the stretches of each shard are put together."""
COLOURS = 8
"""The style sheet has so many; shards beyond share them and are told apart by the table."""


class Arc(NamedTuple):
    """One stretch of the circle that belongs to one shard."""

    path: str
    shard: int
    colour: int


def arcs(facts: RingFacts) -> list[Arc]:
    """Return the circle's arcs to draw, clockwise from the top; none if there are too many."""
    return [_arc(arc.begin, arc.end, arc.shard, CIRCLE) for arc in facts.arcs or ()]


def shares(facts: RingFacts) -> list[Arc]:
    """Return one arc for each shard, as large as its share; the circle's if that is not drawn."""
    band = TOTALS if facts.arcs else CIRCLE
    drawn, begin = [], 0.0
    for row in facts.shards:
        if row.share > 0:
            drawn.append(_arc(begin, begin + row.share, row.shard, band))
            begin += row.share
    return drawn


def _arc(begin: float, end: float, shard: int, band: tuple[float, float]) -> Arc:
    return Arc(_path(begin, end, *band), shard, shard % COLOURS)


def _path(begin: float, end: float, outer: float, inner: float) -> str:
    end = min(end, begin + 0.9999)  # a full circle would begin where it ends and show nothing
    large = 1 if end - begin > 1 / 2 else 0
    (ax, ay), (bx, by) = _point(begin, outer), _point(end, outer)
    (cx, cy), (dx, dy) = _point(end, inner), _point(begin, inner)
    return (
        f"M{ax} {ay}A{outer} {outer} 0 {large} 1 {bx} {by}"
        f"L{cx} {cy}A{inner} {inner} 0 {large} 0 {dx} {dy}Z"
    )


def _point(share: float, radius: float) -> tuple[float, float]:
    angle = 2 * math.pi * share
    return round(radius * math.sin(angle), 2), round(-radius * math.cos(angle), 2)
