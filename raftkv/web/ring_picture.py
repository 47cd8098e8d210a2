"""The ring as an SVG picture: arcs of the hash circle, coloured by shard."""

import math
from typing import NamedTuple

from raftkv.core.health import Facts, rows

OUTER, INNER = 96.0, 66.0
COLOURS = 8
"""The style sheet has so many; shards beyond share them and are told apart by the table."""


class Arc(NamedTuple):
    """One stretch of the circle that belongs to one shard."""

    path: str
    shard: object
    colour: int


def arcs(facts: Facts) -> list[Arc]:
    """Return the arcs to draw, clockwise from the top; none if the engine reports none."""
    drawn = []
    for row in rows(facts, "arcs"):
        begin, end, shard = row.get("from"), row.get("to"), row.get("shard")
        if not isinstance(begin, (int, float)) or not isinstance(end, (int, float)):
            continue
        colour = shard % COLOURS if isinstance(shard, int) else 0
        drawn.append(Arc(_path(float(begin), float(end)), shard, colour))
    return drawn


def _path(begin: float, end: float) -> str:
    end = min(end, begin + 0.9999)  # a full circle would begin where it ends and show nothing
    large = 1 if end - begin > 1 / 2 else 0
    (ax, ay), (bx, by) = _point(begin, OUTER), _point(end, OUTER)
    (cx, cy), (dx, dy) = _point(end, INNER), _point(begin, INNER)
    return (
        f"M{ax} {ay}A{OUTER} {OUTER} 0 {large} 1 {bx} {by}"
        f"L{cx} {cy}A{INNER} {INNER} 0 {large} 0 {dx} {dy}Z"
    )


def _point(share: float, radius: float) -> tuple[float, float]:
    angle = 2 * math.pi * share
    return round(radius * math.sin(angle), 2), round(-radius * math.cos(angle), 2)
