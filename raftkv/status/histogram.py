"""Counts of durations by size, as histograms want them."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

SYNC_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""From an fdatasync of a good SSD to one that deposes leaders."""

HTTP_BOUNDS_S = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
"""Of an HTTP request, from its head to its complete answer."""


class DurationCounts:
    """How many durations there were up to each bound, since the start."""

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self._bounds_s = tuple(bounds_s)
        self._counts = [0] * (len(self._bounds_s) + 1)
        self._sum_s = 0.0

    def note(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds_s, seconds)] += 1
        self._sum_s += seconds

    def add(self, counts: Sequence[int], sum_s: float) -> None:
        """Add the counts of others, by the same bounds."""
        self._counts = [own + other for own, other in zip(self._counts, counts, strict=True)]
        self._sum_s += sum_s

    def take(self) -> tuple[tuple[int, ...], float]:
        """Return the counts and the sum in seconds, and begin anew."""
        taken = tuple(self._counts), self._sum_s
        self._counts, self._sum_s = [0] * len(self._counts), 0.0
        return taken

    def facts(self) -> dict[str, Any]:
        """Bounds in seconds, how many fell up to each and beyond the last, and their sum."""
        return {"bounds_s": self._bounds_s, "counts": tuple(self._counts), "sum_s": self._sum_s}
