"""What a read of bounded age must still see."""

import math
from collections import Counter
from collections.abc import Callable

from raftkv.sim.violation import Violation

CLOCK_TOLERANCE = 1.4
"""Ages are measured by the follower's clock, which may run slower than the world's."""

US_PER_MS = 1000


class Staleness:
    """Remembers when writes were acknowledged, and judges reads that promise an age."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self._now_us = now_us
        self._written: dict[str, list[tuple[int, int]]] = {}  # key -> (acknowledged at, revision)
        self._deleting: Counter[str] = Counter()  # deletes that may have happened, or may yet
        self._deleted: dict[str, int] = {}  # key -> revision of the latest delete that is known

    def written(self, key: str, revision: int) -> None:
        """A write or delete of ``key`` was acknowledged now."""
        self._written.setdefault(key, []).append((self._now_us(), revision))

    def deleting(self, key: str) -> None:
        """A delete of ``key`` begins; its outcome is unknown until :meth:`deleted`."""
        self._deleting[key] += 1

    def deleted(self, key: str, revision: int | None) -> None:
        """A delete of ``key`` ended: with this revision, or (None) it certainly did nothing."""
        self._deleting[key] -= 1
        if revision is not None:
            self._deleted[key] = max(revision, self._deleted.get(key, 0))
            self.written(key, revision)

    def oldest(self, key: str, max_age_ms: int | None) -> int:
        """The oldest revision that a read of ``key`` that begins now may return."""
        if max_age_ms is None:
            return 0
        before_us = self._now_us() - max_age_ms * US_PER_MS * CLOCK_TOLERANCE
        known = (revision for at_us, revision in self._written.get(key, ()) if at_us < before_us)
        return max(known, default=0)

    def check(self, key: str, oldest: int, revision: int | None, max_age_ms: int | None) -> None:
        """Compare what was read (None: no entry) with what had to be seen.

        Raises:
            Violation: it is older.
        """
        newest = self._newest_absence(key) if revision is None else revision
        if newest < oldest:
            found = "no entry" if revision is None else f"revision {revision}"
            raise Violation(
                f"a stale read of {key} with max_age_ms={max_age_ms} returned {found}, "
                f"but {oldest} was acknowledged longer ago than that"
            )

    def _newest_absence(self, key: str) -> float:
        """The latest revision at which there may have been no entry."""
        return math.inf if self._deleting[key] else self._deleted.get(key, 0)
