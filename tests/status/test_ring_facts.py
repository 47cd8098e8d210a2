"""What moves when a shard is added is what the ring of one shard more really takes."""

import pytest

from raftkv.core.ring import Ring, position_of
from raftkv.status.facts import ClusterFacts, RingShape, ShardFacts
from raftkv.status.ring import RingFacts, ring_facts


def _told(kind: str, shards: int) -> RingFacts:
    told = ring_facts(
        ClusterFacts(
            ring=RingShape(kind, tuple(range(shards)), 64),
            shards=tuple(ShardFacts(shard=shard, keys=1) for shard in range(shards)),
        )
    )
    assert told is not None
    return told


def test_what_an_added_shard_takes() -> None:
    """The share that each shard gives is the share of keys that leave it."""
    before, after = Ring(range(4), 64), Ring(range(5), 64)
    positions = [position_of(b"key-%d" % number) for number in range(50_000)]
    left = [before.shard_at(at) for at in positions if after.shard_at(at) == 4]
    added = _told("ring", 4).if_added
    assert added.moved_share == pytest.approx(len(left) / len(positions), abs=0.01)
    for row in added.sources:
        assert row.share == pytest.approx(left.count(row.shard) / len(positions), abs=0.01)


def test_modulo_moves_nearly_everything() -> None:
    """Modulo hashing has no circle to draw and moves n keys of n + 1."""
    told = _told("modulo", 4)
    assert (told.virtual_nodes, told.arcs) == (None, None)
    assert told.if_added.moved_share == pytest.approx(0.8)


def test_no_picture_of_too_many_arcs() -> None:
    """What could not be seen is not sent."""
    assert _told("ring", 40).arcs is None
