"""Whole simulated lives of clusters, of a few fixed seeds; ``raftkv sim`` runs thousands."""

import pytest

from raftkv.sim.options import Options
from raftkv.sim.run import run


@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_wrong_in_five_minutes_with_faults(seed: int) -> None:
    """No invariant is broken, no history is wrong, everybody agrees and is answered in the end."""
    options = Options.of(seed)
    report = run(options)
    assert report.violation is None, f"{report.violation}\n{options.describe()}"
    assert report.simulated_s >= options.minutes * 60
    assert report.outcomes["ok"] > report.operations / 2
