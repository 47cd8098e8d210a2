"""A comparison as a table."""

from collections.abc import Iterator
from statistics import median

from rich.table import Table

from raftkv.bench.compare.rows import Compared
from raftkv.bench.compare.run import Comparison
from raftkv.bench.report import shown


def table_of(comparison: Comparison) -> Table:
    """One line for each measure of each row."""
    table = Table()
    table.add_column("work", no_wrap=True)
    table.add_column("", no_wrap=True)
    for name in ("raftkv", comparison.peer, "ratio", "min..max"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("must", no_wrap=True)
    table.add_column("aim", no_wrap=True)
    last = ""
    for one in comparison.compared:
        table.add_row(
            one.row if one.row != last else "",
            one.measure,
            _value(one.ours, one.measure),
            _value(one.theirs, one.measure),
            _ratio(one.ratio),
            f"{min(one.ratios):.2f}..{max(one.ratios):.2f}" if one.ratios else "-",
            *_bounds(one),
        )
        last = one.row
    return table


def remarks(comparison: Comparison) -> Iterator[str]:
    """What else has to be known to believe the table."""
    for row, pairs in comparison.readings.items():
        readings = [reading for pair in pairs for reading in pair]
        names = sorted({name for reading in readings for name in reading.cores})
        cores = ", ".join(
            f"{name} {median([r.cores[name] for r in readings if name in r.cores]):.2f}"
            for name in names
        )
        failed = sum(reading.failed for reading in readings)
        yield f"{row}: cores used (medians): {cores or '-'}; requests failed: {failed}"


def _value(value: float | None, measure: str) -> str:
    if measure == "throughput":
        return "-" if value is None else f"{value:,.0f}/s"
    return shown(value, "s")


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def _bounds(one: Compared) -> Iterator[str]:
    if one.limit is None:
        return
    for bound, met in ((one.limit.must, one.met), (one.limit.aim, one.aim_met)):
        verdict = "[green]met[/green]" if met else "[red]missed[/red]"
        yield "" if bound is None else f"{one.limit.direction} {bound:g} {verdict}"
