"""Blocking work of a simulated process: when it is done, and who hears of it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from raftkv.sim.disk import SimulatedCrash
from raftkv.sim.jobs import SimJobs
from tests.sim.sim_parts import Bench, recording


class Workshop(Bench):
    """Jobs of one process; each takes 10 ms unless ``durations_us`` says something else."""

    def __init__(self, threads: int = 1) -> None:
        super().__init__()
        self.durations_us: list[int] = []
        self.still = False
        self.notes: list[tuple[str, int]] = []
        self.done: list[tuple[Any, BaseException | None]] = []
        self.jobs = SimJobs(
            self.scheduler,
            self.loop,
            threads,
            duration_us=lambda: self.durations_us.pop(0) if self.durations_us else 10_000,
            stands_still=lambda: self.still,
            failed=self.failures.append,
        )

    def note(self, name: str) -> None:
        """A job that notes when it is done."""
        self.notes.append((name, self.scheduler.now_us))

    def run_job(self, job: Callable[[], Any]) -> None:
        """Run it; what it reports is appended to ``done``."""
        self.jobs.run(job, lambda result, error: self.done.append((result, error)))


def raising(error: BaseException) -> Callable[[], None]:
    """A job that fails."""

    def job() -> None:
        raise error

    return job


def test_a_job_takes_its_time() -> None:
    """It is not done before, and its report comes on the loop."""
    shop, (ran, record) = Workshop(), recording()
    shop.run_job(lambda: record(shop.scheduler.now_us))
    assert ran == []
    shop.run_s(0.009)
    assert (ran, shop.done) == ([], [])
    shop.run_s(0.002)
    assert ran == [10_000]
    assert shop.done == [(None, None)]


def test_what_a_job_returns_or_raises_is_reported() -> None:
    """An error is no end of the process: it belongs to who asked for the job."""
    shop, error = Workshop(), ValueError("no")
    shop.run_job(lambda: 42)
    shop.run_job(raising(error))
    shop.run_s(1.0)
    assert shop.done == [(42, None), (None, error)]
    assert shop.failures == []


def test_one_thread_does_one_thing_after_another() -> None:
    """A long job delays the next, however short."""
    shop = Workshop()
    shop.durations_us = [50_000, 1_000]
    for name in ("long", "short"):
        shop.run_job(partial(shop.note, name))
    shop.run_s(1.0)
    assert shop.notes == [("long", 50_000), ("short", 51_000)]


def test_with_two_threads_jobs_overtake_each_other() -> None:
    """The third takes the thread that is free first."""
    shop = Workshop(threads=2)
    shop.durations_us = [50_000, 1_000, 2_000]
    for name in ("long", "short", "third"):
        shop.run_job(partial(shop.note, name))
    shop.run_s(1.0)
    assert shop.notes == [("short", 1_000), ("third", 3_000), ("long", 50_000)]


def test_nothing_is_finished_while_the_disk_stands_still() -> None:
    """Afterwards it is, soon."""
    shop, (ran, record) = Workshop(), recording()
    shop.still = True
    shop.run_job(lambda: record(shop.scheduler.now_s))
    shop.run_s(5.0)
    assert ran == []
    shop.still = False
    shop.run_s(0.1)
    assert ran == [pytest.approx(5.0, abs=0.01)]


@pytest.mark.parametrize("still_us", [1_500, 5_004, 20_003])
def test_jobs_of_one_thread_keep_their_order_over_a_stall(still_us: int) -> None:
    """However long the disk stood still: a job is not begun before the one before it."""
    shop, ran = Workshop(), list[int]()
    shop.durations_us = [10, 995, 7, 2_400]
    shop.still = True
    for number in range(4):
        shop.run_job(partial(ran.append, number))
    shop.run_s(still_us / 1e6)
    shop.still = False
    shop.run_s(1.0)
    assert ran == [0, 1, 2, 3]


def test_a_job_that_is_due_after_a_stall_does_not_overtake_those_held_in_it() -> None:
    """Even if it is due before anybody has seen that the stall is over."""
    shop = Workshop()
    shop.durations_us = [10, 590]
    shop.still = True
    for name in ("held", "next"):
        shop.run_job(partial(shop.note, name))
    shop.run_s(0.000_5)
    shop.still = False
    shop.run_s(1.0)
    assert [name for name, _ in shop.notes] == ["held", "next"]


def test_after_the_close_nothing_is_reported() -> None:
    """Neither what is still to be done, nor what was done just before."""
    shop = Workshop()

    def last() -> None:
        shop.note("last")
        shop.jobs.close()

    shop.run_job(last)
    shop.run_job(partial(shop.note, "never"))
    shop.run_s(1.0)
    assert [name for name, _ in shop.notes] == ["last"]
    assert shop.done == []


def test_a_dead_process_finishes_no_job() -> None:
    """What was not done when it died is never done."""
    shop, (ran, record) = Workshop(), recording()
    shop.run_job(lambda: record("never"))
    shop.loop.end()
    shop.run_s(1.0)
    assert (ran, shop.done) == ([], [])


def test_a_frozen_process_hears_of_its_jobs_later() -> None:
    """The report waits with everything else."""
    shop = Workshop()
    shop.run_job(lambda: 1)
    shop.loop.freeze()
    shop.run_s(1.0)
    assert shop.done == []
    shop.loop.thaw()
    shop.run_s(1.0)
    assert shop.done == [(1, None)]


def test_a_crash_in_a_job_is_the_end_of_the_machine() -> None:
    """It is told to the simulation, and not to the process, which is no more."""
    shop, crash = Workshop(), SimulatedCrash()
    shop.run_job(raising(crash))
    shop.run_s(1.0)
    assert shop.failures == [crash]
    assert shop.done == []
