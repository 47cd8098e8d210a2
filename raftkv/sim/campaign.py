"""Many seeds on many processes, and what they were like together."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from itertools import islice

from raftkv.sim.options import Options
from raftkv.sim.run import Report, run

_AHEAD = 4
"""Seeds handed out ahead for each process: few, so that an interrupt does not wait for many."""


@dataclass(slots=True)
class Tally:
    """Sums over many runs."""

    seeds: int = 0
    simulated_s: float = 0.0
    cpu_s: float = 0.0
    operations: int = 0
    elections: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    """Those that were seen to take effect."""
    without_effect: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    failed: list[Report] = field(default_factory=list)

    def add(self, report: Report) -> None:
        """Count one run."""
        self.seeds += 1
        self.simulated_s += report.simulated_s
        self.cpu_s += report.cpu_s
        self.operations += report.operations
        self.elections += report.elections
        self.outcomes.update(report.outcomes)
        self.faults.update(report.faults)
        self.without_effect.update(report.without_effect)
        self.refused.update(report.refused)
        if report.violation is not None:
            self.failed.append(report)

    def shares(self) -> dict[str, tuple[int, int]]:
        """Of each kind of fault: how many were seen to take effect, and how many were tried."""
        kinds = sorted(self.faults.keys() | self.without_effect.keys())
        return {
            kind: (self.faults[kind], self.faults[kind] + self.without_effect[kind])
            for kind in kinds
        }

    @property
    def speed(self) -> float:
        """Simulated seconds in a second of one core."""
        return self.simulated_s / self.cpu_s if self.cpu_s else 0.0


def run_seeds(runs: Sequence[Options], jobs: int) -> Iterator[Report]:
    """Yield a report of each, in the order in which they end."""
    if jobs == 1:
        yield from map(run, runs)
        return
    with ProcessPoolExecutor(jobs) as pool:
        waiting: Iterable[Options] = iter(runs)
        running = {pool.submit(run, options) for options in islice(waiting, _AHEAD * jobs)}
        try:
            while running:
                done = next(as_completed(running))
                running.discard(done)
                running |= {pool.submit(run, options) for options in islice(waiting, 1)}
                yield done.result()
        finally:
            for future in running:
                future.cancel()
