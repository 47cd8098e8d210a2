"""Blocking work off the loop, as a seam: threads in production, in turn in a simulation."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

Job = Callable[[], Any]
JobDone = Callable[[Any, BaseException | None], None]


class JobRunner(Protocol):
    """Runs blocking jobs and calls back on the loop."""

    def run(self, job: Job, done: JobDone) -> None:
        """Run ``job`` elsewhere, then ``done(result, None)`` or ``done(None, error)`` here."""

    def close(self) -> None:
        """Wait for what runs; nothing is called back any more."""


class ThreadJobs:
    """Jobs on a few threads; jobs of a one-thread runner run in the order they came."""

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: int, name: str) -> None:
        self._loop = loop
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._closed = False

    def run(self, job: Job, done: JobDone) -> None:
        """Run ``job`` on a thread, ``done`` on the loop."""
        future = self._pool.submit(job)
        future.add_done_callback(lambda future: self._finished(future, done))

    def _finished(self, future: "Future[Any]", done: JobDone) -> None:
        error = future.exception()
        result = None if error is not None else future.result()
        if not self._closed:
            self._loop.call_soon_threadsafe(self._report, done, result, error)

    def _report(self, done: JobDone, result: Any, error: BaseException | None) -> None:
        if not self._closed:
            done(result, error)

    def close(self) -> None:
        """Wait for the threads to end."""
        self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)
