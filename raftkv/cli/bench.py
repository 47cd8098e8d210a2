"""``raftkv bench``: measure real clusters on this machine; docs/benchmarks.md has results."""

from functools import partial

import click

from raftkv.bench.measure import Measure
from raftkv.bench.measures import abuse as abuse_bench
from raftkv.bench.measures import beside_wrk, failover, floor, growth, idle, large_shard, overload
from raftkv.bench.measures import connections as connections_bench
from raftkv.bench.measures import pages as pages_bench
from raftkv.bench.measures import profile as profile_bench
from raftkv.bench.measures.abuses import ABUSES
from raftkv.cli.bench_load import compare_command, load_command
from raftkv.cli.durations import ALIAS, Duration
from raftkv.cli.measuring import measuring
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
@measuring(
    table=lambda report: abuse_bench.table_of(report.details["found"]),
    targets_bind=True,
)
def abuse_command(*, names: tuple[str, ...], seconds: float) -> Measure:
    """Put clients that behave badly beside a normal one: what does it notice?

    Ends with code 1 if a target is missed.
    """
    return partial(abuse_bench.run, names or tuple(ABUSES), seconds)


@bench_command.command("failover")
@click.option("--kills", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option(
    "--freeze",
    is_flag=True,
    help="Stop them with SIGSTOP instead: nobody is told, as when a machine loses power.",
)
@measuring()
def failover_command(*, kills: int, freeze: bool) -> Measure:
    """Kill leaders with kill -9: how long does their shard take no writes?"""
    return partial(failover.run, kills, freeze=freeze)


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
@measuring()
def floor_command(*, pairs: int, duration: float) -> Measure:
    """Take a put's way through all processes with nothing done on it: what is possible here?"""
    return partial(floor.run, floor.Plan(pairs, duration))


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
@measuring()
def generator_command(
    *,
    pairs: int,
    connections: int,
    duration: int,
) -> Measure:
    """Load one node by our generator and by wrk in turns: is ours the bottleneck?"""
    return partial(beside_wrk.run, beside_wrk.Plan(pairs, connections, duration))


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
@measuring()
def growth_command(
    *,
    only: tuple[growth.Direction, ...],
    seconds: float,
    keys_max: int,
    steps_max: int | None,
) -> Measure:
    """Grow shards, keys, values, connections: does an operation cost the same?"""
    return partial(growth.run, growth.Plan(only, seconds, keys_max, steps_max))


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
@measuring()
def idle_command(*, groups: int, seconds: float) -> Measure:
    """Measure the processor time of a cluster that nobody uses."""
    return partial(idle.run, groups, seconds)


@bench_command.command("large-shard")
@click.option("--keys", type=click.IntRange(1000), default=1_000_000, show_default=True)
@click.option("--value-bytes", type=click.IntRange(0, 2**20), default=100, show_default=True)
@measuring()
def million_command(*, keys: int, value_bytes: int) -> Measure:
    """Measure one large shard: memory, snapshots beside requests, restarts."""
    return partial(large_shard.run, keys, value_bytes)


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
@measuring()
def overload_command(*, seconds: float, connections: int) -> Measure:
    """Offer four times what the cluster can do: what becomes of it, and how soon?"""
    return partial(overload.run, seconds, connections)


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
@measuring()
def connections_command(
    *,
    idle_open: int,
    slow: int,
    seconds: float,
) -> Measure:
    """Hold thousands of idle connections and send bodies slowly: what do others notice?"""
    return partial(connections_bench.run, idle_open, slow, seconds)


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
@measuring()
def pages_command(
    *,
    pages: int,
    pairs: int,
    seconds: float,
) -> Measure:
    """Open status pages and scrape metrics beside a load: what does it lose?"""
    return partial(pages_bench.run, pages, pairs, seconds)


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
@measuring()
def profile_command(*, connections: int, seconds: float) -> Measure:
    """Where does the processor time of a put and of a get go, stage by stage?"""
    return partial(profile_bench.run, connections, seconds)
