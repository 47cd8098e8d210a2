"""The parts of the page that are text: verdict, facts, violations, and the tables.

All of it can be read without JavaScript. Every function returns markup in which everything that
came from outside is escaped; :func:`table` escapes its cells itself.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from raftkv.check.history import Operation
from raftkv.check.report.embedded import others, revision
from raftkv.check.report.events import Fault, LeaderEvent
from raftkv.check.report.parts import Part
from raftkv.check.report.text import counted, cut, duration, seconds, shown
from raftkv.check.report.timeline import Span
from raftkv.check.verdict import PartResult, Result, Verdict

VIOLATIONS_MAX = 10
"""Violations that are told in full; of the others the table of keys has the reason."""

AROUND = 12
"""Operations before and after the offending one, by invocation, and of the linearization's end."""

PARTS_MAX = 300
SHARDS_MAX = 200
REASON_CHARS_MAX = 1_000
CELL_CHARS_MAX = 80
"""Of a value in a table of operations; the lanes tell more."""

SIGNS = {"valid": "✓", "violation": "✗", "unknown": "?", "not judged": "-"}
OUTCOMES = {"ok": "✓ ok", "fail": "✗ failed", "info": "? unknown"}


@dataclass(frozen=True, slots=True)
class Row:
    """Cells of a table as plain text; ``name`` is its class, ``anchor`` its id."""

    cells: Sequence[str]
    name: str = ""
    anchor: str = ""


def table(heads: Sequence[str], rows: Iterable[Row], *, name: str) -> str:
    """Return a table that scrolls by itself where it is too wide."""
    head = "".join(f"<th scope=col>{escape(text)}</th>" for text in heads)
    body = "".join(
        f"<tr{_attribute('class', row.name)}{_attribute('id', row.anchor)}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row.cells)
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table class="{escape(name)}"><thead><tr>{head}</tr>'
        f"</thead><tbody>{body}</tbody></table></div>"
    )


def verdict(
    result: Result,
    operations: Sequence[Operation],
    parts: Sequence[Part],
    findings: Sequence[str],
) -> str:
    """Return the verdict as a sign, a word and sentences, and what was judged."""
    counts = Counter(operation.status for operation in operations)
    unmet = sum(
        operation.status == "fail" and "reason" in operation.fields for operation in operations
    )
    explained = f"{unmet:,} whose condition was not met, " if unmet else ""
    overall = Verdict.VIOLATION if findings else result.verdict
    told = [*findings, _sentence(result, parts)]
    return (
        f'<section id="verdict" class="verdict {overall}" role="status">'
        f'<p class="word"><span aria-hidden="true">{SIGNS[overall]}</span> '
        f"{overall.value.capitalize()}</p>"
        f"{''.join(f'<p>{escape(cut(line, REASON_CHARS_MAX))}</p>' for line in told)}"
        f"<p>Checked against the model <b>{escape(cut(result.model))}</b>: "
        f"{counted(len(operations), 'operation')}, {counts['ok']:,} ok, "
        f"{explained}{counts['fail'] - unmet:,} failed, "
        f"{counts['info']:,} of unknown outcome.</p></section>"
    )


def _sentence(result: Result, parts: Sequence[Part]) -> str:
    some = sum(part.verdict is result.verdict for part in parts)
    if [part.key for part in result.parts] == [None]:
        subject = "The history is"
    else:
        subject = f"{some:,} of {counted(len(parts), 'key')} {'is' if some == 1 else 'are'}"
    return {
        Verdict.VALID: f"{subject} linearizable.",
        Verdict.VIOLATION: (
            f"{subject} not linearizable: no order of the operations explains what the clients saw."
        ),
        Verdict.UNKNOWN: (
            f"{subject} not decided within the time given. "
            "That is not a pass: judge again with a larger budget."
        ),
    }[result.verdict]


def facts(told: Mapping[str, str]) -> str:
    """Return what else is known of the run, such as its seed and the command to run it again."""
    if not told:
        return ""
    items = "".join(
        f"<dt>{escape(name)}</dt><dd><code>{escape(value)}</code></dd>"
        for name, value in told.items()
    )
    return f'<section id="facts"><h2>This run</h2><dl>{items}</dl></section>'


def violations(parts: Sequence[Part], span: Span) -> str:
    """Return each violation in words, with the operations around the first that does not fit."""
    found = [
        (part, part.result)
        for part in parts
        if part.result and part.result.verdict is Verdict.VIOLATION
    ]
    told = "".join(
        _violation(at, part, result, span)
        for at, (part, result) in enumerate(found[:VIOLATIONS_MAX])
    )
    if len(found) > VIOLATIONS_MAX:
        told += f"<p>{len(found) - VIOLATIONS_MAX:,} more are in the table of keys.</p>"
    return told


def _violation(at: int, part: Part, result: PartResult, span: Span) -> str:
    placed, total = len(result.linearization), len(part.operations)
    jump = ""
    if result.offending is not None:
        jump = (
            f'<p><a class="jump" href="#offending-{at}" data-part="{at}">'
            f"Jump to the first offending operation, #{result.offending}</a></p>"
        )
    return (
        f'<section class="violation" id="violation-{at}">'
        f"<h2>Violation: <code>{escape(part.name)}</code></h2>"
        f"<p>{escape(cut(result.reason, REASON_CHARS_MAX))}</p>"
        f"<p>The longest order found places {placed:,} of {counted(total, 'operation')}; "
        "the one marked ✗ fits nowhere after them.</p>"
        f"{jump}{_surroundings(at, part, span)}</section>"
    )


