"""What is compared, what must hold, and whether it does."""

from collections.abc import Sequence
from statistics import median
from typing import Literal

import msgspec

from raftkv.bench.load.workload import Kind

Direction = Literal[">=", "<="]


class Limit(msgspec.Struct, frozen=True):
    """What a ratio of raftkv to its peer must be, and ought to be."""

    measure: str
    """``throughput``, ``median``, ``p99``, ``worst``."""
    direction: Direction
    must: float
    aim: float | None = None

    def holds(self, ratio: float | None) -> bool | None:
        """Whether it must not be better; nothing measured meets nothing."""
        return _within(ratio, self.direction, self.must)

    def reaches_aim(self, ratio: float | None) -> bool | None:
        """Whether it is as good as it ought to be; None if nothing is said."""
        return None if self.aim is None else _within(ratio, self.direction, self.aim)


def _within(ratio: float | None, direction: Direction, bound: float) -> bool:
    if ratio is None:
        return False
    return ratio >= bound if direction == ">=" else ratio <= bound


class LoadRow(msgspec.Struct, frozen=True):
    """One load on both: the same operations in a closed loop."""

    name: str
    group: str
    """What ``--rows`` calls it."""
    kind: Kind
    connections: int
    limits: tuple[Limit, ...]


def _put(connections: int) -> LoadRow:
    limits = (
        (Limit("throughput", ">=", 1.8, 2.5), Limit("median", "<=", 0.6))
        if connections == 1
        else (Limit("throughput", ">=", 2.0, 3.0), Limit("p99", "<=", 0.7))
    )
    return LoadRow(f"put, {_connections(connections)}", "put", "put", connections, limits)


def _get(connections: int) -> LoadRow:
    must = {1: 1.3, 16: 2.0, 64: 2.5, 256: 3.0}[connections]
    limits = (
        (Limit("throughput", ">=", must, 2.0),)
        if connections == 1
        else (Limit("throughput", ">=", must, 4.0), Limit("p99", "<=", 0.6))
    )
    return LoadRow(f"get, {_connections(connections)}", "get", "get", connections, limits)


def _connections(count: int) -> str:
    return "1 connection" if count == 1 else f"{count} connections"


LOAD_ROWS = (
    *(_put(connections) for connections in (1, 16, 64, 256)),
    *(_get(connections) for connections in (1, 16, 64, 256)),
    LoadRow(
        "100 puts a batch, 16 connections",
        "batch",
        "batch",
        16,
        (Limit("throughput", ">=", 3.0, 5.0),),
    ),
)
"""The rows that the same generator makes on both (on ZooKeeper, kazoo)."""


CLIENT_LIMITS = (Limit("throughput", ">=", 4.0, 10.0),)
FAILOVER_LIMITS = (Limit("median", "<=", 0.5, 0.3), Limit("worst", "<=", 1.0))
START_LIMITS = (Limit("first write", "<=", 3.0, 2.0),)

GROUPS = ("put", "get", "batch", "client", "failover", "start")
"""What ``--rows`` takes."""

GROUPS_OF_PEER = {"etcd": GROUPS, "zookeeper": ("put",), "pysyncobj": ("put", "get")}
"""What each peer can be compared in. Something must hold against etcd only."""


class Reading(msgspec.Struct, frozen=True):
    """One run of one row on one store. ``throughput`` in operations a second, the others in s."""

    values: dict[str, float]
    failed: int = 0
    cores: dict[str, float] = {}
    """Cores used in that time: by the store's processes, the generator, and the idle store."""


class Compared(msgspec.Struct, frozen=True):
    """One measure of one row: both medians, and the ratios of the pairs."""

    row: str
    measure: str
    ours: float | None
    theirs: float | None
    ratios: list[float]
    limit: Limit | None

    @property
    def ratio(self) -> float | None:
        """The median of the pairs' ratios."""
        return median(self.ratios) if self.ratios else None

    @property
    def met(self) -> bool | None:
        """Whether it holds what it must; None if nothing must."""
        return None if self.limit is None else self.limit.holds(self.ratio)

    @property
    def aim_met(self) -> bool | None:
        """Whether the aim is reached; None if there is none."""
        return None if self.limit is None else self.limit.reaches_aim(self.ratio)


def compare(
    row: str, limits: Sequence[Limit], pairs: Sequence[tuple[Reading, Reading]]
) -> list[Compared]:
    """Put the pairs (ours, theirs) of a row side by side, each measure that both always have.

    A measure with a limit is there in any case: a run of which nothing was accepted has no
    latency, and must not take the limit on it away. It has no ratio then, and so misses.
    """
    by_measure = {limit.measure: limit for limit in limits}
    readings = [reading for pair in pairs for reading in pair]
    measures = dict.fromkeys(measure for reading in readings for measure in reading.values)
    compared = []
    for measure in measures:
        if all(measure in reading.values for reading in readings):
            compared.append(_side_by_side(row, measure, by_measure.get(measure), pairs))
        elif measure in by_measure:
            compared.append(Compared(row, measure, None, None, [], by_measure[measure]))
    return compared


def _side_by_side(
    row: str, measure: str, limit: Limit | None, pairs: Sequence[tuple[Reading, Reading]]
) -> Compared:
    values = [(ours.values[measure], theirs.values[measure]) for ours, theirs in pairs]
    return Compared(
        row,
        measure,
        median(ours for ours, _ in values),
        median(theirs for _, theirs in values),
        [ours / theirs for ours, theirs in values if theirs],
        limit,
    )
