"""``raftkv sim``: whole clusters in simulated time; docs/testing.md explains it."""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from raftkv.check.event import HistoryError
from raftkv.cli import consoles
from raftkv.sim.campaign import Tally, run_seeds
from raftkv.sim.options import FAULTS, MINUTES, WORKLOADS, Options
from raftkv.sim.plan import plan
from raftkv.sim.run import Report, run
from raftkv.sim.shrink import shrink

EXIT_VIOLATION = 1

_NUMBERS: dict[str, Callable[[str], int | float]] = {
    "<class 'int'>": int,
    "<class 'float'>": float,
}


class SeedRange(click.ParamType[range]):
    """``FIRST:END``, the end not included, as in Python."""

    name = "first:end"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> range:
        """Read it."""
        first, colon, end = str(value).partition(":")
        if not (colon and first.isdecimal() and end.isdecimal() and int(first) < int(end)):
            self.fail(f"{value!r} is not FIRST:END, such as 0:1000", param, ctx)
        return range(int(first), int(end))


class Change(click.ParamType[tuple[str, Any]]):
    """``OPTION=VALUE``: another value for one of the options that a seed decides."""

    name = "option=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        """Read it, by the type that the option has."""
        name, _, text = str(value).partition("=")
        kinds = {field.name: field.type for field in dataclasses.fields(Options)}
        if name not in kinds or name in ("seed", "minutes"):
            known = ", ".join(kind for kind in kinds if kind not in ("seed", "minutes"))
            self.fail(f"{name!r} is not one of {known}", param, ctx)
        try:
            parsed = _parsed(str(kinds[name]), name, text)
        except ValueError as error:
            self.fail(f"{name}: {error}", param, ctx)
        return name, parsed


def _parsed(kind: str, name: str, text: str) -> Any:
    words = tuple(word for word in text.split(",") if word)
    if kind in _NUMBERS:
        return _NUMBERS[kind](text)
    if name == "keep":
        return tuple(map(int, words))
    known = FAULTS if name == "faults" else WORKLOADS
    unknown = [word for word in words if word not in known]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not one of {', '.join(known)}")
    return words


@click.command("sim")
@click.option("--seeds", type=SeedRange(), help="Run these, such as 0:1000.")
@click.option("--seed", type=click.IntRange(0), help="Run one, and say all about it.")
@click.option(
    "--minutes-per-seed",
    "minutes",
    type=click.FloatRange(0.01),
    default=MINUTES,
    show_default=True,
    help="Simulated minutes with faults.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=os.cpu_count() or 1,
    show_default="one for each core",
    help="Processes.",
)
@click.option("--trace", is_flag=True, help="With --seed: write down everything that happens.")
@click.option(
    "--set",
    "changes",
    type=Change(),
    multiple=True,
    help="Another value for an option that the seed decides; may be repeated.",
)
@click.option(
    "--shrink/--no-shrink",
    "shrinks",
    default=True,
    show_default=True,
    help="Make failing runs smaller.",
)
@click.option("--keep-going", is_flag=True, help="Do not end with the first seed that fails.")
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Also write the sums into this file.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="With --seed: a new directory for its history, faults and a report.",
)
def sim_command(
    *,
    seeds: range | None,
    seed: int | None,
    minutes: float,
    jobs: int,
    trace: bool,
    changes: tuple[tuple[str, Any], ...],
    shrinks: bool,
    keep_going: bool,
    json_path: Path | None,
    out: Path | None,
) -> None:
    """Run simulated clusters through faults, and judge all that they said.

    Real engines, logs, snapshots and Raft groups, on a simulated network, disk and clock. A seed
    decides everything; the same seed does the same again. Exit code 1 if a promise was broken.
    """
    if (seeds is None) == (seed is None):
        raise click.UsageError("say either --seeds FIRST:END or --seed N")
    if trace and seed is None:
        raise click.UsageError("--trace is for one --seed")
    if out is not None and seed is None:
        raise click.UsageError("--out is for one --seed")
    if out is not None:
        _make(out)
    numbers = range(seed, seed + 1) if seed is not None else seeds or ()
    try:
        runs = [Options.of(number, minutes, **dict(changes)) for number in numbers]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--set") from error
    if seed is not None:
        failed = _one(runs[0], trace=trace, shrinks=shrinks, out=out)
    else:
        failed = _many(runs, jobs, shrinks=shrinks, keep_going=keep_going, json_path=json_path)
    sys.exit(EXIT_VIOLATION if failed else 0)


def _make(out: Path) -> None:
    """Make the directory, before anything runs for it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        is_used = any(out.iterdir())
    except OSError as error:
        raise click.UsageError(f"--out {out}: {error.strerror or error}") from error
    if is_used:
        raise click.UsageError(f"--out {out}: is there and not empty; name a new directory")


