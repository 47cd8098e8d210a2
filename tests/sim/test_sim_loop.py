"""The simulated event loop: asyncio as far as the engine uses it, in simulated time."""

import asyncio
from itertools import pairwise

import pytest

from raftkv.sim.clock import MachineClock
from raftkv.sim.disk import SimulatedCrash
from tests.sim.sim_parts import Bench, recording


def test_what_is_called_soon_runs_in_order() -> None:
    """First come, first served, and never at once."""
    bench, (seen, record) = Bench(), recording()
    for number in range(50):
        bench.loop.call_soon(record, number)
    assert seen == []
    bench.run_s(0.01)
    assert seen == list(range(50))


def test_what_a_turn_makes_ready_waits_for_the_next() -> None:
    """A callback that is called soon by another runs after all that were there before."""
    bench, (seen, record) = Bench(), recording()

    def first() -> None:
        record("first")
        bench.loop.call_soon(record, "asked by first")

    bench.loop.call_soon(first)
    bench.loop.call_soon(record, "second")
    bench.run_s(0.01)
    assert seen == ["first", "second", "asked by first"]
    assert bench.turns == 2


def test_a_turn_takes_time_to_come() -> None:
    """How long is chance: other things may happen before it, in another way with each seed."""
    delays_us = set()
    for seed in range(20):
        bench = Bench(seed)
        seen, record = recording()
        bench.loop.call_soon(lambda bench=bench, record=record: record(bench.scheduler.now_us))
        bench.run_s(0.01)
        delays_us.update(seen)
    assert len(delays_us) > 5
    assert 0 < min(delays_us) <= max(delays_us) < 1000


@pytest.mark.parametrize("rate", [0.9, 1.0, 1.1])
def test_timers_go_by_the_clock_of_the_machine(rate: float) -> None:
    """A clock that runs too fast lets them fire too early, by the world's."""
    bench, (seen, record) = Bench(rate=rate), recording()
    bench.loop.call_later(10.0, lambda: record(bench.scheduler.now_s, bench.loop.time()))
    bench.run_s(20.0)
    ((world_s, machine_s),) = seen
    assert world_s == pytest.approx(10.0 / rate, abs=0.001)
    assert 60.0 <= machine_s < 60.001, "never early by its own clock, which began at 50 s"


def test_a_clock_that_becomes_slower_delays_its_timers() -> None:
    """A timer that would be early is armed again."""
    bench, (seen, record) = Bench(), recording()
    bench.loop.call_later(10.0, lambda: record(bench.scheduler.now_s))
    bench.run_s(5.0)
    bench.clock.drift(0.5)
    bench.run_s(100.0)
    assert seen == [pytest.approx(15.0, abs=0.001)]


def test_timers_fire_in_the_order_of_their_times() -> None:
    """Whatever the order in which they were made."""
    bench, (seen, record) = Bench(), recording()
    for delay_s in (3.0, 1.0, 2.0):
        bench.loop.call_later(delay_s, record, delay_s)
    bench.loop.call_at(bench.loop.time() + 1.5, record, 1.5)
    bench.run_s(5.0)
    assert seen == [1.0, 1.5, 2.0, 3.0]


def test_what_is_cancelled_never_runs() -> None:
    """Before its time, or when it is ready already."""
    bench, (seen, record) = Bench(), recording()
    soon, later = bench.loop.call_soon(record, "soon"), bench.loop.call_later(1.0, record, "later")
    ready = bench.loop.call_later(1.0, record, "ready")
    for handle in (soon, later):
        handle.cancel()
        assert handle.cancelled()
    bench.loop.freeze()
    bench.run_s(2.0)
    ready.cancel()
    bench.loop.thaw()
    bench.run_s(2.0)
    assert seen == []


