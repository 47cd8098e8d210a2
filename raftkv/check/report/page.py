"""The report: one HTML file that says whether a history was linearizable, and shows why not.

The file needs nothing beside it. Its policy allows exactly the one script and the one style sheet
that it was written with, by their hashes: text that came out of a history could not run even if it
got past the escaping.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from types import MappingProxyType

from raftkv.check.history import Operation
from raftkv.check.report import charts, tables
from raftkv.check.report.embedded import Embedded, embed
from raftkv.check.report.events import Fault, LeaderEvent, RunEvent, faults_of, leaders_of
from raftkv.check.report.parts import Part, offences, parts_of
from raftkv.check.report.text import counted, cut
from raftkv.check.report.timeline import Span, slices, span_of
from raftkv.check.verdict import Result
from raftkv.version import __version__

SCRIPTS = ("lanes.js", "page.js")
"""In the order in which they build on each other."""


def write_report(
    path: Path,
    operations: Sequence[Operation],
    result: Result,
    *,
    events: Sequence[RunEvent] = (),
    title: str = "raftkv",
    facts: Mapping[str, str] = MappingProxyType({}),
    findings: Sequence[str] = (),
) -> None:
    """Write the report of a judged history to ``path``.

    Args:
        path: The file to write; its directory exists.
        operations: All operations of the history.
        result: What the judge found in them.
        events: Faults and leader changes of the run, on the clock of the history.
        title: What the history is of.
        facts: What the reader should know of the run, such as its seed and the command to run it
            again; shown in this order.
        findings: What else was wrong, a line each, such as replicas that differ: any of them makes
            the run a violation, whatever the history says.

    Raises:
        OSError: The file cannot be written.
    """
    page = _page(operations, result, events=events, title=title, facts=facts, findings=findings)
    # A lone surrogate is legal in JSON and in Python, but not in UTF-8.
    path.write_text(page, encoding="utf-8", errors="backslashreplace")


def _page(
    operations: Sequence[Operation],
    result: Result,
    *,
    events: Sequence[RunEvent],
    title: str,
    facts: Mapping[str, str],
    findings: Sequence[str],
) -> str:
    span = span_of(operations, events)
    faults = faults_of(events, start_ns=span.start_ns, end_ns=span.end_ns)
    leaders = leaders_of(events)
    parts = parts_of(operations, result)
    embedded = embed(parts, span, faults)
    body = [
        f"<header><h1>{escape(cut(title))}</h1></header><main>",
        tables.verdict(result, operations, parts, findings),
        tables.facts(facts),
        tables.violations(parts, span),
        _timeline(operations, parts, span, faults, leaders),
        _lanes(parts, embedded, len(operations)),
        _section("faults", "Faults", tables.fault_table(faults)) if faults else "",
        _section("leaders", "Leaders", tables.leader_table(leaders, span)) if leaders else "",
        _section("keys", "Keys", tables.part_table(parts)),
        f"</main><footer><p>Written by raftkv {escape(__version__)}.</p></footer>",
    ]
    return _document(title, "".join(body), embedded.json)


def _document(title: str, body: str, data: str) -> str:
    style = _asset("report.css")
    script = "\n".join(_asset(name) for name in SCRIPTS)
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(cut(title))}</title><style>{style}</style></head>\n<body>{body}\n"
        f'<script type="application/json" id="data">{data}</script>\n'
        f"<script>{script}</script></body></html>\n"
    )


def _timeline(
    operations: Sequence[Operation],
    parts: Sequence[Part],
    span: Span,
    faults: Sequence[Fault],
    leaders: Mapping[int, Sequence[LeaderEvent]],
) -> str:
    if not span.timed:
        note = "The history has no times, only an order: places in it stand for moments below."
        return _section("timeline", "Timeline", f"<p>{note}</p>")
    picture = charts.draw(slices(operations, span), span, faults, leaders, offences(parts))
    legend = [("ok", "ok"), ("fail", "failed"), ("info", "unknown"), ("p50", "p50"), ("p99", "p99")]
    legend += [("leader", "leader change")] if leaders else []
    legend += [("seen", "fault seen to take effect")] if faults else []
    legend += [("unseen", "not seen"), ("untold", "not known")] if faults else []
    items = "".join(f'<li class="{name}">{told}</li>' for name, told in legend)
    hint = '<p class="quiet">Point at a mark for its numbers.'
    hint += '<span class="scripted" hidden> Click to see the operations of that moment.</span></p>'
    content = f'<ul class="legend">{items}</ul><div class="wide">{picture}</div>{hint}'
    return _section("timeline", "Timeline", content)


def _lanes(parts: Sequence[Part], embedded: Embedded, total: int) -> str:
    left_out = ""
    if embedded.operations < total:
        left_out = (
            f'<p id="left-out">This page carries {embedded.operations:,} of '
            f"{counted(total, 'operation')}: those nearest to violations, and the first of other "
            "keys. The history has all of them.</p>"
        )
    return (
        f'<section id="lanes-section"><h2>Operations</h2>{left_out}'
        "<noscript><p>The lanes of operations need JavaScript; the tables do not.</p></noscript>"
        f"{_asset('lanes.html') if parts else '<p>There are none.</p>'}</section>"
    )


def _section(anchor: str, heading: str, content: str) -> str:
    return f'<section id="{anchor}"><h2>{heading}</h2>{content}</section>'


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest())
    return f"'sha256-{digest.decode()}'"
