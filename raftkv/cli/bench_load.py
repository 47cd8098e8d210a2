"""``raftkv bench load`` and ``raftkv bench compare``: throughput and latency, alone and beside."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from raftkv.bench.compare import run as compare
from raftkv.bench.compare import table
from raftkv.bench.compare.rows import GROUPS
from raftkv.bench.compare.stores import PEERS
from raftkv.bench.load.generator import Progress as LoadProgress
from raftkv.bench.load.run_load import OnProgress
from raftkv.bench.load.workload import (
    DISTRIBUTIONS,
    KEY_BYTES_MIN,
    KINDS,
    Distribution,
    Kind,
    Workload,
)
from raftkv.bench.measure import Measure, Setting
from raftkv.bench.measures import steady_load
from raftkv.bench.measures.steady_load import Spread
from raftkv.bench.report import Occasion, Report, write_json
from raftkv.cli import consoles, load_picture
from raftkv.cli.durations import ALIAS, Duration
from raftkv.cli.endpoints import endpoints_option
from raftkv.cli.measuring import ending_cleanly, given_command, measuring
from raftkv.client.endpoints import normalized


@contextlib.contextmanager
def load_bar(seconds: float) -> Iterator[OnProgress]:
    """Show a bar for one load of this length: time left, rate, failures."""
    with Progress(
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=consoles.console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task("starting", total=seconds)
        rate = _Rate()

        def show(progress: LoadProgress) -> None:
            elapsed, per_s = rate.of(progress.answered, bar.get_time())
            bar.update(
                task,
                completed=min(seconds, elapsed),
                description=f"{per_s:,.0f} requests/s, {progress.failed:,} failed",
            )

        yield show


class _Rate:
    """Requests a second since the last look, from the first answer on."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._last = (0.0, 0)
        self._per_s = 0.0

    def of(self, answered: int, now: float) -> tuple[float, float]:
        """Return the seconds since the first answer, and the rate."""
        if not answered:
            return 0.0, 0.0
        if self._began is None:
            self._began, self._last = now, (now, answered)
        then, before = self._last
        if now - then >= 1:
            self._per_s = (answered - before) / (now - then)
            self._last = (now, answered)
        return now - self._began, self._per_s


def _plain(urls: Sequence[str]) -> tuple[str, ...]:
    """The endpoints of a cluster that can be loaded."""
    try:
        endpoints = tuple(map(normalized, urls))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--endpoints") from error
    for url in endpoints:
        if not url.startswith("http:"):
            raise click.BadParameter(
                f"{url}: the load generator speaks http:// only", param_hint="--endpoints"
            )
    return endpoints


@click.command("load")
@click.option("--workload", type=click.Choice(KINDS), default="put", show_default=True)
@click.option("--connections", type=click.IntRange(1, 20_000), default=64, show_default=True)
@click.option("--value-bytes", type=click.IntRange(0, 16 * 2**20), default=64, show_default=True)
@click.option(
    "--key-bytes", type=click.IntRange(KEY_BYTES_MIN, 1024), default=16, show_default=True
)
@click.option("--keys", type=click.IntRange(1), default=10_000, show_default=True)
@click.option(
    "--distribution",
    type=click.Choice(DISTRIBUTIONS),
    default="uniform",
    show_default=True,
    help="Which keys: all alike, or some far more than others (Zipf's law with 0.99, as YCSB).",
)
@click.option(
    "--duration",
    ALIAS,
    "duration",
    cls=Duration,
    type=click.FloatRange(0.1),
    default=10.0,
    show_default=True,
    help="Seconds.",
)
@click.option(
    "--warmup",
    type=click.FloatRange(0.0),
    default=2.0,
    show_default=True,
    help="Seconds before that are not counted.",
)
@click.option(
    "--rate",
    type=click.FloatRange(0.1),
    help="Requests a second, whatever the servers do; by default each connection sends again when "
    "it is answered.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, 10_000),
    default=100,
    show_default=True,
    help="Operations of a batch, entries of a page of a scan.",
)
@click.option(
    "--spread",
    type=click.Choice(["all", "one"]),
    default="all",
    show_default=True,
    help="Ask all nodes in turn, or one.",
)
@endpoints_option(
    "Of a cluster that runs already; its keys are written. By default one is started."
)
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="That make the load.",
)
@click.option(
    "--picture",
    "picture_path",
    metavar="FILE.svg",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Also draw throughput and latency over time.",
)
@measuring()
def load_command(
    *,
    workload: Kind,
    connections: int,
    value_bytes: int,
    key_bytes: int,
    keys: int,
    distribution: Distribution,
    duration: float,
    warmup: float,
    rate: float | None,
    batch_size: int,
    spread: Spread,
    endpoints: tuple[str, ...],
    processes: int,
    picture_path: Path | None,
) -> Measure:
    """Load a cluster steadily: throughput, latency, and what a request costs whom."""
    plan = steady_load.Plan(
        Workload(workload, keys, key_bytes, value_bytes, distribution, batch_size),
        connections,
        duration,
        warmup,
        rate,
        spread,
        processes,
        _plain(endpoints),
    )

    def measure(setting: Setting) -> Report:
        setting.progress("starting")
        with load_bar(warmup + duration) as show:
            report = steady_load.run(plan, setting, show)
        if picture_path is not None:
            picture = load_picture.draw(report.benchmark, report.details["result"])
            picture_path.write_text(picture, encoding="utf-8")
        return report

    return measure


