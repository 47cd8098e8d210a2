"""Which operation makes a history impossible, and what was possible until it ended.

What was true of a history is true of its beginnings: if the operations that ended until some moment
have an explanation, so have those that ended until an earlier one. (What had begun and not ended
counts as unknown.) So there is one end with which the violation appears, and bisection finds it.
"""

import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

from raftkv.check.contradiction import Moment, begin_of, contradictions, end_of
from raftkv.check.event import INFO, OK
from raftkv.check.history import Operation
from raftkv.check.model import Model, shown
from raftkv.check.search import OutOfRoomError, Search
from raftkv.check.verdict import Verdict

EXPLANATION_S_MAX = 10.0
"""How long is looked for the first end with which a violation appears."""

_TOLD = ("revision", "observed_revision", "deleted")


@dataclass(frozen=True, slots=True)
class Beginning:
    """An explanation of what ended first in a history."""

    ends: int
    """How many operations had ended."""
    linearization: tuple[int, ...]
    """``Operation.index``, in order."""
    state: str
    """What the key is then, for a person."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why there is a violation."""

    linearization: tuple[int, ...]
    """``Operation.index`` of an order that explains all that ended before ``offending``."""
    offending: int
    """``Operation.index`` of the operation with whose end no order is left."""
    reason: str


class Timeline:
    """The ends of a history."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._operations = operations
        self.ended = sorted((op for op in operations if op.completed_ns is not None), key=end_of)

    def ends_before(self, operation: Operation) -> int:
        """Return how many operations ended before one; all, if its end is unknown."""
        return bisect_left(self.ended, end_of(operation), key=end_of)

    def until(self, ends: int) -> list[Operation]:
        """Return the history as it was after so many ends."""
        if ends == 0:
            return []
        last = end_of(self.ended[ends - 1])
        return [
            operation if _had_ended(operation, last) else _without_end(operation)
            for operation in self._operations
            if begin_of(operation) < last
        ]


def explain(
    timeline: Timeline, model: Model, guess: Operation, known: Beginning, room: int
) -> Explanation:
    """Return the first end that no order explains, in a history that has a violation.

    ``guess`` is where it might be; ``known`` is explained. If time is too short, or ``room`` for
    configurations too small, the end returned may be a later one.
    """
    deadline_s = time.monotonic() + EXPLANATION_S_MAX
    possible, impossible = known, len(timeline.ended)
    guesses = [timeline.ends_before(guess), timeline.ends_before(guess) + 1]
    while impossible - possible.ends > 1:
        ends = guesses.pop() if guesses else (possible.ends + impossible) // 2
        if not possible.ends < ends < impossible:
            continue
        verdict, beginning = _judge(timeline.until(ends), ends, model, deadline_s, room)
        if verdict is Verdict.VALID:
            possible = beginning
        elif verdict is Verdict.VIOLATION:
            impossible = ends
        else:
            break
    offending = timeline.ended[impossible - 1]
    return Explanation(possible.linearization, offending.index, _reason(possible, offending))


def describe(operation: Operation) -> str:
    """Say on one line what somebody asked and was told."""
    asked = operation.f if operation.value is None else f"{operation.f} {shown(operation.value)}"
    answer = operation.status
    if operation.result is not None and operation.result != operation.value:
        answer += f" {shown(operation.result)}"
    elif operation.f == "read" and operation.status == OK:
        answer += " null"
    for name in _TOLD:
        if name in operation.fields:
            answer += f", {name.replace('_', ' ')} {shown(operation.fields[name])}"
    return f"process {operation.process}, {asked}: {answer}"


def _reason(possible: Beginning, offending: Operation) -> str:
    return (
        f"nothing explains [{describe(offending)}]; there is an order of "
        f"{len(possible.linearization)} operations until it ended, and with it the key "
        f"{possible.state}"
    )


def _judge(
    operations: Sequence[Operation], ends: int, model: Model, deadline_s: float, room: int
) -> tuple[Verdict | None, Beginning]:
    problem = model.problem(operations)
    if next(contradictions(problem), None) is not None:
        return Verdict.VIOLATION, Beginning(0, (), "")
    search = Search(problem)
    try:
        verdict = search.run(deadline_s, room)
    except OutOfRoomError:
        verdict = None
    best = search.best()
    return verdict, Beginning(ends, best.linearization, problem.show(best.state))


def _had_ended(operation: Operation, last: Moment) -> bool:
    return end_of(operation) <= last


def _without_end(operation: Operation) -> Operation:
    return replace(operation, status=INFO, result=None, completed_ns=None)
