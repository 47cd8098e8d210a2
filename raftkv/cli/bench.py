"""``raftkv bench``: measure real clusters on this machine; docs/benchmarks.md has results."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import click

from raftkv.bench import abuse as abuse_bench
from raftkv.bench import beside_wrk, failover, floor, growth, idle, million, overload
from raftkv.bench import connections as connections_bench
from raftkv.bench import pages as pages_bench
from raftkv.bench import profile as profile_bench
from raftkv.bench.abuses import ABUSES
from raftkv.bench.report import Report, publish
from raftkv.cli import consoles
from raftkv.cli.bench_load import compare_command, load_command
from raftkv.cli.durations import ALIAS, Duration
from raftkv.cli.measuring import ending_cleanly, measuring, shared_options, tell
from raftkv.engine.config import SHARDS_MAX


@click.group("bench")
def bench_command() -> None:
    """Measure a cluster of three real nodes on this machine.

    Each command starts its own cluster in a temporary directory and leaves nothing behind. The
    targets in the tables are those of docs/benchmarks.md; a machine that is busy with something
    else misses them.
    """


@bench_command.command("abuse")
@click.option(
    "--abuse",
    "names",
    type=click.Choice(list(ABUSES)),
    multiple=True,
    help="Only this one; may be repeated.",
)
@click.option(
    "--duration",
    ALIAS,
    "seconds",
    cls=Duration,
    type=click.FloatRange(1.0),
    default=1.5,
    show_default=True,
    help="Of each run, alone and beside an abuse.",
)
@shared_options
def abuse_command(
    *, names: tuple[str, ...], seconds: float, json_path: Path | None, parent: Path | None
) -> None:
    """Put clients that behave badly beside a normal one: what does it notice?

    Ends with code 1 if a target is missed.
    """
    command = shlex.join(["raftkv", *sys.argv[1:]])
    with ending_cleanly():
        report = abuse_bench.run(names or tuple(ABUSES), seconds, command, parent, tell)
        console = consoles.console()
        publish(report, json_path, console, abuse_bench.table_of(report.details["found"]))
    sys.exit(any(figure.met is False for figure in report.figures))


@bench_command.command("failover")
@click.option("--kills", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option(
    "--freeze",
    is_flag=True,
    help="Stop them with SIGSTOP instead: nobody is told, as when a machine loses power.",
)
@measuring
def failover_command(
    *, kills: int, freeze: bool, parent: Path | None, progress: Callable[[str], None]
) -> Report:
    """Kill leaders with kill -9: how long does their shard take no writes?"""
    return failover.run(kills, parent, progress, freeze=freeze)


@bench_command.command("floor")
@click.option("--pairs", type=click.IntRange(1, 1000), default=5, show_default=True)
@click.option(
    "--duration",
    ALIAS,
    "duration",
    cls=Duration,
    type=click.FloatRange(0.5),
    default=3.0,
    show_default=True,
    help="Seconds of each run.",
)
@measuring
def floor_command(
    *, pairs: int, duration: float, parent: Path | None, progress: Callable[[str], None]
) -> Report:
    """Take a put's way through all processes with nothing done on it: what is possible here?"""
    command = shlex.join(["raftkv", *sys.argv[1:]])
    return floor.run(floor.Plan(pairs, duration), command, parent, progress)


@bench_command.command("generator")
@click.option("--pairs", type=click.IntRange(1, 1000), default=5, show_default=True)
@click.option("--connections", type=click.IntRange(1, 20_000), default=64, show_default=True)
@click.option(
    "--duration",
    ALIAS,
    "duration",
    cls=Duration,
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Seconds of each run.",
)
@measuring
def generator_command(
    *,
    pairs: int,
    connections: int,
    duration: int,
    parent: Path | None,
    progress: Callable[[str], None],
) -> Report:
    """Load one node by our generator and by wrk in turns: is ours the bottleneck?"""
    command = shlex.join(["raftkv", *sys.argv[1:]])
    plan = beside_wrk.Plan(pairs, connections, duration)
    return beside_wrk.run(plan, command, parent, progress)


def _directions(
    _context: click.Context, _parameter: click.Parameter, text: str
) -> tuple[growth.Direction, ...]:
    names = text.split(",")
    unknown = [name for name in names if name not in growth.DIRECTIONS]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(growth.DIRECTIONS)}")
    return tuple(direction for direction in growth.DIRECTIONS if direction in names)


