"""What all faults share: whom they hit, and what they tell of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from raftkv.chaos.plan import Step, minority
from raftkv.chaos.raftkv_target import RaftkvTarget
from raftkv.chaos.target import Nodes


@dataclass(slots=True)
class Context:
    """What a fault can reach, and what other faults do at the same time."""

    target: Nodes
    leader_of: Callable[[int], str | None]
    """The node that leads a shard now, as far as is known."""
    hold_s: float
    hit: set[str] = field(default_factory=set)
    """Nodes that a fault of this round has taken for itself."""
    findings: list[str] = field(default_factory=list)
    """What must not happen and did."""

    @property
    def raftkv(self) -> RaftkvTarget:
        """The target, for faults that only a raftkv cluster can have."""
        if not isinstance(self.target, RaftkvTarget):
            raise TypeError(f"{self.target.title} cannot have this fault")
        return self.target


class Fault(ABC):
    """One fault. ``start``, then ``observe`` again and again, then ``stop``, all from one thread.

    ``stop`` must work whatever came before it, also after a ``start`` that failed half-way.
    """

    def __init__(self, step: Step, context: Context) -> None:
        self.step = step
        self.kind = step.kind
        self.variant = step.variant
        self.context = context
        self.target = context.target
        self.random = Random(step.seed)  # noqa: S311 -- a plan is to be repeated
        self.victims: tuple[str, ...] = ()
        self.detail = step.variant
        self.effective = False

    @property
    def names(self) -> str:
        """Whom it hits, for people."""
        return ", ".join(self.victims) or "all"

    def free_nodes(self) -> tuple[str, ...]:
        """All nodes, those first that no other fault of this round has hit."""
        return tuple(sorted(self.step.nodes, key=lambda name: name in self.context.hit))

    def choose(self) -> tuple[str, ...]:
        """The nodes that the variant means, looked up now."""
        nodes = self.free_nodes()
        if "leader" in self.variant:
            leader = self.context.leader_of(self.step.shard)
            usable = leader is not None and leader not in self.context.hit
            return (leader,) if leader is not None and usable else nodes[:1]
        if self.variant == "all":
            return nodes
        if self.variant == "minority":
            return minority(nodes)
        return nodes[:1]

    def take(self, names: tuple[str, ...]) -> None:
        """Make these the victims, and keep other faults of the round away from them."""
        self.victims = names
        self.context.hit.update(names)

    @abstractmethod
    def start(self) -> None:
        """Bring it about."""

    @abstractmethod
    def observe(self) -> None:
        """Look whether the effect can be seen, and set :attr:`effective`."""

    @abstractmethod
    def stop(self) -> None:
        """Take it back."""
