"""The directory: one map for all of a node, replaced by newer ones only."""

from functools import partial

import msgspec
import pytest

from raftkv.core.cluster_map import ClusterMap
from raftkv.core.placement import seed_map
from raftkv.engine.directory import ANY_EPOCH, Directory

FIRST = seed_map("test", ["n1", "n2", "n3"], 2, 3)


def later(by: int = 1, cluster_id: str = "test") -> ClusterMap:
    """Return the first map with a higher epoch."""
    return msgspec.structs.replace(FIRST, epoch=FIRST.epoch + by, cluster_id=cluster_id)


def test_newer_map_counts_and_every_subscriber_is_told() -> None:
    """In the order of subscription, with the map before and the new one, which counts already."""
    directory = Directory(FIRST)
    told: list[tuple[str, int, int, int]] = []

    def note(name: str, before: ClusterMap, now: ClusterMap) -> None:
        told.append((name, before.epoch, now.epoch, directory.epoch))

    directory.subscribe(partial(note, "a"))
    directory.subscribe(partial(note, "b"))
    assert directory.take(later())
    assert told == [("a", 1, 2, 2), ("b", 1, 2, 2)]
    assert directory.map is not FIRST


@pytest.mark.parametrize("by", [0, -1])
def test_map_that_is_not_newer_is_left_alone(by: int) -> None:
    """One of the same epoch or an older one changes nothing, and nobody is told."""
    directory = Directory(later(3))
    directory.subscribe(lambda *_: pytest.fail("told of no change"))
    assert not directory.take(later(3 + by))
    assert directory.epoch == later(3).epoch


def test_map_of_another_cluster_is_refused() -> None:
    """Whatever its epoch: its nodes and shards are not ours."""
    directory = Directory(FIRST)
    with pytest.raises(ValueError, match="cluster other"):
        directory.take(later(cluster_id="other"))
    assert directory.map is FIRST


def test_subscription_ends() -> None:
    """Who has ended his is told no more; the others are, also by one that ends in its own call."""
    directory = Directory(FIRST)
    told: list[str] = []

    def once(_before: ClusterMap, _now: ClusterMap) -> None:
        told.append("once")
        end()

    end = directory.subscribe(once)
    directory.subscribe(lambda *_: told.append("always"))
    directory.take(later(1))
    directory.take(later(2))
    end()  # ending twice is ending once
    assert told == ["once", "always", "always"]


def test_call_of_another_epoch_is_refused_for_certain() -> None:
    """Older or newer, its sender may have taken the key for another shard's."""
    directory = Directory(later(4))
    for epoch in (FIRST.epoch, directory.epoch + 1):
        failure = directory.mismatch(epoch)
        assert failure is not None
        assert (failure.code, failure.definite) == ("moved", True)
        assert f"map {epoch}," in failure.detail


def test_call_of_the_same_epoch_or_of_no_map_is_taken() -> None:
    """A front end has no map: its calls are routed here."""
    directory = Directory(FIRST)
    assert directory.mismatch(FIRST.epoch) is None
    assert directory.mismatch(ANY_EPOCH) is None
