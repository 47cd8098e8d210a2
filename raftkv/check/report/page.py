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
from raftkv.check.report.events import RunEvent, faults_of, leaders_of
from raftkv.check.report.parts import Part, offences, parts_of
from raftkv.check.report.text import counted, cut
from raftkv.check.report.timeline import slices, span_of
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

    Raises:
        OSError: The file cannot be written.
    """
    page = _page(operations, result, events, title, facts)
    # A lone surrogate is legal in JSON and in Python, but not in UTF-8.
    path.write_text(page, encoding="utf-8", errors="backslashreplace")


def _page(
    operations: Sequence[Operation],
    result: Result,
    events: Sequence[RunEvent],
    title: str,
    facts: Mapping[str, str],
) -> str:
    span = span_of(operations, events)
    faults = faults_of(events, start_ns=span.start_ns, end_ns=span.end_ns)
    leaders = leaders_of(events)
    parts = parts_of(operations, result)
    embedded = embed(parts, span, faults)
    body = [
        f"<header><h1>{escape(cut(title))}</h1></header><main>",
        tables.verdict(result, operations, parts),
        tables.facts(facts),
        tables.violations(parts, span),
        _timeline(charts.draw(slices(operations, span), span, faults, leaders, offences(parts))),
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


def _timeline(picture: str) -> str:
    legend = (
        '<ul class="legend"><li class="ok">ok</li><li class="fail">failed</li>'
        '<li class="info">unknown</li><li class="p50">p50</li><li class="p99">p99</li>'
        '<li class="leader">leader change</li>'
        '<li class="seen">fault seen to take effect</li><li class="unseen">not seen</li>'
        '<li class="untold">not known</li></ul>'
    )
    hint = '<p class="quiet">Point at a mark for its numbers.'
    hint += '<span class="scripted" hidden> Click to see the operations of that moment.</span></p>'
    return _section("timeline", "Timeline", f'{legend}<div class="wide">{picture}</div>{hint}')


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
