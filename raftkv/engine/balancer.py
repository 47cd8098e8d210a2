"""Keeps leaders where they belong: where operators put them, or on the preferred nodes.

Leaders move when nodes fail; without this they would stay wherever they went, and one node would
end up leading everything. Each node looks only at the groups that it leads itself, and hands a
leadership over only if that harms nobody: to a node that can write, that has caught up, and that
reaches all that this node reaches. A node that loses what it is given is given it again ever more
rarely.
"""

import logging
import math
from collections.abc import Callable, Mapping

import msgspec

from raftkv.engine.directory import Directory
from raftkv.engine.pins import Pin, Pins
from raftkv.engine.replica_table import ReplicaRecord, ReplicaTable
from raftkv.raft.clock import Clock
from raftkv.raft.group import Group
from raftkv.raft.proposals import GroupFailure
from raftkv.status.facts import PinFacts

SETTLED_S = 3.0
"""A leadership is left alone for this long after it changed."""

WAIT_S_MAX = 600.0
"""The longest wait before a node that loses leaderships is given one again."""

FORGIVEN_S = 60.0
"""Who has lost none for this long and twice its wait is as good as any other."""

GROUPS_PER_TRANSFER = 32
"""So many groups of this node for each transfer that is begun in a second: all have moved in half a
minute, however many there are."""

_logger = logging.getLogger(__name__)


class NodeState(msgspec.Struct, array_like=True, frozen=True):
    """What nodes tell each other every second, so that nobody hands work to who cannot do it.

    ``slow_disk``: an fdatasync took so long lately that a leader would have stepped down.
    ``reaches``: the nodes to which it has links; None: it did not say.
    ``pins``: the leaderships that an operator has put on it.
    """

    has_space: bool
    stopping: bool
    slow_disk: bool = False
    reaches: tuple[str, ...] | None = None
    pins: tuple[Pin, ...] = ()

    @property
    def may_lead(self) -> bool:
        """Whether it makes sense to hand a leadership to that node."""
        return self.has_space and not self.stopping


