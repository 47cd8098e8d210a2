"""Simulated time: what happens when, and in which order."""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.sim import scheduler as scheduler_module
from raftkv.sim.scheduler import SECOND_US, Livelock, Scheduler


def order_of_ties(seed: int) -> list[int]:
    """The order in which twenty events of one moment happen."""
    scheduler, seen = Scheduler(Random(seed)), list[int]()
    for number in range(20):
        scheduler.after(7, seen.append, number)
    scheduler.run(7)
    return seen


@given(st.lists(st.integers(0, 3 * SECOND_US), max_size=20))
def test_events_happen_at_their_time_in_order(delays_us: list[int]) -> None:
    """Whatever the order in which they were asked for, each sees its own time on the clock."""
    scheduler, seen = Scheduler(Random(1)), list[int]()
    for delay_us in delays_us:
        scheduler.after(delay_us, lambda: seen.append(scheduler.now_us))
    scheduler.run(3 * SECOND_US)
    assert seen == sorted(delays_us)
    assert scheduler.events == len(delays_us)


@given(st.lists(st.integers(0, 10 * SECOND_US), max_size=5), st.integers(0, 10 * SECOND_US))
def test_the_clock_shows_the_end_of_a_run(delays_us: list[int], until_us: int) -> None:
    """Also when there is nothing more to do, or what comes next comes later."""
    scheduler, seen = Scheduler(Random(1)), list[int]()
    for delay_us in delays_us:
        scheduler.after(delay_us, seen.append, delay_us)
    scheduler.run(until_us)
    assert scheduler.now_us == until_us
    assert scheduler.now_s == until_us / 1e6
    assert seen == sorted(delay_us for delay_us in delays_us if delay_us <= until_us)


def test_the_seed_decides_ties() -> None:
    """Events of one moment have an order by chance, the same for the same seed."""
    assert order_of_ties(1) == order_of_ties(1)
    assert sorted(order_of_ties(1)) == list(range(20))
    assert order_of_ties(1) != order_of_ties(2)
    assert order_of_ties(1) != list(range(20)), "first come, first served is no chance"


def test_what_happens_may_make_more_happen() -> None:
    """An event that is asked for by another, for now or later, happens in the same run."""
    scheduler, seen = Scheduler(Random(1)), list[tuple[str, int]]()

    def note(name: str) -> None:
        seen.append((name, scheduler.now_us))

    def first() -> None:
        scheduler.after(0, note, "now")
        scheduler.after(5, note, "later")
        scheduler.after(6, note, "too late")

    scheduler.after(10, first)
    scheduler.run(15)
    assert seen == [("now", 10), ("later", 15)]


def test_a_cancelled_timer_never_fires() -> None:
    """Cancelling again, or after the fact, does nothing."""
    scheduler, seen = Scheduler(Random(1)), list[str]()
    cancelled, done = scheduler.after(1, seen.append, "no"), scheduler.after(2, seen.append, "yes")
    cancelled.cancel()
    cancelled.cancel()
    scheduler.run(10)
    done.cancel()
    assert seen == ["yes"]


def test_a_timer_fires_once() -> None:
    """Fired by hand, it does not fire again when its time comes."""
    scheduler, seen = Scheduler(Random(1)), list[str]()
    scheduler.after(1, seen.append, "once").fire()
    scheduler.run(10)
    assert seen == ["once"]


def test_stop_ends_a_run_after_the_event_that_happens() -> None:
    """The rest waits for the next run, and the clock stands where it was stopped."""
    scheduler, seen = Scheduler(Random(1)), list[int]()
    scheduler.after(10, scheduler.stop)
    scheduler.after(20, seen.append, 20)
    scheduler.run(100)
    assert (scheduler.now_us, seen) == (10, [])
    scheduler.run(100)
    assert (scheduler.now_us, seen) == (100, [20])


def test_refuses_to_go_back() -> None:
    """Nothing can be asked for in the past."""
    with pytest.raises(ValueError, match="does not go back"):
        Scheduler(Random(1)).after(-1, print)


def turning(scheduler: Scheduler, delay_us: int) -> Callable[[], None]:
    """Something that asks for itself again."""

    def turn() -> None:
        scheduler.after(delay_us, turn)

    return turn


def test_turning_in_circles_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """More events in a second than can be right are a livelock, not an endless run."""
    monkeypatch.setattr(scheduler_module, "EVENTS_PER_SECOND_MAX", 100)
    scheduler = Scheduler(Random(1))
    scheduler.after(0, turning(scheduler, 0))
    with pytest.raises(Livelock, match="100 events in one second"):
        scheduler.run(SECOND_US)


def test_many_events_over_a_long_time_are_no_livelock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is for each second."""
    monkeypatch.setattr(scheduler_module, "EVENTS_PER_SECOND_MAX", 100)
    scheduler = Scheduler(Random(1))
    scheduler.after(0, turning(scheduler, SECOND_US // 50))
    scheduler.run(20 * SECOND_US)
    assert scheduler.events == 1001
