"""Leaders go back to preferred nodes, and away from nodes that cannot write or are stopping."""

import itertools
from collections.abc import Callable
from types import SimpleNamespace

import msgspec
from engine_world import TimedLoop, table_of

from raftkv.core.cluster_map import GroupId
from raftkv.core.placement import seed_map
from raftkv.engine.balancer import SETTLED_S, WAIT_S_MAX, Balancer, NodeState, Placed
from raftkv.engine.directory import Directory
from raftkv.engine.pins import Pin
from raftkv.status.facts import PinFacts

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
        self.was_handed_over = False
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
        self.loop = TimedLoop()
        cluster_map = seed_map("test", ["n1", "n2", "n3"], 3, 3)
        placement = next(g for g in cluster_map.groups if g.preferred_leader == "n1")
        self.group = FakeGroup(placement.id, placement.replicas, self.loop.now)
        directory = Directory(cluster_map)
        self.replicas = table_of([self.group], directory)
        self.balancer = Balancer(
            node="n2",
            directory=directory,
            replicas=self.replicas,
            clock=self.loop.clock,
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


# --- who has lost what it was given ---------------------------------------------------------------


def lose(world: World, before: str = "n1", now: str = "n2", *, handed_over: bool = False) -> None:
    """Let this node take the leadership back, by an election unless it was handed over."""
    world.group.leader_since = world.loop.now
    world.group.was_handed_over = handed_over
    replica = world.replicas.by_id[world.group.id]
    world.balancer.moved(replica, before, now)


def waited_s(world: World) -> float:
    """How long it takes until the leadership is sent away again."""
    began, moves = world.loop.now, len(world.group.moved_to)
    while len(world.group.moved_to) == moves:
        world.loop.run(1.0)
        world.balancer.check()
        assert world.loop.now - began < 10 * WAIT_S_MAX
    return world.loop.now - began


def test_who_keeps_losing_its_leadership_gets_it_back_ever_more_rarely() -> None:
    """Each time after twice the wait, up to a bound: every try costs an election."""
    world = World()
    waits = []
    for _ in range(12):
        lose(world)
        waits.append(waited_s(world))
    assert waits[0] <= SETTLED_S + 1
    for shorter, longer in itertools.pairwise(waits[:8]):
        assert 1.5 * shorter < longer < 2.5 * shorter
    assert max(waits) <= WAIT_S_MAX + 1


def test_who_did_not_take_a_leadership_has_lost_it() -> None:
    """Asked, it stood for election and did not win: another one leads, or this node again."""
    world = World()
    waited_s(world)
    lose(world, before="n2", now="n3")
    assert world.balancer.losses.of("n1") == 1
    assert world.balancer.losses.of("n2") == 0, "it only handed over"


def test_a_hand_over_is_no_loss() -> None:
    """Whoever asked for it: an operator, a node that stops, another balancer."""
    world = World()
    lose(world, handed_over=True)
    assert world.balancer.losses.of("n1") == 0


def test_a_loss_of_long_ago_is_forgiven() -> None:
    """Who has kept what it had for long is as good as any other."""
    world = World()
    for _ in range(4):
        lose(world)
        waited_s(world)
    world.loop.run(WAIT_S_MAX)
    lose(world)
    assert waited_s(world) <= SETTLED_S + 1


def test_what_is_lost_at_once_is_lost_once() -> None:
    """A node that dies leads many shards."""
    world = World()
    for _ in range(64):
        lose(world)
    assert world.balancer.losses.of("n1") == 1


def test_losses_are_told_to_the_other_nodes() -> None:
    """Whichever of them leads next must know."""
    world, other = World(), World()
    world.balancer._tell = other.balancer.hear_of
    lose(world)
    assert other.balancer.losses.of("n1") == 1


def test_a_slow_disk_gets_nothing() -> None:
    """It would lose it at once; a node that has to stop takes it if there is no other."""
    world = World()
    world.balancer.hear("n1", NodeState(has_space=True, stopping=False, slow_disk=True))
    assert world.check_later() == []
    assert world.balancer.ablest(world.group) == "n3"  # type: ignore[arg-type] # a fake
    del world.balancer.peers["n3"]
    assert world.balancer.ablest(world.group) == "n1"  # type: ignore[arg-type] # a fake


def test_leadership_moves_only_to_who_reaches_all_that_its_leader_reaches() -> None:
    """In a partial partition the leader in the middle stays, so that nobody loses its leader."""
    world = World()
    world.balancer.hear("n1", msgspec.structs.replace(ABLE, reaches=("n2",)))
    assert world.check_later() == []
    assert world.balancer.ablest(world.group) == "n3"  # type: ignore[arg-type] # a fake
    world.balancer.hear("n1", msgspec.structs.replace(ABLE, reaches=("n2", "n3")))
    assert world.check_later() == ["n1"]


# --- what operators put somewhere -----------------------------------------------------------------


def test_a_leadership_stays_where_an_operator_put_it() -> None:
    """Until its time is up, or for good."""
    world = World()
    shard = world.group.id.shard
    world.balancer.placed(shard, "n2", 60.0)
    assert world.check_later() == []
    assert world.balancer.facts()[shard] == (PinFacts("n2", 1_060_000_000), None)
    world.loop.run(60.0)
    assert world.check_later() == ["n1"]
    assert world.balancer.facts()[shard][0] is None
    world.balancer.placed(shard, "n2", None)
    world.loop.run(1e6)
    assert world.check_later() == ["n1"]


def test_a_leadership_goes_back_to_where_an_operator_put_it() -> None:
    """After an election it is not the preferred node that gets it."""
    world = World()
    pin = Pin(world.group.id.shard, since_us=1, until_us=None)
    world.balancer.hear("n3", msgspec.structs.replace(ABLE, pins=(pin,)))
    assert world.check_later() == ["n3"]


def test_a_pin_ends_with_the_node_and_with_the_next_move() -> None:
    """Of two the newer one counts, also if the older node has not heard of it."""
    world = World()
    shard = world.group.id.shard
    world.balancer.placed(shard, "n2", None)
    world.balancer.hear_of(Placed(shard, None, None))
    assert world.balancer.facts()[shard][0] is None
    world.balancer.placed(shard, "n2", None)
    newer = Pin(shard, since_us=world.loop.clock.time_us() + 1, until_us=None)
    world.balancer.hear("n3", msgspec.structs.replace(ABLE, pins=(newer,)))
    assert world.balancer.facts()[shard][0] == PinFacts("n3", None)
    assert world.balancer.pins.told() == ()


def test_operators_are_told_why_a_leadership_is_not_where_it_belongs() -> None:
    """In words, for status and pages."""
    world = World()

    def why() -> str:
        return world.balancer.facts()[world.group.id.shard][1] or ""

    for _ in range(2):
        lose(world)
        waited_s(world)
    lose(world)
    assert why() == "n1 waits for 12 s, as it has lost leaderships 3 times in a row"
    world.balancer.hear("n1", msgspec.structs.replace(ABLE, reaches=()))
    assert why() == "n1 has no link to n3"
    world.balancer.hear("n1", FULL)
    assert why() == "the disk of n1 is full"
    del world.balancer.peers["n1"]
    assert why() == "there is no link to n1"


def test_many_leaderships_are_back_within_half_a_minute() -> None:
    """A node that was away leads its share again soon, and never are many moved at once."""
    world = World()
    groups = {}
    for shard in range(256):
        group = FakeGroup(GroupId(shard, 1), ("n1", "n2", "n3"), world.loop.now)
        groups[group.id] = group
    world.balancer._replicas = table_of(groups.values(), world.balancer._directory)
    preferred = SimpleNamespace(placement=lambda _: SimpleNamespace(preferred_leader="n1"))
    world.balancer._directory = SimpleNamespace(map=preferred)  # type: ignore[assignment]
    world.loop.run(SETTLED_S + 1)
    moved = 0
    for _ in range(32):
        world.balancer.check()
        before, moved = moved, sum(len(group.moved_to) for group in groups.values())
        assert moved - before <= 8
        for group in groups.values():
            group.is_leader = not group.moved_to
        world.loop.run(1.0)
    assert moved == 256
