"""``raftkv check``: is a recorded history linearizable? docs/histories.md explains the file."""

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NoReturn, get_args

import click
from rich.table import Table
from rich.text import Text

from raftkv.check.checker import check, check_mixed
from raftkv.check.explain import describe
from raftkv.check.history import (
    HISTORY_BYTES_MAX,
    LINE_BYTES_MAX,
    Format,
    HistoryError,
    Operation,
    guess_format,
    read_history,
)
from raftkv.check.model import shown
from raftkv.check.models import MODELS
from raftkv.check.verdict import PartResult, Result, Verdict
from raftkv.cli import consoles
from raftkv.core.visible import visible

EXIT_CODES = {Verdict.VALID: 0, Verdict.VIOLATION: 1, Verdict.UNKNOWN: 2}
EXIT_UNREADABLE = 3

DEFAULT_MODELS = {"raftkv": "register", "jepsen-etcd": "cas-register", "kv": "kv"}

ROWS_MAX = 20
"""So many keys are listed, those first that are not valid."""

AROUND_MAX = 8
"""So many operations are shown before one that nothing explains."""

COMPLAINT_CHARACTERS_MAX = 500
"""What does not fit may be as long as the file."""
NOT_JUDGED = "not judged"
"""Of a key that the search did not come to: it stopped at a violation, or its time was over."""

_PIECE_BYTES = 2**20

_STYLES = {Verdict.VALID: "green", Verdict.VIOLATION: "bold red", Verdict.UNKNOWN: "yellow"}


@click.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--model",
    type=click.Choice(list(MODELS)),
    help="What the history is of.  [default: what its events say, or register; "
    "cas-register for jepsen-etcd, kv for kv]",
)
@click.option(
    "--format",
    "format_name",
    type=click.Choice(get_args(Format)),
    help="[default: what the first line looks like]",
)
@click.option(
    "--budget",
    "budget_s",
    type=click.FloatRange(0.0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds after which what is not decided is unknown.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON for scripts, with every key's verdict."
)
@click.option(
    "--html",
    "html_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write a report for a browser; with faults, if events.jsonl lies beside FILE.",
)
def check_command(
    *,
    file: Path,
    model: str | None,
    format_name: Format | None,
    budget_s: float,
    as_json: bool,
    html_path: Path | None,
) -> None:
    """Judge whether the history in FILE is linearizable; - is standard input.

    Ends with code 0 if it is, 1 if it is not, 2 if the time was too short to tell, and 3 if FILE
    is not a history.
    """
    try:
        with _regular(file) as path:
            format_name, operations = _read(path, format_name, str(file))
        result = _judge(operations, model, format_name, budget_s)
        if as_json:
            click.echo(json.dumps(_document(result)))
        else:
            _print(result, operations, timed=format_name == "raftkv")
        if html_path is not None:
            _write_html(html_path, file, operations, result)
    except HistoryError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or file}: {error.strerror or error}")
    sys.exit(EXIT_CODES[result.verdict])


def _fail(line: str) -> NoReturn:
    if len(line) > COMPLAINT_CHARACTERS_MAX:
        line = f"{line[:COMPLAINT_CHARACTERS_MAX]} ..."
    click.echo(f"raftkv: {visible(line)}", err=True)
    sys.exit(EXIT_UNREADABLE)


@contextlib.contextmanager
def _regular(file: Path) -> Iterator[Path]:
    """The file itself, or a copy of what comes out of a pipe: its format is guessed first."""
    if str(file) != "-" and (file.is_file() or not file.exists()):
        yield file
        return
    with contextlib.ExitStack() as stack:
        source = sys.stdin.buffer if str(file) == "-" else stack.enter_context(file.open("rb"))
        copy = stack.enter_context(tempfile.NamedTemporaryFile(prefix="raftkv-check-"))
        _copy(source, copy)
        yield Path(copy.name)


def _copy(source: IO[bytes], copy: IO[bytes]) -> None:
    """Copy to the end, or until it is more than anybody will read."""
    size = line_began = 0
    while size <= HISTORY_BYTES_MAX and size - line_began <= LINE_BYTES_MAX:
        piece = source.read(_PIECE_BYTES)
        if not piece:
            break
        if b"\n" in piece:
            line_began = size + piece.rindex(b"\n")
        size += len(piece)
        copy.write(piece)
    copy.flush()


def _read(path: Path, format_name: Format | None, name: str) -> tuple[Format, list[Operation]]:
    try:
        format_name = format_name or guess_format(path)
        operations = read_history(path, format_name)
    except HistoryError as error:
        raise HistoryError(str(error).replace(str(path), name, 1)) from error
    if not operations:
        raise HistoryError(f"{name}: holds no operation, so there is nothing to judge")
    return format_name, operations


