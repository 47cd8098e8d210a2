"""``raftkv ring``: how evenly keys spread over shards, and what moves when one is added.

Runs the real partitioners over many keys, no cluster needed, so the numbers in the documentation
can be made again by anybody.
"""

import json
from collections import Counter
from pathlib import Path

import click
import msgspec
from rich.table import Table

from raftkv.cli import consoles
from raftkv.cli.ring_picture import draw
from raftkv.core.ring import VNODES_DEFAULT, Modulo, Ring, position_of
from raftkv.engine.config import SHARDS_MAX


class Spread(msgspec.Struct, frozen=True):
    """What one partitioner does with the keys."""

    partitioner: str
    keys_per_shard: dict[int, int]
    fullest_to_mean: float
    emptiest_to_mean: float
    moved_share: float
    """Share of all keys that change their shard when one shard is added."""
    moved_to_new_share: float
    """Share of those that moved that went to the new shard: 1 means none moved needlessly."""


def measure(name: str, before: Ring | Modulo, after: Ring | Modulo, positions: list[int]) -> Spread:
    """Assign every position by both partitioners, ``after`` having one shard more."""
    (added,) = set(after.shards) - set(before.shards)
    owners_before = list(map(before.shard_at, positions))
    owners_after = map(after.shard_at, positions)
    moves = Counter(new for old, new in zip(owners_before, owners_after, strict=True) if old != new)
    counts = Counter(owners_before)
    mean = len(positions) / len(before.shards)
    per_shard = {shard: counts[shard] for shard in before.shards}
    moved = moves.total()
    return Spread(
        partitioner=name,
        keys_per_shard=per_shard,
        fullest_to_mean=max(per_shard.values()) / mean,
        emptiest_to_mean=min(per_shard.values()) / mean,
        moved_share=moved / len(positions),
        moved_to_new_share=moves[added] / moved if moved else 1.0,
    )


@click.command("ring")
@click.option("--shards", type=click.IntRange(1, SHARDS_MAX), default=8, show_default=True)
@click.option("--keys", type=click.IntRange(1, 100_000_000), default=1_000_000, show_default=True)
@click.option(
    "--vnodes",
    type=click.IntRange(1, 65_536),
    default=VNODES_DEFAULT,
    show_default=True,
    help="Virtual nodes per shard.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
@click.option(
    "--svg",
    "svg_path",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Also draw both spreads and the ring into this file.",
)
def ring_command(
    *, shards: int, keys: int, vnodes: int, as_json: bool, svg_path: Path | None
) -> None:
    """Show how evenly keys spread over shards, and what moves when one is added."""
    numbers = range(shards)
    more = range(shards + 1)
    positions = [position_of(b"key-%d" % number) for number in range(keys)]
    ring = Ring(numbers, vnodes)
    spreads = [
        measure("ring", ring, Ring(more, vnodes), positions),
        measure("modulo", Modulo(numbers), Modulo(more), positions),
    ]
    if svg_path is not None:
        try:
            svg_path.write_text(draw(ring, keys, spreads), encoding="utf-8")
        except OSError as error:
            raise click.FileError(str(svg_path), error.strerror or str(error)) from error
    if as_json:
        facts = {"shards": shards, "keys": keys, "vnodes": vnodes}
        facts["partitioners"] = msgspec.to_builtins(spreads, str_keys=True)
        click.echo(json.dumps(facts))
        return
    _print(shards, keys, vnodes, spreads)


def _print(shards: int, keys: int, vnodes: int, spreads: list[Spread]) -> None:
    console = consoles.console()
    mean = keys / shards
    table = Table(title=f"{keys:,} keys over {shards} shards, {vnodes} virtual nodes each")
    table.add_column("shard", justify="right")
    for spread in spreads:
        table.add_column(spread.partitioner, justify="right")
        table.add_column("of mean", justify="right")
    for shard in range(shards):
        cells = [str(shard)]
        for spread in spreads:
            count = spread.keys_per_shard[shard]
            cells += [f"{count:,}", f"{count / mean:.3f}"]
        table.add_row(*cells)
    console.print(table)
    console.print(_summary(shards, spreads))


def _summary(shards: int, spreads: list[Spread]) -> Table:
    summary = Table(title=f"from {shards} to {shards + 1} shards")
    summary.add_column("")
    for spread in spreads:
        summary.add_column(spread.partitioner, justify="right")
    summary.add_row("fullest shard, of mean", *(f"{s.fullest_to_mean:.3f}" for s in spreads))
    summary.add_row("emptiest shard, of mean", *(f"{s.emptiest_to_mean:.3f}" for s in spreads))
    summary.add_row("keys that move", *(f"{s.moved_share:.1%}" for s in spreads))
    summary.add_row("  of them to the new shard", *(f"{s.moved_to_new_share:.1%}" for s in spreads))
    summary.add_row("least that could move", *(f"{1 / (shards + 1):.1%}" for _ in spreads))
    return summary
