"""What a seed decides before the first event: the shape of the cluster, its load and its faults.

Each seed switches only some of the faults on (swarm testing: Groce et al., ISSTA 2012): a run with
everything at once hides what a run with two things finds.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from random import Random
from typing import Any, Self

FAULTS = (
    "kill", "power", "crash_in_disk", "rot_in_crash", "restart_all", "freeze", "freeze_some",
    "freeze_long", "stop",
    "crash_loop", "descriptors", "hanging_jobs", "killed_writers",
    "partition", "one_way", "bridge", "reset", "reset_storm", "half_open", "slow_link",
    "narrow_link", "lossy_link", "flaky_link", "cut_clients",
    "slow_disk", "stall_disk", "full_disk", "full_for_snapshots", "failing_sync", "failing_reads",
    "failing_renames", "bit_flip", "lose_disk",
    "wall_clock", "drift", "transfer", "transfers",
    "forwarder_restart", "full_sockets", "dying_successor",
)  # fmt: skip
"""Every kind of fault; :mod:`raftkv.sim.faults` says what each does."""

KINDS = (3, 16)
"""So many kinds of fault are switched on in a run, from ... to: so few that they meet often."""

AIMED = ("forwarder_restart", "full_sockets", "dying_successor")
"""Several harms each, that meet by themselves; where they are switched on they come often."""

WORKLOADS = ("register", "append", "set", "bank", "lock", "pages", "txn")

MINUTES = 5.0
"""Simulated minutes of a run, unless something else is asked for."""

MAJORITY_NEEDED = ("bit_flip", "lose_disk")
"""Faults that a shard survives only if a majority of its replicas is left."""

FROZEN_S = {"freeze": 30.0, "freeze_long": 225.0}
"""Longest pause of a process, see :mod:`raftkv.sim.plan`."""

_KIB = 1024
_MANY = 10**6
"""As good as no bound."""


SHAPES = (
    (3, 3), (3, 3), (3, 3), (3, 3), (3, 3), (4, 3), (5, 3), (5, 5),
    (1, 1), (3, 1), (2, 2), (3, 2), (5, 2),
)  # fmt: skip
"""(nodes, replicas) of which a seed draws one."""


@dataclass(frozen=True, slots=True)
class Options:
    """One run. Times end with their unit; ``faults`` are the kinds that may happen.

    ``call_ms``: what a node is given for a call at least. ``kernel_bytes``: what kernels hold of
    one direction of a connection. ``keep``: only these faults of the plan happen, by number (None:
    all); what shrinking cuts.
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
    call_ms: int
    """How long a node works on a call, even if its client waits no longer."""
    value_bytes: int
    """What large values have; one is now and then larger than any entry may be."""
    entry_commands: int
    queue_commands: int
    reads_waiting: int
    batch_operations: int
    append_bytes: int
    """Of one message with entries; a window is some of them."""
    append_window: int
    chunk_bytes: int
    """Of one piece of a snapshot."""
    chunk_window: int
    bulk_chunks: int
    """Pieces that a link takes before the other side has taken some."""
    link_windows: int
    """Windows of entries that wait for a link before it is given up."""
    apply_operations: int
    """Applied in one turn."""
    restore_records: int
    """Of a snapshot, loaded in one turn."""
    free_keys: int
    """Whether some clients use free-form keys (1) or all sessions (0)."""
    free_keys_max: int
    sessions_max: int
    name_lifetime_s: float
    in_flight_max: int
    """Calls between a worker and its engine."""
    worker_life_s: float
    """A worker dies after about that; 0: never."""
    cut_share: float
    """Of clients' connections that break."""
    kernel_bytes: int
    copies: float
    """Share of writes in a session of which a copy arrives late."""
    greedy: int
    """Whether a client begins a session for every write (1), out of its share of the table."""
    keep: tuple[int, ...] | None = None

    @classmethod
    def of(cls, seed: int, minutes: float = MINUTES, **changes: Any) -> Self:
        """What ``seed`` decides, with ``changes`` on top."""
        random = Random(f"options {seed}")
        nodes, replicas = random.choice(SHAPES)
        late = Random(f"copies {seed}")
        greedy = Random(f"greedy {seed}")
        heartbeat_ms = random.choice((100, 250, 500, 500))
        drawn = cls(
            seed=seed,
            minutes=minutes,
            nodes=nodes,
            replicas=replicas,
            shards=random.choice((1, 1, 1, 1, 1, 2, 2, 3, 3, 3, 3, 8, 8, 8, 24)),
            heartbeat_ms=heartbeat_ms,
            election_ms=max(1000, heartbeat_ms * random.choice((4, 4, 8))),
            ping_ms=random.choice((250, 1000, 1000)),
            snapshot_after_entries=random.choice((8, 8, 40, 200)),
            segment_bytes=random.choice((16, 64, 256)) * 1024,
            delay_us=random.choice((50, 500, 3000)),
            sync_us=random.choice((200, 500, 5000)),
            clients=random.choice((3, 6, 10, 20)),
            operations_per_s=random.choice((2.5, 3.0, 4.0)),
            workloads=_some(random, WORKLOADS, 2, len(WORKLOADS)),
            faults=_some(random, FAULTS, *KINDS),
            fault_every_s=random.choice((4.0, 8.0, 15.0)),
            call_ms=random.choice((2000, 5000, 5000, 15_000, 60_000)),
            value_bytes=random.choice((6 * _KIB, 6 * _KIB, 40 * _KIB, 150 * _KIB)),
            entry_commands=random.choice((1, 4, 64, 64)),
            queue_commands=random.choice((2, 16, 1024, 1024)),
            reads_waiting=random.choice((2, _MANY, _MANY)),
            batch_operations=random.choice((1, 3, 512)),
            append_bytes=random.choice((1, 2 * _KIB, 512 * _KIB)),
            append_window=random.choice((1, 4, 8)),
            chunk_bytes=random.choice((500, 4 * _KIB, 256 * _KIB)),
            chunk_window=random.choice((1, 3, 8)),
            bulk_chunks=random.choice((2, 32)),
            link_windows=random.choice((2, 1000)),
            apply_operations=random.choice((1, 4096, 4096)),
            restore_records=random.choice((1, 4)),
            free_keys=random.choice((0, 1, 1)),
            free_keys_max=random.choice((100, _MANY, _MANY)),
            sessions_max=random.choice((40, _MANY, _MANY, _MANY)),
            # The shortest leaves a client's operation just enough time, as 120 s do its calls.
            name_lifetime_s=random.choice((12.0, 12.0, 120.0)),
            in_flight_max=random.choice((2, 8192, 8192)),
            worker_life_s=random.choice((0.0, 10.0, 60.0)),
            cut_share=random.choice((0.0, 0.02, 0.1)),
            kernel_bytes=random.choice((4, 32, 256)) * _KIB,
            copies=late.choice((0.0, 0.1, 0.3)),
            greedy=greedy.choice((0, 0, 1)),
        )
        options = replace(drawn, **changes)
        options.check()
        if options.replicas < 3 and "faults" not in changes:  # noqa: PLR2004 -- two have no majority
            survived = tuple(kind for kind in options.faults if kind not in MAJORITY_NEEDED)
            options = replace(options, faults=survived)
        if options.free_keys and "name_lifetime_s" not in changes:
            lasting_s = max(options.name_lifetime_s, options.copies_live_s)
            options = replace(options, name_lifetime_s=lasting_s)
        return options

    @property
    def copies_live_s(self) -> float:
        """How long a free-form key must be remembered, so that no copy comes later than that.

        Free-form keys protect for as long as they are remembered, no longer (docs/guarantees.md). A
        client tries for ten seconds; the last copy lives for a call's time at the node that was
        asked and for another one at the leader; either may be frozen meanwhile; clocks drift.
        """
        frozen_s = FROZEN_S["freeze_long" if "freeze_long" in self.faults else "freeze"]
        return 1.2 * (10.0 + 2 * self.call_ms / 1000 + frozen_s)

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
            ("call_ms", 1, 600_000),
            ("value_bytes", 1, 4 * 2**20),
            ("entry_commands", 1, 10**9),
            ("queue_commands", 1, 10**9),
            ("reads_waiting", 1, 10**9),
            ("batch_operations", 1, 10**9),
            ("append_bytes", 1, 2**30),
            ("append_window", 1, 10**6),
            ("chunk_bytes", 1, 2**26),
            ("chunk_window", 1, 10**6),
            ("bulk_chunks", 1, 10**6),
            ("link_windows", 1, 10**6),
            ("apply_operations", 1, 10**9),
            ("restore_records", 1, 10**9),
            ("free_keys", 0, 1),
            ("free_keys_max", 0, 10**9),
            ("sessions_max", 0, 10**9),
            ("name_lifetime_s", 0.0, 10**9),
            ("in_flight_max", 1, 10**6),
            ("worker_life_s", 0.0, 10**9),
            ("cut_share", 0.0, 1.0),
            ("kernel_bytes", 512, 2**31),
            ("copies", 0.0, 1.0),
            ("greedy", 0, 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name}: {value} is not between {low} and {high}")
        if not self.workloads:
            raise ValueError(f"workloads: none of {', '.join(WORKLOADS)} is left")

    def describe(self) -> str:
        """One line per option, to be shown beside a failure."""
        return "\n".join(f"  {f.name} = {_shown(getattr(self, f.name))}" for f in fields(self))


def _some(random: Random, things: Iterable[str], low: int, high: int) -> tuple[str, ...]:
    """From ``low`` to ``high`` of ``things``, in their order."""
    things = tuple(things)
    chosen = set(random.sample(things, random.randint(low, high)))
    return tuple(thing for thing in things if thing in chosen)


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