def _names(
    known: Sequence[str],
) -> Callable[[click.Context, click.Parameter, str], tuple[str, ...]]:
    """A callback that takes names separated by commas."""

    def parse(context: click.Context, option: click.Parameter, text: str) -> tuple[str, ...]:
        names = tuple(name.strip() for name in text.split(","))
        for name in names:
            if name not in known:
                raise click.BadParameter(f"{name!r} is none of {', '.join(known)}", context, option)
        return names

    return parse


@click.command("compare")
@click.option(
    "--peers",
    default="etcd",
    show_default=True,
    callback=_names(tuple(PEERS)),
    help=f"Separated by commas: {', '.join(PEERS)}.",
)
@click.option(
    "--rows",
    default=",".join(GROUPS),
    show_default=True,
    callback=_names(GROUPS),
    help="What is compared, separated by commas.",
)
@click.option("--pairs", type=click.IntRange(1, 1000), default=5, show_default=True)
@click.option(
    "--duration",
    ALIAS,
    "duration",
    cls=Duration,
    type=click.FloatRange(0.1),
    default=8.0,
    show_default=True,
    help="Seconds of each run.",
)
@click.option("--warmup", type=click.FloatRange(0.0), default=2.0, show_default=True)
@click.option("--spread", type=click.Choice(["all", "one"]), default="all", show_default=True)
@click.option(
    "--client-processes",
    type=click.IntRange(1, 16),
    default=1,
    show_default=True,
    help="Of the row client, 64 threads each.",
)
@click.option("--kills", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--json", "json_path", type=click.Path(dir_okay=False, writable=True, path_type=Path))
@click.option(
    "--dir",
    "parent",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    help="Where all clusters have their directories: choose the disk here.",
)
def compare_command(
    *,
    peers: tuple[str, ...],
    rows: tuple[str, ...],
    pairs: int,
    duration: float,
    warmup: float,
    spread: Spread,
    client_processes: int,
    kills: int,
    json_path: Path | None,
    parent: Path | None,
) -> None:
    """Load raftkv and other stores in turns: ratios, with their spread."""
    plan = compare.Plan(peers, rows, pairs, duration, warmup, spread, client_processes, kills)
    occasion = Occasion.now()
    with ending_cleanly():
        console = consoles.console()
        comparisons = []
        with compare_bar(plan) as steps:
            for comparison in compare.run(plan, parent, steps):
                comparisons.append(comparison)
                console.print(f"raftkv beside {comparison.peer}", style="bold")
                console.print(table.table_of(comparison))
                for remark in table.remarks(comparison):
                    console.print(remark, highlight=False)
        if json_path is not None:
            report = occasion.report(
                "compare",
                given_command(),
                [],
                details={"plan": plan, "comparisons": comparisons},
            )
            write_json(report, json_path)


@contextlib.contextmanager
def compare_bar(plan: compare.Plan) -> Iterator[compare.Steps]:
    """Show a bar over all runs of a comparison: what runs now, time left, rate, failures."""
    runs = plan.steps()
    with Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=consoles.console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task("starting", total=runs)
        begun = 0

        def step(what: str) -> OnProgress:
            nonlocal begun
            bar.update(task, completed=begun, description=what)
            begun += 1
            rate = _Rate()

            def show(progress: LoadProgress) -> None:
                _, per_s = rate.of(progress.answered, bar.get_time())
                failed = f", {progress.failed:,} failed" if progress.failed else ""
                bar.update(task, description=f"{what}: {per_s:,.0f} requests/s{failed}")

            return show

        yield step
