"""Time-outs of very many requests, cheaply: one timer for all of them.

Requests are kept in buckets of a few hundredths of a second; a request that is answered in time,
as nearly all are, costs one dictionary entry in and out.
"""

import asyncio
from collections.abc import Callable

from raftkv.engine.requests import Pending
from raftkv.raft.clock import Clock

BUCKET_S = 0.05


class Deadlines:
    """Finishes requests with what is known once their time is up.

    Args:
        expired: called for each request that ran out of time.
    """

    def __init__(
        self, clock: Clock, loop: asyncio.AbstractEventLoop, expired: Callable[[Pending], None]
    ) -> None:
        self._clock = clock
        self._loop = loop
        self._expired = expired
        self._buckets: dict[int, dict[Pending, None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, pending: Pending) -> None:
        """Watch over ``pending``."""
        bucket = int(pending.deadline / BUCKET_S) + 1
        self._buckets.setdefault(bucket, {})[pending] = None
        if self._timer is None:
            self._timer = self._loop.call_later(BUCKET_S, self._sweep)

    def remove(self, pending: Pending) -> None:
        """Forget one that was answered."""
        bucket = int(pending.deadline / BUCKET_S) + 1
        members = self._buckets.get(bucket)
        if members is not None:
            members.pop(pending, None)
            if not members:
                del self._buckets[bucket]  # so that nobody sweeps while nothing waits

    def _sweep(self) -> None:
        self._timer = None
        now = int(self._clock.monotonic() / BUCKET_S)
        for bucket in [b for b in self._buckets if b <= now]:
            for pending in self._buckets.pop(bucket):
                if not pending.answered:
                    self._expired(pending)
        if self._buckets:
            self._timer = self._loop.call_later(BUCKET_S, self._sweep)

    def close(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
        self._buckets.clear()
