"""Blocking work on a thread of its own."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from raftkv.engine.jobs import OwnThread

Outcome = tuple[Any, BaseException | None]


def outcomes_of(*jobs: Callable[[], Any]) -> list[Outcome]:
    """What is reported of jobs that are asked for at once."""

    async def run() -> list[Outcome]:
        thread = OwnThread(asyncio.get_running_loop(), "test")
        reported: list[Outcome] = []
        all_reported = asyncio.Event()

        def done(result: Any, error: BaseException | None) -> None:
            assert threading.current_thread() is threading.main_thread()
            reported.append((result, error))
            if len(reported) == len(jobs):
                all_reported.set()

        for job in jobs:
            thread.run(job, done)
        async with asyncio.timeout(10):
            await all_reported.wait()
        thread.close()
        return reported

    return uvloop.run(run())


def test_jobs_run_in_the_order_they_came_and_off_the_loop() -> None:
    """One thread, and not the loop's."""
    threads: list[int] = []

    def job(number: int) -> int:
        threads.append(threading.get_ident())
        return number

    reported = outcomes_of(*(lambda number=n: job(number) for n in range(100)))
    assert [result for result, _ in reported] == list(range(100))
    assert set(threads) != {threading.get_ident()}
    assert len(set(threads)) == 1


def test_an_error_is_reported_and_the_next_job_runs() -> None:
    """The loop decides what an error means."""
    broken = OSError("no disk")

    def fail() -> None:
        raise broken

    assert outcomes_of(fail, lambda: 1) == [(None, broken), (1, None)]


def test_after_close_nothing_is_reported_and_nothing_begun() -> None:
    """Closing waits for the job that runs, and for no other."""
    begun, release = threading.Event(), threading.Event()
    calls: list[object] = []

    def held() -> None:
        begun.set()
        release.wait(10)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        thread = OwnThread(loop, "test")
        thread.run(held, lambda *outcome: calls.append(outcome))
        thread.run(lambda: calls.append("begun"), lambda *outcome: calls.append(outcome))
        await loop.run_in_executor(None, begun.wait, 10)
        loop.run_in_executor(None, release.set)
        thread.close()  # waits for the one that runs
        thread.close()
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="closed"):
            thread.run(held, lambda *_: None)

    uvloop.run(run())
    assert release.is_set()
    assert calls == []
