"""How long a seeded bug stays hidden from chaos: ``python tests/tools/hunt_chaos.py [BUG ...]``.

Runs real processes with the bug in every node, a seed after the other until a run is not valid, for
each bug named, or for all that chaos can see. Prints a line of the table in docs/testing.md for
each. With ``--control`` the same runs are made without the bug: none may find anything.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raftkv.chaos.disks import private_mounts
from raftkv.chaos.errors import ChaosError
from raftkv.chaos.run import run_chaos
from raftkv.chaos.settings import Settings
from raftkv.check.verdict import Verdict
from raftkv.testing import ClusterError
from raftkv.testing.processes import RAFTKV_COMMAND
from tests.bugs.chaos_shapes import BEYOND_CHAOS, settings_for
from tests.bugs.seeded_bugs import BUGS

BUGGED_NODE = str(Path(__file__).with_name("bugged_node.py"))
FOUND_CHARS_MAX = 220


@dataclass(frozen=True)
class Catch:
    """How a bug was caught, or that it was not (``seed`` None)."""

    name: str
    seed: int | None
    runs: int
    wall_s: float
    found: str

    def __str__(self) -> str:
        return f"| {self.name} | {self.seed} | {self.runs} | {self.wall_s:.0f} s | {self.found} |"


def command_with(name: str) -> tuple[str, ...]:
    """How to run raftkv with this bug in it."""
    return (sys.executable, BUGGED_NODE, name)


def hunt(name: str, seeds: Sequence[int], duration_s: float, command: Sequence[str]) -> Catch:
    """Run seeds until one is not valid."""
    started_s = time.monotonic()
    for number, seed in enumerate(seeds, start=1):
        out = Path(tempfile.mkdtemp(prefix=f"hunt-{name}-"))
        found = _found(settings_for(name, out, seed, duration_s, command))
        if found is not None:
            sys.stderr.write(f"{name}: see {out}\n")
            return Catch(name, seed, number, time.monotonic() - started_s, found)
        shutil.rmtree(out)
    return Catch(name, None, len(seeds), time.monotonic() - started_s, "not caught")


def _found(settings: Settings) -> str | None:
    """What a run shows to be wrong, for a cell of a table: of the history rather than beside it.

    A cluster that never was ready has shown something too; any other reason why a run cannot be
    made is raised.
    """
    try:
        judgement = run_chaos(settings).judgement
    except ChaosError as error:
        if not isinstance(error.__cause__, ClusterError):
            raise
        return str(error).splitlines()[0]
    if judgement.verdict is not Verdict.VIOLATION:
        return None
    seen = judgement.result.verdict is Verdict.VIOLATION
    reason = judgement.reasons[-1 if seen else 0].replace("|", "\\|")
    return reason if len(reason) <= FOUND_CHARS_MAX else reason[:FOUND_CHARS_MAX] + "..."


def main() -> int:
    """Hunt, one run at a time; exit code 1 if a bug escaped, or if a control was not valid."""
    parser = argparse.ArgumentParser(description="Hunt seeded bugs by chaos.")
    visible = [name for name in BUGS if name not in BEYOND_CHAOS]
    parser.add_argument("bugs", nargs="*", metavar="BUG", help=f"of {', '.join(visible)}")
    parser.add_argument("--seeds", default="1:6", help="FIRST:END, tried in order")
    parser.add_argument("--duration", type=float, default=60.0, help="of each run, in seconds")
    parser.add_argument("--control", action="store_true", help="the same runs without the bugs")
    arguments = parser.parse_args()
    for name in arguments.bugs:
        if name not in visible:
            parser.error(f"{name}: {BEYOND_CHAOS.get(name, 'no such bug')}")
    first, end = map(int, arguments.seeds.split(":"))
    private_mounts()
    caught: list[bool] = []
    for name in arguments.bugs or visible:
        command = RAFTKV_COMMAND if arguments.control else command_with(name)
        catch = hunt(name, range(first, end), arguments.duration, command)
        caught.append(catch.seed is not None)
        sys.stdout.write(f"{catch}\n")
        sys.stdout.flush()
    return int(any(caught) if arguments.control else not all(caught))


if __name__ == "__main__":
    sys.exit(main())