@bench_command.command("growth")
@click.option(
    "--only",
    default=",".join(growth.DIRECTIONS),
    show_default=True,
    callback=_directions,
    help="What grows, separated by commas.",
)
@click.option(
    "--duration",
    ALIAS,
    "seconds",
    cls=Duration,
    type=click.FloatRange(1.0),
    default=5.0,
    show_default=True,
    help="Of each step.",
)
@click.option(
    "--keys-max", type=click.IntRange(1000), default=10**6, show_default=True, help="Up to 10^7."
)
@click.option("--steps-max", type=click.IntRange(1), help="Only the smallest of each direction.")
@measuring
def growth_command(
    *,
    only: tuple[growth.Direction, ...],
    seconds: float,
    keys_max: int,
    steps_max: int | None,
    parent: Path | None,
    progress: Callable[[str], None],
) -> Report:
    """Grow shards, keys, values, connections: does an operation cost the same?"""
    command = shlex.join(["raftkv", *sys.argv[1:]])
    return growth.run(growth.Plan(only, seconds, keys_max, steps_max), command, parent, progress)


@bench_command.command("idle")
@click.option("--groups", type=click.IntRange(1, SHARDS_MAX), default=64, show_default=True)
@click.option(
    "--duration",
    ALIAS,
    "seconds",
    cls=Duration,
    type=click.FloatRange(1.0),
    default=20.0,
    show_default=True,
    help="How long.",
)
@measuring
def idle_command(
    *, groups: int, seconds: float, parent: Path | None, progress: Callable[[str], None]
) -> Report:
    """Measure the processor time of a cluster that nobody uses."""
    return idle.run(groups, seconds, parent, progress)


@bench_command.command("million")
@click.option("--keys", type=click.IntRange(1000), default=1_000_000, show_default=True)
@click.option("--value-bytes", type=click.IntRange(0, 2**20), default=100, show_default=True)
@measuring
def million_command(
    *, keys: int, value_bytes: int, parent: Path | None, progress: Callable[[str], None]
) -> Report:
    """Measure one large shard: memory, snapshots beside requests, restarts."""
    return million.run(keys, value_bytes, parent, progress)


@bench_command.command("overload")
@click.option(
    "--duration",
    ALIAS,
    "seconds",
    cls=Duration,
    type=click.FloatRange(3.0),
    default=120.0,
    show_default=True,
    help="How long.",
)
@click.option(
    "--connections",
    type=click.IntRange(2, 100_000),
    default=6_000,
    show_default=True,
    help="Of all clients together.",
)
@measuring
def overload_command(
    *, seconds: float, connections: int, parent: Path | None, progress: Callable[[str], None]
) -> Report:
    """Offer four times what the cluster can do: what becomes of it, and how soon?"""
    return overload.run(seconds, connections, parent, progress)


@bench_command.command("connections")
@click.option(
    "--open", "idle_open", type=click.IntRange(0, 9_000), default=5_000, show_default=True
)
@click.option("--slow", type=click.IntRange(0, 900), default=100, show_default=True)
@click.option(
    "--duration",
    ALIAS,
    "seconds",
    cls=Duration,
    type=click.FloatRange(1.0),
    default=40.0,
    show_default=True,
    help="Of each of the three runs.",
)
@measuring
def connections_command(
    *,
    idle_open: int,
    slow: int,
    seconds: float,
    parent: Path | None,
    progress: Callable[[str], None],
) -> Report:
    """Hold thousands of idle connections and send bodies slowly: what do others notice?"""
    return connections_bench.run(idle_open, slow, seconds, parent, progress)


@bench_command.command("pages")
@click.option("--pages", type=click.IntRange(1, 1000), default=10, show_default=True)
@click.option("--pairs", type=click.IntRange(1, 1000), default=10, show_default=True)
@click.option(
    "--duration",
    ALIAS,
    "seconds",
    cls=Duration,
    type=click.FloatRange(1.0),
    default=10.0,
    show_default=True,
    help="Of each run.",
)
@measuring
def pages_command(
    *,
    pages: int,
    pairs: int,
    seconds: float,
    parent: Path | None,
    progress: Callable[[str], None],
) -> Report:
    """Open status pages and scrape metrics beside a load: what does it lose?"""
    return pages_bench.run(pages, pairs, seconds, parent, progress)


bench_command.add_command(load_command)
bench_command.add_command(compare_command)


@bench_command.command("profile")
@click.option("--connections", type=click.IntRange(1, 20_000), default=64, show_default=True)
@click.option(
    "--duration",
    ALIAS,
    "seconds",
    cls=Duration,
    type=click.FloatRange(2.0),
    default=10.0,
    show_default=True,
    help="Of each load.",
)
@measuring
def profile_command(
    *, connections: int, seconds: float, parent: Path | None, progress: Callable[[str], None]
) -> Report:
    """Where does the processor time of a put and of a get go, stage by stage?"""
    return profile_bench.run(connections, seconds, parent, progress)
