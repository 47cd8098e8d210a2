"""What a read of bounded age must still see."""

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

    def written(self, key: str, revision: int) -> None:
        """A write of ``key`` was acknowledged now."""
        self._written.setdefault(key, []).append((self._now_us(), revision))

    def oldest(self, key: str, max_age_ms: int | None) -> int:
        """The oldest revision that a read of ``key`` that begins now may return."""
        if max_age_ms is None:
            return 0
        before_us = self._now_us() - max_age_ms * US_PER_MS * CLOCK_TOLERANCE
        known = (revision for at_us, revision in self._written.get(key, ()) if at_us < before_us)
        return max(known, default=0)

    def check(self, key: str, oldest: int, revision: int, max_age_ms: int | None) -> None:
        """Compare what was read with what had to be seen.

        Raises:
            Violation: it is older.
        """
        if revision < oldest:
            raise Violation(
                f"a stale read of {key} with max_age_ms={max_age_ms} returned revision {revision}, "
                f"but {oldest} was acknowledged longer ago than that"
            )
