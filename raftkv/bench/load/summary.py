"""What is said of a set of latencies."""

import math
from collections.abc import Sequence
from statistics import median

import msgspec


class Summary(msgspec.Struct, frozen=True):
    """Seconds; all None if nothing was measured."""

    count: int
    median_s: float | None = None
    p99_s: float | None = None
    worst_s: float | None = None


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least ``share`` of all samples do not exceed.

    Nearest rank: always a value that was really measured, never a mean of two.
    """
    if not samples:
        raise ValueError("no samples")
    if not 0 <= share <= 1:
        raise ValueError(f"{share} is not between 0 and 1")
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]


def summarize(samples: Sequence[float]) -> Summary:
    """Median, 99th percentile and worst."""
    if not samples:
        return Summary(0)
    return Summary(len(samples), percentile(samples, 0.5), percentile(samples, 0.99), max(samples))


def spread(ratios: Sequence[float]) -> str:
    """Ratios as text: median (lowest..highest)."""
    return f"{median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"
