"""The history as the judge divided it: operations of a key beside what was found about them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raftkv.check.history import Operation
from raftkv.check.report.text import key_name
from raftkv.check.verdict import PartResult, Result, Verdict

_ORDER = {Verdict.VIOLATION: 0, Verdict.UNKNOWN: 1, None: 2, Verdict.VALID: 3}


@dataclass(frozen=True, slots=True)
class Part:
    """Operations that were judged together, by invocation. ``result`` None: not judged.

    ``places`` says where the longest (partial) linearization puts an operation: index → place,
    from 1.
    """

    name: str
    operations: Sequence[Operation]
    result: PartResult | None
    places: Mapping[int, int]

    @property
    def verdict(self) -> Verdict | None:
        """What was found; None if the judge stopped before this part."""
        return self.result.verdict if self.result else None

    @property
    def offending_at(self) -> int | None:
        """Where in ``operations`` the first one is that could not be placed."""
        index = self.result.offending if self.result else None
        found = (at for at, operation in enumerate(self.operations) if operation.index == index)
        return next(found, None)


def parts_of(operations: Sequence[Operation], result: Result) -> list[Part]:
    """Give every operation to its part; violations first, then what is unknown, then by name."""
    if [part.key for part in result.parts] == [None]:  # the model is not divided by key
        parts = [_part(None, operations, result.parts[0])]
    else:
        keys = _by_key(operations)
        parts = [_part(found.key, keys.get(found.key, []), found) for found in result.parts]
        judged = {found.key for found in result.parts}
        parts += [_part(key, some, None) for key, some in keys.items() if key not in judged]
    return sorted(parts, key=lambda part: (_ORDER[part.verdict], part.name))


def offences(parts: Sequence[Part]) -> list[Operation]:
    """Return the first operation of every part that could not be placed."""
    found = ((part, part.offending_at) for part in parts)
    return [part.operations[at] for part, at in found if at is not None]


def placement_ns(part: Part) -> dict[int, int]:
    """Return a moment for every operation that was linearized: index → ns, in their order.

    An operation takes effect at one moment between its invocation and its completion. Any moments
    that grow along the linearization and keep within those bounds would do; these are spread
    evenly between the latest invocation so far and the earliest completion to come.
    """
    by_index = {operation.index: operation for operation in part.operations}
    order = [by_index[index] for index in part.places if index in by_index]
    latest = _latest_ns(order)
    moments: dict[int, int] = {}
    now_ns = 0
    for at, operation in enumerate(order):
        now_ns = max(now_ns, operation.invoked_ns)
        now_ns += max(0, latest[at] - now_ns) // (_shared(latest, at) + 1)
        moments[operation.index] = now_ns
    return moments


def _latest_ns(order: Sequence[Operation]) -> list[int]:
    """Return by when each must have taken effect: the earliest completion from it onwards."""
    bound_ns = max((max(o.invoked_ns, o.completed_ns or 0) for o in order), default=0)
    latest = []
    for operation in reversed(order):
        if operation.completed_ns is not None:
            bound_ns = min(bound_ns, operation.completed_ns)
        latest.append(bound_ns)
    return latest[::-1]


def _shared(latest: Sequence[int], at: int, limit: int = 50) -> int:
    """Return how many operations from ``at`` on have the same bound, as they must share the time.

    Looking ahead is limited: beyond that many the points are a line anyway.
    """
    count = 1
    while count < limit and at + count < len(latest) and latest[at + count] == latest[at]:
        count += 1
    return count


def _by_key(operations: Sequence[Operation]) -> dict[str | None, list[Operation]]:
    keys: dict[str | None, list[Operation]] = {}
    for operation in operations:
        keys.setdefault(operation.key, []).append(operation)
    return keys


def _part(key: str | None, operations: Sequence[Operation], result: PartResult | None) -> Part:
    order = result.linearization if result else ()
    places = {index: place for place, index in enumerate(order, start=1)}
    return Part(key_name(key), operations, result, places)
