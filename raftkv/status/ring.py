"""How keys and load are spread over the shards, and what would move if a shard were added.

Worked out here and not in the engine: with a thousand shards it takes a second, for which no
heartbeat must wait.
"""

from bisect import bisect_left
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import msgspec

from raftkv.core.ring import RING_POSITIONS, Modulo, Ring, RingParameters, partitioner
from raftkv.status.facts import ClusterFacts, ShardFacts

ARCS_MAX = 2048
"""A picture with more arcs than this shows nothing."""

HOT_KEYS_SHOWN = 20


class Stretch(msgspec.Struct, frozen=True, rename={"begin": "from", "end": "to"}):
    """An arc of the circle that belongs to a shard; both ends are shares of a turn."""

    begin: float
    end: float
    shard: int


class ShardShare(msgspec.Struct, frozen=True, kw_only=True):
    """What part of circle, keys and load a shard has; None is not known."""

    shard: int
    leader: str | None
    share: float
    keys: int | None
    bytes: int | None
    keys_share: float | None
    requests_per_s: float | None
    load_share: float | None


class HotKeyOf(msgspec.Struct, frozen=True, kw_only=True):
    """A hot key, and about how many requests it gets."""

    key_hex: str
    key: str | None
    shard: int
    requests_per_s: float


class Moved(msgspec.Struct, frozen=True):
    """The share of all keys that one shard would give away."""

    shard: int
    share: float


class Added(msgspec.Struct, frozen=True, rename={"sources": "from"}):
    """What one more shard would take, and from whom."""

    shard: int
    moved_share: float
    sources: tuple[Moved, ...]


class RingFacts(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /v1/ring``. ``arcs`` is None if there are too many to draw."""

    node: str | None
    as_of_us: int | None
    map_epoch: int | None
    not_answering: tuple[str, ...]
    partitioner: str
    virtual_nodes: int | None
    shards: tuple[ShardShare, ...]
    hot_keys: tuple[HotKeyOf, ...]
    arcs: tuple[Stretch, ...] | None
    if_added: Added


def ring_facts(cluster: ClusterFacts) -> RingFacts | None:
    """Return how keys and load are spread; None if the cluster's ring is not known here."""
    if cluster.ring is None:
        return None
    try:
        shape = cluster.ring
        ring = msgspec.convert([shape.kind, shape.shards, shape.vnodes], RingParameters)
        geometry = _geometry(ring)
    except ValueError:  # of an engine of another version
        return None
    told = {row.shard: row for row in cluster.shards}
    listed = {shard: told.get(shard, ShardFacts(shard=shard)) for shard in ring.shards}
    rates = {shard: _rate(row) for shard, row in listed.items()}
    all_keys = sum(row.keys or 0 for row in listed.values())
    all_rates = sum(rate or 0.0 for rate in rates.values())
    return RingFacts(
        node=cluster.node,
        as_of_us=cluster.as_of_us,
        map_epoch=cluster.map_epoch,
        not_answering=cluster.not_answering,
        partitioner=ring.kind,
        virtual_nodes=ring.vnodes if ring.kind == "ring" else None,
        shards=tuple(
            ShardShare(
                shard=shard,
                leader=row.leader,
                share=geometry.shares[shard],
                keys=row.keys,
                bytes=row.bytes,
                keys_share=_share(row.keys, all_keys),
                requests_per_s=rates[shard],
                load_share=_share(rates[shard], all_rates),
            )
            for shard, row in listed.items()
        ),
        hot_keys=_hot_keys(listed, rates),
        arcs=geometry.arcs,
        if_added=geometry.added,
    )


def _rate(row: ShardFacts) -> float | None:
    return None if row.load is None else round(row.load.reads_per_s + row.load.writes_per_s, 1)


def _share(part: float | None, whole: float) -> float | None:
    return None if part is None or not whole else round(part / whole, 4)


def _hot_keys(
    listed: Mapping[int, ShardFacts], rates: Mapping[int, float | None]
) -> tuple[HotKeyOf, ...]:
    """Put the shards' hot keys together, by what they make of all requests."""
    hot = [
        HotKeyOf(
            key_hex=key.key_hex,
            key=key.key,
            shard=shard,
            requests_per_s=round(key.share * (rates[shard] or 0.0), 1),
        )
        for shard, row in listed.items()
        for key in row.hot_keys
    ]
    hot.sort(key=lambda key: (-key.requests_per_s, key.key_hex))
    return tuple(hot[:HOT_KEYS_SHOWN])


class _Geometry(NamedTuple):
    shares: dict[int, float]
    arcs: tuple[Stretch, ...] | None
    added: Added


@lru_cache(maxsize=2)  # the map changes rarely, and pages ask every second
def _geometry(parameters: RingParameters) -> _Geometry:
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
    drawn = tuple(Stretch(_turn(begin), _turn(end), shard) for begin, end, shard in arcs)
    return _Geometry(
        {shard: _turn(size) for shard, size in shares.items()},
        drawn if len(drawn) <= ARCS_MAX else None,
        Added(
            added,
            _turn(sum(moved.values())),
            tuple(Moved(shard, _turn(size)) for shard, size in moved.items()),
        ),
    )


def _modulo_geometry(ring: Modulo, added: int) -> _Geometry:
    """Modulo hashing leaves a key alone only if both remainders agree: one key in n + 1."""
    count = len(ring.shards)
    moved = count / (count + 1)
    per_shard = tuple(Moved(shard, round(moved / count, 6)) for shard in ring.shards)
    return _Geometry(
        dict.fromkeys(ring.shards, round(1 / count, 6)),
        None,
        Added(added, round(moved, 6), per_shard),
    )


def _joined(ring: Ring) -> list[tuple[int, int, int]]:
    """Return the arcs with neighbours of one shard made one."""
    joined: list[tuple[int, int, int]] = []
    for begin, end, shard in ring.arcs():
        if joined and joined[-1][2] == shard:
            begin = joined.pop()[0]  # noqa: PLW2901 -- the arc begins where its neighbour did
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
