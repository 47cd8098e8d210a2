"""Small histories of any kind: the checker agrees with a judge that tries everything."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import brute_force
import pytest
from brute_force import is_linearizable
from hypothesis import given, settings
from hypothesis import strategies as st
from test_check_properties import STEPS

from raftkv.check.checker import check
from raftkv.check.history import Operation
from raftkv.check.models import MODELS
from raftkv.check.verdict import Verdict

Draw = Callable[[st.SearchStrategy[Any]], Any]
Asked = tuple[str, Any, Any, dict[str, Any]]
"""Name, value, result and other members."""

revisions = st.sampled_from([None, 1, 2, 3])
values = st.sampled_from(["x", "y"])
processes = st.integers(0, 2)


def register_operation(draw: Draw) -> Asked:
    """Any question with any answer that has the right form."""
    f = draw(st.sampled_from(["read", "read", "write", "cas", "delete"]))
    told: dict[str, Any] = {"revision": draw(revisions.filter(bool))} if draw(st.booleans()) else {}
    if f == "read":
        result = draw(st.none() | values)
        return f, None, result, told if result else dict.fromkeys(told)
    if f == "write":
        return f, draw(values), None, told
    if f == "cas":
        value = {"expected_revision": draw(revisions), "value": draw(values)}
        if draw(st.integers(0, 3)) == 0:
            return f, value, None, {"observed_revision": draw(revisions)}
        return f, value, None, told
    value = draw(st.none() | st.just({"expected_revision": draw(revisions.filter(bool))}))
    deleted = draw(st.booleans())
    return f, value, None, {"deleted": deleted, **(told if deleted else {})}


def set_operation(draw: Draw) -> Asked:
    """Few elements, so that some come again."""
    if draw(st.booleans()):
        return "add", draw(st.integers(0, 2)), None, {}
    return "read", None, sorted(draw(st.sets(st.integers(0, 2)))), {}


def append_operation(draw: Draw) -> Asked:
    """Few elements, so that some come again."""
    if draw(st.booleans()):
        return "append", draw(st.integers(0, 2)), None, {}
    return "read", None, draw(st.lists(st.integers(0, 2), max_size=4)), {}


def bank_operation(draw: Draw) -> Asked:
    """Little money between two accounts, and revisions that some answers tell."""
    told: dict[str, Any] = {"revision": draw(st.integers(1, 4))} if draw(st.booleans()) else {}
    if draw(st.booleans()):
        source, target = draw(st.permutations("ab"))
        order = {"from": source, "to": target, "amount": draw(st.integers(1, 2))}
        return "transfer", order, None, told
    held = draw(st.integers(0, 3))
    return "read", None, {"a": held, "b": 3 - held}, told


def lock_operation(draw: Draw) -> Asked:
    """Whoever wants."""
    return draw(st.sampled_from(["acquire", "release"])), None, None, {}


def cas_register_operation(draw: Draw) -> Asked:
    """Few values."""
    numbers = st.integers(0, 2)
    f = draw(st.sampled_from(["read", "write", "cas"]))
    if f == "read":
        return f, None, draw(st.none() | numbers), {}
    return f, draw(numbers) if f == "write" else [draw(numbers), draw(numbers)], None, {}


def kv_operation(draw: Draw) -> Asked:
    """Short texts."""
    f = draw(st.sampled_from(["get", "put", "append"]))
    if f == "get":
        return f, None, draw(st.text("xy", max_size=3)), {}
    return f, draw(st.text("xy", min_size=1, max_size=1)), None, {}


ASK = {
    "register": register_operation,
    "set": set_operation,
    "append": append_operation,
    "bank": bank_operation,
    "lock": lock_operation,
    "cas-register": cas_register_operation,
    "kv": kv_operation,
}


@st.composite
def histories(draw: Draw, model: str, most: int = 5) -> list[Operation]:
    """Any history of a few operations, most of which are not linearizable."""
    count = draw(st.integers(1, most))
    moments = draw(st.permutations(range(1, 2 * count + 1)))
    operations = []
    if model == "bank":
        told: dict[str, Any] = {"revision": draw(st.integers(0, 2))} if draw(st.booleans()) else {}
        operations.append(_operation(0, "init", {"a": 2, "b": 1}, None, told, 0, 0))
    for begin, end in sorted(sorted(moments[2 * i : 2 * i + 2]) for i in range(count)):
        f, value, result, fields = ASK[model](draw)
        process = draw(processes) if model == "lock" else len(operations)
        unknown = draw(st.integers(0, 3)) == 0 and "observed_revision" not in fields
        operations.append(
            _operation(len(operations), f, value, result, fields, begin, None if unknown else end)
        )
        operations[-1].process = process
    return operations


def _operation(  # noqa: PLR0917 -- as in Operation
    index: int,
    f: str,
    value: Any,
    result: Any,
    fields: dict[str, Any],
    begin: int,
    end: int | None,
) -> Operation:
    status = "fail" if "observed_revision" in fields else "ok" if end is not None else "info"
    fields = {} if status == "info" else fields
    return Operation(index, index, f, "k", value, status, result, begin, end, fields)


@pytest.mark.parametrize("model", ASK)
@settings(max_examples=400, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_checker_agrees_with_trying_everything(model: str, data: st.DataObject) -> None:
    """Valid if and only if some order of some of the unknown operations explains all answers."""
    operations = data.draw(histories(model))
    expected = is_linearizable(operations, *STEPS[model])
    result = check(operations, MODELS[model])
    assert (result.verdict is Verdict.VALID) == expected
    assert result.verdict is not Verdict.UNKNOWN


@pytest.mark.parametrize("model", ASK)
@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_offending_operation_is_the_first_without_explanation(
    model: str, data: st.DataObject
) -> None:
    """What had ended before it has an explanation; together with it, there is none."""
    operations = data.draw(histories(model))
    (part,) = check(operations, MODELS[model]).parts
    if part.offending is None:
        return
    end_ns = operations[part.offending].completed_ns
    assert end_ns is not None
    assert is_linearizable(_until(operations, end_ns - 1), *STEPS[model])
    assert not is_linearizable(_until(operations, end_ns), *STEPS[model])


def _until(operations: list[Operation], moment_ns: int) -> list[Operation]:
    """The history as it was at a moment."""
    return [
        op
        if op.completed_ns is not None and op.completed_ns <= moment_ns
        else replace(op, status="info", result=None, completed_ns=None, fields={})
        for op in operations
        if op.invoked_ns <= moment_ns
    ]


def test_the_judge_that_tries_everything_can_say_no() -> None:
    """It refuses a stale read, and knows what an operation of unknown outcome may do."""
    write = _operation(0, "write", 1, None, {}, 0, 1)
    stale = _operation(1, "read", None, None, {}, 2, 3)
    assert not is_linearizable([write, stale], *STEPS["cas-register"])
    lost = _operation(0, "write", 1, None, {}, 0, None)
    fresh = _operation(1, "read", None, 1, {}, 2, 3)
    assert is_linearizable([lost, stale], *STEPS["cas-register"])
    assert is_linearizable([lost, fresh], None, brute_force.cas_register_step)
