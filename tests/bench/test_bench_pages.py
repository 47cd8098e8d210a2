"""What viewers cost: figures from pairs of runs."""

import pytest

from raftkv.bench.measures.pages import Measured, Pair, figures


def test_the_median_pair_decides() -> None:
    """One disturbed run does not; processor time is what viewers add."""
    pairs = [Pair(1000.0, 995.0), Pair(1000.0, 500.0), Pair(2000.0, 2000.0)]
    throughput, lost, cost = figures(Measured(pairs, idle_percent=3.0, viewed_percent=7.5))
    assert throughput.value == 1000.0
    assert lost.value == pytest.approx(0.5)
    assert lost.met
    assert cost.value == pytest.approx(4.5)
