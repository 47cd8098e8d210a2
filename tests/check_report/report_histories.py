"""Synthetic histories for the report: a versioned register under faults, judged by construction.

Every operation takes effect at a moment that is chosen inside it, so the linearization is known
without a search. A stale read is made by answering one read with a revision from long before.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from raftkv.check.history import Operation
from raftkv.check.report import FaultEvent, LeaderEvent, RunEvent, write_report
from raftkv.check.verdict import PartResult, Result, Verdict

SECOND_NS = 1_000_000_000
START_NS = 5_000 * SECOND_NS
"""A monotonic clock does not begin at zero."""

HOSTILE = "</script></style>\"'><img src=x onerror=alert(1)><!--&lt;\u2028\ud800\x00\u202e"
"""Text that would break out of markup, attributes and JSON, and cannot be encoded either."""

KINDS = ("kill", "pause", "partition", "slow disk")


@dataclass(frozen=True)
class Run:
    """A history, what was found in it, and what happened meanwhile."""

    operations: list[Operation]
    result: Result
    events: list[RunEvent]


def run(
    *,
    operations: int = 3_000,
    keys: int = 8,
    processes: int = 12,
    seconds: int = 60,
    stale_read: bool = False,
    seed: int = 1,
) -> Run:
    """Make a run; with ``stale_read`` its first key has a violation."""
    chance = random.Random(seed)
    events = list(_events(seconds, chance))
    history, moments = _operations(operations, keys, processes, seconds, chance)
    names = sorted({operation.key or "" for operation in history})
    parts = [_valid(name, history, moments) for name in names]
    if stale_read:
        parts[0] = _break(parts[0], history)
    return Run(history, Result.of("register", tuple(parts)), events)


def operation(index: int = 0, **members: object) -> Operation:
    """Return a write of one millisecond, with other members where given."""
    begin_ns = START_NS + index * 1_000_000
    made = Operation(index, 0, "write", "k", "v", "ok", None, begin_ns, begin_ns + 1_000_000, {})
    for name, value in members.items():
        setattr(made, name, value)
    return made


def judged(
    operations: list[Operation], verdict: Verdict = Verdict.VALID, offending: int | None = None
) -> Result:
    """Return one part for each key, linearized as invoked, up to the offending one."""
    keys = dict.fromkeys(operation.key for operation in operations)
    return Result.of("register", tuple(_part(key, operations, verdict, offending) for key in keys))


def hostile_run(text: str) -> Run:
    """Return a history in which everything that can be text is ``text``."""
    operations = [
        operation(
            at, f=text, key=text, value=text, result={text: [text]}, fields={text: text, "n": 1}
        )
        for at in range(3)
    ]
    operations[1].fields["revision"] = text
    result = judged(operations, Verdict.VIOLATION, 2)
    object.__setattr__(result, "model", text)
    object.__setattr__(result.parts[0], "reason", text)
    begin_ns = operations[0].invoked_ns
    return Run(
        operations,
        result,
        [
            FaultEvent(begin_ns, text, "start", 1, text, text),
            FaultEvent(begin_ns + 1, text, "stop", 1, text, text, effective=True),
            LeaderEvent(begin_ns, 0, text, 1),
        ],
    )


def _part(
    key: str | None, operations: list[Operation], verdict: Verdict, offending: int | None
) -> PartResult:
    indices = [operation.index for operation in operations if operation.key == key]
    placed = [index for index in indices if offending is None or index < offending]
    mine = offending if offending in indices else None
    return PartResult(key, verdict, len(indices), 0.01, tuple(placed), mine, "found by hand")


def _operations(
    count: int, keys: int, processes: int, seconds: int, chance: random.Random
) -> tuple[list[Operation], dict[int, int]]:
    """Return operations by invocation, and the moment at which each takes effect."""
    free_ns = [START_NS + at for at in range(processes)]
    pause_ns = seconds * SECOND_NS * processes // max(1, count)
    calls = []
    for at in range(count):
        process = min(range(processes), key=free_ns.__getitem__)
        begin_ns = free_ns[process]
        slow = 8 if (begin_ns - START_NS) // SECOND_NS % 15 > 10 else 1
        length_ns = int(chance.lognormvariate(0, 0.7) * 3_000_000 * slow)
        free_ns[process] = begin_ns + length_ns + int(chance.uniform(0, 2) * pause_ns)
        calls.append((begin_ns, process, length_ns, f"key-{at % keys}"))
    calls.sort()
    history = [
        Operation(index, process, "read", key, None, "ok", None, begin, begin + length, {})
        for index, (begin, process, length, key) in enumerate(calls)
    ]
    moments = {o.index: chance.randint(o.invoked_ns, o.completed_ns or 0) for o in history}
    _take_effect(sorted(history, key=lambda o: moments[o.index]), moments, chance)
    return history, moments


def _take_effect(ordered: list[Operation], moments: dict[int, int], chance: random.Random) -> None:
    """Answer every operation as a correct register would; some are never answered."""
    state: dict[str | None, tuple[str | None, int]] = {}
    for revision, operation in enumerate(ordered, start=100):
        operation.fields["node"] = f"n{chance.randint(1, 3)}"
        value, current = state.get(operation.key, (None, 0))
        dice = chance.random()
        if dice < 0.5:
            operation.result = value
            operation.fields["revision"] = current or None
        elif dice < 0.53:
            operation.f, operation.value, operation.status = "write", f"v{operation.index}", "fail"
            operation.fields["error"] = "overloaded"
            del moments[operation.index]
        else:
            operation.f, operation.value = "write", f"v{operation.index}"
            state[operation.key] = operation.value, revision
            operation.fields["revision"] = revision
            if dice > 0.97:
                operation.status, operation.completed_ns = "info", None
                operation.fields = {"error": "no answer within 2 s"}


def _valid(key: str, history: list[Operation], moments: dict[int, int]) -> PartResult:
    mine = [o.index for o in history if o.key == key]
    order = sorted((index for index in mine if index in moments), key=moments.__getitem__)
    return PartResult(key, Verdict.VALID, len(mine), 0.012, tuple(order), None, "")


def _break(part: PartResult, history: list[Operation]) -> PartResult:
    """Answer a read two thirds into the part with what was there at the beginning."""
    at = next(
        at
        for at in range(len(part.linearization) * 2 // 3, len(part.linearization))
        if history[part.linearization[at]].f == "read"
    )
    first = next(
        history[index]
        for index in part.linearization
        if history[index].f == "write" and history[index].status == "ok"
    )
    stale = history[part.linearization[at]]
    stale.result = first.value
    stale.fields["revision"] = first.fields["revision"]
    reason = (
        f"read of {part.key!r} by process {stale.process} returned {first.value!r} at revision "
        f"{first.fields['revision']}, which had been overwritten before the read began"
    )
    return PartResult(
        part.key,
        Verdict.VIOLATION,
        part.operations,
        part.seconds,
        part.linearization[:at],
        stale.index,
        reason,
    )


def _events(seconds: int, chance: random.Random) -> Iterator[RunEvent]:
    """Yield faults one after the other, and the leader changes that they cause."""
    term = 1
    for shard in range(4):
        yield LeaderEvent(START_NS, shard, f"n{shard % 3 + 1}", term)
    for at, second in enumerate(range(5, seconds - 5, 7)):
        kind, node = KINDS[at % len(KINDS)], f"n{chance.randint(1, 3)}"
        begin_ns = START_NS + second * SECOND_NS
        end_ns = begin_ns + int(4.3 * SECOND_NS)
        seen = (True, True, None, False)[at % 4]
        yield FaultEvent(begin_ns, kind, "start", at, node, f"{kind} of {node}")
        yield FaultEvent(end_ns, kind, "stop", at, node, "", effective=seen)
        term += 1
        yield LeaderEvent(begin_ns + SECOND_NS // 5, at % 4, None, term)
        yield LeaderEvent(begin_ns + SECOND_NS, at % 4, f"n{chance.randint(1, 3)}", term + 1)


FACTS = {"seed": "17", "command": "raftkv chaos --duration 60 --seed 17 --nodes 3 --shards 4"}


def write_demo(directory: Path) -> None:
    """Write the reports that people look at: one valid, one with a stale read."""
    for name, made in (("valid", run()), ("stale-read", run(stale_read=True))):
        path = directory / f"{name}.html"
        write_report(
            path, made.operations, made.result, events=made.events, title=name, facts=FACTS
        )
