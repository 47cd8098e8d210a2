"""Which faults happen when: decided by the seed before the run begins."""

from dataclasses import dataclass
from random import Random

from raftkv.sim.options import AIMED, Options

FIRST_S = 3.0
"""A cluster is given this long to come up before the first fault."""

DURATIONS_S = (0.02, 0.2, 1.0, 3.0, 8.0, 20.0)

LONG_S = {
    "freeze_long": (40.0, 80.0, 150.0),
    "crash_in_disk": (3.0, 8.0, 20.0),
    "full_disk": (8.0, 20.0),
    "full_for_snapshots": (8.0, 20.0),
    "killed_writers": (8.0, 20.0),
    "hanging_jobs": (3.0, 20.0),
    "failing_reads": (8.0, 20.0),
    "failing_renames": (8.0, 20.0),
    "full_sockets": (1.0, 3.0, 8.0),
    "forwarder_restart": (3.0,),
    "cut_clients": (1.0, 3.0, 8.0),
}
"""Kinds that need their time to meet somebody."""

AIMED_WEIGHT = 3
"""How much more often than others the aimed kinds come."""

BURST_SHARE = 0.2
BURST_FAULTS = (2, 3, 4)
BURST_S = 2.0
"""So many faults come within so long now and then, most of them aimed at one leader."""


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """One fault. ``seed`` decides on whom and how, so that dropping others does not change it."""

    number: int
    at_s: float
    kind: str
    duration_s: float
    seed: str
    burst: int | None = None
    """Number of the burst's first fault: those of one burst are aimed at one machine."""

    def __str__(self) -> str:
        burst = "" if self.burst is None else f" (burst {self.burst})"
        return f"{self.number}: {self.kind} at {self.at_s:.3f} s for {self.duration_s:.1f} s{burst}"


def plan(options: Options) -> list[PlannedFault]:
    """Return the faults of a run, in order, alone or in bursts.

    A burst is followed by as long a calm as its faults would have taken one by one, in which it is
    seen whether the cluster recovers.
    """
    random = Random(f"faults {options.seed}")
    faults: list[PlannedFault] = []
    deck = [k for kind in options.faults for k in [kind] * (AIMED_WEIGHT if kind in AIMED else 1)]
    at_s, end_s = FIRST_S, options.minutes * 60
    while options.faults:
        at_s += random.expovariate(1 / options.fault_every_s)
        count = random.choice(BURST_FAULTS) if random.random() < BURST_SHARE else 1
        times_s = sorted([0.0, *(random.uniform(0, BURST_S) for _ in range(count - 1))])
        burst = None if count == 1 else len(faults)
        for after_s in times_s:
            number = len(faults)
            kind = random.choice(deck)
            duration_s = random.choice(LONG_S.get(kind, DURATIONS_S)) * random.uniform(0.5, 1.5)
            seed = f"fault {options.seed} {number}"
            faults.append(PlannedFault(number, at_s + after_s, kind, duration_s, seed, burst))
        if faults[-1].at_s > end_s:
            break
        at_s = faults[-1].at_s + sum(
            random.expovariate(1 / options.fault_every_s) for _ in range(count - 1)
        )
    faults = [fault for fault in faults if fault.at_s <= end_s]
    if options.keep is None:
        return faults
    return [fault for fault in faults if fault.number in options.keep]