def _judge(
    operations: Sequence[Operation], model: str | None, format_name: Format, budget_s: float
) -> Result:
    if model is None and format_name == "raftkv":
        return check_mixed(operations, MODELS[DEFAULT_MODELS[format_name]], budget_s=budget_s)
    chosen = MODELS[model or DEFAULT_MODELS[format_name]]
    return check(operations, chosen, budget_s=budget_s)


def _write_html(path: Path, file: Path, operations: Sequence[Operation], result: Result) -> None:
    # Only who wants a report waits for the import of it.
    from raftkv.check.report import EventsError, read_events, write_report  # noqa: PLC0415

    events = file.with_name("events.jsonl")
    try:
        found = read_events(events) if file.is_file() and events.exists() else []
    except EventsError as error:
        raise HistoryError(str(error)) from error
    facts = {"history": str(file), "judge again": f"raftkv check {file}"}
    write_report(path, operations, result, events=found, title=file.name, facts=facts)


def _print(result: Result, operations: Sequence[Operation], *, timed: bool) -> None:
    console = consoles.console()
    console.print(_table(result))
    by_index = {operation.index: operation for operation in operations}
    for part in result.parts:
        # Beside a violation it says nothing that other keys were not decided.
        if part.verdict is result.verdict is not Verdict.VALID:
            console.print(Text.assemble(("key ", "bold"), _name(part), f": {visible(part.reason)}"))
        if part.offending is not None:
            console.print(_around(part, by_index, timed=timed))
    line = Text(f"{result.verdict}: ", style=_STYLES[result.verdict])
    keys = f"{len(result.parts):,} key{'s' if len(result.parts) != 1 else ''}"
    unseen = [_verdict(part) for part in result.parts].count(NOT_JUDGED)
    left = f"; {unseen:,} {NOT_JUDGED}" if unseen else ""
    count = f"{result.operations:,} operation{'s' if result.operations != 1 else ''}"
    line.append(f"{count}, {keys}, model {result.model}{left}", "default")
    console.print(line)


def _table(result: Result) -> Table:
    table = Table()
    for name in ("key", "operations", "seconds", "verdict"):
        table.add_column(name, justify="left" if name in ("key", "verdict") else "right")
    badness = [Verdict.VIOLATION, Verdict.UNKNOWN, Verdict.VALID]
    parts = sorted(result.parts, key=lambda part: badness.index(part.verdict))
    for part in parts[:ROWS_MAX]:
        verdict = Text(_verdict(part), style=_STYLES[part.verdict])
        table.add_row(_name(part), f"{part.operations:,}", f"{part.seconds:.3f}", verdict)
    if len(parts) > ROWS_MAX:
        table.caption = f"and {len(parts) - ROWS_MAX:,} more keys"
    return table


def _verdict(part: PartResult) -> str:
    return NOT_JUDGED if part.verdict is Verdict.UNKNOWN and part.seconds == 0 else part.verdict


def _document(result: Result) -> dict[str, object]:
    """What a script wants to know."""
    return {
        "verdict": result.verdict,
        "model": result.model,
        "operations": result.operations,
        "keys": [
            {
                "key": part.key,
                "verdict": _verdict(part),
                "operations": part.operations,
                "seconds": part.seconds,
                "reason": part.reason,
                "offending": part.offending,
            }
            for part in result.parts
        ],
    }


def _name(part: PartResult) -> Text:
    return Text("(one object)" if part.key is None else shown(part.key))


def _around(part: PartResult, by_index: dict[int, Operation], *, timed: bool) -> Table:
    """Show the end of the order found, and then the operation that has no place in it."""
    table = Table(title="the last operations of that order, then the one without a place")
    unit = "ms" if timed else "line"
    for name in ("order", f"began, {unit}", f"ended, {unit}", "operation"):
        table.add_column(name, justify="left" if name == "operation" else "right")
    length = len(part.linearization)
    start_ns = min(operation.invoked_ns for operation in by_index.values())

    def cells(operation: Operation) -> tuple[str, str, Text]:
        moments = (operation.invoked_ns, operation.completed_ns)
        began, ended = (_moment(ns, start_ns, timed=timed) for ns in moments)
        return began, ended, Text(visible(describe(operation)))

    for place, index in list(enumerate(part.linearization, start=1))[-AROUND_MAX:]:
        table.add_row(f"{place} of {length}", *cells(by_index[index]))
    if part.offending is not None:
        table.add_row("none", *cells(by_index[part.offending]), style="bold red")
    return table


def _moment(time_ns: int | None, start_ns: int, *, timed: bool) -> str:
    if time_ns is None:
        return "unknown"
    # Formats without times have the line in their place.
    return f"{(time_ns - start_ns) / 1e6:,.3f}" if timed else str(time_ns)
