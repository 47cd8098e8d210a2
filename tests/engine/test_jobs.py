"""Blocking work on a thread of its own."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from raftkv.engine.jobs import OwnThread, ThreadJobs
from raftkv.engine.node import start_resolver_threads

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


def test_no_thread_is_needed_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine may have none to give by then, and a job that cannot run would end the node."""

    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def run() -> list[Outcome]:
        jobs = ThreadJobs(asyncio.get_running_loop(), 2, "test")
        monkeypatch.setattr(threading.Thread, "start", none_left)
        reported: list[Outcome] = []
        both = threading.Barrier(2)
        for _ in range(2):
            jobs.run(both.wait, lambda *outcome: reported.append(outcome))
        async with asyncio.timeout(10):
            while len(reported) < 2:  # noqa: ASYNC110 -- reported by other threads
                await asyncio.sleep(0.001)
        jobs.close()
        return reported

    assert {error for _, error in uvloop.run(run())} == {None}


def thread_count() -> int:
    """How many threads this process has, whoever started them."""
    return len(list(Path("/proc/self/task").iterdir()))


def test_names_are_resolved_by_threads_that_are_there() -> None:
    """Libuv ends the process if it cannot start them when the first name is resolved."""

    async def threads_of(resolve_first: Callable[[Any], Any]) -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        await resolve_first(loop)
        before = thread_count()
        await loop.getaddrinfo("localhost", 80)
        return before, thread_count()

    before, after = uvloop.run(threads_of(start_resolver_threads))
    assert after == before
