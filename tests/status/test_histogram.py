"""Counts of durations: each falls into the first bucket that holds it."""

from raftkv.status.histogram import DurationCounts


def test_durations_are_counted_by_their_bounds() -> None:
    """A bound belongs to its own bucket; what is beyond the last has a bucket too."""
    durations = DurationCounts((0.01, 0.1))
    for seconds in (0.001, 0.01, 0.05, 0.1, 7.0):
        durations.note(seconds)
    facts = durations.facts()
    assert facts["bounds_s"] == (0.01, 0.1)
    assert facts["counts"] == (2, 2, 1)
    assert round(facts["sum_s"], 3) == 7.161
