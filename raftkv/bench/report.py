"""What a measurement found: figures beside their targets, for people and as JSON."""

import datetime as dt
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
from rich.console import Console
from rich.table import Table

from raftkv.version import __version__

Unit = Literal["s", "us", "%", "bytes", "MiB", ""]

_SHORT_S = 10.0
"""Below this, seconds are shown as milliseconds."""


class Figure(msgspec.Struct, frozen=True):
    """One number that was measured; ``at_most`` is its target, if it has one."""

    name: str
    value: float | None
    unit: Unit = ""
    at_most: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target was met; None if there is none. Nothing measured meets nothing."""
        if self.at_most is None:
            return None
        return self.value is not None and self.value <= self.at_most


class Machine(msgspec.Struct, frozen=True):
    """What it was measured on: figures of another machine, or of a busy one, compare badly."""

    cores: int
    system: str
    python: str
    load_average: float
    """Of the last minute, before the measurement began."""


class Report(msgspec.Struct, frozen=True):
    """One run of one measuring command. ``details`` is everything that the figures come from."""

    benchmark: str
    command: str
    began: str
    raftkv: str
    machine: Machine
    figures: list[Figure]
    notes: list[str]
    details: Mapping[str, Any]


class Occasion(msgspec.Struct, frozen=True):
    """When and where a measurement began; noted first, because measuring is a load itself."""

    began: str
    machine: Machine

    @classmethod
    def now(cls) -> "Occasion":
        """Note it."""
        return cls(
            dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            Machine(
                cores=len(os.sched_getaffinity(0)),
                system=f"{platform.system()} {platform.release()}",
                python=platform.python_version(),
                load_average=round(os.getloadavg()[0], 2),
            ),
        )

    def report(
        self,
        benchmark: str,
        command: str,
        figures: list[Figure],
        *,
        notes: list[str] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> Report:
        """Make the report."""
        return Report(
            benchmark=benchmark,
            command=command,
            began=self.began,
            raftkv=__version__,
            machine=self.machine,
            figures=figures,
            notes=notes or [],
            details=details or {},
        )


def shown(value: float | None, unit: Unit) -> str:
    """A number as a person reads it."""
    if value is None:
        return "-"
    if unit == "s":
        return f"{value:.1f} s" if value >= _SHORT_S else f"{value * 1000:,.1f} ms"
    if unit == "%":
        return f"{value:.2f} %"
    if unit in {"us", "bytes", "MiB"}:
        return f"{value:,.0f} {unit}"
    return f"{value:,.6g}"


def table_of(report: Report) -> Table:
    """The figures as a table."""
    table = Table()
    table.add_column("measured")
    table.add_column("value", justify="right")
    table.add_column("target", justify="right")
    table.add_column("")
    verdicts = {None: "", True: "[green]met[/green]", False: "[red]missed[/red]"}
    for figure in report.figures:
        target = "" if figure.at_most is None else f"<= {shown(figure.at_most, figure.unit)}"
        table.add_row(figure.name, shown(figure.value, figure.unit), target, verdicts[figure.met])
    return table


def publish(
    report: Report, json_path: Path | None, console: Console, table: Table | None = None
) -> None:
    """Print the table and the notes, and write everything into a file if asked.

    ``table`` is one that shows the figures better than a line for each does.
    """
    machine = report.machine
    console.print(report.benchmark, style="bold", highlight=False)
    console.print(
        f"{report.began}, {machine.cores} cores, Python {machine.python}, "
        f"load average before {machine.load_average:.1f}",
        highlight=False,
    )
    console.print(table_of(report) if table is None else table)
    for note in report.notes:
        console.print(note, highlight=False)
    if json_path is not None:
        write_json(report, json_path)


def write_json(report: Report, path: Path) -> None:
    """Write everything that was measured."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