def _one(options: Options, *, trace: bool, shrinks: bool, out: Path | None) -> bool:
    """Run one seed; whether it failed."""
    write = click.echo if trace else None
    report = run(options, write) if out is None else run(options, write, keep_record=True)
    click.echo(f"{command_of(options)}\n{options.describe()}", err=trace)
    click.echo(
        f"{report.operations} operations {report.outcomes}, {report.elections} elections, "
        f"{report.simulated_s:.0f} s in {report.cpu_s:.1f} s of CPU, digest {report.digest}\n"
        f"faults that took effect {report.faults}, without effect {report.without_effect}, "
        f"refused starts {report.refused}",
        err=trace,
    )
    if out is not None:
        _archive(report, out, err=trace)
    if report.violation is None:
        click.echo("no violation", err=trace)
        return False
    _say_failure(report, shrinks=shrinks)
    return True


def _archive(report: Report, out: Path, *, err: bool) -> None:
    # Only who wants a report waits for the import of it.
    from raftkv.sim.archive import archive  # noqa: PLC0415

    assert report.record is not None  # noqa: S101 -- asked for
    try:
        page = archive(
            report.record,
            out,
            title=f"raftkv sim, seed {report.options.seed}",
            command=command_of(report.options),
            findings=() if report.violation is None else (report.violation,),
        )
    except (HistoryError, OSError) as error:
        click.echo(f"raftkv: no report: {error}", err=True)
    else:
        click.echo(f"report: {page}", err=err)


def _many(
    runs: list[Options], jobs: int, *, shrinks: bool, keep_going: bool, json_path: Path | None
) -> bool:
    """Run many seeds; whether one failed."""
    tally, began = Tally(), time.monotonic()
    with _progress(len(runs)) as advance:
        for report in run_seeds(runs, jobs):
            tally.add(report)
            advance(tally)
            if report.violation is not None and not keep_going:
                break
    for report in tally.failed:
        _say_failure(report, shrinks=shrinks)
    _say_tally(tally, time.monotonic() - began)
    if json_path is not None:
        sums = {field.name: getattr(tally, field.name) for field in dataclasses.fields(tally)}
        sums |= {"speed": tally.speed, "failed": _failures(tally)}
        json_path.write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")
    return bool(tally.failed)


class _progress:  # noqa: N801 -- used like a function
    """A bar on standard error."""

    def __init__(self, total: int) -> None:
        self._bar = Progress(
            TextColumn("seeds"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[sums]}"),
            console=consoles.console(stderr=True),
        )
        self._task = self._bar.add_task("seeds", total=total, sums="")

    def __enter__(self) -> Callable[[Tally], None]:
        self._bar.start()
        return self._advance

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _advance(self, tally: Tally) -> None:
        sums = f"{tally.operations:,} operations, {tally.speed:.0f}x, {len(tally.failed)} failed"
        self._bar.update(self._task, completed=tally.seeds, sums=sums)


def command_of(options: Options) -> str:
    """The command that runs these options again."""
    usual = Options.of(options.seed, options.minutes)
    words = [f"raftkv sim --seed {options.seed}"]
    if options.minutes != MINUTES:
        words.append(f"--minutes-per-seed {options.minutes!r}")
    for field in dataclasses.fields(Options):
        value = getattr(options, field.name)
        if value != getattr(usual, field.name):
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words.append(f"--set {field.name}={text}")
    return " ".join(words)


def _say_failure(report: Report, *, shrinks: bool) -> None:
    options = report.options
    click.echo(f"VIOLATION at {report.simulated_s:.3f} s: {report.violation}")
    click.echo(f"again with: {command_of(options)}\n{options.describe()}")
    if not shrinks:
        return
    smaller = shrink(
        options,
        lambda candidate: run(candidate).violation is not None,
        failed_at_s=report.simulated_s,
    )
    click.echo(f"smaller: {command_of(smaller)}\n  {run(smaller).violation}")
    for fault in plan(smaller):
        click.echo(f"  {fault}")


def _say_tally(tally: Tally, took_s: float) -> None:
    table = Table(show_header=False)
    for name, value in (
        ("seeds", f"{tally.seeds:,}"),
        ("failed", f"{len(tally.failed):,}"),
        ("simulated", f"{tally.simulated_s / 3600:,.1f} h in {took_s / 60:,.1f} min"),
        ("speed", f"{tally.speed:,.0f} times real time on one core"),
        ("operations", f"{tally.operations:,}"),
        ("outcomes", _counts(tally.outcomes)),
        ("elections", f"{tally.elections:,}"),
        ("faults that took effect, of those done", _shares(tally)),
        ("refused starts", _counts(tally.refused)),
    ):
        table.add_row(name, value)
    consoles.console().print(table)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))


def _shares(tally: Tally) -> str:
    """Of each kind how many took effect, one a line: a harness that hurts nobody sees nothing."""
    return "\n".join(
        f"{kind} {effective:,} of {done:,} ({effective / done:.0%})"
        for kind, (effective, done) in tally.shares().items()
    )


def _failures(tally: Tally) -> list[dict[str, Any]]:
    return [
        {"command": command_of(report.options), "violation": report.violation}
        for report in tally.failed
    ]
