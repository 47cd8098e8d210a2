"""A judge that is too slow to be wrong: it tries every order of every subset.

It shares nothing with the checker but ``Operation``. Each object is written as the few lines that
say what an answer must be, with the state in plain Python.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, permutations
from typing import Any

from raftkv.check.history import Operation

Step = Callable[[Any, Operation], Any]
"""The state after an operation, or ``REFUSED``."""

REFUSED = object()


def is_linearizable(operations: Sequence[Operation], initial: Any, step: Step) -> bool:
    """Whether some order of what must have happened and may have happened explains all answers."""
    must = [operation for operation in operations if must_be_explained(operation)]
    may = [op for op in operations if op.status == "info"]
    return any(
        explains(order, initial, step)
        for some in _subsets(may)
        for order in permutations([*must, *some])
    )


def must_be_explained(operation: Operation) -> bool:
    """Whether an operation has an answer that says something."""
    return operation.status == "ok" or "observed_revision" in operation.fields


def explains(order: Sequence[Operation], initial: Any, step: Step) -> bool:
    """Whether an order keeps to time and gives all its operations their answers."""
    return _keeps_time(order) and _fits(order, initial, step)


def _subsets(operations: list[Operation]) -> Iterator[tuple[Operation, ...]]:
    for size in range(len(operations) + 1):
        yield from combinations(operations, size)


def _keeps_time(order: Sequence[Operation]) -> bool:
    return not any(
        later.completed_ns is not None and later.completed_ns < earlier.invoked_ns
        for earlier, later in combinations(order, 2)
    )


def _fits(order: Sequence[Operation], state: Any, step: Step) -> bool:
    for operation in order:
        state = step(state, operation)
        if state is REFUSED:
            return False
    return True


def register_step(state: Any, operation: Operation) -> Any:
    """Apply to ``(value, revision, known)``; the value is None if there is no entry.

    An entry whose revision nobody told may have any above the last one that is known.
    """
    asked, fields = operation.value, operation.fields
    if operation.status == "fail":
        observed = fields["observed_revision"]
        return REFUSED if observed == asked["expected_revision"] else _observe(state, observed)
    told = fields.get("revision", "untold") if operation.status == "ok" else "untold"
    if operation.f == "read":
        if operation.status == "ok" and state[0] != operation.result:
            return REFUSED
        return _observe(state, told)
    if operation.f == "delete":
        found = state[0] is not None
        if not found or fields.get("deleted") is False:
            return state if not found and fields.get("deleted") is False else REFUSED
    if isinstance(asked, dict):
        state = _observe(state, asked["expected_revision"])
        asked = asked.get("value")
    return REFUSED if state is REFUSED else _replace(state, asked, told)


def _replace(state: Any, value: Any, told: Any) -> Any:
    _, low, _ = state
    if told == "untold":
        return value, low, False
    return (value, told, True) if told > low else REFUSED


def _observe(state: Any, revision: Any) -> Any:
    value, low, known = state
    if revision == "untold":
        return state
    if revision is None or value is None:
        return state if revision is None and value is None else REFUSED
    if known:
        return state if revision == low else REFUSED
    return (value, revision, True) if revision > low else REFUSED


def set_step(state: Any, operation: Operation) -> Any:
    """Apply to a frozenset."""
    if operation.f == "add":
        return state | {operation.value}
    if operation.status == "info" or sorted(state) == sorted(operation.result):
        return state
    return REFUSED


def append_step(state: Any, operation: Operation) -> Any:
    """Apply to a tuple."""
    if operation.f == "append":
        return (*state, operation.value)
    return (
        state if operation.status == "info" or state == tuple(operation.result or ()) else REFUSED
    )


def bank_step(state: Any, operation: Operation) -> Any:
    """Apply to ``(balances, revision, known)``, where the revision is that of the last change.

    One that nobody told may be any above the last that is known.
    """
    balances, low, known = state
    told = operation.fields.get("revision") if operation.status == "ok" else None
    if operation.f == "read":
        if operation.status == "ok" and balances != operation.result:
            return REFUSED
        if told is None or (known and told == low):
            return state
        return REFUSED if known or told <= low else (balances, told, True)
    if operation.f == "init":
        after = dict(operation.value)
    else:
        order = operation.value
        if balances.get(order["from"], 0) < order["amount"]:
            return REFUSED
        after = dict(balances)
        after[order["from"]] -= order["amount"]
        after[order["to"]] += order["amount"]
    return _replace((None, low, known), after, "untold" if told is None else told)


def lock_step(state: Any, operation: Operation) -> Any:
    """Apply to the holder, or None."""
    if operation.f == "acquire":
        return operation.process if state is None else REFUSED
    return None if state == operation.process else REFUSED


def cas_register_step(state: Any, operation: Operation) -> Any:
    """Apply to a value."""
    match operation.f:
        case "read":
            return state if operation.status == "info" or state == operation.result else REFUSED
        case "write":
            return operation.value
    old, new = operation.value
    return new if state == old else REFUSED


def kv_step(state: Any, operation: Operation) -> Any:
    """Apply to text."""
    match operation.f:
        case "get":
            return state if operation.status == "info" or state == operation.result else REFUSED
        case "put":
            return operation.value
    return state + operation.value
