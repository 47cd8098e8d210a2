"""The judge: is there, for every key, an order of its operations that explains all answers?

A history is linearizable if and only if the operations of each of its objects are (Herlihy and
Wing, "Linearizability", TOPLAS 1990, theorem 1; Horn and Kroening, "Faster Linearizability Checking
via P-Compositionality", FORTE 2015), so each key is searched by itself. Some keys are far harder
than others. All get a small budget of time in turn, and those that were not done with it a larger
one, so that no hard key keeps an easy violation from being found.
"""

import contextlib
import time
from collections.abc import Iterable, Sequence

from raftkv.check.history import HistoryError, Operation
from raftkv.check.model import Model, shown
from raftkv.check.models import MODELS
from raftkv.check.search import OutOfRoomError, Partial, Search
from raftkv.check.verdict import PartResult, Result, Verdict

__all__ = ["check", "check_mixed", "describe"]

FIRST_TURN_S = 0.05
TURN_FACTOR = 4
"""How much longer each turn of a key is than the one before."""

CONFIGURATIONS_MAX = 2_000_000
"""How many configurations are remembered at a time, over all keys; about 300 bytes each."""

EXPLANATION_S_MAX = 5.0
"""How long a violation that was found is made easier to understand."""


def check(operations: Sequence[Operation], model: Model, *, budget_s: float = 60.0) -> Result:
    """Judge a history of one kind of object, within about ``budget_s``; stop at a violation.

    Raises:
        HistoryError: an operation is none of ``model``.
    """
    return _judge(model.name, _parts(operations, model), budget_s)


def check_mixed(
    operations: Sequence[Operation], default: Model, *, budget_s: float = 60.0
) -> Result:
    """Judge a history whose operations may name their model, in a member ``model``.

    Raises:
        HistoryError: an operation names no model that there is, or is none of its model.
    """
    by_model: dict[str, list[Operation]] = {}
    for operation in operations:
        by_model.setdefault(operation.fields.get("model", default.name), []).append(operation)
    parts = [part for name, found in by_model.items() for part in _parts(found, _model(name))]
    name = "mixed" if len(by_model) > 1 else next(iter(by_model), default.name)
    return _judge(name, parts, budget_s)


def _model(name: object) -> Model:
    if isinstance(name, str) and name in MODELS:
        return MODELS[name]
    raise HistoryError(f"there is no model {shown(name)}, only {', '.join(MODELS)}")


class _Part:
    """The search for one key, and what came of it."""

    def __init__(self, key: str | None, operations: Sequence[Operation], model: Model) -> None:
        self.key = key
        self._operations = len(operations)
        self._problem = model.problem(operations)
        self._search: Search | None = None
        self._spent_s = 0.0
        self.result: PartResult | None = None

    @property
    def configurations(self) -> int:
        """How many configurations its unfinished search remembers."""
        return 0 if self._search is None else self._search.configurations

    def run(self, turn_s: float, room: int) -> None:
        """Search on for ``turn_s``; there is a result if that was enough."""
        self._search = self._search or Search(self._problem)
        try:
            verdict = self._timed(self._search, turn_s, room)
        except OutOfRoomError:
            self.give_up(f"there are more than {room:,} states to remember")
            return
        if verdict is Verdict.VALID:
            self._settle(verdict, self._search.best(), "one order explains all answers")
        elif verdict is Verdict.VIOLATION:
            self._explain(self._search.best(), room)

    def give_up(self, why: str) -> None:
        """Leave the verdict open."""
        best = Partial((), None, None) if self._search is None else self._search.best()
        self._settle(Verdict.UNKNOWN, best, f"not decided: {why}")

    def _timed(self, search: Search, turn_s: float, room: int) -> Verdict | None:
        started_s = time.monotonic()
        try:
            return search.run(started_s + turn_s, room)
        finally:
            self._spent_s += time.monotonic() - started_s

    def _explain(self, best: Partial, room: int) -> None:
        """Settle a violation with the longest partial linearization that a person would find.

        Where ranks forbid, the search stops at what makes the violation inevitable, which may be
        long before somebody saw something wrong. Where they only advise, it goes on until then.
        """
        search = Search(self._problem, ranked=False)
        with contextlib.suppress(OutOfRoomError):  # it has got somewhere all the same
            self._timed(search, EXPLANATION_S_MAX, room)
        further = search.best()
        if len(further.linearization) > len(best.linearization):
            best = further
        self._settle(Verdict.VIOLATION, best, self._why_not(best))

    def _why_not(self, best: Partial) -> str:
        if best.blocked is None:
            return "no order explains all answers"
        return (
            f"{describe(best.blocked.operation)} has no place in any order; after the longest, of "
            f"{len(best.linearization)} operations, the key {self._problem.show(best.state)}"
        )

    def _settle(self, verdict: Verdict, best: Partial, reason: str) -> None:
        blocked = best.blocked if verdict is Verdict.VIOLATION else None
        self._search = None  # with all that it remembers
        self.result = PartResult(
            key=self.key,
            verdict=verdict,
            operations=self._operations,
            seconds=self._spent_s,
            linearization=best.linearization,
            offending=None if blocked is None else blocked.operation.index,
            reason=reason,
        )


def _parts(operations: Iterable[Operation], model: Model) -> list[_Part]:
    by_key: dict[str | None, list[Operation]] = {}
    for operation in operations:
        by_key.setdefault(operation.key, []).append(operation)
    return [_Part(key, found, model) for key, found in by_key.items()]


def _judge(model: str, parts: Sequence[_Part], budget_s: float) -> Result:
    deadline_s = time.monotonic() + budget_s
    why = _take_turns(parts, deadline_s) or f"{budget_s:g} s were not enough"
    for part in parts:
        if part.result is None:
            part.give_up(why)
    return Result.of(model, tuple(part.result for part in parts if part.result is not None))


def _take_turns(parts: Sequence[_Part], deadline_s: float) -> str | None:
    """Search until all is decided or time is up; say why if it stopped at a violation."""
    undecided, turn_s = list(parts), FIRST_TURN_S
    while undecided:
        remembered = sum(part.configurations for part in undecided)
        for part in undecided:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return None
            others = remembered - part.configurations
            part.run(min(turn_s, left_s), CONFIGURATIONS_MAX - others)
            remembered = others + part.configurations
            if part.result is not None and part.result.verdict is Verdict.VIOLATION:
                return f"the search stopped at the violation of key {shown(part.key)}"
        undecided = [part for part in undecided if part.result is None]
        turn_s *= TURN_FACTOR
    return None


def describe(operation: Operation) -> str:
    """Say on one line what somebody asked and was told."""
    asked = (
        f"{operation.f} {shown(operation.value)}" if operation.value is not None else operation.f
    )
    told = {
        name: operation.fields[name]
        for name in ("revision", "observed_revision", "deleted")
        if name in operation.fields
    }
    answer = "" if operation.result == operation.value else f" {shown(operation.result)}"
    extra = "".join(f", {name} {shown(value)}" for name, value in told.items())
    return f"process {operation.process}: {asked} -> {operation.status}{answer}{extra}"
