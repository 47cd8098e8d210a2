"""The operations that the page carries for its lanes, as JSON that cannot break out of its element.

A history may hold millions of operations; a page that a browser opens at once cannot. Operations
of violations come first and nearest the violation first, then a bounded number from the start of
every other key; all within ``EMBEDDED_BYTES_MAX``. What was left out is counted, and the page
says so.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from raftkv.check.history import Operation
from raftkv.check.report.charts import FAULTS_MAX, Axis, colours_of, told
from raftkv.check.report.events import Fault
from raftkv.check.report.parts import Part, placement_ns
from raftkv.check.report.text import TEXT_CHARS_MAX, cut, shown
from raftkv.check.report.timeline import Span
from raftkv.check.verdict import Verdict

EMBEDDED_BYTES_MAX = 8_000_000
"""For all operations together; what else is in the page is bounded by counts."""

PARTS_MAX = 1_000
"""Parts that can be chosen in the page."""

NEAR_MAX = 4_000
"""Operations of a part with a violation."""

OPEN_MAX = 400
"""Of these, unknown operations from before the violation: each may have taken effect in it."""

SAMPLE_MAX = 300
"""Operations of any other part, or its even share of ``SAMPLES_MAX`` if that is more."""

SAMPLES_MAX = 20_000

_STATUS = {"ok": 0, "fail": 1, "info": 2}


@dataclass(frozen=True, slots=True)
class Embedded:
    """``json`` for the page, and how many of all operations are in it."""

    json: str
    operations: int


def embed(parts: Sequence[Part], span: Span, faults: Sequence[Fault]) -> Embedded:
    """Choose what the page carries and encode it."""
    budget = _Budget(EMBEDDED_BYTES_MAX)
    share = max(SAMPLE_MAX, SAMPLES_MAX // max(1, len(parts)))
    chosen = [_encode_part(part, span, budget, share) for part in parts[:PARTS_MAX]]
    colours, axis = colours_of(faults), Axis(span)
    bands = [
        [
            fault.start_ns - span.start_ns,
            fault.end_ns - span.start_ns,
            colours[fault.f],
            told(fault, axis),
        ]
        for fault in faults[:FAULTS_MAX]
    ]
    head = _compact({"length": span.length_ns, "timed": span.timed, "faults": bands})
    return Embedded(
        json=f'{head[:-1]},"parts":[{",".join(text for text, _ in chosen)}]}}',
        operations=sum(count for _, count in chosen),
    )


class _Budget:
    """Bytes that are left to spend."""

    def __init__(self, left_bytes: int) -> None:
        self.left_bytes = left_bytes

    def spend(self, text: str) -> bool:
        """Take what ``text`` needs, if it is there."""
        needed_bytes = len(text.encode(errors="backslashreplace")) + 1
        if needed_bytes > self.left_bytes:
            return False
        self.left_bytes -= needed_bytes
        return True


def _encode_part(part: Part, span: Span, budget: _Budget, share: int) -> tuple[str, int]:
    rows = _rows(part, span, budget, share)
    head = {
        "name": part.name,
        "verdict": part.verdict or "not judged",
        "total": len(part.operations),
        "offending": part.result.offending if part.result else None,
    }
    return f'{_compact(head)[:-1]},"operations":[{",".join(rows)}]}}', len(rows)


def _rows(part: Part, span: Span, budget: _Budget, share: int) -> list[str]:
    """Return the encoded operations by invocation, as many of the nearest as the budget allows."""
    moments = placement_ns(part)
    taken: dict[int, str] = {}
    for at in nearest(part) if part.verdict is Verdict.VIOLATION else first(part, share):
        operation = part.operations[at]
        text = _compact(_row(operation, span, part.places, moments))
        if not budget.spend(text):
            break
        taken[at] = text
    return [taken[at] for at in sorted(taken)]


def first(part: Part, share: int) -> Iterable[int]:
    """Return the positions of the first operations of a part."""
    return range(min(len(part.operations), share))


def nearest(part: Part) -> Iterable[int]:
    """Return positions in a part with a violation, the most telling first.

    These are the offending operation, then unknown ones before it, as each may take effect in it,
    then what surrounds it, outwards.
    """
    centre = part.offending_at
    if centre is None:
        return first(part, NEAR_MAX)
    still_open = [at for at in range(centre) if part.operations[at].status == "info"][-OPEN_MAX:]
    outwards = chain.from_iterable((centre - by, centre + by) for by in range(NEAR_MAX + 1))
    around = (at for at in outwards if 0 <= at < len(part.operations))
    return list(dict.fromkeys(chain([centre], reversed(still_open), around)))[:NEAR_MAX]


def _row(
    operation: Operation, span: Span, places: Mapping[int, int], moments: Mapping[int, int]
) -> list[Any]:
    """Return what the script reads by position; it names the columns in the same order."""
    moment = moments.get(operation.index)
    return [
        operation.index,
        operation.process,
        cut(operation.f),
        _STATUS[operation.status],
        operation.invoked_ns - span.start_ns,
        None if operation.completed_ns is None else operation.completed_ns - span.start_ns,
        shown(operation.value),
        shown(operation.result),
        revision(operation),
        others(operation),
        places.get(operation.index, 0),
        None if moment is None else moment - span.start_ns,
    ]


def others(operation: Operation) -> str:
    """Return the extra members of an operation that have no place of their own."""
    return cut(
        ", ".join(
            f"{name} {value if isinstance(value, str) else shown(value)}"
            for name, value in operation.fields.items()
            if name != "revision"
        ),
        2 * TEXT_CHARS_MAX,
    )


def revision(operation: Operation) -> str:
    """Return the revision that an operation was answered with, or nothing."""
    found = operation.fields.get("revision")
    return "" if found is None else shown(found)


def _compact(value: Any) -> str:
    """Return JSON in which nothing can end the element that it stands in, or begin another."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")
