"""Violations that show without a search."""

import math
from bisect import bisect_left
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

from raftkv.check.history import Operation
from raftkv.check.model import Move, Never, Problem

Moment = tuple[float, int]
"""A time in nanoseconds, and the place among all events, which orders those of the same time."""


def contradictions(problem: Problem) -> Iterator[Operation]:
    """Yield operations that nothing explains. A search finds them too, but tries everything first.

    They are those whose answer no state gives, those that began when one of a higher rank had ended
    already, and those that saw a value which must have been replaced.
    """
    required = [move for move in problem.moves if move.required]
    for move in required:
        if isinstance(move.action, Never):
            yield move.operation
    yield from _too_late(required)
    yield from _replaced(required)


def _too_late(moves: Iterable[Move]) -> Iterator[Operation]:
    ranked = [(move.rank, move.operation) for move in moves if move.rank is not None]
    ranked.sort(key=lambda entry: entry[0], reverse=True)
    first_end: Moment = (math.inf, 0)
    for _, same_rank in groupby(ranked, key=lambda entry: entry[0]):
        operations = [operation for _, operation in same_rank]
        for operation in operations:
            if first_end < begin_of(operation):
                yield operation
        first_end = min(first_end, *map(end_of, operations))


class _Zone(NamedTuple):
    """When a value was there: from the first end to the last begin of those that made or saw it.

    That is, if the first is before the second. Otherwise all overlap, and it was there at some
    moment between the second and the first, or all the time. Gibbons and Korach, "Testing Shared
    Memories" (SIAM J. Computing 1997), section 4.
    """

    first_end: Moment
    last_begin: Moment
    last: Operation


def _replaced(moves: Iterable[Move]) -> Iterator[Operation]:
    """Yield the last operation of values that were there at the same time as another one."""
    by_value: dict[Hashable, list[Operation]] = {}
    for move in moves:
        if move.value is not None:
            by_value.setdefault(move.value, []).append(move.operation)
    zones = sorted(map(_zone, by_value.values()), key=lambda zone: zone.first_end)
    long = [zone for zone in zones if zone.first_end < zone.last_begin]
    for before, after in pairwise(long):
        if after.first_end < before.last_begin:
            yield max(before, after, key=lambda zone: zone.last_begin).last
    for short in zones:
        if short.first_end >= short.last_begin:
            number = bisect_left(long, short.last_begin, key=lambda zone: zone.first_end) - 1
            if number >= 0 and short.first_end < long[number].last_begin:
                yield long[number].last


def _zone(operations: Sequence[Operation]) -> _Zone:
    last = max(operations, key=begin_of)
    return _Zone(min(map(end_of, operations)), begin_of(last), last)


def begin_of(operation: Operation) -> Moment:
    """Return when an operation began, to be compared with other moments."""
    return operation.invoked_ns, operation.invoked_at


def end_of(operation: Operation) -> Moment:
    """Return when an operation ended, to be compared with other moments."""
    ended_ns = math.inf if operation.completed_ns is None else operation.completed_ns
    return ended_ns, operation.completed_at
