"""A run over time: how many operations finished, and how long they took, per slice of time.

However long the history is, the charts get a bounded number of slices.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from raftkv.check.history import Operation
from raftkv.check.report.events import RunEvent

OPERATION_NS_MIN = 1_000
SLICES_MAX = 160
"""A slice is then a few pixels wide, wide enough to point at."""


@dataclass(frozen=True, slots=True)
class Span:
    """The time that a run took, on the history's clock."""

    start_ns: int
    end_ns: int
    timed: bool = True
    """False if the history has no times: then a "nanosecond" is a place in its order."""

    @property
    def length_ns(self) -> int:
        """Its duration, never zero, so that it can be divided by."""
        return max(1, self.end_ns - self.start_ns)


@dataclass(slots=True)
class Slice:
    """What finished between ``start_ns`` and ``end_ns``; unknown ones count where they began."""

    start_ns: int
    end_ns: int
    ok: int = 0
    fail: int = 0
    info: int = 0
    latencies_ns: list[int] = field(default_factory=list)
    """Of operations that were ok, ascending."""

    def rate(self, count: int) -> float:
        """Return ``count`` operations in this slice as operations per second."""
        return count * 1_000_000_000 / (self.end_ns - self.start_ns)

    def latency_ns(self, percent: int) -> int | None:
        """Return a percentile by nearest rank; None if nothing was ok."""
        if not self.latencies_ns:
            return None
        rank = -(-len(self.latencies_ns) * percent // 100)
        return self.latencies_ns[max(0, rank - 1)]


def span_of(operations: Iterable[Operation], events: Iterable[RunEvent]) -> Span:
    """Return the time from the first thing that was noted to the last.

    Histories of some formats give an order and no times. They can be told, because no clients
    make more than one operation a microsecond.
    """
    moments = [event.time_ns for event in events]
    for operation in operations:
        moments += (operation.invoked_ns, ended_ns(operation))
    start_ns, end_ns = min(moments, default=0), max(moments, default=0)
    return Span(start_ns, end_ns, timed=end_ns - start_ns >= OPERATION_NS_MIN * len(moments) / 2)


def ended_ns(operation: Operation) -> int:
    """Return when an operation was last heard of."""
    if operation.completed_ns is None:
        return operation.invoked_ns
    return operation.completed_ns


def slices(operations: Sequence[Operation], span: Span) -> list[Slice]:
    """Cut ``span`` into at most ``SLICES_MAX`` slices of a round length and count in each."""
    length_ns = _round_length_ns(span.length_ns / (SLICES_MAX - 1))
    starts = range(span.start_ns, span.end_ns + 1, length_ns)
    parts = [Slice(start_ns, start_ns + length_ns) for start_ns in starts]
    for operation in operations:
        _count(operation, parts[(ended_ns(operation) - span.start_ns) // length_ns])
    for part in parts:
        part.latencies_ns.sort()
    return parts


def steps(highest: float, wanted: int) -> Iterator[float]:
    """Yield round numbers from 0 up to ``highest``, about ``wanted`` of them, for an axis."""
    step = _round_step(highest / wanted) if highest > 0 else 1.0
    for index in range(int(highest / step) + 1):
        yield index * step


def _count(operation: Operation, part: Slice) -> None:
    if operation.status == "ok":
        part.ok += 1
        part.latencies_ns.append(ended_ns(operation) - operation.invoked_ns)
    elif operation.status == "fail":
        part.fail += 1
    else:
        part.info += 1


def _round_length_ns(least_ns: float) -> int:
    return max(1, round(_round_step(least_ns)))


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2, 5, 10, ... and their tenths that is not below ``least``."""
    magnitude = 10.0 ** (len(str(int(least))) - 1)
    while magnitude > least:
        magnitude /= 10
    return next(magnitude * by for by in (1, 2, 5, 10) if magnitude * by >= least)