def test_a_frozen_process_does_nothing_and_misses_nothing() -> None:
    """What arrives and what is due meanwhile runs when it goes on, in order."""
    bench, (seen, record) = Bench(), recording()
    bench.loop.call_later(1.0, record, "due")
    bench.loop.call_soon(record, "ready")
    bench.loop.freeze()
    bench.run_s(2.0)
    bench.loop.call_soon(record, "arrived")
    bench.run_s(2.0)
    assert seen == []
    bench.loop.thaw()
    bench.run_s(0.01)
    assert seen == ["ready", "due", "arrived"]


def test_a_process_can_be_frozen_in_the_middle_of_a_turn() -> None:
    """The rest of the turn waits, before what was asked for in it and what comes later."""
    bench, (seen, record) = Bench(), recording()
    bench.loop.call_soon(lambda: bench.loop.call_soon(record, "asked for"))
    bench.loop.call_soon(bench.loop.freeze)
    bench.loop.call_soon(record, "rest")
    bench.run_s(1.0)
    bench.loop.call_soon(record, "later")
    bench.run_s(1.0)
    assert seen == []
    bench.loop.thaw()
    bench.run_s(1.0)
    assert seen == ["rest", "asked for", "later"]


def test_freezing_and_thawing_at_once_changes_nothing() -> None:
    """A turn that was on its way still comes, once."""
    bench, (seen, record) = Bench(), recording()
    bench.loop.call_soon(record, "once")
    bench.loop.freeze()
    bench.loop.thaw()
    bench.run_s(1.0)
    assert seen == ["once"]


def test_an_ended_process_runs_nothing_more() -> None:
    """Not what was ready, not the rest of its turn, no timers, nothing new."""
    bench, (seen, record) = Bench(), recording()
    bench.loop.call_later(1.0, record, "timer")
    bench.loop.call_soon(bench.loop.end)
    bench.loop.call_soon(record, "rest")
    bench.run_s(0.5)
    bench.loop.call_soon(record, "new")
    bench.loop.call_later(0.1, record, "new timer")
    bench.run_s(5.0)
    assert seen == []
    assert bench.loop.is_closed()
    assert not bench.loop.is_running()
    assert bench.turns == 0, "nobody looks at a dead process"


@pytest.mark.parametrize("error", [ValueError("x"), SimulatedCrash(), KeyboardInterrupt()])
def test_whatever_a_callback_raises_is_reported(error: BaseException) -> None:
    """Also what is no Exception; what does not end the process goes on."""
    bench, (seen, record) = Bench(), recording()

    def fails() -> None:
        raise error

    bench.loop.call_soon(record, "before")
    bench.loop.call_soon(fails)
    bench.loop.call_soon(record, "after")
    bench.run_s(0.01)
    assert bench.failures == [error]
    assert seen == ["before", "after"]


@pytest.mark.parametrize("error", [ValueError("x"), SimulatedCrash()])
def test_what_a_forgotten_task_raises_is_reported(error: BaseException) -> None:
    """Nobody waits for the task: it must not vanish with its exception."""
    bench = Bench()

    async def fails() -> None:
        await asyncio.sleep(0.1)
        raise error

    bench.loop.create_task(fails())
    bench.run_s(1.0)
    assert bench.failures == [error]


def test_what_an_awaited_task_raises_goes_to_who_awaits() -> None:
    """And is not reported beside."""
    bench, (seen, record) = Bench(), recording()

    async def fails() -> None:
        raise ValueError("expected")

    async def catches() -> None:
        try:
            await bench.loop.create_task(fails())
        except ValueError as error:
            record(str(error))

    bench.loop.create_task(catches())
    bench.run_s(1.0)
    assert seen == ["expected"]
    assert bench.failures == []


def test_sleeping_takes_time_of_the_machine() -> None:
    """asyncio.sleep ends when the machine's clock has gone on by so much."""
    bench, (seen, record) = Bench(rate=2.0), recording()

    async def sleeps() -> None:
        record(await asyncio.sleep(10.0, "slept"), round(bench.scheduler.now_s, 3))

    bench.loop.create_task(sleeps())
    bench.run_s(4.9)
    assert seen == []
    bench.run_s(1.0)
    assert seen == [("slept", 5.0)]


