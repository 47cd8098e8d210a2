"""How long a seeded bug stays hidden from simulation: ``python tests/tools/hunt.py [BUG ...]``.

Runs seeds with the bug switched on until one fails, for each bug named, or for all. Prints a line
of the table in docs/testing.md for each.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

from raftkv.sim.options import Options
from raftkv.sim.run import run
from tests.bugs.seeded_bugs import BUGS, options_for


@dataclass(frozen=True)
class Catch:
    """How a bug was caught, or that it was not (``seed`` None)."""

    name: str
    seed: int | None
    seeds: int
    cpu_s: float
    found: str


def hunt(name: str, seeds: Sequence[int], *, plain: bool) -> Catch:
    """Switch a bug on, in this process for good, and run seeds until one fails."""
    BUGS[name](setattr)
    cpu_s = 0.0
    for number, seed in enumerate(seeds, start=1):
        report = run(Options.of(seed) if plain else options_for(name, seed))
        cpu_s += report.cpu_s
        if report.violation is not None:
            return Catch(name, seed, number, cpu_s, report.violation)
    return Catch(name, None, len(seeds), cpu_s, "not caught")


def main() -> int:
    """Hunt; exit code 1 if a bug escaped."""
    parser = argparse.ArgumentParser(description="Hunt seeded bugs by simulation.")
    parser.add_argument("bugs", nargs="*", metavar="BUG", help=f"of {', '.join(BUGS)}")
    parser.add_argument("--seeds", default="0:100", help="FIRST:END, tried in order")
    parser.add_argument(
        "--plain", action="store_true", help="the usual runs, not those that favour each bug"
    )
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    unknown = set(arguments.bugs) - set(BUGS)
    if unknown:
        parser.error(f"no such bug: {', '.join(sorted(unknown))}")
    first, end = map(int, arguments.seeds.split(":"))
    escaped = 0
    # A process of its own for each bug: one that was switched on stays on.
    with ProcessPoolExecutor(arguments.jobs, max_tasks_per_child=1) as pool:
        names = arguments.bugs or list(BUGS)
        seeds, plain = range(first, end), arguments.plain
        hunts = [pool.submit(hunt, name, seeds, plain=plain) for name in names]
        for done in as_completed(hunts):
            catch = done.result()
            escaped += catch.seed is None
            sys.stdout.write(
                f"| {catch.name} | {catch.seed} | {catch.seeds} | {catch.cpu_s:.1f} s | "
                f"{catch.found} |\n"
            )
            sys.stdout.flush()
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())
