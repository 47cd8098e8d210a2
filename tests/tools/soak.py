"""Chaos for hours: ``python tests/tools/soak.py --minutes 120``.

Runs ``raftkv chaos`` again and again, each time with the next seed, the next workload, three or
five nodes, and either all kinds of fault or a crowd: hundreds of requests under way whose nodes are
killed and started again while leaders hang with full sockets. Stops at the first run that is not
valid and leaves its directory; prints the sums in the end.
"""

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raftkv.chaos.recorder import ENDS
from raftkv.interpreter import PYTHON_M

WORKLOADS = ("mixed", "register", "append", "set", "bank", "lock")
NODES = (3, 5)
CROWD = (
    *("--faults", "forwarder,kill,pause,reset", "--clients", "300"),
    *("--election-timeout-ms", "5000", "--shards", "1"),
)


@dataclass
class Sums:
    """Over all runs."""

    runs: int = 0
    keys: int = 0
    leader_changes: int = 0
    under_way_max: int = 0
    operations: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    effective: Counter[str] = field(default_factory=Counter)

    def add(self, run: Mapping[str, Any]) -> None:
        """Count one run."""
        self.runs += 1
        self.keys += run["keys"]
        self.leader_changes += run["leader_changes"]
        self.under_way_max = max(self.under_way_max, run["under_way_max"])
        self.operations.update(run["operations"])
        self.faults.update(run["faults"])
        self.effective.update(run["effective"])

    def __str__(self) -> str:
        lines = ["| fault | done | seen |", "| --- | --- | --- |"]
        lines += [f"| {k} | {self.faults[k]} | {self.effective[k]} |" for k in sorted(self.faults)]
        told = ", ".join(f"{self.operations[end]} {end}" for end in ENDS)
        lines.append(
            f"{self.runs} runs, {told} on {self.keys} keys, {self.leader_changes} leader changes, "
            f"at most {self.under_way_max} requests under way"
        )
        return "\n".join(lines)


def main() -> int:
    """Run until the time is over; the exit code of the first run that is not valid, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--duration", type=float, default=120.0, help="of each run, in seconds")
    parser.add_argument("--rate", type=float, default=200.0, help="operations a second")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("soak"))
    asked = parser.parse_args()
    sums, deadline = Sums(), time.monotonic() + asked.minutes * 60
    shapes = itertools.cycle(itertools.product(NODES, WORKLOADS, ((), CROWD)))
    seeds = itertools.count(asked.first_seed)
    for seed, (nodes, workload, crowd) in zip(seeds, shapes, strict=False):
        if time.monotonic() > deadline:
            break
        out = asked.out / f"{seed}-{workload}-{nodes}"
        code = run(seed, workload, nodes, crowd=crowd, asked=asked, out=out)
        if code != 0:
            sys.stdout.write(f"seed {seed}: code {code}, see {out}\n{sums}\n")
            return code
        sums.add(json.loads((out / "run.json").read_text()))
        shutil.rmtree(out)
        sys.stdout.write(f"{sums}\n")
        sys.stdout.flush()
    return 0


def run(
    seed: int,
    workload: str,
    nodes: int,
    *,
    crowd: Sequence[str],
    asked: argparse.Namespace,
    out: Path,
) -> int:
    """One run."""
    command = [
        *(*PYTHON_M, "raftkv", "chaos"),
        *("--seed", str(seed), "--workload", workload, "--nodes", str(nodes)),
        *("--duration", f"{asked.duration:g}", "--rate", f"{asked.rate:g}", "--out", str(out)),
        *crowd,
    ]
    return subprocess.run(command, check=False).returncode  # noqa: S603 -- our own command


if __name__ == "__main__":
    sys.exit(main())
