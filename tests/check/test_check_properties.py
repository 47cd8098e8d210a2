"""Random linearizable histories are valid, and broken ones are violations, for every model."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.check.checker import check
from raftkv.check.history import Operation
from raftkv.check.models import MODELS
from raftkv.check.verdict import PartResult, Verdict
from tests.check import brute_force
from tests.check.brute_force import Step
from tests.check.sequential import OBJECTS, linearizable_history

STEPS: dict[str, tuple[Any, Step]] = {
    "register": ((None, -1, False), brute_force.register_step),
    "set": (frozenset(), brute_force.set_step),
    "append": ((), brute_force.append_step),
    "bank": (({}, -1, False), brute_force.bank_step),
    "lock": (None, brute_force.lock_step),
    "cas-register": (None, brute_force.cas_register_step),
    "kv": ("", brute_force.kv_step),
}

randoms = st.integers(0, 2**32).map(Random)


def model_of(kind: str) -> str:
    """The model of a kind of object."""
    return kind.partition(" ")[0]


def judged(kind: str, operations: list[Operation]) -> PartResult:
    """Judge a history of one key."""
    (part,) = check(operations, MODELS[model_of(kind)], budget_s=20).parts
    return part


def assert_explained(kind: str, operations: list[Operation], order: tuple[int, ...]) -> None:
    """The order itself is right: whoever doubts the search can follow it step by step."""
    by_index = {operation.index: operation for operation in operations}
    assert len(set(order)) == len(order)
    assert brute_force.explains([by_index[index] for index in order], *STEPS[model_of(kind)])


def ended_after(operations: list[Operation], **members: Any) -> Operation:
    """An operation that begins when all others have ended."""
    now_ns = max(max(op.invoked_ns, op.completed_ns or 0) for op in operations) + 1
    last = {
        "index": len(operations),
        "process": 1000,
        "key": "k",
        "value": None,
        "status": "ok",
        "result": None,
        "invoked_ns": now_ns,
        "completed_ns": now_ns + 1,
        "fields": {},
    }
    return Operation(**{**last, **members})


@pytest.mark.parametrize("kind", OBJECTS)
@settings(deadline=None, derandomize=True)
@given(random=randoms)
def test_a_linearizable_history_is_valid(kind: str, random: Random) -> None:
    """Whatever overlaps and whatever gets lost: an order is found, it has every answer and fits."""
    operations = linearizable_history(kind, random, operations=40)
    part = judged(kind, operations)
    assert part.verdict is Verdict.VALID, part.reason
    assert_explained(kind, operations, part.linearization)
    silent = {op.index for op in operations if op.status != "ok"}
    assert set(range(len(operations))) - silent <= set(part.linearization)


def broken_end(kind: str, operations: list[Operation], random: Random) -> list[Operation]:
    """Add a last operation that nothing explains."""
    f = "get" if kind == "kv" else "read"
    ok = [op for op in operations if op.status == "ok"]
    match model_of(kind):
        case "register":
            return [*operations, _wrong_read(kind, operations, ok, random)]
        case "set":
            acknowledged = {op.value for op in ok if op.f == "add"}
            lost = random.choice(sorted(acknowledged))
            known = {op.value for op in operations if op.f == "add"}
            result: Any = [element for element in known if element != lost]
        case "append":
            result = _wrong_list(operations, ok, random)
        case "bank":
            result = {**dict.fromkeys("abcd", 10), random.choice("abcd"): 11}
        case "lock":
            # Once nobody can give it back, a second one gets it.
            return _taken_twice(operations)
        case "cas-register":
            result = 99
        case _:
            result = "w"
    return [*operations, ended_after(operations, f=f, result=result)]


def _wrong_read(
    kind: str, operations: list[Operation], ok: list[Operation], random: Random
) -> Operation:
    """Read what was replaced long ago, or what nobody wrote."""
    told = [op for op in ok if op.f == "write" and "revision" in op.fields]
    newest = max((op.fields["revision"] for op in told), default=0)
    old = [op for op in told if op.fields["revision"] < newest]
    if kind == "register" and old and random.random() < 0.8:
        stale = random.choice(old)
        fields = {"revision": stale.fields["revision"]}
        return ended_after(operations, f="read", result=stale.value, fields=fields)
    return ended_after(operations, f="read", result="nobody wrote this")


def _wrong_list(operations: list[Operation], ok: list[Operation], random: Random) -> list[Any]:
    """Return what was last read, and more of it than was ever appended."""
    reads = [op.result for op in ok if op.f == "read" and op.result]
    longest: list[Any] = max(reads, key=len, default=[])
    tries = [op.value for op in operations if op.f == "append"]
    again = random.choice(tries)
    return [*longest, *[again] * (tries.count(again) - longest.count(again) + 1)]


def _taken_twice(operations: list[Operation]) -> list[Operation]:
    first = ended_after(operations, f="acquire", process=1000)
    second = ended_after([*operations, first], f="acquire", process=1001)
    # Whoever else might hold it gives it back before.
    return [first, replace(second, index=1)]


@pytest.mark.parametrize("kind", OBJECTS)
@settings(deadline=None, derandomize=True)
@given(random=randoms)
def test_a_broken_history_is_a_violation(kind: str, random: Random) -> None:
    """A stale read, a lost element, a second application: it is found, and so is its place."""
    operations = linearizable_history(kind, random, operations=30)
    if not any(op.f in ("add", "append") and op.status == "ok" for op in operations) and (
        model_of(kind) in ("set", "append")
    ):
        operations.append(
            ended_after(operations, f="add" if kind == "set" else "append", value=1, result=1)
        )
    broken = broken_end(kind, operations, random)
    part = judged(kind, broken)
    assert part.verdict is Verdict.VIOLATION
    assert part.offending == broken[-1].index
    assert_explained(kind, broken, part.linearization)
    assert part.offending not in part.linearization


@settings(deadline=None, derandomize=True)
@given(random=randoms)
def test_swapped_revisions_are_a_violation(random: Random) -> None:
    """Of two writes of which one ended before the other began, the later has the higher one."""
    operations = linearizable_history("register", random, operations=30, unknown=0)
    writes = [op for op in operations if op.f == "write"]
    apart = [
        (first, second)
        for first in writes
        for second in writes
        if (first.completed_ns or 0) < second.invoked_ns
    ]
    for first, second in apart[:1]:
        fields = (first.fields, second.fields)
        second.fields, first.fields = fields
        assert judged("register", operations).verdict is Verdict.VIOLATION


@settings(deadline=None, derandomize=True)
@given(random=randoms)
def test_two_successes_of_one_condition_are_a_violation(random: Random) -> None:
    """A compare-and-set that succeeded has replaced the revision that another one expects."""
    operations = linearizable_history("register", random, operations=30)
    for winner in operations:
        if winner.f == "cas" and winner.status == "ok" and winner.value["expected_revision"]:
            revision = 10**9
            operations.append(
                ended_after(operations, f="cas", value=winner.value, fields={"revision": revision})
            )
            assert judged("register", operations).verdict is Verdict.VIOLATION
            return


@settings(deadline=None, derandomize=True)
@given(random=randoms)
def test_a_lost_acknowledged_write_is_a_violation(random: Random) -> None:
    """If nothing overlaps, the last write is what the last read must see."""
    operations = linearizable_history("cas-register", random, operations=20, unknown=0)
    operations.append(ended_after(operations, f="write", value=7, result=7))
    operations.append(ended_after(operations, f="read", result=3))
    assert judged("cas-register", operations).offending == operations[-1].index


@settings(deadline=None, derandomize=True)
@given(random=randoms)
def test_a_lost_transfer_is_a_violation(random: Random) -> None:
    """Balances as they were before an acknowledged transfer are wrong, though the sum is right."""
    operations = linearizable_history("bank", random, operations=20, unknown=0)
    balances = {"a": 10, "b": 0, "c": 0, "d": 30}
    for members in (
        {"f": "init", "value": balances},
        {"f": "transfer", "value": {"from": "a", "to": "b", "amount": 3}},
        {"f": "read", "result": balances},
    ):
        operations.append(ended_after(operations, **members))
    assert judged("bank", operations).offending == operations[-1].index
