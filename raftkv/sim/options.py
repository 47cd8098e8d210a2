"""What a seed decides before the first event: the shape of the cluster, its load and its faults.

Each seed switches only some of the faults on (swarm testing: Groce et al., ISSTA 2012): a run with
everything at once hides what a run with two things finds.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from random import Random
from typing import Any, Self

FAULTS = (
    "kill", "power", "crash_in_disk", "restart_all", "freeze", "stop",
    "partition", "one_way", "bridge", "reset", "slow_link", "lossy_link", "flaky_link",
    "slow_disk", "stall_disk", "full_disk", "failing_sync", "bit_flip", "lose_disk",
    "wall_clock", "drift", "transfer",
)  # fmt: skip
"""Every kind of fault; :mod:`raftkv.sim.faults` says what each does."""

WORKLOADS = ("register", "append", "set", "bank", "lock")

MINUTES = 5.0
"""Simulated minutes of a run, unless something else is asked for."""


@dataclass(frozen=True, slots=True)
class Options:
    """One run. Times end with their unit; ``faults`` are the kinds that may happen.

    ``memory_s``: how long outcomes of writes are remembered. ``copies``: share of clients' requests
    of which a copy arrives late, as from a proxy that was frozen and tries again.
    ``keep``: only these faults of the plan happen, by number (None: all); what shrinking cuts.
    """

    seed: int
    minutes: float
    nodes: int
    shards: int
    replicas: int
    heartbeat_ms: int
    election_ms: int
    ping_ms: int
    snapshot_after_entries: int
    segment_bytes: int
    delay_us: int
    sync_us: int
    clients: int
    operations_per_s: float
    workloads: tuple[str, ...]
    faults: tuple[str, ...]
    fault_every_s: float
    memory_s: float
    copies: float
    keep: tuple[int, ...] | None = None

    @classmethod
    def of(cls, seed: int, minutes: float = MINUTES, **changes: Any) -> Self:
        """What ``seed`` decides, with ``changes`` on top."""
        random = Random(f"options {seed}")
        nodes, replicas = random.choice(((3, 3), (3, 3), (3, 3), (4, 3), (5, 3), (5, 5)))
        memory = Random(f"memory {seed}")
        heartbeat_ms = random.choice((100, 250, 500, 500))
        drawn = cls(
            seed=seed,
            minutes=minutes,
            nodes=nodes,
            replicas=replicas,
            shards=random.choice((1, 1, 1, 2, 3)),
            heartbeat_ms=heartbeat_ms,
            election_ms=max(1000, heartbeat_ms * random.choice((4, 4, 8))),
            ping_ms=random.choice((250, 1000, 1000)),
            snapshot_after_entries=random.choice((8, 8, 40, 200)),
            segment_bytes=random.choice((16, 64, 256)) * 1024,
            delay_us=random.choice((50, 500, 3000)),
            sync_us=random.choice((200, 500, 5000)),
            clients=random.choice((3, 6, 10)),
            operations_per_s=random.choice((2.5, 3.0, 4.0)),
            workloads=_some(random, WORKLOADS, at_least=2),
            faults=_some(random, FAULTS, at_least=3),
            fault_every_s=random.choice((4.0, 8.0, 15.0)),
            # The shortest leaves a client's operation just enough time, as 120 s do its calls.
            memory_s=memory.choice((12.0, 12.0, 120.0)),
            copies=memory.choice((0.0, 0.1, 0.3)),
        )
        options = replace(drawn, **changes)
        options.check()
        return options

    def check(self) -> None:
        """Refuse what no cluster can be.

        Raises:
            ValueError: names the option, and what it may be.
        """
        for name, low, high in (
            ("nodes", 1, 9),
            ("shards", 1, 64),
            ("replicas", 1, min(7, self.nodes)),
            ("heartbeat_ms", 1, 60_000),
            ("election_ms", 3 * self.heartbeat_ms + 1, 600_000),
            ("ping_ms", 10, 60_000),
            ("snapshot_after_entries", 1, 10**9),
            ("segment_bytes", 8192, 2**31),
            ("delay_us", 0, 10**9),
            ("sync_us", 0, 10**9),
            ("clients", 1, 1000),
            ("operations_per_s", 0.01, 10**6),
            ("fault_every_s", 0.05, 10**9),
            ("memory_s", 1, 10**9),
            ("copies", 0, 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name}: {value} is not between {low} and {high}")
        if not self.workloads:
            raise ValueError(f"workloads: none of {', '.join(WORKLOADS)} is left")

    def describe(self) -> str:
        """One line per option, to be shown beside a failure."""
        return "\n".join(f"  {f.name} = {_shown(getattr(self, f.name))}" for f in fields(self))


def _some(random: Random, things: Iterable[str], *, at_least: int) -> tuple[str, ...]:
    """A random part of ``things``, in their order."""
    things = tuple(things)
    chosen = set(random.sample(things, random.randint(at_least, len(things))))
    return tuple(thing for thing in things if thing in chosen)


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