class Placed(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """An operator has handed a leadership to ``node``; None: to where it belongs.

    ``for_s``: for so many seconds it is to stay there; None: until that node stops.
    """

    shard: int
    node: str | None
    for_s: float | None


class Lost(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """``node`` could not keep a leadership."""

    node: str


class Losses:
    """How often each node has lost leaderships lately, and how long it must wait for the next.

    Lost is a leadership that went to another node by an election, not by a hand-over, and one that
    was handed over and not taken. What a node loses at once with several groups is one loss.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._of: dict[str, tuple[int, float]] = {}  # node -> (how many in a row, the last of them)

    def note(self, node: str) -> bool:
        """Count a loss; whether it is a new one."""
        now = self._clock.monotonic()
        count, last = self.of(node), self._of.get(node, (0, -math.inf))[1]
        if now - last < SETTLED_S:
            return False
        self._of[node] = (count + 1, now)
        return True

    def of(self, node: str) -> int:
        """Return how many losses in a row count at present."""
        count, last = self._of.get(node, (0, -math.inf))
        age_s = self._clock.monotonic() - last
        return 0 if age_s > FORGIVEN_S + 2 * _wait_s(count) else count

    def wait_until(self, node: str, since: float) -> float:
        """From when on ``node`` may be given what is led elsewhere since ``since``."""
        count, last = self.of(node), self._of.get(node, (0, -math.inf))[1]
        return max(since, last if count else since) + _wait_s(count)


def _wait_s(losses: int) -> float:
    return min(SETTLED_S * 2.0 ** max(0, losses - 1), WAIT_S_MAX)


class Balancer:
    """Moves leaderships that this node holds, a few at a time.

    Args:
        own_state: what this node tells the others about itself.
        tell: tells all other nodes.
    """

    def __init__(
        self,
        *,
        node: str,
        directory: Directory,
        replicas: ReplicaTable,
        clock: Clock,
        own_state: Callable[[], NodeState],
        tell: Callable[[Placed | Lost], None] = lambda _: None,
    ) -> None:
        self.peers: dict[str, NodeState] = {}
        """Latest word of each connected node; the engine drops it with the link."""
        self.pins = Pins(clock)
        """What an operator has put on this node."""
        self.losses = Losses(clock)
        self._node = node
        self._directory = directory
        self._replicas = replicas
        self._clock = clock
        self._own_state = own_state
        self._tell = tell

    # --- what is heard --------------------------------------------------------------------------

    def hear(self, peer: str, state: NodeState) -> None:
        """Take the word of a connected node; what was put there later is not here any more."""
        self.peers[peer] = state
        for pin in state.pins:
            self.pins.give_way(pin)

    def full_peers(self) -> frozenset[str]:
        """Connected nodes that say that they have no space."""
        return frozenset(name for name, state in self.peers.items() if not state.has_space)

    def hear_of(self, word: Placed | Lost) -> None:
        """Take what another node, or an operator here, has done or seen."""
        if isinstance(word, Lost):
            self.losses.note(word.node)
        elif word.node == self._node:
            self.pins.put(word.shard, word.for_s)
        else:
            self.pins.remove(word.shard)

    def moved(self, replica: ReplicaRecord, before: str | None, now: str) -> None:
        """Hear that ``now`` has begun to lead; ``before`` was the last to do so."""
        target, replica.handing_to = replica.handing_to, None
        if target is not None:
            if now != target:
                self._lost(target)
        elif before is not None and before != now and not replica.group.was_handed_over:
            self._lost(before)

    def _lost(self, node: str) -> None:
        """Remember that ``node`` could not keep a leadership, and let the others know."""
        if self.losses.note(node):
            self._tell(Lost(node))

    def placed(self, shard: int, node: str | None, for_s: float | None) -> None:
        """Leave a leadership where an operator has put it."""
        word = Placed(shard, node, for_s)
        self.hear_of(word)
        self._tell(word)

    # --- what is done ---------------------------------------------------------------------------

    def check(self) -> None:
        """Start transfers where there is reason for one: few, as writes wait meanwhile."""
        unable = not self._own_state().may_lead
        pinned = self.pinned()
        left = max(1, len(self._replicas) // GROUPS_PER_TRANSFER)
        for replica in self._replicas:
            group = replica.group
            if not group.is_leader:
                continue
            if unable:
                target = self.ablest(group)
            else:
                wanted = self._wanted(group, pinned)
                target = None if wanted is None or self._why_not(group, wanted) else wanted
            if target is not None:
                self._hand_over(replica, target)
                left -= 1
                if not left:
                    return

    def _hand_over(self, replica: ReplicaRecord, target: str) -> None:
        group = replica.group

        def done(outcome: GroupFailure | None) -> None:
            if outcome is not None:
                replica.handing_to = None
                self._lost(target)
                _logger.info("group %s: leadership was not handed over: %s", group.id, outcome)

        replica.handing_to = target
        group.transfer.begin(target, done)

    def _wanted(self, group: Group, pinned: Mapping[int, tuple[str, Pin]]) -> str | None:
        """Who should lead in this node's place; None: nobody."""
        wanted = self._directory.map.placement(group.id.shard).preferred_leader
        if (placed := pinned.get(group.id.shard)) is not None and placed[0] in group.config.members:
            wanted = placed[0]
        return None if wanted == self._node else wanted

    def _why_not(self, group: Group, node: str) -> str | None:
        """Why ``node`` is not given what this node leads; None: nothing speaks against it."""
        state = self.peers.get(node)
        why = f"there is no link to {node}" if state is None else self._unfit(state, node)
        if why is None and not _has_caught_up(group, node):
            why = f"{node} has not caught up"
        return self._must_wait(group, node) if why is None else why

    def _unfit(self, state: NodeState, node: str) -> str | None:
        """What it says of itself that speaks against it."""
        if not state.may_lead:
            return f"{node} is stopping" if state.stopping else f"the disk of {node} is full"
        if state.slow_disk:
            return f"the disk of {node} is slow"
        missed = self._missed(state, node)
        return f"{node} has no link to {', '.join(missed)}" if missed else None

    def _must_wait(self, group: Group, node: str) -> str | None:
        """Whether too little time has passed since leadership changed, or ``node`` lost one."""
        wait_s = self.losses.wait_until(node, group.leader_since) - self._clock.monotonic()
        if wait_s <= 0:
            return None
        losses = self.losses.of(node)
        why = f", as it has lost leaderships {losses} times in a row" if losses > 1 else ""
        return f"{node} waits for {math.ceil(wait_s)} s{why}"

    def _missed(self, state: NodeState, node: str) -> list[str]:
        """Which nodes this one reaches and ``node`` does not: they would have no leader."""
        if state.reaches is None:
            return []
        return sorted(self.peers.keys() - {node, *state.reaches})

    def ablest(self, group: Group) -> str | None:
        """Return the replica that is the best to lead in this node's place, None if none may.

        It has caught up; what counts then is its disk, whom it reaches, and how far its log is.
        """

        def merit(node: str) -> tuple[bool, int, int]:
            state = self.peers[node]
            return not state.slow_disk, -len(self._missed(state, node)), group.match_index(node)

        able = [
            node
            for node in group.config.members
            if (state := self.peers.get(node)) is not None
            and state.may_lead
            and _has_caught_up(group, node)
        ]
        return max(able, key=merit, default=None)

    # --- what operators ask ---------------------------------------------------------------------

    def pinned(self) -> dict[int, tuple[str, Pin]]:
        """Return where an operator has put leaderships: shard to node and pin."""
        pinned: dict[int, tuple[str, Pin]] = {}
        told = [(self._node, self.pins.told()), *((n, s.pins) for n, s in self.peers.items())]
        for node, pins in told:
            for pin in pins:
                known = pinned.get(pin.shard)
                if known is None or (known[1].since_us, known[0]) < (pin.since_us, node):
                    pinned[pin.shard] = (node, pin)
        return pinned

    def facts(self) -> dict[int, tuple[PinFacts | None, str | None]]:
        """Return, for each shard, who leads it by an operator's will, and why it stays here."""
        pinned = self.pinned()
        facts: dict[int, tuple[PinFacts | None, str | None]] = {}
        for group in self._replicas.groups():
            placed = pinned.get(group.id.shard)
            wanted = self._wanted(group, pinned) if group.is_leader else None
            facts[group.id.shard] = (
                None if placed is None else PinFacts(placed[0], placed[1].until_us),
                None if wanted is None else self._why_not(group, wanted),
            )
        return facts


def _has_caught_up(group: Group, node: str) -> bool:
    return group.match_index(node) >= group.commit_index > 0
