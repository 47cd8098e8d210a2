"""Leaders go back to preferred nodes, and away from nodes that cannot write or are stopping."""

from collections.abc import Callable

from engine_world import ManualLoop

from raftkv.core.cluster_map import GroupId
from raftkv.core.placement import seed_map
from raftkv.engine.balancer import SETTLED_S, Balancer, NodeState

ABLE = NodeState(has_space=True, stopping=False)
FULL = NodeState(has_space=False, stopping=False)
STOPPING = NodeState(has_space=True, stopping=True)


class FakeGroup:
    """A group that this node leads, with scripted followers, and all of its parts."""

    def __init__(self, group_id: GroupId, members: tuple[str, ...], since: float) -> None:
        self.id = group_id
        self.config = self
        self.transfer = self
        self.members = members
        self.is_leader = True
        self.leader_since = since
        self.commit_index = 10
        self.matches = dict.fromkeys(members, 10)
        self.moved_to: list[str] = []

    def match_index(self, peer: str) -> int:
        """Return how far a follower is."""
        return self.matches[peer]

    def begin(self, target: str, done: Callable[[None], None]) -> None:
        """Note where the leadership should go."""
        self.moved_to.append(target)
        done(None)


class World:
    """Node n2, which leads the shard that n1 should lead."""

    def __init__(self, own: NodeState = ABLE) -> None:
        self.loop = ManualLoop()
        cluster_map = seed_map("test", ["n1", "n2", "n3"], 3, 3)
        placement = next(g for g in cluster_map.groups if g.preferred_leader == "n1")
        self.group = FakeGroup(placement.id, placement.replicas, self.loop.now)
        self.balancer = Balancer(
            node="n2",
            cluster_map=cluster_map,
            groups={placement.id: self.group},  # type: ignore[dict-item]  # a fake
            clock=self.loop,
            own_state=lambda: own,
        )
        self.balancer.peers = {"n1": ABLE, "n3": ABLE}

    def check_later(self) -> list[str]:
        """Check after leadership has settled; return where it was sent."""
        self.loop.run(SETTLED_S + 1)
        self.balancer.check()
        return self.group.moved_to


def test_leadership_drifts_back() -> None:
    """A preferred node that is there and caught up gets its leadership back."""
    assert World().check_later() == ["n1"]


def test_fresh_leadership_is_left_alone() -> None:
    """Right after a change nothing is moved: it may be about to change again."""
    world = World()
    world.balancer.check()
    assert world.group.moved_to == []


def test_lagging_node_gets_nothing() -> None:
    """A node that lacks committed entries must catch up first."""
    world = World()
    world.group.matches["n1"] = 9
    assert world.check_later() == []


def test_absent_full_or_stopping_node_gets_nothing() -> None:
    """Who is away, has no space or is about to stop is not given work."""
    for state in (None, FULL, STOPPING):
        world = World()
        if state is None:
            del world.balancer.peers["n1"]
        else:
            world.balancer.peers["n1"] = state
        assert world.check_later() == []


def test_full_node_hands_over_at_once() -> None:
    """A node without space gives its leaderships to the replica that is furthest and able."""
    world = World(own=FULL)
    world.group.matches["n3"] = 11
    world.balancer.check()
    assert world.group.moved_to == ["n3"]


def test_full_node_keeps_what_nobody_can_take() -> None:
    """If all are full, moving leaderships around would help nobody."""
    world = World(own=FULL)
    world.balancer.peers = {"n1": FULL, "n3": STOPPING}
    assert world.check_later() == []


def test_preferred_leader_is_not_moved() -> None:
    """A leadership that is where it belongs stays."""
    world = World()
    world.balancer._node = "n1"
    assert world.check_later() == []
