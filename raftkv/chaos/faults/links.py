"""Faults of the links between nodes: cut in five shapes, or bad."""

import itertools
from collections.abc import Iterable, Sequence

from raftkv.chaos.faults.base import Fault
from raftkv.chaos.links import Pair
from raftkv.chaos.plan import minority
from raftkv.chaos.proxy import Rule

ONE_WAY = "one-way"

TROUBLE = {
    "slow": (Rule(delay_ms=(20.0, 250.0)), ("delayed",)),
    "lossy": (Rule(stall_share=0.08, stall_ms=200.0), ("stalled",)),
    "reset": (Rule(reset_share=0.04), ("resets",)),
}
"""A mean delay above the heartbeat; a lost packet's time-outs of TCP; a connection for a while."""


def cuts(shape: str, nodes: Sequence[str]) -> list[Pair]:
    """The links to cut, each as (from, to): cut in that direction at least.

    ``isolate``: the first node has no link. ``split``: a minority and the rest do not hear each
    other. ``bridge``: the last node hears both halves of the others, which do not hear each other.
    ``ring``: each hears its two neighbours only; of three nodes, which are a ring already, one link
    is cut.
    """
    if shape.startswith("isolate"):
        return _between(nodes[:1], nodes[1:])
    if shape == "split":
        few = minority(nodes)
        return _between(few, nodes[len(few) :])
    if shape == "bridge":
        others = nodes[:-1]
        half = len(others) // 2
        return _between(others[:half], others[half:])
    neighbours = {frozenset(pair) for pair in itertools.pairwise([*nodes, nodes[0]])}
    far = [pair for pair in itertools.combinations(nodes, 2) if frozenset(pair) not in neighbours]
    return far or [(nodes[0], nodes[1])]


def _between(one: Iterable[str], other: Sequence[str]) -> list[Pair]:
    return list(itertools.product(one, other))


class _Links(Fault):
    """Has a rule on some directions as long as it lasts."""

    pairs: tuple[Pair, ...] = ()
    rule = Rule()
    signs: tuple[str, ...] = ()
    """The counts of a direction that show that the rule was felt."""
    _before = 0

    def apply(self) -> None:
        """Set the rule on all of them."""
        self._before = self._counts()
        self.context.raftkv.links.add(self.pairs, self.rule)

    def observe(self) -> None:
        """One of the counts has grown."""
        self.effective = self._counts() > self._before

    def stop(self) -> None:
        """Let everything pass again."""
        self.observe()
        self.context.raftkv.links.remove(self.pairs, self.rule)

    def _counts(self) -> int:
        stats = self.context.raftkv.links.stats()
        return sum(
            getattr(stats[pair], sign)
            for pair in self.pairs
            if pair in stats
            for sign in self.signs
        )


class Partition(_Links):
    """Links are cut without a word: what is sent is held, and comes when they are mended."""

    rule = Rule(blocked=True)
    signs = ("held_bytes", "held_connections")

    def start(self) -> None:
        """Cut them, in both directions or in one, which is drawn for all of them alike."""
        shape, way = self.variant.split()
        nodes = self._order(shape)
        cut = cuts(shape, nodes)
        reverse = [(target, source) for source, target in cut]
        if way == ONE_WAY:
            self.pairs = tuple(self.random.choice((cut, reverse)))
        else:
            self.pairs = (*cut, *reverse)
        # On a node without links another fault of links would show nothing.
        self.take(tuple(dict.fromkeys(source for source, _ in cut)))
        arrows = ", ".join(f"{source}>{target}" for source, target in self.pairs)
        self.detail = f"{self.variant}: {arrows}"
        self.apply()

    def _order(self, shape: str) -> tuple[str, ...]:
        """Cut links between nodes that run, where there is a choice: an idle one shows nothing."""
        if shape != "isolate-leader":
            return self.free_nodes()
        first = self.choose()
        return (*first, *(name for name in self.free_nodes() if name not in first))


class LinkTrouble(_Links):
    """Links are slow, lossy or reset at times: those of one node, or all."""

    def start(self) -> None:
        """Make them bad in both directions."""
        self.rule, self.signs = TROUBLE[self.kind]
        links = self.context.raftkv.links
        if self.variant == "all":
            self.pairs = links.pairs
        else:
            self.victims = self.free_nodes()[:1]
            self.pairs = tuple(pair for pair in links.pairs if self.victims[0] in pair)
        self.apply()
