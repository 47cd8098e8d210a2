"""What is done to a cluster, and when: decided by the seed alone.

A run is a row of rounds. In a round one fault, often two different ones at once, hold for a while,
then all is healed and the cluster comes back. What is rare or slow is dealt from a shuffled deck
like everything else, so that each kind and each variant of it has its turn.

A plan names nodes, or roles (the leader of a shard), which are looked up when their time comes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

LONE = ("bitflip", "disk", "forwarder")
"""Nothing else happens beside these: with another fault they could take a majority's data.

Nor beside a fault of all nodes, which would leave the other one nothing to be seen on; the last of
these is one.
"""

ACCOMPANYING = ("slow", "lossy", "reset", "clock")
"""These leave every node running and go along with any other."""

SHAPES = ("isolate", "isolate-leader", "split", "bridge", "ring")

VARIANTS: dict[str, tuple[str, ...]] = {
    "kill": ("one", "minority", "leader", "all"),
    "storm": ("one", "leader"),
    "stop": ("one", "leader"),
    "pause": ("one", "minority", "leader"),
    "forwarder": ("leader",),
    "partition": tuple(f"{shape} {way}" for shape in SHAPES for way in ("both-ways", "one-way")),
    "slow": ("one", "all"),
    "lossy": ("one", "all"),
    "reset": ("one", "all"),
    "clock": ("forward", "back", "apart"),
    "disk": ("one", "minority"),
    "bitflip": ("log", "snapshot"),
    "wipe": ("one", "leader"),
}
"""Every kind of fault and the forms that it takes."""

FAULTS = tuple(VARIANTS)

RESTART_S = 1.0
"""What it takes a node to start, roughly; for the plan's arithmetic only."""
ELECTION_FACTOR = 2
"""How many election time-outs it takes a healed cluster to come back, just as roughly."""
HOLD_FACTORS = (2.1, 3.0)
"""How many election time-outs a fault holds: at least two, or nobody would notice."""
COMPANY_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class Step:
    """One fault. ``nodes`` is a permutation of all nodes: the variant says how many count."""

    kind: str
    variant: str
    nodes: tuple[str, ...]
    shard: int
    """Whose leader is meant, in variants about a leader."""
    seed: int
    """Decides whatever else there is to decide."""

    def __str__(self) -> str:
        leader = f" of shard {self.shard}" if "leader" in self.variant else ""
        nodes = "" if leader or "all" in self.variant else f" {'>'.join(self.nodes)}"
        return f"{self.kind} ({self.variant}{leader}{nodes})"


@dataclass(frozen=True, slots=True)
class Round:
    """One fault, or two at once of which the second begins ``offset_s`` later."""

    at_s: float
    """When it begins, if everything before it takes the time that it should."""
    hold_s: float
    """How long each fault is in force, at least."""
    offset_s: float
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return f"{self.at_s:6.1f} s  {self.hold_s:4.1f} s  {' + '.join(map(str, self.steps))}"


class _Deck:
    """Cards dealt in random order, all of them before any comes again."""

    def __init__(self, cards: Sequence[str], random: Random) -> None:
        self._cards = tuple(cards)
        self._random = random
        self._left: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._cards)

    def deal(self) -> str:
        if not self._left:
            self._left = self._random.sample(self._cards, len(self._cards))
        return self._left.pop()


class _Planner:
    def __init__(
        self, random: Random, faults: Sequence[str], nodes: Sequence[str], shards: int
    ) -> None:
        self._random = random
        self._nodes = tuple(nodes)
        self._shards = shards
        main = [kind for kind in faults if kind not in ACCOMPANYING]
        self._main = _Deck(main or faults, random)
        self._company = _Deck([kind for kind in faults if kind not in LONE], random)
        self._accompanying = _Deck([kind for kind in faults if kind in ACCOMPANYING], random)
        self._variants = {kind: _Deck(VARIANTS[kind], random) for kind in faults}

    def steps(self) -> tuple[Step, ...]:
        """The faults of the next round."""
        first = self._step(self._main.deal())
        if first.kind in LONE or first.variant == "all":
            return (first,)
        second = self._companion()
        return (first,) if second in {None, first.kind} else (first, self._step(str(second)))

    def _companion(self) -> str | None:
        if self._random.random() < COMPANY_SHARE and self._accompanying:
            return self._accompanying.deal()
        return self._company.deal() if self._company else None

    def _step(self, kind: str) -> Step:
        return Step(
            kind=kind,
            variant=self._variants[kind].deal(),
            nodes=tuple(self._random.sample(self._nodes, len(self._nodes))),
            shard=self._random.randrange(self._shards),
            seed=self._random.getrandbits(32),
        )


def rounds(
    seed: int, faults: Sequence[str], nodes: Sequence[str], shards: int, election_timeout_s: float
) -> Iterator[Round]:
    """Plan without end; the same arguments give the same plan, also in another process.

    Before each round the cluster has one calm election time-out.
    """
    random = Random(f"{seed} plan")  # noqa: S311 -- a plan is to be repeated
    planner = _Planner(random, [kind for kind in FAULTS if kind in faults], nodes, shards)
    at_s = election_timeout_s
    while True:
        steps = planner.steps()
        hold_s = round(random.uniform(*HOLD_FACTORS) * election_timeout_s, 2)
        offset_s = round(random.uniform(0, election_timeout_s), 2) if len(steps) > 1 else 0.0
        yield Round(round(at_s, 2), hold_s, offset_s, steps)
        at_s += offset_s + hold_s + recovery_s(election_timeout_s) + election_timeout_s


def recovery_s(election_timeout_s: float) -> float:
    """What it takes a healed cluster to come back, roughly."""
    return RESTART_S + ELECTION_FACTOR * election_timeout_s


def plan(
    seed: int,
    faults: Sequence[str],
    nodes: Sequence[str],
    shards: int,
    *,
    election_timeout_s: float,
    duration_s: float,
) -> tuple[Round, ...]:
    """The rounds that fit into ``duration_s``."""
    if not faults:
        return ()
    after_s = recovery_s(election_timeout_s)
    fitting: list[Round] = []
    for one in rounds(seed, faults, nodes, shards, election_timeout_s):
        if one.at_s + one.offset_s + one.hold_s + after_s > duration_s and fitting:
            break
        fitting.append(one)
    return tuple(fitting)


def minority(nodes: Sequence[str]) -> tuple[str, ...]:
    """As many as a group of all nodes can lose and go on."""
    return tuple(nodes[: (len(nodes) - 1) // 2])
