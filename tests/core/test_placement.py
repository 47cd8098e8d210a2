"""Placement: even for every cluster size, the same on every node."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.core.cluster_map import ClusterMap, GroupPlacement, contradiction
from raftkv.core.placement import place, seed_map

SIZES = st.integers(1, 9).flatmap(
    lambda nodes: st.tuples(st.just(nodes), st.integers(1, nodes), st.integers(1, 40))
)


def names(count: int) -> list[str]:
    """Return node names."""
    return [f"n{number}" for number in range(1, count + 1)]


def spread(counts: Counter[str], nodes: int) -> int:
    """Return how much more the most loaded node has than the least loaded one."""
    loads = [counts[name] for name in names(nodes)]
    return max(loads) - min(loads)


@settings(deadline=None)
@given(SIZES)
def test_replicas_and_leaders_are_even_for_every_size(size: tuple[int, int, int]) -> None:
    """No node has two replicas, or two preferred leaderships, more than another."""
    nodes, factor, shards = size
    groups = place(names(nodes), range(shards), factor)
    assert [group.shard for group in groups] == list(range(shards))
    assert all(len(set(group.replicas)) == factor for group in groups)
    assert spread(Counter(name for g in groups for name in g.replicas), nodes) <= 1
    assert spread(Counter(group.preferred_leader for group in groups), nodes) <= 1


@pytest.mark.parametrize("nodes", [5, 7, 9])
def test_more_nodes_than_replicas_are_all_used(nodes: int) -> None:
    """Nothing stays on the first three nodes: everybody holds and leads something."""
    groups = place(names(nodes), range(2 * nodes), 3)
    assert {name for group in groups for name in group.replicas} == set(names(nodes))
    assert {group.preferred_leader for group in groups} == set(names(nodes))


@pytest.mark.parametrize("nodes", [5, 7])
def test_followers_of_a_node_are_spread_over_the_others(nodes: int) -> None:
    """When a node dies, its shards find new leaders on many nodes, not on one."""
    groups = place(names(nodes), range(4 * nodes), 3)
    for name in names(nodes):
        followers = {f for g in groups if g.preferred_leader == name for f in g.replicas[1:]}
        assert len(followers) >= 3


@settings(deadline=None)
@given(SIZES, st.randoms(use_true_random=False))
def test_the_order_of_nodes_does_not_matter(size: tuple[int, int, int], random: object) -> None:
    """Every node lists its peers in its own order, and they all come to the same map."""
    nodes, factor, shards = size
    shuffled = names(nodes)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    made = seed_map("c", shuffled, shards, factor)
    assert made == seed_map("c", names(nodes), shards, factor)
    assert contradiction(made) is None


@pytest.mark.parametrize(
    ("nodes", "factor", "words"),
    [
        ([], 1, "1 replicas"),
        (["a"], 0, "0 replicas"),
        (["a", "b"], 3, "3 replicas of a shard on 2 nodes"),
        (["a", "a"], 1, "listed twice"),
    ],
)
def test_impossible_placements_are_refused(nodes: list[str], factor: int, words: str) -> None:
    """What cannot be had is an error that says why, not a smaller cluster."""
    with pytest.raises(ValueError, match=words):
        place(nodes, [0], factor)


def test_a_seed_map_is_epoch_one_of_the_cluster() -> None:
    """The seed numbers shards from 0 at generation 1, whatever the number of nodes."""
    made = seed_map("home", ["b", "a"], 3, 2, vnodes=16)
    assert (made.epoch, made.cluster_id, made.nodes) == (1, "home", ("a", "b"))
    assert [group.id for group in made.groups] == [(0, 1), (1, 1), (2, 1)]
    assert made.ring.vnodes == 16
    assert seed_map("home", ["a"], 3, 1, kind="modulo").ring.kind == "modulo"


@pytest.mark.parametrize(("shards", "kind"), [(0, "ring"), (1, "hrw")])
def test_seeds_that_make_no_sense_are_refused(shards: int, kind: str) -> None:
    """No shards, or a partitioner that does not exist."""
    with pytest.raises(ValueError, match=r"shard|partitioner"):
        seed_map("c", ["a"], shards, 1, kind=kind)


def test_a_map_tells_who_holds_what() -> None:
    """Placements by shard and by node; a shard that does not exist is a KeyError."""
    made = seed_map("c", names(5), 4, 3)
    for group in made.groups:
        assert made.placement(group.shard) is group
        assert all(group in made.groups_of(name) for name in group.replicas)
    assert sum(len(made.groups_of(name)) for name in names(5)) == 12
    assert made.groups_of("stranger") == ()
    with pytest.raises(KeyError):
        made.placement(4)


def test_a_map_sends_keys_where_its_ring_does() -> None:
    """The map's partitioner is built once and answers for it."""
    made = seed_map("c", names(3), 4, 3)
    assert made.partitioner is made.partitioner
    assert {made.shard_of(b"%d" % number) for number in range(100)} == {0, 1, 2, 3}


def test_generation_and_shard_name_a_group() -> None:
    """A group prints as shard.generation."""
    group = GroupPlacement(7, 2, ("a", "b"))
    assert str(group.id) == "7.2"
    assert isinstance(seed_map("c", ["a"], 1, 1), ClusterMap)
