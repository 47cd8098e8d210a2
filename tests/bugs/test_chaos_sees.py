"""Chaos sees: real processes with a seeded bug in them are found wanting, and right ones are not.

One bug that a few seconds show; ``python tests/tools/hunt_chaos.py`` hunts the others, and
docs/testing.md has the table.
"""

from pathlib import Path

import pytest

from raftkv.chaos.run import run_chaos
from raftkv.check.verdict import Verdict
from raftkv.testing.processes import RAFTKV_COMMAND
from tests.bugs.chaos_shapes import BEYOND_CHAOS, CHAOS_SHAPES, settings_for
from tests.bugs.seeded_bugs import BUGS
from tests.tools.hunt_chaos import command_with

BUG = "apply_twice"
DURATION_S = 6.0


@pytest.mark.cluster
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("command", "verdict"),
    [(command_with(BUG), Verdict.VIOLATION), (RAFTKV_COMMAND, Verdict.VALID)],
    ids=["with the bug", "without"],
)
def test_a_bug_in_real_nodes_is_a_violation(
    command: tuple[str, ...], verdict: Verdict, tmp_path: Path
) -> None:
    """The same run is valid without it, or being caught would mean nothing."""
    run = run_chaos(settings_for(BUG, tmp_path / "out", 1, DURATION_S, command))
    assert run.counts["ok"] > 0
    assert run.verdict is verdict, run.judgement.reasons
    if verdict is Verdict.VIOLATION:
        assert run.judgement.result.verdict is verdict, "the clients' history gives it away"


def test_at_least_half_of_all_bugs_are_within_the_reach_of_chaos() -> None:
    """And whatever is said of a bug is said of one that there is."""
    assert set(BEYOND_CHAOS) <= set(BUGS)
    assert set(CHAOS_SHAPES) <= set(BUGS) - set(BEYOND_CHAOS)
    assert len(BEYOND_CHAOS) < len(BUGS) / 2
