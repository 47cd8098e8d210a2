"""What several nodes tell, put together."""

from raftkv.core.cluster_map import GroupPlacement
from raftkv.status.facts import Leadership, NodeFacts, ReplicaFacts
from raftkv.status.merging import shards_of


def leaders(ours: list[Leadership], theirs: list[Leadership]) -> list[Leadership]:
    """The leaders of a shard, as told by its leader's node and by another one."""
    answers = {
        name: NodeFacts(
            node=name,
            shards=(
                ReplicaFacts(
                    shard=0,
                    generation=1,
                    role="leader" if name == "n1" else "follower",
                    leaders=tuple(told),
                ),
            ),
        )
        for name, told in (("n1", ours), ("n2", theirs))
    }
    (row,) = shards_of([GroupPlacement(0, 1, ("n1", "n2"))], answers)
    return list(row.leaders)


def test_leaders_are_told_in_the_order_in_which_they_led() -> None:
    """A leader that is lost and heard again in its term leads now, and a term has its place."""
    again = [Leadership(3, "a", 10), Leadership(3, None, 20), Leadership(3, "a", 30)]
    assert leaders(again, []) == again
    candidate = [Leadership(4, None, 40), Leadership(4, "b", 50)]
    assert leaders(again + candidate, []) == again + candidate
    # The other node's clock is behind, and ours was set back.
    ours = [
        Leadership(1, "a", 900),
        Leadership(1, None, 910),
        Leadership(3, "c", 100),
        Leadership(3, None, 110),
    ]
    missed = [Leadership(2, "b", 5), Leadership(3, "c", 6)]
    assert leaders(ours, missed) == [*ours[:2], missed[0], *ours[2:]]
