"""Shrinking: the smallest run that still fails, in few trials."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.sim.options import FAULTS, WORKLOADS, Options
from raftkv.sim.plan import plan
from raftkv.sim.shrink import shrink

BIG = Options.of(
    5, 10.0, faults=FAULTS, fault_every_s=4.0, workloads=WORKLOADS, clients=10
)  # about 150 faults


class Failure:
    """A bug that shows if some faults happen, some work is done and the run is long enough."""

    def __init__(
        self,
        faults: set[int] = frozenset(),  # type: ignore[assignment] # nobody changes it
        *,
        minutes: float = 0.0,
        workload: str | None = None,
        clients: int = 1,
    ) -> None:
        self.faults = faults
        self.minutes = minutes
        self.workload = workload
        self.clients = clients
        self.trials = 0

    def __call__(self, options: Options) -> bool:
        """Whether it shows."""
        self.trials += 1
        return (
            self.faults <= {fault.number for fault in plan(options)}
            and options.minutes >= self.minutes
            and (self.workload is None or self.workload in options.workloads)
            and options.clients >= self.clients
        )


def test_finds_the_minimal_set_of_faults() -> None:
    """Two of about 150 faults, one of five workloads, one client, and not much more time."""
    fails = Failure({3, 7}, minutes=1.0, workload="bank")
    smaller = shrink(BIG, fails, failed_at_s=300.0)
    assert smaller.keep == (3, 7)
    assert 1.0 <= smaller.minutes < 2.0
    assert smaller.workloads == ("bank",)
    assert smaller.clients == 1


@given(
    st.sets(st.integers(0, 11), min_size=1, max_size=3),
    st.sampled_from(WORKLOADS),
    st.integers(1, 5),
)
def test_what_is_found_fails_and_needs_each_of_its_faults(
    faults: set[int], workload: str, clients: int
) -> None:
    """1-minimal, whatever is needed; everything that is not shrunk stays as it was."""
    fails = Failure(faults, minutes=1.0, workload=workload, clients=clients)
    smaller = shrink(BIG, fails, failed_at_s=80.0, trials_max=1000)
    assert fails(smaller)
    assert set(smaller.keep or ()) == faults
    assert clients <= smaller.clients < 2 * clients + 1
    assert (smaller.seed, smaller.nodes, smaller.faults) == (BIG.seed, BIG.nodes, BIG.faults)


def test_a_failure_without_faults_needs_none() -> None:
    """That is tried first."""
    smaller = shrink(BIG, Failure(minutes=1.0), failed_at_s=90.0)
    assert smaller.keep == ()
    assert plan(shrink(BIG, Failure(), failed_at_s=90.0)) == []


def test_a_failure_after_the_faults_is_shrunk_in_time_too() -> None:
    """One that shows in the liveness phase is later than the minutes say."""
    smaller = shrink(BIG, Failure(minutes=2.0), failed_at_s=650.0)
    assert 2.0 <= smaller.minutes <= 4.0


def test_a_run_that_ends_earlier_may_need_a_little_more_time() -> None:
    """The failure does not show again at once where it did: later is tried before giving up."""
    smaller = shrink(BIG, Failure({3}, minutes=1.4), failed_at_s=60.0)
    assert 1.4 <= smaller.minutes < 1.6
    assert smaller.keep == (3,)


def test_what_never_fails_again_is_left_as_it_is() -> None:
    """A failure that does not replay is not made smaller, and shrinking ends."""
    fails = Failure(clients=1000)
    assert shrink(BIG, fails, failed_at_s=100.0) == BIG
    assert fails.trials <= 80


@pytest.mark.parametrize("trials_max", [0, 1, 5, 12])
def test_trials_are_bounded(trials_max: int) -> None:
    """When they are used up, what is smallest so far still fails."""
    fails = Failure({3, 7}, minutes=1.0)
    smaller = shrink(BIG, fails, failed_at_s=300.0, trials_max=trials_max)
    assert fails.trials <= trials_max
    assert fails(smaller)
