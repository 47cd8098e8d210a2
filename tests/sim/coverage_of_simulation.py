"""What simulation does not run: lines and branches of the product that ordinary seeds leave out.

    pip install coverage
    python tests/sim/coverage_of_simulation.py 0 200 [MINUTES]

Prints the share of each package, then for each file the lines that no seed ran and the branches
(from line -> to line) that none took. It needs coverage.py, which is not a dependency of raftkv,
and a few times as long as the seeds themselves; the seeds do what they do without it.
"""

import sys
from collections import defaultdict
from pathlib import Path

import click
import coverage  # type: ignore[import-not-found] # no dependency of raftkv

import raftkv

ROOT = Path(raftkv.__file__).parent
PACKAGES = ("core", "raft", "engine", "rpc", "storage")


def main(first: int, end: int, minutes: float) -> None:
    """Run the seeds ``first`` to ``end - 1`` and print what they left out."""
    measured = coverage.Coverage(
        data_file=None, branch=True, source=[str(ROOT / package) for package in PACKAGES]
    )
    measured.start()
    # Below `start`, so that what modules do when they are imported counts as run.
    from raftkv.sim.options import Options  # noqa: PLC0415
    from raftkv.sim.run import run  # noqa: PLC0415

    for seed in range(first, end):
        report = run(Options.of(seed, minutes))
        if report.violation is not None:
            click.echo(f"seed {seed}: {report.violation}", err=True)
    measured.stop()
    _show(measured)


def _show(measured: coverage.Coverage) -> None:
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    files = []
    for path in sorted(file for package in PACKAGES for file in (ROOT / package).glob("*.py")):
        analysis = measured._analyze(str(path))
        numbers = analysis.numbers
        package = path.parent.name
        for name in (package, "all"):
            for place, count in enumerate(
                (
                    numbers.n_executed,
                    numbers.n_statements,
                    numbers.n_executed_branches,
                    numbers.n_branches,
                )
            ):
                totals[name][place] += count
        lines = sorted(analysis.missing)
        branches = sorted(
            (source, target)
            for source, targets in analysis.missing_branch_arcs().items()
            for target in targets
            if source not in analysis.missing
        )
        if lines or branches:
            files.append((path.relative_to(ROOT), lines, branches))
    for package, (ran, statements, taken, branches_of_it) in totals.items():
        click.echo(
            f"{package:8} {ran} of {statements} lines ({_share(ran, statements)}), "
            f"{taken} of {branches_of_it} branches ({_share(taken, branches_of_it)})"
        )
    for path, lines, branches in files:
        click.echo(f"\n{path}")
        if lines:
            click.echo(f"  lines {', '.join(_ranges(lines))}")
        if branches:
            words = (f"{source}->{'exit' if target < 0 else target}" for source, target in branches)
            click.echo(f"  branches {', '.join(words)}")


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _ranges(lines: list[int]) -> list[str]:
    """Neighbouring lines in one word: 3-5."""
    words = []
    begin = before = lines[0]
    for line in [*lines[1:], 0]:
        if line != before + 1:
            words.append(f"{begin}-{before}" if before > begin else f"{begin}")
            begin = line
        before = line
    return words


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float((sys.argv[3:] or ["5"])[0]))
