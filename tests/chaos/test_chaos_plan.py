"""The plan of a run: decided by the seed alone, fair to every fault, and never reckless."""

import subprocess
import sys

import pytest

from raftkv.chaos.plan import (
    ACCOMPANYING,
    FAULTS,
    HOLD_FACTORS,
    LONE,
    VARIANTS,
    Round,
    minority,
    plan,
)

NODES = ("n1", "n2", "n3")


def rounds(
    seed: int = 7, duration_s: float = 3600.0, faults: tuple[str, ...] = FAULTS
) -> list[Round]:
    """A plan for three nodes and four shards with election time-outs of a second."""
    return list(plan(seed, faults, NODES, 4, election_timeout_s=1.0, duration_s=duration_s))


def test_the_same_seed_gives_the_same_plan_in_another_process() -> None:
    """Nothing but the arguments decides, not even how strings are hashed."""
    script = (
        "from raftkv.chaos.plan import *;"
        "print([str(r) for r in plan(7, FAULTS, ('n1','n2','n3'), 4,"
        " election_timeout_s=1.0, duration_s=600.0)])"
    )
    said = {
        subprocess.run(  # noqa: S603 -- our own script
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert said == {f"{[str(r) for r in rounds(duration_s=600.0)]}\n"}


def test_another_seed_gives_another_plan() -> None:
    """A run with a new seed is a new run."""
    assert rounds(seed=7) != rounds(seed=8)


def test_a_longer_run_begins_like_a_shorter_one() -> None:
    """The duration only says where the plan ends."""
    short, long = rounds(duration_s=60.0), rounds(duration_s=600.0)
    assert long[: len(short)] == short
    assert len(long) > len(short)


def test_every_variant_of_every_fault_has_its_turn() -> None:
    """Nothing is left to luck in a run that is long enough."""
    seen = {(step.kind, step.variant) for one in rounds() for step in one.steps}
    assert seen == {(kind, variant) for kind in VARIANTS for variant in VARIANTS[kind]}


def test_faults_of_the_data_are_alone() -> None:
    """With anything else at the same time they could take a majority's data."""
    for one in rounds():
        if any(step.kind in LONE for step in one.steps):
            assert len(one.steps) == 1


def test_two_faults_at_once_are_different_and_common() -> None:
    """Overlap is where the interesting histories are."""
    pairs = [one for one in rounds() if len(one.steps) == 2]
    assert len(pairs) > len(rounds()) / 3
    assert all(one.steps[0].kind != one.steps[1].kind for one in pairs)


def test_each_fault_holds_for_two_election_timeouts() -> None:
    """Anything shorter might go unnoticed."""
    assert HOLD_FACTORS[0] >= 2
    assert all(one.hold_s >= 2.0 for one in rounds())


@pytest.mark.parametrize("kind", FAULTS)
def test_one_fault_alone_can_be_asked_for(kind: str) -> None:
    """A plan has only what was asked for."""
    found = {step.kind for one in rounds(faults=(kind,)) for step in one.steps}
    assert found == {kind}


def test_no_faults_no_rounds() -> None:
    """A run without faults is a run of clients only."""
    assert rounds(faults=()) == []


def test_accompanying_faults_only() -> None:
    """They can make up a plan among themselves."""
    found = {step.kind for one in rounds(faults=ACCOMPANYING) for step in one.steps}
    assert found == set(ACCOMPANYING)


@pytest.mark.parametrize(
    ("nodes", "few"), [("a", ""), ("abc", "a"), ("abcd", "a"), ("abcde", "ab")]
)
def test_a_minority_is_what_a_group_can_lose(nodes: str, few: str) -> None:
    """Fewer than half."""
    assert minority(tuple(nodes)) == tuple(few)
