"""Which faults happen when: decided by the seed before the run begins."""

from dataclasses import dataclass
from random import Random

from raftkv.sim.options import Options

FIRST_S = 3.0
"""A cluster is given this long to come up before the first fault."""

DURATIONS_S = (0.2, 1.0, 3.0, 8.0, 20.0)


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """One fault. ``seed`` decides on whom and how, so that dropping others does not change it."""

    number: int
    at_s: float
    kind: str
    duration_s: float
    seed: str

    def __str__(self) -> str:
        return f"{self.number}: {self.kind} at {self.at_s:.3f} s for {self.duration_s:.1f} s"


def plan(options: Options) -> list[PlannedFault]:
    """Return the faults of a run, in order; none in its last seconds."""
    random = Random(f"faults {options.seed}")
    faults: list[PlannedFault] = []
    at_s, end_s = FIRST_S, options.minutes * 60
    while options.faults:
        at_s += random.expovariate(1 / options.fault_every_s)
        if at_s > end_s:
            break
        number = len(faults)
        duration_s = random.choice(DURATIONS_S) * random.uniform(0.5, 1.5)
        seed = f"fault {options.seed} {number}"
        faults.append(PlannedFault(number, at_s, random.choice(options.faults), duration_s, seed))
    if options.keep is None:
        return faults
    return [fault for fault in faults if fault.number in options.keep]
