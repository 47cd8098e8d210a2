"""Blocking work of a simulated process: on threads that take simulated time."""

import heapq
from collections import deque
from collections.abc import Callable
from typing import Any

from raftkv.engine.jobs import Job, JobDone
from raftkv.sim.disk import SimulatedCrash
from raftkv.sim.loop import SimLoop
from raftkv.sim.scheduler import Scheduler

_AGAIN_US = 10_000
"""How soon a job looks again whether its process is frozen, or its disk stands still."""


class SimJobs:
    """A :class:`raftkv.engine.jobs.JobRunner`.

    A job is done at one moment, somewhere between its start and its report, as the disk's caches
    allow; with more than one thread, jobs overtake each other.

    Args:
        threads: how many jobs run at a time.
        duration_us: how long the next job takes.
        stands_still: whether nothing can be finished now.
        failed: called with a SimulatedCrash that a job ran into.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        loop: SimLoop,
        threads: int,
        *,
        duration_us: Callable[[], int],
        stands_still: Callable[[], bool],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._scheduler = scheduler
        self._loop = loop
        self._free_us = [0] * threads  # heap: when each thread is free
        self._duration_us = duration_us
        self._stands_still = stands_still
        self._failed = failed
        self._held: deque[tuple[Job, JobDone]] = deque()  # due, but everything stands still
        self._closed = False

    def run(self, job: Job, done: JobDone) -> None:
        """Run ``job`` when a thread is free, ``done`` on the loop after it."""
        now_us = self._scheduler.now_us
        end_us = max(heapq.heappop(self._free_us), now_us) + self._duration_us()
        heapq.heappush(self._free_us, end_us)
        self._scheduler.after(end_us - now_us, self._finish, job, done)

    def _finish(self, job: Job, done: JobDone) -> None:
        if self._held or self._stands_still():
            self._hold(job, done)
        else:
            self._do(job, done)

    def _hold(self, job: Job, done: JobDone) -> None:
        """Let it wait behind those that wait: the jobs of one thread keep their order."""
        if not self._held:
            self._scheduler.after(_AGAIN_US, self._look_again)
        self._held.append((job, done))

    def _look_again(self) -> None:
        if self._stands_still() and not self._loop.ended:
            self._scheduler.after(_AGAIN_US, self._look_again)
            return
        while self._held:
            self._do(*self._held.popleft())

    def _do(self, job: Job, done: JobDone) -> None:
        if self._loop.ended or self._closed:
            return
        result, error = None, None
        try:
            result = job()
        except SimulatedCrash as crash:
            self._failed(crash)
            return
        except Exception as raised:  # noqa: BLE001 -- a job hands back whatever went wrong
            error = raised
        self._loop.call_soon(self._report, done, result, error)

    def _report(self, done: JobDone, result: Any, error: BaseException | None) -> None:
        if not self._closed:
            done(result, error)

    def close(self) -> None:
        """Report nothing more."""
        self._closed = True