def test_a_timeout_ends_what_takes_too_long() -> None:
    """asyncio.timeout cancels its block, and leaves a quick one alone."""
    bench, (seen, record) = Bench(), recording()

    async def waits(for_s: float) -> None:
        try:
            async with asyncio.timeout(1.0):
                await asyncio.sleep(for_s)
            record("in time", for_s)
        except TimeoutError:
            record("too late", for_s, round(bench.scheduler.now_s, 3))

    for for_s in (0.5, 2.0):
        bench.loop.create_task(waits(for_s))
    bench.run_s(5.0)
    assert seen == [("in time", 0.5), ("too late", 2.0, 1.0)]


def test_several_things_can_be_waited_for() -> None:
    """asyncio.gather waits for all, asyncio.wait for the first, wait_for for so long."""
    bench, (seen, record) = Bench(), recording()

    async def after(delay_s: float) -> float:
        return await asyncio.sleep(delay_s, delay_s)

    async def waits() -> None:
        record(await asyncio.gather(after(2.0), after(1.0)))
        tasks = [bench.loop.create_task(after(delay_s)) for delay_s in (2.0, 1.0)]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        record([task.result() for task in done], len(pending))
        for task in pending:
            task.cancel()
        record(await asyncio.wait_for(after(0.5), 1.0))
        record(round(bench.scheduler.now_s, 2))

    bench.loop.create_task(waits())
    bench.run_s(10.0)
    assert seen == [[2.0, 1.0], ([1.0], 1), 0.5, 3.5]


def test_a_cancelled_task_can_tidy_up() -> None:
    """It sees the cancellation where it waits."""
    bench, (seen, record) = Bench(), recording()

    async def waits() -> None:
        try:
            await asyncio.sleep(100.0)
        finally:
            record("tidied up")

    task = bench.loop.create_task(waits(), name="waits")
    bench.run_s(0.1)
    task.cancel()
    bench.run_s(0.1)
    assert seen == ["tidied up"]
    assert task.cancelled()
    assert task.get_name() == "waits"
    assert bench.failures == []


def test_code_sees_the_loop_that_it_runs_on() -> None:
    """Two processes on one timeline have a loop each; outside there is none."""
    bench, (seen, record) = Bench(), recording()
    other = bench.new_loop()
    for loop in (bench.loop, other):
        loop.call_soon(lambda loop=loop: record(asyncio.get_running_loop() is loop.as_asyncio))
    bench.run_s(0.01)
    assert seen == [True, True]
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


def test_a_busy_loop_lets_others_take_their_turns() -> None:
    """Two loops that always have something to do take turns by chance, neither for ever."""
    bench, (seen, record) = Bench(), recording()
    other = bench.new_loop()

    def again(name: str, left: int) -> None:
        record(name)
        if left:
            (bench.loop if name == "a" else other).call_soon(again, name, left - 1)

    bench.loop.call_soon(again, "a", 200)
    other.call_soon(again, "b", 200)
    bench.run_s(1.0)
    changes = sum(one != next_one for one, next_one in pairwise(seen))
    assert len(seen) == 402
    assert 20 < changes < 380, "both run on for a while, and both are interrupted"


def test_machines_keep_their_own_wall_clock() -> None:
    """A step of it changes what it shows, not how long anything takes."""
    bench = Bench()
    clock = MachineClock(bench.scheduler, booted_s=0.0, rate=1.0, wall_offset_us=7)
    before_us, before_s = clock.time_us(), clock.monotonic()
    clock.step_wall(-1000)
    assert (clock.time_us(), clock.monotonic()) == (before_us - 1000, before_s)
    bench.run_s(1.0)
    assert clock.time_us() == before_us - 1000 + 1_000_000
    assert clock.monotonic() == before_s + 1.0
