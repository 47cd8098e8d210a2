"""Blocking work off the loop, as a seam: threads in production, in turn in a simulation."""

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from raftkv.raft.clock import Clock

Job = Callable[[], Any]
JobDone = Callable[[Any, BaseException | None], None]


class JobRunner(Protocol):
    """Runs blocking jobs and calls back on the loop."""

    def run(self, job: Job, done: JobDone) -> None:
        """Run ``job`` elsewhere, then ``done(result, None)`` or ``done(None, error)`` here."""

    def close(self) -> None:
        """Wait for what runs; nothing is called back any more."""


class WatchedJobs:
    """Knows for how long the oldest job of a runner has been under way.

    For runners with few jobs: each costs an entry of a dictionary.
    """

    def __init__(self, jobs: JobRunner, clock: Clock) -> None:
        self._jobs = jobs
        self._clock = clock
        self._since: dict[int, float] = {}  # in the order in which they came
        self._number = 0

    @property
    def oldest_since(self) -> float | None:
        """When the oldest that has not ended was asked for, in monotonic seconds."""
        return next(iter(self._since.values()), None)

    def run(self, job: Job, done: JobDone) -> None:
        """Run ``job``, and ``done`` after it."""
        self._number += 1
        number = self._number
        self._since[number] = self._clock.monotonic()

        def finished(result: Any, error: BaseException | None) -> None:
            del self._since[number]
            done(result, error)

        self._jobs.run(job, finished)

    def close(self) -> None:
        """Wait for what runs."""
        self._jobs.close()


class ThreadJobs:
    """Jobs on a few threads; jobs of a one-thread runner run in the order they came.

    All threads are there from the start: later there may be none to be had, and a job that
    cannot run would stop the node.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: int, name: str) -> None:
        self._loop = loop
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._closed = False
        met = threading.Barrier(threads + 1)
        for _ in range(threads):
            self._pool.submit(met.wait)
        met.wait()

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


class OwnThread:
    """Jobs on one thread of their own, in the order they came.

    For the log's fdatasync, of which there are up to thousands a second: two event counters
    instead of a pool's queue, locks and future halve what a job costs beside its work. The loop
    hears of the end like of any readable descriptor.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self._loop = loop
        self._jobs: deque[tuple[Job, JobDone] | None] = deque()
        self._finished: deque[tuple[JobDone, Any, BaseException | None]] = deque()
        self._asked = os.eventfd(0, os.EFD_CLOEXEC)
        self._reported = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closed = False
        loop.add_reader(self._reported, self._report)
        # A daemon: an interpreter that ends without close() must not wait for work to come.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def run(self, job: Job, done: JobDone) -> None:
        """Run ``job`` on the thread, ``done`` on the loop."""
        if self._closed:
            raise RuntimeError("the thread is closed")
        self._jobs.append((job, done))
        os.eventfd_write(self._asked, 1)

    def _work(self) -> None:
        while True:
            os.eventfd_read(self._asked)
            while self._jobs:
                task = self._jobs.popleft()  # only this thread takes
                if task is None:
                    return
                job, done = task
                result, error = None, None
                try:
                    result = job()
                except BaseException as failure:  # noqa: BLE001 -- the loop decides what it means
                    error = failure
                self._finished.append((done, result, error))
                os.eventfd_write(self._reported, 1)

    def _report(self) -> None:
        if self._closed:  # the loop had noticed it before
            return
        os.eventfd_read(self._reported)
        while self._finished and not self._closed:
            done, result, error = self._finished.popleft()
            done(result, error)

    def close(self) -> None:
        """Wait for the job that runs; those behind it are dropped."""
        if self._closed:
            return
        self._closed = True
        self._jobs.appendleft(None)
        os.eventfd_write(self._asked, 1)
        self._thread.join()
        self._loop.remove_reader(self._reported)
        os.close(self._reported)
        os.close(self._asked)
