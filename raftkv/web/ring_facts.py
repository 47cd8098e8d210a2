"""How keys and load are spread over the shards, and what would move if a shard were added.

Worked out here and not in the engine: with a thousand shards it takes a second, for which no
heartbeat must wait.
"""

from bisect import bisect_left
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from raftkv.core.ring import RING_POSITIONS, Modulo, Ring, RingParameters, partitioner
from raftkv.status.health import Facts, rows

ARCS_MAX = 2048
"""A picture with more arcs than this shows nothing."""

HOT_KEYS_SHOWN = 20


def ring_facts(cluster: Facts) -> dict[str, Any]:
    """Return the facts of ``GET /v1/ring``, given those of the cluster; {} without a ring."""
    told_ring = cluster.get("ring")
    if not isinstance(told_ring, Mapping):
        return {}
    try:
        ring = msgspec.convert(
            [told_ring.get(name) for name in ("kind", "shards", "vnodes")], RingParameters
        )
        shares, arcs, added = _geometry(ring)
    except ValueError:  # of an engine of another version
        return {}
    told = {row.get("shard"): row for row in rows(cluster, "shards")}
    listed = {shard: told.get(shard, {}) for shard in ring.shards}
    rates = {shard: _rate(row) for shard, row in listed.items()}
    all_keys = sum(row.get("keys") or 0 for row in listed.values())
    all_rates = sum(rate or 0.0 for rate in rates.values())
    return {
        **{name: cluster.get(name) for name in ("node", "as_of_us", "map_epoch", "not_answering")},
        "partitioner": ring.kind,
        "virtual_nodes": ring.vnodes if ring.kind == "ring" else None,
        "shards": [
            {
                "shard": shard,
                "leader": row.get("leader"),
                "share": shares[shard],
                "keys": row.get("keys"),
                "bytes": row.get("bytes"),
                "keys_share": _share(row.get("keys"), all_keys),
                "requests_per_s": rates[shard],
                "load_share": _share(rates[shard], all_rates),
            }
            for shard, row in listed.items()
        ],
        "hot_keys": _hot_keys(listed, rates),
        "arcs": arcs,
        "if_added": added,
    }


def _rate(row: Facts) -> float | None:
    load = row.get("load")
    return None if load is None else round(load["reads_per_s"] + load["writes_per_s"], 1)


def _share(part: float | None, whole: float) -> float | None:
    return None if part is None or not whole else round(part / whole, 4)


def _hot_keys(
    listed: Mapping[int, Facts], rates: Mapping[int, float | None]
) -> list[dict[str, Any]]:
    """Put the shards' hot keys together, by what they make of all requests."""
    hot = [
        {
            "key_hex": key["key_hex"],
            "key": key["key"],
            "shard": shard,
            "requests_per_s": round(key["share"] * (rates[shard] or 0.0), 1),
        }
        for shard, row in listed.items()
        for key in row.get("hot_keys") or ()
    ]
    hot.sort(key=lambda key: (-key["requests_per_s"], key["key_hex"]))
    return hot[:HOT_KEYS_SHOWN]


Geometry = tuple[dict[int, float], list[dict[str, Any]] | None, dict[str, Any]]


@lru_cache(maxsize=2)  # the map changes rarely, and pages ask every second
def _geometry(parameters: RingParameters) -> Geometry:
    """Return the shards' shares of the circle, the arcs to draw, and what adding one moves."""
    ring = partitioner(parameters)
    added = max(ring.shards) + 1
    if isinstance(ring, Modulo):
        return _modulo_geometry(ring, added)
    arcs = _joined(ring)
    shares = dict.fromkeys(ring.shards, 0)
    for begin, end, shard in arcs:
        shares[shard] += end - begin
    moved = _moved(ring, added)
    drawn = [{"from": _turn(begin), "to": _turn(end), "shard": shard} for begin, end, shard in arcs]
    return (
        {shard: _turn(size) for shard, size in shares.items()},
        drawn if len(drawn) <= ARCS_MAX else None,
        {
            "shard": added,
            "moved_share": _turn(sum(moved.values())),
            "from": [{"shard": shard, "share": _turn(size)} for shard, size in moved.items()],
        },
    )


def _modulo_geometry(ring: Modulo, added: int) -> Geometry:
    """Modulo hashing leaves a key alone only if both remainders agree: one key in n + 1."""
    count = len(ring.shards)
    moved = count / (count + 1)
    per_shard = [{"shard": shard, "share": round(moved / count, 6)} for shard in ring.shards]
    return (
        dict.fromkeys(ring.shards, round(1 / count, 6)),
        None,
        {"shard": added, "moved_share": round(moved, 6), "from": per_shard},
    )


def _joined(ring: Ring) -> list[tuple[int, int, int]]:
    """Return the arcs with neighbours of one shard made one."""
    joined: list[tuple[int, int, int]] = []
    for begin, end, shard in ring.arcs():
        if joined and joined[-1][2] == shard:
            begin = joined.pop()[0]  # noqa: PLW2901 - the arc begins where its neighbour did
        joined.append((begin, end, shard))
    return joined


def _moved(ring: Ring, added: int) -> dict[int, int]:
    """Return how many positions each shard would give to the added one."""
    moved = dict.fromkeys(ring.shards, 0)
    arcs = list(ring.arcs())
    before = [end for _, end, _ in arcs]
    for begin, end, shard in Ring((*ring.shards, added), ring.vnodes).arcs():
        if shard != added:
            continue
        # An arc of the new ring never spans a point of the old one: those are all still there.
        moved[arcs[bisect_left(before, end)][2]] += end - begin
    return moved


def _turn(positions: int) -> float:
    """Return a part of the circle as a share of it."""
    return round(max(positions, 0) / RING_POSITIONS, 6)