def _surroundings(at: int, part: Part, span: Span) -> str:
    rows = [
        _operation_row(part, operation, span, anchor=f"offending-{at}")
        for operation in surrounding(part)
    ]
    unit = "(s)" if span.timed else "(place)"
    heads = ["#", "place", "process", "operation", "value", "outcome", "result"]
    heads += ["revision", "other members", f"from {unit}", f"to {unit}"]
    used = [at for at in range(len(heads)) if any(row.cells[at] for row in rows)]
    kept = [Row([row.cells[at] for at in used], row.name, row.anchor) for row in rows]
    return table([heads[at] for at in used], kept, name="operations")


def surrounding(part: Part) -> list[Operation]:
    """Return the operations near the offending one, and the last that were placed."""
    centre = part.offending_at
    if centre is None:
        centre = len(part.operations)
    near = part.operations[max(0, centre - AROUND) : centre + AROUND + 1]
    last = set(list(part.places)[-AROUND:])
    wanted = {operation.index for operation in near} | last
    return [operation for operation in part.operations if operation.index in wanted]


def _operation_row(part: Part, operation: Operation, span: Span, *, anchor: str) -> Row:
    offending = part.result is not None and operation.index == part.result.offending
    place = part.places.get(operation.index)
    end_ns = operation.completed_ns
    return Row(
        [
            str(operation.index),
            "✗" if offending else str(place or ""),
            str(operation.process),
            cut(operation.f),
            shown(operation.value, CELL_CHARS_MAX),
            OUTCOMES[operation.status],
            shown(operation.result, CELL_CHARS_MAX),
            revision(operation),
            others(operation),
            _moment(operation.invoked_ns, span),
            "" if end_ns is None else _moment(end_ns, span),
        ],
        name="offending" if offending else operation.status,
        anchor=anchor if offending else "",
    )


def _moment(time_ns: int, span: Span) -> str:
    after_ns = time_ns - span.start_ns
    return seconds(after_ns) if span.timed else str(after_ns)


def fault_table(faults: Sequence[Fault]) -> str:
    """Return how often each kind of fault was made and seen, and for how long."""
    rows = []
    for kind in dict.fromkeys(fault.f for fault in faults):
        some = [fault for fault in faults if fault.f == kind]
        seen = Counter(fault.effective for fault in some)
        total_ns = sum(fault.end_ns - fault.start_ns for fault in some)
        cells = (len(some), seen[True], seen[False], seen[None])
        rows.append(Row([cut(kind), *map(_number, cells), f"{total_ns / 1e9:,.1f}"]))
    heads = ["fault", "started", "seen to take effect", "not seen", "not known", "seconds in all"]
    return table(heads, rows, name="numbers")


def leader_table(leaders: Mapping[int, Sequence[LeaderEvent]], span: Span) -> str:
    """Return each shard's leader changes; the first observation is where it began."""
    rows = []
    for shard, changes in list(leaders.items())[:SHARDS_MAX]:
        nodes = [change.node for change in changes]
        without_ns = sum(_leaderless(changes, span))
        last = "none" if nodes[-1] is None else cut(nodes[-1])
        cells = (shard, len(changes) - 1, changes[0].term, changes[-1].term)
        rows.append(Row([*map(_number, cells), last, duration(without_ns)]))
    heads = ["shard", "changes", "first term", "last term", "last leader", "seen without a leader"]
    note = ""
    if len(leaders) > SHARDS_MAX:
        note = f"<p>{len(leaders) - SHARDS_MAX:,} more shards are left out.</p>"
    return table(heads, rows, name="numbers") + note


def _leaderless(changes: Sequence[LeaderEvent], span: Span) -> Iterable[int]:
    """Yield how long each time without a leader lasted, in nanoseconds."""
    ends = [change.time_ns for change in changes[1:]] + [span.end_ns]
    for change, end_ns in zip(changes, ends, strict=True):
        if change.node is None:
            yield max(0, end_ns - change.time_ns)


def part_table(parts: Sequence[Part]) -> str:
    """Return what was found of each part, worst first."""
    rows = [
        Row([part.name, *_finding(part)], name=part.verdict or "") for part in parts[:PARTS_MAX]
    ]
    heads = ["key", "verdict", "operations", "unknown", "placed", "seconds", "finding"]
    note = ""
    if len(parts) > PARTS_MAX:
        note = f"<p>{len(parts) - PARTS_MAX:,} more keys are left out.</p>"
    return table(heads, rows, name="parts") + note


def _finding(part: Part) -> list[str]:
    word = part.verdict.value if part.verdict else "not judged"
    unknown = sum(operation.status == "info" for operation in part.operations)
    counts = (len(part.operations), unknown, len(part.places))
    judged = [f"{part.result.seconds:.3f}", cut(part.result.reason)] if part.result else ["", ""]
    return [f"{SIGNS[word]} {word}", *map(_number, counts), *judged]


def _number(value: int) -> str:
    return f"{value:,}"


def _attribute(name: str, value: str) -> str:
    return f' {name}="{escape(value)}"' if value else ""
