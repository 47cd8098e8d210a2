"""The judge: is there, for every key, an order of its operations that explains all answers?

A history is linearizable if and only if the operations of each of its objects are (Herlihy and
Wing, "Linearizability", TOPLAS 1990, theorem 1; Horn and Kroening, "Faster Linearizability Checking
via P-Compositionality", FORTE 2015), so each key is searched by itself. Some keys are far harder
than others. All get a small budget of time in turn, and those that were not done with it a larger
one, so that no hard key keeps an easy violation from being found.
"""

import contextlib
import gc
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from raftkv.check.contradiction import contradictions
from raftkv.check.explain import Beginning, Timeline, explain
from raftkv.check.history import HistoryError, Operation
from raftkv.check.model import Model, shown
from raftkv.check.models import MODELS
from raftkv.check.search import OutOfRoomError, Partial, Search
from raftkv.check.verdict import PartResult, Result, Verdict

__all__ = ["check", "check_mixed"]

FIRST_TURN_S = 0.05
TURN_FACTOR = 4
"""How much longer each turn of a key is than the one before."""

CONFIGURATIONS_MAX = 2_000_000
"""How many configurations are remembered at a time, over all keys; about 300 bytes each."""


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
    return _judge(", ".join(by_model) or default.name, parts, budget_s)


def _model(name: object) -> Model:
    if isinstance(name, str) and name in MODELS:
        return MODELS[name]
    raise HistoryError(f"there is no model {shown(name)}, only {', '.join(MODELS)}")


class _Part:
    """The search for one key, and what came of it."""

    def __init__(self, key: str | None, operations: Sequence[Operation], model: Model) -> None:
        self.key = key
        self._operations = operations
        self._model = model
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
        started_s = time.monotonic()
        try:
            self._run(started_s + turn_s, room)
        except OutOfRoomError:
            self.give_up(f"there are more than {room:,} states to remember")
        self._spent_s += time.monotonic() - started_s
        if self.result is not None:
            self.result = replace(self.result, seconds=self._spent_s)

    def give_up(self, why: str) -> None:
        """Leave the verdict open."""
        best = Partial((), None, None) if self._search is None else self._search.best()
        self._settle(Verdict.UNKNOWN, best.linearization, f"not decided: {why}")

    def _run(self, deadline_s: float, room: int) -> None:
        if self._search is None:
            impossible = next(contradictions(self._problem), None)
            if impossible is not None:
                self._settle_violation(impossible, Partial((), None, None), room)
                return
            self._search = Search(self._problem)
        verdict = self._search.run(deadline_s, room)
        best = self._search.best()
        if verdict is Verdict.VALID:
            self._settle(verdict, best.linearization, "one order explains all answers")
        elif verdict is Verdict.VIOLATION and best.blocked is not None:
            self._settle_violation(best.blocked.operation, best, room)

    def _settle_violation(self, guess: Operation, best: Partial, room: int) -> None:
        self._search = None  # its memory is needed
        timeline = Timeline(self._operations)
        known = Beginning(0, (), self._problem.show(self._problem.initial))
        if best.blocked is not None:
            ends = timeline.ends_before(guess)
            known = Beginning(ends, best.linearization, self._problem.show(best.state))
        found = explain(timeline, self._model, guess, known, room)
        self._settle(Verdict.VIOLATION, found.linearization, found.reason, found.offending)

    def _settle(
        self, verdict: Verdict, order: tuple[int, ...], reason: str, offending: int | None = None
    ) -> None:
        self._search = None  # with all that it remembers
        self.result = PartResult(
            key=self.key,
            verdict=verdict,
            operations=len(self._operations),
            seconds=self._spent_s,
            linearization=order,
            offending=offending,
            reason=reason,
        )


def _parts(operations: Iterable[Operation], model: Model) -> list[_Part]:
    by_key: dict[str | None, list[Operation]] = {}
    for operation in operations:
        by_key.setdefault(operation.key, []).append(operation)
    return [_Part(key, found, model) for key, found in by_key.items()]


def _judge(model: str, parts: Sequence[_Part], budget_s: float) -> Result:
    deadline_s = time.monotonic() + budget_s
    with _collector_paused():
        why = _take_turns(parts, deadline_s) or f"{budget_s:g} s were not enough"
    for part in parts:
        if part.result is None:
            part.give_up(why)
    return Result.of(model, tuple(part.result for part in parts if part.result is not None))


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause the search for cyclic garbage.

    A search makes millions of objects and no such garbage, except its list, once, at its end. The
    collector would walk through all of them again and again, for two thirds of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


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
