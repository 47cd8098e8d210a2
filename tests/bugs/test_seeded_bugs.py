"""The harness sees: each seeded bug, switched on, is caught by simulation within a few seeds.

``python tests/bugs/hunt.py`` says how long each stays hidden; docs/testing.md has the table.
"""

import pytest
from seeded_bugs import BUGS, QUICK, SHAPES

from raftkv.sim.options import Options
from raftkv.sim.run import run

SEEDS_MAX = 25
MINUTES = 3.0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", BUGS)
def test_every_seeded_bug_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In runs of a shape that favours it, by whichever check sees it first."""
    BUGS[name](monkeypatch.setattr)
    for seed in range(SEEDS_MAX):
        report = run(Options.of(seed, MINUTES, **SHAPES.get(name, {})))
        if report.violation is not None:
            return
    pytest.fail(f"{name} was not caught by {SEEDS_MAX} seeds")


@pytest.mark.parametrize("seed", range(3))
def test_without_a_bug_nothing_is_found(seed: int) -> None:
    """Otherwise being caught would mean nothing."""
    report = run(Options.of(seed, MINUTES, **QUICK))
    assert report.violation is None, f"seed {seed}: {report.violation}"
    assert report.operations > 0
