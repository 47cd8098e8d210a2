"""Makes a failing run small: fewer minutes, fewer faults, fewer clients, the same failure.

Delta debugging (Zeller and Hildebrandt 2002, ddmin) over the faults of the plan: every one of them
has a seed of its own, so that dropping some leaves the others what they were.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from raftkv.sim.options import Options
from raftkv.sim.plan import plan

TRIALS_MAX = 80


class _Budget(Exception):  # noqa: N818 -- a way out, not an error
    """No more trials."""


def shrink(
    options: Options,
    fails: Callable[[Options], bool],
    *,
    failed_at_s: float,
    trials_max: int = TRIALS_MAX,
) -> Options:
    """Return smaller options that still fail.

    Args:
        options: which fail.
        fails: runs some, and says whether they fail as well.
        failed_at_s: when the failure showed, in simulated seconds.
        trials_max: how many runs this may take.
    """
    return _Shrinker(options, fails, trials_max).shrink(failed_at_s)


class _Shrinker:
    """The smallest options so far, and how many runs are left."""

    def __init__(self, options: Options, fails: Callable[[Options], bool], trials_max: int) -> None:
        self._best = options
        self._fails = fails
        self._left = trials_max

    def shrink(self, failed_at_s: float) -> Options:
        """Go through all that can be smaller, the most rewarding first."""
        try:
            self._shrink_time(failed_at_s)
            self._shrink_faults()
            self._shrink_workloads()
            self._shrink_time(failed_at_s)
        except _Budget:
            pass  # what is smallest so far is good enough
        return self._best

    def _try(self, smaller: Options) -> bool:
        """Keep ``smaller`` if it still fails."""
        if not self._left:
            raise _Budget
        self._left -= 1
        if self._fails(smaller):
            self._best = smaller
            return True
        return False

    def _shrink_time(self, failed_at_s: float) -> None:
        """Stop soon after the failure; then earlier and earlier."""
        minutes = failed_at_s / 60
        while minutes < self._best.minutes and not self._try(replace(self._best, minutes=minutes)):
            minutes *= 1.5
        while self._best.minutes > 0.1 and self._try(  # noqa: PLR2004 -- seconds are short enough
            replace(self._best, minutes=self._best.minutes / 2)
        ):
            pass

    def _shrink_faults(self) -> None:
        """Drop ever smaller parts of the plan (ddmin)."""
        kept = tuple(fault.number for fault in plan(self._best))
        if kept and self._try(replace(self._best, keep=())):
            return
        parts = 2
        while len(kept) > 1:
            for rest in _without_a_part(kept, parts):
                if self._try(replace(self._best, keep=rest)):
                    kept, parts = rest, max(2, parts - 1)
                    break
            else:
                if parts >= len(kept):
                    return
                parts = min(len(kept), 2 * parts)

    def _shrink_workloads(self) -> None:
        """One kind of operation, few clients."""
        for workload in self._best.workloads:
            if self._try(replace(self._best, workloads=(workload,))):
                break
        while self._best.clients > 1 and self._try(
            replace(self._best, clients=self._best.clients // 2)
        ):
            pass


def _without_a_part(kept: tuple[int, ...], parts: int) -> Iterator[tuple[int, ...]]:
    size = -(-len(kept) // parts)
    for start in range(0, len(kept), size):
        yield kept[:start] + kept[start + size :]
